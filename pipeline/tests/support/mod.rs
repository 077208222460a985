//! A log of events for tests of the whole pipeline.

#![allow(dead_code, reason = "not every test needs all of it")]

#[path = "../../src/process/fixture.rs"]
mod fixture;

use std::{
    fs,
    path::{Path, PathBuf},
};

use arrow::{
    array::RecordBatch,
    compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch},
};
use cli::Layout;
use fixture::*;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipeline::process::{ArchiveConfig, PipelineConfig};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use wire::{
    events::Event,
    log::{LogWriter, SegmentWriter},
};

pub const DAY_US: i64 = 24 * HOUR_US;
const USERS: usize = 7;

pub fn features() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/features.toml")
}

/// Small batches and short windows, so that a small log has many commits and days that mature.
pub fn config() -> PipelineConfig {
    let mut config = PipelineConfig {
        features: features(),
        batch_events: 150,
        archive: ArchiveConfig {
            enabled: true,
            ..ArchiveConfig::default()
        },
        ..PipelineConfig::default()
    };
    config.attribution.conversion_window_hours = 12;
    config.deduplication.window_hours = 24;
    config.watermark.allowed_lateness_hours = 3;
    config
}

/// Three days of events, some of which come late, by the time of their arrival.
pub fn log_events() -> Vec<Event> {
    let mut random = SmallRng::seed_from_u64(11);
    let mut events = vec![experience("e1", START_US)];
    for campaign_at in 0..4 {
        let campaign_id = format!("c{campaign_at}");
        events.push(campaign(&campaign_id, START_US));
        for creative_at in 0..3 {
            let id = format!("{campaign_id}-{creative_at}");
            events.push(creative(&id, &campaign_id, START_US));
        }
    }
    for at in 0..450i64 {
        let time_us = START_US + MINUTE_US + at * 3 * DAY_US / 450;
        events.extend(moment(at, time_us, &mut random));
    }
    events.sort_by_key(|event| event.ingest_time_us);
    events
}

/// Appends events to two partitions, with duplicates and bad records between them.
pub fn write_log(layout: &Layout, events: &[Event]) {
    let mut random = SmallRng::seed_from_u64(12);
    let mut writers = ["a", "b"].map(|name| SegmentWriter::open(&layout.log(), name).unwrap());
    for event in events {
        let writer = &mut writers[random.random_range(0..2)];
        writer.append_event(event).unwrap();
        let odd = random.random_range(0..60);
        if odd == 0 {
            writer.append(b"\xff\xff not an event").unwrap();
        } else if odd < 3 {
            writer.append_event(event).unwrap();
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

/// A table's rows by impression id.
pub fn rows(path: &Path) -> RecordBatch {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let table = runtime.block_on(pipeline::process::table::open_existing(path));
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
