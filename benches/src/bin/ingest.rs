//! How many events a second come through the pipeline's door: read from the segment log, checked,
//! decoded, validated, led through the age gate, and dropped if they were sent before.
//!
//! The whole pipeline over the same log is timed by `marquee events process`. The last line on stdout
//! is one JSON object.

use std::{path::PathBuf, time::Instant};

use clap::Parser;
use features::FeatureSet;
use marquee_benches::print;
use pipeline::process::{MergedLog, PipelineConfig, Processor, ReadAhead};
use serde::Serialize;
use wire::log::{Position, SegmentLog};

#[derive(Parser)]
#[command(about = "Times the door of the event pipeline")]
struct Args {
    /// A log, as `marquee world generate` makes one
    #[arg(long)]
    log: PathBuf,
    /// The feature spec
    #[arg(long, default_value = "configs/features.toml")]
    features: PathBuf,
}

#[derive(Debug, Default, Serialize)]
struct Counted {
    events_per_second: f64,
    mb_per_second: f64,
    events: u64,
    passed: u64,
    duplicates: u64,
    refused: u64,
    n: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let set = FeatureSet::load(&args.features)?;
    let mut processor = Processor::new(&PipelineConfig::default(), set);
    let mut counted = Counted {
        n: 1,
        ..Counted::default()
    };
    let mut bytes = 0;
    let started = Instant::now();
    let mut log = ReadAhead::of(MergedLog::open(
        &SegmentLog::at(&args.log),
        &Position::new(),
    )?);
    while let Some(record) = log.next_record()? {
        counted.events += 1;
        bytes += record.payload.len();
        let passed = record.event.ok().map(|event| processor.pass(event));
        match passed {
            Some(Ok(true)) => counted.passed += 1,
            Some(Ok(false)) => counted.duplicates += 1,
            Some(Err(_)) | None => counted.refused += 1,
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    counted.events_per_second = counted.events as f64 / seconds;
    counted.mb_per_second = bytes as f64 / seconds / 1e6;
    print(&counted)
}
