//! Checkpoints in an object store, from which another machine goes on.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use marquee_tests::{Bench, Ended, TRAIN, ended};

/// An S3 server of our own, on loopback: `launch/setup` installs it.
struct S3 {
    server: Child,
    address: String,
}

impl S3 {
    fn start() -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/moto_server");
        let mut server = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; run launch/setup", program.display()));
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("http://")?.1.trim().to_owned()))
            .expect("the server says where it is");
        // What it says of requests must go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        let s3 = Self { server, address };
        s3.ask("PUT /marquee");
        s3
    }

    /// The answer to a request without a body.
    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let host = &self.address;
        let head = format!(
            "{request} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer
    }

    /// Whether some checkpoint is whole.
    fn has_checkpoint(&self) -> bool {
        self.ask("GET /marquee?list-type=2")
            .contains("manifest.json</Key>")
    }

    fn train(&self, bench: &Bench, more: &[&str]) -> Command {
        let dynamic = [
            "--set",
            "tables.rows=2048",
            "--set",
            "tables.dynamic.user_id.admit_after=2",
        ];
        let mut command = bench.command(&[&TRAIN[..], &dynamic, more].concat());
        command
            .env("AWS_ENDPOINT", format!("http://{}", self.address))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test");
        command
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

const THERE: [&str; 2] = ["--set", "checkpoint.url=\"s3://marquee/runs\""];

fn run(command: &mut Command) -> Ended {
    ended(&command.output().expect("marquee starts"))
}

/// What a training found, without what depends on the clock and the folder.
fn found(ended: &Ended) -> Vec<serde_json::Value> {
    let report = ended.json();
    ["auc", "log_loss", "artifact", "curve"]
        .map(|key| report[key].clone())
        .into()
}

#[test]
fn another_machine_goes_on_from_the_object_store() {
    let (bench, s3) = (Bench::with_table(), S3::start());
    let wanted = run(&mut s3.train(&bench, &[])).ok();

    let mut first = s3
        .train(&bench, &THERE)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(first.stderr.take().unwrap()).lines();
    let trained = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.contains("trained"));
    assert!(trained, "it took steps");
    let pid = first.id().to_string();
    let sent = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(sent.unwrap().success());
    lines.for_each(drop);
    assert_eq!(first.wait().unwrap().code(), Some(75));
    assert!(s3.has_checkpoint());

    // The machine is lost, and its folder of runs with it.
    std::fs::remove_dir_all(bench.root.path().join("runs")).unwrap();
    let second = run(&mut s3.train(&bench, &THERE)).ok();
    assert!(second.stderr.contains("going on"), "{second:#?}");
    assert_eq!(found(&second)[..3], found(&wanted)[..3]);
    assert!(!s3.has_checkpoint(), "it is done");

    // Nothing is left for a third to go on with.
    let third = run(&mut s3.train(&bench, &THERE)).ok();
    assert!(!third.stderr.contains("going on"), "{third:#?}");
    assert_eq!(found(&third), found(&wanted));
}

#[test]
fn an_address_that_is_none_is_told_with_its_key() {
    let bench = Bench::with_table();
    let s3 = [
        "train",
        "configs/ctr.toml",
        "--set",
        "checkpoint.url=\"elsewhere\"",
    ];
    bench
        .run(&s3)
        .refused(2, &["checkpoint.url is `elsewhere`"]);
}
