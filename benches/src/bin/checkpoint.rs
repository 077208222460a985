//! How much longer training takes for one checkpoint.
//!
//! Steps are timed without one; then one is begun, and steps go on until it is written. What they
//! took beyond the ordinary is the stall, the copy at the beginning included. The peer is
//! `benches/peers/checkpoint.py`, which has the same flags. The last line on stdout is one JSON
//! object.

use std::{fs, path::PathBuf, time::Instant};

use burn::backend::Autodiff;
use clap::Parser;
use marquee_benches::{click::Shape, median, print, set_threads};
use models::Cpu;
use serde::Serialize;
use trainer::{
    checkpoint::{CheckpointConfig, Checkpoints, Folder},
    collective::TcpGroup,
    ctr::{Groups, Learner, StepLimits},
    sharding::Plan,
};

#[derive(Parser)]
#[command(about = "Times what a checkpoint costs the training")]
struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Where checkpoints are written; they are removed
    #[arg(long)]
    dir: PathBuf,
    /// Threads of the dense and the sparse half alike
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Checkpoints
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Steps that are timed without one
    #[arg(long, default_value_t = 20)]
    steps: usize,
}

/// The result line.
#[derive(Debug, Serialize)]
struct Timing {
    /// What one checkpoint costs, seconds of training: median.
    stall_seconds: f64,
    /// Until the next step can begin, seconds.
    blocked_seconds: f64,
    /// From its beginning until it is there, seconds.
    written_seconds: f64,
    bytes: u64,
    step_ms: f64,
    threads: usize,
    n: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.turns > 0, "--turns is 0, wanted at least 1");
    set_threads(args.threads)?;
    let batches = args.shape.batches(4, 0);
    let plan = Plan::alone(&args.shape.tables());
    let mut learner = args.shape.learner::<Autodiff<Cpu>>(plan, 0)?;
    let router = learner.router().clone();
    let mut groups = Groups::alone();
    let mut batches = batches.iter().cycle();
    let mut step = |learner: &mut Learner<_>| {
        let batch = batches.next().expect("there are batches").clone();
        let started = Instant::now();
        let routed = batch.route(&router, &mut groups.ids)?;
        let limits = StepLimits::default();
        learner.step(&[routed], limits, &mut groups.rows, &mut groups.dense)?;
        anyhow::Ok(started.elapsed().as_secs_f64())
    };

    let folder = Folder::local(&args.dir)?;
    let config = CheckpointConfig {
        keep: 1,
        ..CheckpointConfig::default()
    };
    let mut checkpoints = Checkpoints::new(folder, config, "bench".into(), TcpGroup::alone());
    let (mut stalls, mut blocked, mut written) = (Vec::new(), Vec::new(), Vec::new());
    let mut ordinary = 0.0;
    for _ in 0..args.turns {
        let times: anyhow::Result<Vec<f64>> = (0..args.steps).map(|_| step(&mut learner)).collect();
        ordinary = median(times?);
        let started = Instant::now();
        checkpoints.save(learner.save(serde_json::Value::Null)?, None)?;
        blocked.push(started.elapsed().as_secs_f64());
        let mut stalled = started.elapsed().as_secs_f64();
        while checkpoints.is_writing() {
            stalled += step(&mut learner)? - ordinary;
        }
        written.push(started.elapsed().as_secs_f64());
        checkpoints.wait()?;
        stalls.push(stalled);
    }
    let bytes = size(&args.dir)?;
    fs::remove_dir_all(&args.dir)?;
    print(&Timing {
        stall_seconds: median(stalls),
        blocked_seconds: median(blocked),
        written_seconds: median(written),
        bytes,
        step_ms: ordinary * 1e3,
        threads: args.threads,
        n: args.turns,
    })
}

/// Bytes of all files below a folder.
fn size(dir: &std::path::Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => size(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}
