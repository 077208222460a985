//! The archive holds what came, a log made of it gives the same table, and what is too old goes.

mod support;

use std::{collections::BTreeSet, fs, path::Path};

use cli::Layout;
use pipeline::process::{
    self, AtEnd, PipelineConfig, Progress,
    archive::{self, Archive, RestoreError},
    fault::Fault,
};
use prost::Message;
use support::{config, log_events, rows, write_log};
use wire::{
    events::Event,
    gate,
    log::{Log, Position, SegmentLog},
};

fn process(config: &PipelineConfig, layout: &Layout) -> process::EventsReport {
    let (fault, progress) = (Fault::default(), Progress::hidden());
    process::run(config, layout, AtEnd::Flush, &fault, &progress).unwrap()
}

/// Folders below one, with `class`, `date` and `hour`.
fn hours(archive: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for class in fs::read_dir(archive).unwrap() {
        for date in fs::read_dir(class.unwrap().path()).unwrap() {
            for hour in fs::read_dir(date.unwrap().path()).unwrap() {
                let path = hour.unwrap().path();
                let below = path.strip_prefix(archive).unwrap();
                found.insert(below.display().to_string());
            }
        }
    }
    found
}

#[test]
fn a_log_made_of_the_archive_gives_the_same_table() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [first, second] = folders.each_ref().map(|it| Layout::at(it.path()));
    write_log(&first, &log_events());
    let report = process(&config(), &first);

    let archive = Archive::at(&first.archive("impressions"));
    let log = SegmentLog::at(&second.log());
    let restored = archive::restore(&archive, &log, |_| {}).unwrap();
    assert_eq!(restored, report.counters.events_in);
    let again = process(&config(), &second);
    assert_eq!(again.counters, report.counters);
    let table = |layout: &Layout| rows(&layout.table("impressions"));
    assert_eq!(table(&second), table(&first));

    let error = archive::restore(&archive, &log, |_| {}).unwrap_err();
    assert!(matches!(error, RestoreError::NotEmpty { .. }), "{error}");
    let nothing = archive::restore(
        &Archive::at(&second.dead_letters("impressions")),
        &SegmentLog::at(&second.root.join("other")),
        |_| {},
    );
    assert!(matches!(nothing.unwrap_err(), RestoreError::Nothing { .. }));
}

#[test]
fn every_event_lies_in_the_hour_of_its_arrival_and_restricted_ones_apart() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::at(folder.path());
    write_log(&layout, &log_events());
    process(&config(), &layout);
    let mut wanted = BTreeSet::new();
    for (_, records) in SegmentLog::at(&layout.log())
        .read(&Position::new())
        .unwrap()
    {
        for record in records {
            let Ok(event) = Event::decode(record.unwrap().payload.as_slice()) else {
                continue;
            };
            let hour = event.ingest_time_us / 3_600_000_000;
            let class = if gate::may_keep(&event) {
                "kept"
            } else {
                "restricted"
            };
            wanted.insert((class, hour / 24, hour % 24));
        }
    }
    let found = hours(&layout.archive("impressions"));
    assert!(found.len() > 24, "{found:?}");
    let kept = |folder: &&String| folder.starts_with("class=kept");
    let of_kept = wanted.iter().filter(|it| it.0 == "kept").count();
    assert_eq!(found.iter().filter(kept).count(), of_kept);
}

#[test]
fn what_is_too_old_goes_and_restricted_events_sooner() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::at(folder.path());
    write_log(&layout, &log_events());
    let mut config = config();
    config.archive.retention_days = 2;
    config.archive.restricted_hours = 6;
    process(&config, &layout);
    let found = hours(&layout.archive("impressions"));
    let dates = |class: &str| {
        let of_class = found.iter().filter(|it| it.starts_with(class));
        let date = |it: &String| it.split('/').nth(1).unwrap().to_owned();
        of_class.map(date).collect::<BTreeSet<_>>()
    };
    // Three days of events and a little: two days are left, and a quarter of one.
    assert!((2..=3).contains(&dates("class=kept").len()), "{found:?}");
    assert_eq!(dates("class=restricted").len(), 1, "{found:?}");
    let restricted = found.iter().filter(|it| it.starts_with("class=restricted"));
    assert!((1..=7).contains(&restricted.count()), "{found:?}");
}
