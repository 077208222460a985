//! The real binary, stopped anywhere and started again, gives what an uninterrupted run gives.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use arrow::array::{AsArray, RecordBatch, StringArray};
use cli::Layout;
use features::FeatureSet;
use pipeline::process::{
    DeadLetter, EventsReport,
    archive::{Archive, Archived},
    fault, state,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use support::{config, features, log_events, rows, write_log};

struct Folder {
    _temporary: tempfile::TempDir,
    layout: Layout,
    config: PathBuf,
}

impl Folder {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let layout = Layout::at(&temporary.path().join("data"));
        write_log(&layout, &log_events());
        let config_path = temporary.path().join("pipeline.toml");
        fs::write(&config_path, toml::to_string(&config()).unwrap()).unwrap();
        Self {
            _temporary: temporary,
            layout,
            config: config_path,
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_marquee-pipeline"));
        command
            .args(["events", "process", "--flush", "--json"])
            .arg("--root")
            .arg(&self.layout.root)
            .arg(&self.config)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        command
    }

    fn run(&self) -> ExitStatus {
        self.command().status().unwrap()
    }

    fn crash_at(&self, point: &str) -> ExitStatus {
        self.command().env(fault::VARIABLE, point).status().unwrap()
    }

    fn result(&self) -> Outcome {
        Outcome::read(&self.layout)
    }
}

/// Everything that must not depend on interruptions.
#[derive(Debug, PartialEq)]
struct Outcome {
    counters: pipeline::process::Counters,
    batches: u64,
    dead_letters: Vec<DeadLetter>,
    archived: Vec<Archived>,
    rows: RecordBatch,
    aggregates: Vec<u8>,
    /// Relative paths of what lies around, states aside.
    files: BTreeMap<String, usize>,
}

impl Outcome {
    fn read(layout: &Layout) -> Self {
        let report = fs::read_to_string(layout.reports().join("events.json")).unwrap();
        let report: EventsReport = serde_json::from_str(&report).unwrap();
        let set = FeatureSet::load(&features()).unwrap();
        let (header, processor) =
            state::load(&layout.state("impressions"), report.batches, &config(), set).unwrap();
        assert_eq!(header.batch, report.batches);
        assert_eq!(processor.counters(), &report.counters);
        Self {
            dead_letters: dead_letters(layout),
            archived: archived(layout, report.batches),
            rows: rows(&layout.table("impressions")),
            aggregates: processor.aggregates().to_bytes(),
            counters: report.counters,
            batches: report.batches,
            files: files(&layout.root),
        }
    }
}

fn archived(layout: &Layout, committed: u64) -> Vec<Archived> {
    let archive = Archive::at(&layout.archive("impressions"));
    let batches = archive.read(committed).unwrap();
    batches.flat_map(Result::unwrap).collect()
}

fn dead_letters(layout: &Layout) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    for entry in fs::read_dir(layout.dead_letters("impressions")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        letters.extend(
            text.lines()
                .map(|line| serde_json::from_str::<DeadLetter>(line).unwrap()),
        );
    }
    letters.sort();
    letters
}

/// How many files each folder has; the Delta log may hold a table version more or less.
fn files(root: &Path) -> BTreeMap<String, usize> {
    let count = |folder: &Path| fs::read_dir(root.join(folder)).unwrap().count();
    let mut counts: BTreeMap<String, usize> = [
        "state/impressions",
        "state/impressions/pictures",
        "dead_letters/impressions",
    ]
    .into_iter()
    .map(|folder| (folder.to_owned(), count(Path::new(folder))))
    .collect();
    let by_day = [
        "tables/impressions",
        "facts/impressions/events",
        "facts/impressions/requests",
    ];
    for folder in by_day.map(Path::new) {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with("day=") {
                let path = folder.join(&name);
                counts.insert(path.display().to_string(), count(&path));
            }
        }
    }
    counts
}

fn text<'a>(rows: &'a RecordBatch, column: &str) -> &'a StringArray {
    rows.column_by_name(column).unwrap().as_string()
}

#[test]
fn a_crash_at_any_durable_step_loses_nothing_and_counts_nothing_twice() {
    let whole = Folder::new();
    assert!(whole.run().success());
    let expected = whole.result();
    // The comparison below must mean something.
    assert!(expected.batches >= 8, "{} batches", expected.batches);
    assert!(expected.counters.clicks_late > 0 && expected.counters.days_matured > 0);
    assert!(expected.counters.duplicates > 0 && expected.counters.conversions > 0);
    assert!(expected.dead_letters.len() > 10);
    assert_eq!(expected.archived.len() as u64, expected.counters.events_in);
    let states = text(&expected.rows, "label_state");
    assert!(states.iter().any(|it| it == Some("matured")));
    assert!(states.iter().any(|it| it == Some("pending")));
    assert_eq!(
        expected.rows.num_rows() as u64,
        expected.counters.rows_written
    );

    // Again from the end: nothing is left to do.
    assert!(whole.run().success());
    assert_eq!(whole.result(), expected);

    for point in fault::POINTS {
        for time in [1, 4, expected.batches] {
            let folder = Folder::new();
            let crashed = folder.crash_at(&format!("{point}:{time}"));
            assert!(!crashed.success(), "no crash at {point}:{time}");
            assert!(folder.run().success(), "after a crash at {point}:{time}");
            assert_eq!(folder.result(), expected, "after a crash at {point}:{time}");
        }
    }
}

