//! Training by several processes, and what it survives.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use marquee_tests::{Bench, TRAIN, ended};
use serde_json::Value;

/// Small tables, and no long wait for a rank that is lost.
const HASTE: [&str; 4] = [
    "--set",
    "tables.rows=512",
    "--set",
    "collective.timeout_seconds=2.0",
];

fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&TRAIN[..], &HASTE, more].concat()
}

/// `marquee launch run FLAGS -- train …` with its lines to read.
struct Launched {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
    /// Process numbers of the ranks of this attempt.
    pids: Vec<String>,
    seen: Vec<String>,
}

impl Launched {
    fn start(bench: &Bench, flags: &[&str], more: &[&str]) -> Self {
        Self::verb(bench, flags, &train(more))
    }

    /// `marquee launch run FLAGS -- VERB`.
    fn verb(bench: &Bench, flags: &[&str], verb: &[&str]) -> Self {
        let words = [&["launch", "run"], flags, &["--"], verb].concat();
        let mut process = bench
            .command(&words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("marquee starts");
        let stderr = process.stderr.take().expect("it was piped just now");
        Self {
            process,
            lines: BufReader::new(stderr).lines(),
            pids: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// The next line; none when all processes have ended.
    fn next(&mut self) -> Option<String> {
        let line = self.lines.next()?.expect("UTF-8");
        if let Some(place) = line.strip_prefix("[launch] rank ")
            && let Some((rank, pid)) = place.split_once(" is process ")
        {
            self.pids.truncate(rank.parse().unwrap());
            self.pids.push(pid.to_owned());
        }
        self.seen.push(line.clone());
        Some(line)
    }

    /// Reads on until a line has this in it.
    fn until(&mut self, part: &str) {
        while let Some(line) = self.next() {
            if line.contains(part) {
                return;
            }
        }
        panic!("`{part}` was not told: {:#?}", self.seen);
    }

    /// Reads to the end; exit code and lines.
    fn end(mut self) -> (Option<i32>, Vec<String>) {
        while self.next().is_some() {}
        let status = self.process.wait().expect("our child");
        (status.code(), self.seen)
    }
}

/// Sends a signal; the process may be gone.
fn signal(name: &str, pid: &str) {
    let sent = Command::new("kill")
        .args([name, pid])
        .stderr(Stdio::null())
        .status();
    sent.expect("kill starts");
}

/// Files and state of the newest checkpoint of the newest run: digests of all that is learnt.
fn learnt(bench: &Bench) -> Value {
    let newest = |dir: PathBuf, with: &str| -> PathBuf {
        let entries =
            fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let paths = entries.map(|entry| entry.unwrap().path().join(with));
        let there = paths.filter(|path| path.exists());
        there.max().expect("something is there")
    };
    let checkpoints = newest(bench.root.path().join("runs"), "checkpoints");
    let manifest = newest(checkpoints, "manifest.json");
    serde_json::from_str(&fs::read_to_string(manifest).unwrap()).unwrap()
}

/// `(step, loss)` of the newest run's metrics.
fn losses(bench: &Bench) -> Vec<(u64, f64)> {
    let runs = fs::read_dir(bench.root.path().join("runs")).unwrap();
    let run = runs.map(|entry| entry.unwrap().path()).max().unwrap();
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?)))
        .collect()
}

