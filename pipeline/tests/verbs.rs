//! The verbs beside `events process`, on the real binary.

#[path = "../src/process/fixture.rs"]
#[allow(dead_code, reason = "not every test needs every event")]
mod fixture;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use cli::Layout;
use features::{
    FeatureSet,
    online::{Online, OnlineConfig, RedisConfig},
};
use fixture::*;
use marquee_tests::RedisCluster;
use pipeline::{import::movielens::MovielensConfig, process::PipelineConfig};
use registry::{Kind, Registry};
use wire::{
    catalogue::{Catalogue, Pictures},
    log::{LogWriter, SegmentWriter},
};

const SPEC: &str = "features=pipeline/tests/features.toml";
const PROCESS: [&str; 6] = ["events", "process", "--flush", "--json", "--set", SPEC];
const MATERIALIZE: [&str; 5] = ["features", "materialize", "--json", "--set", SPEC];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn run(root: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_marquee-pipeline"))
        .args(arguments)
        .arg("--root")
        .arg(root)
        .current_dir(repository())
        .output()
        .unwrap()
}

fn succeed(root: &Path, arguments: &[&str]) -> String {
    let output = run(root, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs what must fail with exit code 1, and gives what it said.
fn fail(root: &Path, arguments: &[&str]) -> String {
    fail_with(1, root, arguments)
}

fn fail_with(code: i32, root: &Path, arguments: &[&str]) -> String {
    let output = run(root, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn write_log(root: &Path) {
    let mut writer = SegmentWriter::open(&Layout::at(root).log(), "test").unwrap();
    let later = START_US + HOUR_US;
    let events = [
        campaign("c1", START_US),
        creative("c1-a", "c1", START_US),
        creative("c1-bb", "c1", START_US),
        creative("c2-a", "c2", START_US),
        experience("e1", START_US),
        served("i", "c1-a", later),
        viewed("i", later),
        click("i", later + SECOND_US),
        evidence("i", f32::NAN, 0.0, 1, later),
    ];
    for event in &events {
        writer.append_event(event).unwrap();
    }
    writer.append(b"\xff").unwrap();
    writer.sync().unwrap();
}

#[test]
fn materialising_onto_redis_writes_what_changed_and_tells_what_keeps_it_from_doing_so() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write_log(root);
    succeed(root, &PROCESS);
    let cluster = RedisCluster::start();
    let online = format!("online={{redis={{nodes={:?}}}}}", cluster.nodes);
    let materialize = [&MATERIALIZE[..], &["--set", &online]].concat();
    let first = json(&succeed(root, &materialize));
    assert!(first["entities"].as_u64().unwrap() > 0);
    assert_eq!(first["entities_written"], first["entities"]);
    let second = json(&succeed(root, &materialize));
    assert_eq!(
        (&second["online_generation"], &second["entities_written"]),
        (&2.into(), &0.into())
    );

    let set = FeatureSet::load(&repository().join("pipeline/tests/features.toml")).unwrap();
    let config = OnlineConfig::Redis(RedisConfig {
        nodes: cluster.nodes.clone(),
        ..RedisConfig::default()
    });
    let online = Online::new(&config, &Layout::at(root).online()).unwrap();
    let version = online.current(set.digest()).unwrap().unwrap();
    assert_eq!(
        (version.generation, version.as_of_us),
        (2, START_US + HOUR_US + SECOND_US)
    );

    drop(cluster);
    let told = fail(root, &materialize);
    assert!(told.contains("publishing the online store"), "{told}");
    assert!(told.contains("Redis, connecting"), "{told}");
}

#[test]
fn materialising_publishes_the_store_the_spec_and_the_live_catalogue() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write_log(root);
    succeed(root, &PROCESS);
    let done = json(&succeed(root, &MATERIALIZE));
    // `c2-a` waits for its campaign.
    assert_eq!(done["creatives"], 2);
    assert_eq!(done["scenes"], 1);
    assert_eq!(done["pictures"], 3);

    let layout = Layout::at(root);
    let set = FeatureSet::load(&repository().join("pipeline/tests/features.toml")).unwrap();
    let online = Online::new(&OnlineConfig::Embedded, &layout.online()).unwrap();
    let store = online.open(set.digest()).unwrap();
    assert_eq!(store.version().as_of_us, START_US + HOUR_US + SECOND_US);

    let registry = Registry::open(&layout.registry()).unwrap();
    let newest = |kind| registry::block_on(registry.newest(kind)).unwrap();
    let folder = registry::block_on(registry.fetch(&newest(Kind::Catalogue).digest)).unwrap();
    let catalogue = Catalogue::load(&folder).unwrap();
    let pictures = Pictures::load(&folder).unwrap();
    for creative in catalogue.creatives.values() {
        assert!(pictures.get(&creative.picture_digest).is_some());
        assert_eq!(creative.style.len(), features::style::STYLE_DIM);
    }
    let folder = registry::block_on(registry.fetch(&newest(Kind::Features).digest)).unwrap();
    let published = FeatureSet::load(&folder.join("features.toml")).unwrap();
    assert_eq!(published.digest(), set.digest());

    // The same again publishes no artifact anew.
    let records = || {
        fs::read_dir(layout.registry().join("published"))
            .unwrap()
            .count()
    };
    let before = records();
    let again = json(&succeed(root, &MATERIALIZE));
    assert_eq!(again["catalogue"], done["catalogue"]);
    assert_eq!(records(), before);
}

#[test]
fn materialising_before_processing_says_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let message = fail(root.path(), &MATERIALIZE);
    assert!(message.contains("`marquee events process`"), "{message}");
}

#[test]
fn events_are_shown_bad_ones_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    write_log(root.path());
    let text = succeed(root.path(), &["events", "show", "--from", "5", "--json"]);
    let records: Vec<_> = text.lines().map(json).collect();
    assert_eq!(records.len(), 5);
    assert_eq!(records[0]["type"], "ImpressionServed");
    assert_eq!(records[0]["event"]["context"]["device"], "phone");
    let refused = records[3]["refused"].as_str().unwrap();
    assert!(refused.contains("`viewport_share` is NaN"), "{refused}");
    assert!(records[4]["malformed"].is_string());

    let table = succeed(root.path(), &["events", "show", "--limit", "2"]);
    assert!(table.contains("CampaignChanged"), "{table}");
    assert!(!table.contains("ExperienceChanged"), "{table}");
}

