//! A Redis Cluster of three real nodes.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// Three nodes on ports of this machine; they end when this is dropped.
#[derive(Debug)]
pub struct RedisCluster {
    /// Their addresses as URLs, of those that have keys at the start first.
    pub nodes: Vec<String>,
    folder: TempDir,
    script: Child,
}

impl RedisCluster {
    /// Starts them with `launch/redis-cluster`.
    ///
    /// # Panics
    /// If they do not start; `launch/setup` installs Redis.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same over TLS, with a certificate that [`Self::ca_file`] vouches for.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_with_tls() -> Self {
        Self::start_with(&["--tls"])
    }

    /// The same with three more nodes, which stand by.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_with_replicas() -> Self {
        Self::start_with(&["--replicas"])
    }

    /// Whom to trust over TLS.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn start_with(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        // Its input ends when this process does, however it does.
        let mut script = Command::new(top.join("launch/redis-cluster"))
            .args(options)
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("launch/redis-cluster can be run");
        let output = script.stdout.take().expect("its output is piped");
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        let nodes = line.trim().strip_prefix("ready ");
        let nodes = nodes.unwrap_or_else(|| panic!("launch/redis-cluster: {read:?} {line}"));
        Self {
            nodes: nodes.split(' ').map(str::to_owned).collect(),
            folder,
            script,
        }
    }

    fn port(&self, node: usize) -> &str {
        self.nodes[node].rsplit(':').next().unwrap_or_default()
    }

    /// What one node answers to a command.
    ///
    /// # Panics
    /// If `redis-cli` cannot be run.
    pub fn cli(&self, node: usize, command: &[&str]) -> String {
        let done = Command::new("redis-cli")
            .args(["-p", self.port(node)])
            .args(command)
            .output()
            .expect("redis-cli can be run");
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// Sends a signal to one node, such as `STOP` to freeze it, `CONT` to let it go on, `KILL`.
    ///
    /// # Panics
    /// If its process is not there.
    pub fn signal(&self, node: usize, name: &str) {
        let file = self.folder.path().join(self.port(node)).join("redis.pid");
        let id = fs::read_to_string(&file).expect("a node writes its process id");
        let mut kill = Command::new("kill");
        kill.args([&format!("-{name}"), id.trim()]);
        let done = kill.status().expect("kill can be run");
        assert!(done.success(), "kill -{name} {id}");
    }

    /// What the node that has a key answers to a command on it.
    pub fn cli_of(&self, key: &str, command: &[&str]) -> String {
        let answers = (0..self.nodes.len()).map(|node| self.cli(node, command));
        let mut own = answers.filter(|answer| !answer.starts_with("MOVED"));
        own.next().unwrap_or_else(|| panic!("no node has {key}"))
    }

    /// All keys of all nodes, sorted.
    pub fn keys(&self) -> Vec<String> {
        let of = |node| self.cli(node, &["--scan"]);
        let keys = (0..self.nodes.len()).map(of);
        let mut keys: Vec<String> = keys
            .flat_map(|keys| keys.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        keys.sort();
        keys
    }
}

impl Drop for RedisCluster {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        // It kills the nodes first.
        let _ = self.script.wait();
    }
}