/// Numbers that look random and are the same in every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Kills ranks at random moments, so many times, and compares what is learnt in the end with a
/// run that nobody disturbed.
fn soak(kills: usize) {
    let bench = Bench::with_table();
    let flags = [
        "--nproc",
        "2",
        "--max-restarts",
        "1000",
        "--back-off-seconds",
        "0",
    ];
    let (code, seen) = Launched::start(&bench, &flags, &[]).end();
    assert_eq!(code, Some(0), "{seen:#?}");
    let (wanted, curve) = (learnt(&bench), losses(&bench));
    assert!(curve.len() > 10, "{curve:?}");

    let mut draw = Draw(kills as u64);
    let mut killed = 0;
    while killed < kills {
        let before = fs::read_dir(bench.root.path().join("runs"))
            .unwrap()
            .count();
        let mut run = Launched::start(&bench, &flags, &[]);
        let mut lines = draw.below(4);
        while let Some(line) = run.next() {
            let starting = line.contains("is process") && run.pids.len() == 2;
            // Now while ranks start, now while they learn and save.
            let moment = match starting {
                true => draw.below(10) == 0,
                false => {
                    line.contains("trained") && {
                        lines = lines.wrapping_sub(1);
                        lines == u64::MAX
                    }
                }
            };
            if moment && killed < kills {
                lines = draw.below(3);
                let victim = run.pids[draw.below(2) as usize].clone();
                signal("-KILL", &victim);
                killed += 1;
                run.until("restart");
            }
        }
        let (code, seen) = run.end();
        assert_eq!(code, Some(0), "{seen:#?}");
        assert_eq!(learnt(&bench), wanted, "after {killed} kills");
        assert_eq!(losses(&bench), curve, "after {killed} kills");
        let after = fs::read_dir(bench.root.path().join("runs"))
            .unwrap()
            .count();
        assert_eq!(after, before + 1, "all attempts are one run");
    }
}

#[test]
fn a_hundred_kills_change_nothing_of_what_is_learnt() {
    soak(100);
}

#[test]
fn a_stopped_run_saves_itself_and_the_same_command_goes_on() {
    let bench = Bench::with_table();
    let flags = ["--nproc", "2"];
    let (code, seen) = Launched::start(&bench, &flags, &[]).end();
    assert_eq!(code, Some(0), "{seen:#?}");
    let wanted = learnt(&bench);

    let mut run = Launched::start(&bench, &flags, &[]);
    run.until("trained");
    signal("-TERM", &run.process.id().to_string());
    let (code, seen) = run.end();
    assert_eq!(code, Some(75), "{seen:#?}");
    assert!(
        seen.iter()
            .any(|line| line.contains("run the same command again")),
        "{seen:#?}"
    );
    let mut run = Launched::start(&bench, &flags, &[]);
    run.until("going on");
    let (code, seen) = run.end();
    assert_eq!(code, Some(0), "{seen:#?}");
    assert_eq!(learnt(&bench), wanted);
}

/// A small picture encoder, and many epochs.
const VISUAL: [&str; 12] = [
    "train",
    "configs/visual.toml",
    "--set",
    "epochs=60",
    "--set",
    "batch_size=32",
    "--set",
    "augment.colour=0.1",
    "--set",
    "checkpoint.every_steps=3",
    "-v",
    "--json",
];

#[test]
fn a_picture_encoder_is_stopped_and_killed_and_learns_the_same() {
    let bench = Bench::with_table();
    bench.run(&["features", "materialize"]).ok();
    let flags = ["--nproc", "2", "--back-off-seconds", "0"];
    let (code, seen) = Launched::verb(&bench, &flags, &VISUAL).end();
    assert_eq!(code, Some(0), "{seen:#?}");
    let (wanted, curve) = (learnt(&bench), losses(&bench));
    let report = || {
        let mut report = bench.read_json("reports/visual.json");
        report.as_object_mut().unwrap().remove("samples_per_second");
        report
    };
    let reported = report();

    let mut run = Launched::verb(&bench, &flags, &VISUAL);
    run.until("trained");
    signal("-TERM", &run.process.id().to_string());
    let (code, seen) = run.end();
    assert_eq!(code, Some(75), "{seen:#?}");
    // Another configuration does not go on with it.
    let runs = bench.root.path().join("runs");
    let run = runs.join("visual-002").display().to_string();
    let other = [&VISUAL[..], &["--seed", "7", "--resume", &run]].concat();
    bench
        .run(&other)
        .refused(1, &["its configuration or its table has changed"]);
    let mut run = Launched::verb(&bench, &flags, &VISUAL);
    run.until("going on");
    run.until("trained");
    signal("-KILL", &run.pids[1].clone());
    run.until("restart");
    run.until("going on");
    let (code, seen) = run.end();
    assert_eq!(code, Some(0), "{seen:#?}");
    assert_eq!(learnt(&bench), wanted);
    assert_eq!(losses(&bench), curve);
    assert_eq!(report(), reported);
    assert!(!runs.join("visual-003").exists(), "all parts are one run");

    let never = [&VISUAL[..], &["--set", "epochs=1", "--resume", "never"]].concat();
    bench.run(&never).ok();
    assert!(runs.join("visual-003").exists(), "a run of its own");
}

