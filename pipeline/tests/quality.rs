//! The gate in front of the training table.

mod support;

use std::{fs, path::Path, process::Command};

use cli::Layout;
use pipeline::{
    process::{self, AtEnd, Progress, fault::Fault},
    quality::{CheckError, QualityRules},
};
use support::{DAY_US, config, features, log_events, write_log};
use wire::{events::Event, quality::TableQuality};

fn shipped() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/proto/marquee/events/v1/quality.toml")
}

fn process(layout: &Layout, events: &[Event]) {
    write_log(layout, events);
    let (fault, progress) = (Fault::default(), Progress::hidden());
    process::run(&config(), layout, AtEnd::Wait, &fault, &progress).unwrap();
}

#[test]
fn a_version_that_fails_leaves_the_last_good_one_and_says_why() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::at(root.path());
    let events = log_events();
    let (before, after) = events.split_at(2 * events.len() / 3);
    process(&layout, before);
    let table = layout.table("impressions");
    let now_us = before.iter().map(|it| it.event_time_us).max().unwrap();
    let rules = QualityRules::load(&shipped()).unwrap();

    let first = rules.check(&table, now_us).unwrap();
    assert!(first.findings.len() > 10);
    assert_eq!(first.broken().count(), 0, "{:?}", first.findings);
    assert_eq!(first.good, Some(first.version));
    let outcome = || TableQuality::load(&table).unwrap().unwrap();
    assert_eq!(outcome().good, Some(first.version));

    // More rows, and a rule that they break.
    process(&layout, after);
    let mut strict = rules.clone();
    let click = strict.column.iter_mut().find(|it| it.name == "click");
    click.unwrap().range = Some([0.0, 0.5]);
    let second = strict.check(&table, now_us).unwrap();
    assert!(second.version > first.version);
    assert_eq!(second.good, Some(first.version));
    let told: Vec<String> = second.broken().map(|it| it.told()).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("rows outside the range of click is "),
        "{told:?}"
    );
    assert_eq!(outcome().failed, told);

    // Mended, the newest is good; old, it is not, and neither is it for having been good before.
    assert_eq!(
        rules.check(&table, now_us).unwrap().good,
        Some(second.version)
    );
    let old = rules.check(&table, now_us + 3 * DAY_US).unwrap();
    assert_eq!(old.good, None);
    assert_eq!(old.broken().count(), 1);

    strict.column[0].name = "no_such_column".to_owned();
    let error = strict.check(&table, now_us).unwrap_err();
    assert!(matches!(error, CheckError::Column { .. }), "{error}");
}

#[test]
fn the_program_ends_as_a_refused_gate_does() {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::at(root.path());
    process(&layout, &log_events());
    let rules = root.path().join("quality.toml");
    let run = || {
        Command::new(env!("CARGO_BIN_EXE_marquee-pipeline"))
            .args(["events", "check", "--set"])
            .arg(format!("features={}", features().display()))
            .arg("--set")
            .arg(format!("quality={}", rules.display()))
            .arg("--root")
            .arg(root.path())
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .output()
            .unwrap()
    };
    fs::write(
        &rules,
        "days = 8\n[[column]]\nname = \"impression_id\"\nunique = true\n",
    )
    .unwrap();
    let ended = run();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{errors}");

    fs::write(
        &rules,
        "days = 8\n[[column]]\nname = \"campaign_id\"\nunique = true\n",
    )
    .unwrap();
    let ended = run();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(3), "{errors}");
    assert!(
        errors.contains("repeated values of campaign_id is "),
        "{errors}"
    );
    assert!(errors.contains("no version has passed"), "{errors}");
    assert!(layout.reports().join("quality.json").exists());
}