#[test]
fn crashes_one_after_the_other_lose_nothing() {
    let whole = Folder::new();
    assert!(whole.run().success());
    let expected = whole.result();
    let mut random = SmallRng::seed_from_u64(5);
    for _ in 0..3 {
        let folder = Folder::new();
        // A crash before the first durable step of a batch makes no headway: vary.
        let mut crashes = 0;
        while !folder
            .crash_at(&random.random_range(1u64..20).to_string())
            .success()
        {
            crashes += 1;
        }
        assert!(crashes > 2, "{crashes} crashes");
        assert_eq!(folder.result(), expected);
    }
}

#[test]
fn kills_at_random_moments_lose_nothing() {
    let whole = Folder::new();
    let start = Instant::now();
    assert!(whole.run().success());
    let duration = start.elapsed();
    let mut random = SmallRng::seed_from_u64(3);
    for _ in 0..10 {
        let folder = Folder::new();
        for _ in 0..5 {
            let moment = duration.mul_f64(random.random_range(0.02..1.0));
            kill_after(folder.command(), moment);
        }
        assert!(folder.run().success());
        let mut found = folder.result();
        let mut wanted = whole.result();
        // A kill between the write of a data file and the commit that would name it leaves a
        // file that no version of the table knows: rows tell whether anything was lost.
        for outcome in [&mut found, &mut wanted] {
            outcome
                .files
                .retain(|folder, _| !folder.starts_with("tables/"));
        }
        assert_eq!(found, wanted);
    }
}

/// Kills a command that has not ended by then.
fn kill_after(mut command: Command, moment: Duration) {
    let started = Instant::now();
    let mut child = command.spawn().unwrap();
    while started.elapsed() < moment {
        if child.try_wait().unwrap().is_some() {
            return;
        }
        // The moment itself is what is tested; nothing waits for this to be long enough.
        std::thread::sleep(Duration::from_micros(500));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_size_of_batches_and_the_number_of_runs_do_not_matter() {
    let whole = Folder::new();
    assert!(whole.run().success());
    let expected = whole.result();
    let folder = Folder::new();
    let one_batch = folder
        .command()
        .args(["--set", "batch_events=1000000"])
        .status();
    assert!(one_batch.unwrap().success());
    let result = folder.result();
    assert_eq!(result.batches, 1);
    assert_eq!(result.counters, expected.counters);
    assert_eq!(result.aggregates, expected.aggregates);
    assert_eq!(result.rows, expected.rows);
}

#[test]
fn two_processors_never_work_on_one_state() {
    let folder = Folder::new();
    fs::create_dir_all(folder.layout.state("impressions")).unwrap();
    let lock = fs::File::create(folder.layout.state("impressions").join("processor.lock")).unwrap();
    lock.lock().unwrap();
    let output = folder
        .command()
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("another process works on"), "{message}");
}

#[test]
fn another_feature_spec_is_refused() {
    let folder = Folder::new();
    assert!(folder.run().success());
    let other = folder.layout.root.join("other.toml");
    let spec = fs::read_to_string(features()).unwrap();
    fs::write(&other, spec.replace("version = 1", "version = 2")).unwrap();
    let output = folder
        .command()
        .args(["--set", &format!("features={}", other.display())])
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("give the new spec another"), "{message}");

    // Who follows the advice gets a second table, and the first one stays whole.
    let before = files(&folder.layout.root);
    let mut second = folder.command();
    second.args(["--set", &format!("features={}", other.display())]);
    second.args(["--set", "table=second"]);
    assert!(second.status().unwrap().success());
    assert!(folder.layout.table("second").join("_delta_log").exists());
    assert_eq!(files(&folder.layout.root), before);
    assert!(folder.run().success());
}

#[test]
fn a_setting_that_makes_no_sense_is_a_usage_error() {
    let folder = Folder::new();
    let check = |setting: &str| {
        let status = folder.command().args(["--set", setting]).status();
        assert_eq!(status.unwrap().code(), Some(2), "{setting}");
    };
    check("batch_events=0");
    check("batch_evnets=5");
    check("attribution.conversion_window_hours=0");
}
