//! The program itself: what it prints, what it leaves behind, how it ends.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

fn program(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_marquee-serving"));
    command.args(args).arg("--root").arg(root).current_dir(root);
    command
}

fn run(root: &Path, args: &[&str]) -> Output {
    program(root, args).output().unwrap()
}

/// Starts a server on free ports and waits for the line that it is ready.
fn serve(root: &Path) -> (Child, String) {
    let free = "127.0.0.1:0";
    let (listen, http) = (format!("listen={free}"), format!("http_listen={free}"));
    let mut server = program(root, &["serve", "--set", &listen, "--set", &http])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    (server, line)
}

fn terminate(mut server: Child) -> Option<i32> {
    let killed = Command::new("kill").arg(server.id().to_string()).status();
    assert!(killed.unwrap().success());
    server.wait().unwrap().code()
}

#[test]
fn a_server_says_where_it_is_answers_and_ends_cleanly_on_sigterm() {
    let root = tempfile::tempdir().unwrap();
    let (server, line) = serve(root.path());
    assert!(line.starts_with("serving house ads"), "{line}");
    let path = root.path().join("serving.addr");
    let text = std::fs::read_to_string(&path).unwrap();
    let addresses: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(line.contains(addresses["grpc"].as_str().unwrap()), "{line}");
    assert!(line.contains(addresses["http"].as_str().unwrap()), "{line}");

    let asked = run(
        root.path(),
        &["ask", "--json", "--user", "u1", "--slots", "2"],
    );
    assert_eq!(asked.status.code(), Some(0));
    let answer: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert_eq!(answer["explain"]["degradation"], "DEGRADATION_HOUSE_ADS");
    assert_eq!(answer["winners"][0]["creative_id"], "house");

    assert_eq!(terminate(server), Some(0));
    assert!(!path.exists(), "the address of a stopped server is gone");
}

#[test]
fn asking_without_a_server_says_how_to_start_one() {
    let root = tempfile::tempdir().unwrap();
    let asked = run(root.path(), &["ask"]);
    assert_eq!(asked.status.code(), Some(1));
    let error = String::from_utf8(asked.stderr).unwrap();
    assert!(
        error.contains("start `marquee serve configs/serving.toml`"),
        "{error}"
    );
}

#[test]
fn an_unknown_key_is_a_usage_error_with_a_hint() {
    let root = tempfile::tempdir().unwrap();
    let refused = run(root.path(), &["serve", "--set", "lisen=127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(2));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("did you mean `listen`?"), "{error}");
}

#[test]
fn a_damaged_log_is_told_and_stops_the_start() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("log/serving");
    std::fs::create_dir_all(&folder).unwrap();
    let mut bytes = vec![3, 0, 0, 0, 1, 2, 3, 4, 7, 7, 7];
    bytes.extend_from_within(..);
    std::fs::write(folder.join(format!("{:020}.seg", 0)), bytes).unwrap();
    let free = [
        "--set",
        "listen=127.0.0.1:0",
        "--set",
        "http_listen=127.0.0.1:0",
    ];
    let refused = run(root.path(), &[&["serve"][..], &free].concat());
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(
        error.contains("opening the event log") && error.contains("damaged"),
        "{error}"
    );
}

#[test]
fn the_resolved_configuration_can_be_printed() {
    let root = tempfile::tempdir().unwrap();
    let printed = run(
        root.path(),
        &["serve", "--print-config", "--set", "stages.rank_ms=7"],
    );
    assert_eq!(printed.status.code(), Some(0));
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(
        text.contains("rank_ms = 7") && text.contains("channel = \"live\""),
        "{text}"
    );
}
