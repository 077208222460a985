//! Times one training step of the click model: lookup, dense forward and backward, updates.
//!
//! Ids, numbers and labels are random, so the loss means nothing; ids are uniform over the rows,
//! the worst case for caches. The peer is `benches/peers/ctr_step.py`, which has the same flags.
//! The last line on stdout is one JSON object.

use std::time::Instant;

use burn::backend::Autodiff;
use clap::Parser;
use marquee_benches::{Backend, click::Shape, median, print, set_threads};
use models::Cpu;
use serde::Serialize;
use trainer::{
    backend::StepBackend,
    ctr::{Groups, StepLimits},
    sharding::Plan,
};

/// Batches made before the clock starts; steps take them in turn.
const NUM_BATCHES: usize = 4;

#[derive(Parser)]
#[command(about = "Times one training step of the click model")]
struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Threads of the dense and the sparse half alike
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Steps before the clock starts
    #[arg(long, default_value_t = 3)]
    warm_up: usize,
    /// Steps that are timed
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// What computes the dense half
    #[arg(long, value_enum, default_value = "burn-flex")]
    backend: Backend,
}

/// The result line.
#[derive(Debug, Serialize)]
struct Timing {
    /// Rows per second at the median step.
    samples_per_second: f64,
    /// Median.
    step_ms: f64,
    /// Fastest.
    min_ms: f64,
    /// Slowest.
    max_ms: f64,
    optimizer: &'static str,
    backend: Backend,
    threads: usize,
    n: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.steps > 0, "--steps is 0, wanted at least 1");
    anyhow::ensure!(
        args.shape.table_rows > 0,
        "--table-rows is 0, wanted at least 1"
    );
    set_threads(args.threads)?;
    match args.backend {
        Backend::Flex => time::<Autodiff<Cpu>>(&args),
        #[cfg(feature = "tch")]
        Backend::Libtorch => time::<Autodiff<burn::backend::LibTorch>>(&args),
    }
}

fn time<B: StepBackend>(args: &Args) -> anyhow::Result<()> {
    let batches = args.shape.batches(NUM_BATCHES, 0);
    let plan = Plan::alone(&args.shape.tables());
    let mut learner = args.shape.learner::<B>(plan, 0)?;
    let mut batches = batches.iter().cycle();
    let mut groups = Groups::alone();
    let router = learner.router().clone();
    let mut step = || {
        let batch = batches.next().expect("there is at least one batch").clone();
        let started = Instant::now();
        let routed = batch.route(&router, &mut groups.ids)?;
        let limits = StepLimits::default();
        learner.step(&[routed], limits, &mut groups.rows, &mut groups.dense)?;
        anyhow::Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    for _ in 0..args.warm_up {
        step()?;
    }
    let times: anyhow::Result<Vec<f64>> = (0..args.steps).map(|_| step()).collect();
    let mut times = times?;
    times.sort_by(f64::total_cmp);
    let median = median(times.clone());
    print(&Timing {
        samples_per_second: args.shape.batch as f64 / median * 1e3,
        step_ms: median,
        min_ms: times[0],
        max_ms: times[times.len() - 1],
        optimizer: "rowwise-adagrad",
        backend: args.backend,
        threads: args.threads,
        n: args.steps,
    })
}
