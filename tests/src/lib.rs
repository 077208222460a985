//! End-to-end tests over the real programs.
//!
//! The tests lie in `tests/`; here is what they share: a way to run `marquee` as a person would,
//! on a data folder of its own, and to look at how it ended. The programs must have been built
//! before, by the same profile (as `launch/test` does): a test of one crate cannot ask Cargo for
//! the binaries of another.

mod redis;

use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

pub use redis::RedisCluster;
use serde_json::Value;
use tempfile::TempDir;

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it told a person.
    pub stderr: String,
}

impl Ended {
    /// Its standard output as JSON.
    ///
    /// # Panics
    /// If it is not.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:#?}"))
    }

    /// Asserts that it ended well, and gives it back.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// Asserts that it ended with this code and told these parts on stderr.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn refused(self, code: i32, told: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        for part in told {
            assert!(
                self.stderr.contains(part),
                "`{part}` is not told: {self:#?}"
            );
        }
        self
    }
}

/// A world of some thousand impressions.
pub const TINY_WORLD: [&str; 13] = [
    "configs/world-procedural.toml",
    "--set",
    "users=60",
    "--set",
    "creatives=60",
    "--set",
    "campaigns=12",
    "--set",
    "days=4",
    "--set",
    "impressions_per_day=2000",
    "--set",
    "delivery.broken_share=0.0",
];

/// `marquee train` of a small click model on such a world's table, with frequent checkpoints.
pub const TRAIN: [&str; 10] = [
    "train",
    "configs/ctr.toml",
    "--set",
    "training.epochs=2",
    "--set",
    "training.batch_size=32",
    "--set",
    "checkpoint.every_steps=4",
    "-v",
    "--json",
];

/// A data folder of a test's own.
pub struct Bench {
    /// The folder; it goes when the bench is dropped.
    pub root: TempDir,
}

impl Default for Bench {
    fn default() -> Self {
        let root = tempfile::tempdir().expect("the system makes a temporary folder");
        Self { root }
    }
}

impl Bench {
    /// `marquee ARGS…` from the top of the checkout, on this data folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(marquee());
        command
            .args(args)
            .current_dir(checkout())
            .env("MARQUEE_ROOT", self.root.path())
            .env_remove("RUST_LOG");
        command
    }

    /// Runs `marquee ARGS…` to its end.
    ///
    /// # Panics
    /// If it cannot be started, or a signal ended it.
    pub fn run(&self, args: &[&str]) -> Ended {
        let output = self.command(args).output().expect("marquee starts");
        ended(&output)
    }

    /// A data folder with the training table of a tiny world.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn with_table() -> Self {
        let bench = Self::default();
        bench
            .run(&[&["world", "generate"][..], &TINY_WORLD].concat())
            .ok();
        bench.run(&["events", "process", "--flush"]).ok();
        bench
    }

    /// Starts `marquee serve` on free ports, with time enough for a busy machine, and waits until it
    /// says where it listens.
    ///
    /// # Panics
    /// If it does not start.
    pub fn serve(&self) -> Server {
        let any_port = [
            "--set",
            "listen=127.0.0.1:0",
            "--set",
            "http_listen=127.0.0.1:0",
        ];
        let patient = [
            "--set",
            "deadline_ms=20000",
            "--set",
            "max_deadline_ms=20000",
            "--set",
            "stages={assemble_ms=5000,retrieve_ms=5000,prescore_ms=5000,rank_ms=5000}",
        ];
        let serve = ["serve", "configs/serving.toml", "--json"];
        let mut process = self
            .command(&[&serve[..], &any_port, &patient].concat())
            .stdout(Stdio::piped())
            .spawn()
            .expect("marquee starts");
        let stdout = process.stdout.take().expect("it was piped just now");
        let mut announced = String::new();
        BufReader::new(stdout)
            .read_line(&mut announced)
            .expect("the server speaks UTF-8");
        assert!(announced.contains("grpc"), "{announced}");
        Server { process }
    }

    /// A JSON file in the data folder.
    ///
    /// # Panics
    /// If it is not there or not JSON.
    pub fn read_json(&self, path: &str) -> Value {
        let text = std::fs::read_to_string(self.root.path().join(path))
            .unwrap_or_else(|error| panic!("reading {path}: {error}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("reading {path}: {error}"))
    }
}

/// A running server; it is killed when dropped.
pub struct Server {
    process: Child,
}

impl Server {
    /// Asks it to end, and gives its exit code; none if a signal ended it.
    ///
    /// # Panics
    /// If the system cannot send the signal.
    pub fn stop(mut self) -> Option<i32> {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.expect("kill starts").success());
        let status = self.process.wait().expect("the server is our child");
        status.code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How a program ended, whose output was taken.
///
/// # Panics
/// If a signal ended it.
pub fn ended(output: &Output) -> Ended {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let code = output
        .status
        .code()
        .unwrap_or_else(|| panic!("ended by a signal: {stdout}{stderr}"));
    Ended {
        code,
        stdout,
        stderr,
    }
}

/// The top of the checkout.
pub fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The front door, from the folder that this test was built into.
fn marquee() -> PathBuf {
    let test = env::current_exe().expect("a running program has a path");
    let built = test
        .ancestors()
        .nth(2)
        .expect("tests lie in target/<profile>/deps");
    let path = built.join("marquee");
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --workspace --bins` first, by the profile of this test",
        path.display()
    );
    path
}