#[test]
fn an_empty_log_is_processed_to_nothing() {
    let root = tempfile::tempdir().unwrap();
    let report = json(&succeed(root.path(), &PROCESS));
    assert_eq!(report["events_in"], 0);
    assert_eq!(report["batches"], 0);
}

#[test]
fn a_damaged_log_stops_processing_with_the_file_and_the_byte() {
    let root = tempfile::tempdir().unwrap();
    write_log(root.path());
    let log = Layout::at(root.path()).log();
    let segment = log.join("test/00000000000000000000.seg");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[40] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let message = fail(root.path(), &PROCESS);
    assert!(message.contains("is damaged at byte 0"), "{message}");
}

#[test]
fn specs_are_linted_and_shown() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for spec in ["configs/features.toml", "configs/movielens/features.toml"] {
        let text = succeed(root, &["features", "lint", spec]);
        assert!(text.contains("digest"), "{text}");
    }
    let spec = "pipeline/tests/features.toml";
    let table = succeed(root, &["features", "show", spec]);
    assert!(
        table.contains("rate of click per user_id over 7d"),
        "{table}"
    );

    assert_eq!(table, succeed(root, &["features", "list", spec]));
    let one = ["features", "show", spec, "--feature", "user_ctr"];
    let one = succeed(root, &one);
    assert!(one.contains("aggregation = \"rate\""), "{one}");
    let unknown = ["features", "show", spec, "--feature", "nobody"];
    let message = fail_with(2, root, &unknown);
    assert!(message.contains("has no feature `nobody`"), "{message}");

    let broken = root.join("broken.toml");
    fs::write(&broken, "[[feature]]\nname = 'x'\n").unwrap();
    fail(root, &["features", "lint", broken.to_str().unwrap()]);
}

#[test]
fn a_change_of_meaning_under_an_old_version_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let spec = "pipeline/tests/features.toml";
    let before = fs::read_to_string(repository().join(spec)).unwrap();
    let after = root.join("after.toml");
    fs::write(&after, before.replacen("\"7d\"", "\"6d\"", 1)).unwrap();
    let after = after.to_str().unwrap();
    assert_eq!(
        succeed(root, &["features", "diff", spec, "--from", spec]),
        "no feature changed\n"
    );
    let message = fail_with(3, root, &["features", "diff", after, "--from", spec]);
    assert!(message.contains("under an old version"), "{message}");
}

#[test]
fn a_spec_is_written_for_each_engine() {
    let root = tempfile::tempdir().unwrap();
    let sql = |engine| {
        let args = [
            "features",
            "sql",
            "configs/features.toml",
            "--engine",
            engine,
        ];
        succeed(root.path(), &args)
    };
    let (spark, flink, datafusion) = (sql("spark"), sql("flink"), sql("datafusion"));
    assert!(spark.contains("XXHASH64(") && !spark.contains("marquee_"));
    assert!(flink.contains("marquee_hash_text(") && flink.contains("CARDINALITY("));
    assert!(datafusion.contains("d_user_rate_7d") && datafusion.contains("ARRAY_LENGTH("));
}

#[test]
fn every_configuration_loads_and_says_the_defaults_it_claims() {
    let configs = repository().join("configs");
    let read = |name: &str| fs::read_to_string(configs.join(name)).unwrap();
    let pipeline: PipelineConfig = toml::from_str(&read("pipeline.toml")).unwrap();
    assert_eq!(pipeline, PipelineConfig::default());
    let movielens: PipelineConfig = toml::from_str(&read("movielens/pipeline.toml")).unwrap();
    movielens.check().unwrap();
    let import: MovielensConfig = toml::from_str(&read("movielens/import.toml")).unwrap();
    assert_eq!(import, MovielensConfig::default());
}

#[test]
fn importing_without_the_data_says_how_to_get_it() {
    let root = tempfile::tempdir().unwrap();
    let message = fail(root.path(), &["import", "movielens", "--from", "/nowhere"]);
    assert!(message.contains("launch/fetch-movielens"), "{message}");
}