/// A disk that takes no more is, to the program that writes, a write that fails half-way; so is a
/// file beyond the limit of its size, which anyone can set.
#[test]
fn a_disk_that_takes_no_checkpoint_is_told_and_the_run_goes_on_from_the_one_before() {
    let bench = Bench::with_table();
    bench.run(&train(&["--resume", "never"])).ok();
    let wanted = learnt(&bench);

    let mut run = Launched::start(&bench, &["--nproc", "1"], &[]);
    run.until("trained");
    signal("-TERM", &run.process.id().to_string());
    assert_eq!(run.end().0, Some(75));
    let before = learnt(&bench);

    let plain = bench.command(&train(&[]));
    let full = Command::new("bash")
        .args(["-c", r#"trap '' XFSZ; ulimit -f 64; exec "$0" "$@""#])
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(plain.get_current_dir().expect("the checkout"))
        .env("MARQUEE_ROOT", bench.root.path())
        .output();
    let full = ended(&full.expect("bash starts"));
    // Those between are told; without that of an epoch's end there is no going on.
    full.refused(1, &["a checkpoint was not written", "writing", "trained"]);
    assert_eq!(learnt(&bench), before, "no part of one is left as if whole");

    let again = bench.run(&train(&[])).ok();
    assert!(again.stderr.contains("going on"), "{again:#?}");
    assert_eq!(learnt(&bench), wanted);
}

#[test]
fn a_rank_that_hangs_is_named_and_the_run_goes_on() {
    let bench = Bench::with_table();
    let flags = ["--nproc", "3", "--grace-seconds", "1"];
    let mut run = Launched::start(&bench, &flags, &[]);
    run.until("trained");
    let victim = run.pids[2].clone();
    signal("-STOP", &victim);
    run.until("rank 2 has been silent for 2 s");
    run.until("restart 1 of 3");
    let (code, seen) = run.end();
    assert_eq!(code, Some(0), "{seen:#?}");
    assert!(
        seen.iter().any(|line| line.contains("going on")),
        "{seen:#?}"
    );
}

#[test]
fn a_rank_with_another_configuration_ends_all_with_both_digests() {
    let bench = Bench::with_table();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let rank = |rank: &str, more: &[&str]| {
        bench
            .command(&train(more))
            .env("RANK", rank)
            .env("WORLD_SIZE", "2")
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let (first, second) = (rank("0", &[]), rank("1", &["--seed", "7"]));
    for process in [first, second] {
        let ended = ended(&process.wait_with_output().unwrap());
        ended.refused(
            2,
            &[
                "configuration",
                "start all ranks with the same configuration",
            ],
        );
    }
    assert!(
        !bench.root.path().join("runs").exists(),
        "nothing was begun"
    );
}

#[test]
fn one_process_and_three_learn_the_same_to_rounding() {
    let bench = Bench::with_table();
    let alone = bench.run(&train(&[])).ok().json();
    let curve = losses(&bench);
    let (code, seen) = Launched::start(&bench, &["--nproc", "3"], &[]).end();
    assert_eq!(code, Some(0), "{seen:#?}");
    let found = losses(&bench);
    assert_eq!(found.len(), curve.len());
    for (found, wanted) in found.iter().zip(&curve) {
        assert_eq!(found.0, wanted.0);
        assert!((found.1 - wanted.1).abs() < 1e-3, "{found:?} {wanted:?}");
    }
    let together = bench.read_json("reports/ctr.json");
    let auc = |report: &Value| report["auc"].as_f64().unwrap();
    assert!(
        (auc(&together) - auc(&alone)).abs() < 1e-3,
        "{together} {alone}"
    );
}
