//! What training sends: bytes of a step between processes, against the least that the plan takes.
//!
//! The rows of a rank are the same for any number of ranks (weak scaling). Least: the distinct
//! ids of a rank that others own, their vectors there and gradients back, and the dense gradient
//! once around the ring. The last line on stdout is one JSON object.

use std::time::Instant;

use burn::backend::Autodiff;
use clap::Parser;
use marquee_benches::{click::Shape, median, print, ranks};
use models::Cpu;
use serde::Serialize;
use trainer::{
    collective::{ProcessGroup, TcpGroup},
    ctr::{Groups, StepBatch, StepLimits},
    sharding::{Planner, PlannerConfig, SparseOptimizerConfig, Storage},
};

#[derive(Parser)]
#[command(about = "Counts the bytes that training sends")]
struct Args {
    /// Processes
    #[arg(long, default_value_t = 2)]
    world_size: usize,
    /// Steps
    #[arg(long, default_value_t = 10)]
    steps: usize,
    #[command(flatten)]
    shape: Shape,
}

/// The result line; bytes are those of a rank and step.
#[derive(Debug, Serialize)]
struct Traffic {
    world_size: usize,
    sent_bytes: f64,
    least_bytes: f64,
    /// Of the ids, and the sum of weights.
    ids_bytes: f64,
    /// Of vectors and gradients of rows.
    rows_bytes: f64,
    /// Of the dense gradient.
    dense_bytes: f64,
    /// Of all ranks, which share this machine's cores.
    samples_per_second: f64,
    n: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let Some(met) = ranks::meet(args.world_size)? else {
        return Ok(());
    };
    let mut groups = Groups::connect(&met)?;
    let (rank, world_size) = (groups.rows.rank(), args.world_size);
    let planner = Planner {
        config: &PlannerConfig::default(),
        optimizer: &SparseOptimizerConfig::default(),
        storage: Storage::F32,
        world_size,
        batch_size: args.shape.batch,
        column_wise: true,
    };
    let plan = planner.plan(&args.shape.tables())?.plan;
    let mut learner = args.shape.learner::<Autodiff<Cpu>>(plan.clone(), rank)?;
    let router = learner.router().clone();
    let batches = args.shape.batches(args.steps, rank);
    let sparse = |batch: &StepBatch| plan.least_bytes(rank, &batch.features.sparse);
    let mut least: usize = batches.iter().map(sparse).sum();
    // The ring sends all but one part twice.
    let weights = learner.num_weights() + 2;
    least += args.steps * 2 * 4 * weights * (world_size - 1) / world_size;

    let before = sent(&groups);
    let mut times = Vec::new();
    for batch in batches {
        let started = Instant::now();
        let routed = batch.route(&router, &mut groups.ids)?;
        let limits = StepLimits::default();
        learner.step(&[routed], limits, &mut groups.rows, &mut groups.dense)?;
        times.push(started.elapsed().as_secs_f64());
    }
    let after = sent(&groups);
    let mine: Vec<f64> = (0..3).map(|at| (after[at] - before[at]) as f64).collect();
    let all = groups
        .dense
        .all_gather_v(&[mine, vec![least as f64]].concat())?;
    let mean = |at: usize| {
        let sum: f64 = all.iter().map(|of_rank| of_rank[at]).sum();
        sum / (world_size * args.steps) as f64
    };
    if rank == 0 {
        print(&Traffic {
            world_size,
            sent_bytes: mean(0) + mean(1) + mean(2),
            least_bytes: mean(3),
            ids_bytes: mean(0),
            rows_bytes: mean(1),
            dense_bytes: mean(2),
            samples_per_second: (world_size * args.shape.batch) as f64 / median(times),
            n: args.steps,
        })?;
    }
    Ok(())
}

fn sent(groups: &Groups<TcpGroup>) -> [u64; 3] {
    [&groups.ids, &groups.rows, &groups.dense].map(|group| group.traffic().sent_bytes)
}
