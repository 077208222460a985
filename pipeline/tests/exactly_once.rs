//! The real binary, stopped anywhere and started again, gives what an uninterrupted run gives.

#[path = "../src/process/fixture.rs"]
#[allow(dead_code, reason = "not every test needs every event")]
mod fixture;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use arrow::{
    array::{AsArray, RecordBatch, StringArray},
    compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch},
};
use cli::Layout;
use features::FeatureSet;
use fixture::*;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipeline::process::{DeadLetter, EventsReport, PipelineConfig, fault, state};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use wire::{events::Event, log::SegmentWriter};

const DAY_US: i64 = 24 * HOUR_US;
const USERS: usize = 7;

fn features() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/features.toml")
}

/// Small batches and short windows, so that a small log has many commits and days that mature.
fn config() -> PipelineConfig {
    let mut config = PipelineConfig {
        features: features(),
        batch_events: 150,
        ..PipelineConfig::default()
    };
    config.attribution.conversion_window_hours = 12;
    config.deduplication.window_hours = 24;
    config.watermark.allowed_lateness_hours = 3;
    config
}

/// Three days of events with duplicates, late and bad ones, in two partitions.
fn write_log(layout: &Layout) {
    let mut random = SmallRng::seed_from_u64(11);
    let mut writers = ["a", "b"].map(|name| SegmentWriter::open(&layout.log(), name).unwrap());
    let mut catalogue = vec![experience("e1", START_US)];
    for campaign_at in 0..4 {
        let campaign_id = format!("c{campaign_at}");
        catalogue.push(campaign(&campaign_id, START_US));
        for creative_at in 0..3 {
            let id = format!("{campaign_id}-{creative_at}");
            catalogue.push(creative(&id, &campaign_id, START_US));
        }
    }
    let mut events: Vec<Event> = catalogue;
    for at in 0..450i64 {
        let time_us = START_US + MINUTE_US + at * 3 * DAY_US / 450;
        events.extend(moment(at, time_us, &mut random));
    }
    events.sort_by_key(|event| event.ingest_time_us);
    for event in events {
        let writer = &mut writers[random.random_range(0..2)];
        writer.append_event(&event).unwrap();
        let odd = random.random_range(0..60);
        if odd == 0 {
            writer.append(b"\xff\xff not an event").unwrap();
        } else if odd < 3 {
            writer.append_event(&event).unwrap();
        }
    }
    writers.iter_mut().for_each(|writer| writer.sync().unwrap());
}

/// What one person does around one impression.
fn moment(at: i64, time_us: i64, random: &mut SmallRng) -> Vec<Event> {
    let user = format!("u{}", random.random_range(0..USERS));
    let impression = format!("i{at}");
    let campaign_id = format!("c{}", random.random_range(0..4));
    let creative_id = format!("{campaign_id}-{}", random.random_range(0..3));
    let mut events = vec![served(&impression, &creative_id, time_us)];
    if random.random_bool(0.8) {
        events.push(viewed(&impression, time_us + 2 * SECOND_US));
    }
    if random.random_bool(0.3) {
        events.push(click(&impression, time_us + 9 * SECOND_US));
    }
    if random.random_bool(0.2) {
        let value = random.random_range(0..9_000_000);
        events.push(conversion(&campaign_id, value, time_us + HOUR_US));
    }
    if random.random_bool(0.3) {
        events.push(activity(random.random_range(1..900), time_us + MINUTE_US));
    }
    if random.random_bool(0.05) {
        events.push(evidence(&impression, f32::NAN, 0.0, 1_000, time_us));
    }
    if random.random_bool(0.1) {
        // Behind the watermark when it arrives.
        let late = events.len() - 1;
        events[late].ingest_time_us += 2 * HOUR_US;
    }
    let of_user = |event| of_user(event, &user);
    events.into_iter().map(of_user).collect()
}

struct Folder {
    _temporary: tempfile::TempDir,
    layout: Layout,
    config: PathBuf,
}

impl Folder {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let layout = Layout::at(&temporary.path().join("data"));
        write_log(&layout);
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
            rows: rows(layout),
            aggregates: processor.aggregates().to_bytes(),
            counters: report.counters,
            batches: report.batches,
            files: files(&layout.root),
        }
    }
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

/// The table's rows by impression id.
fn rows(layout: &Layout) -> RecordBatch {
    let path = layout.table("impressions");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let table = runtime.block_on(pipeline::process::table::open_existing(&path));
    let mut batches = Vec::new();
    for uri in table.unwrap().get_file_uris().unwrap() {
        let uri = uri.trim_start_matches("file://").to_owned();
        let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(uri).unwrap());
        batches.extend(reader.unwrap().build().unwrap().map(Result::unwrap));
    }
    let all = concat_batches(&batches[0].schema(), &batches).unwrap();
    let ids = SortColumn {
        values: all.column_by_name("impression_id").unwrap().clone(),
        options: None,
    };
    take_record_batch(&all, &lexsort_to_indices(&[ids], None).unwrap()).unwrap()
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
    let table = Path::new("tables/impressions");
    for entry in fs::read_dir(root.join(table)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("day=") {
            counts.insert(name.clone(), count(&table.join(&name)));
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
    for _ in 0..6 {
        let folder = Folder::new();
        for _ in 0..4 {
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
                .retain(|folder, _| !folder.starts_with("day="));
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
