//! Times one training step of the click model: lookup, dense forward and backward, updates.
//!
//! Ids, numbers and labels are random, so the loss means nothing; ids are uniform over the rows,
//! the worst case for caches. The peer is `benches/peers/ctr_step.py`, which has the same flags.
//! The last line on stdout is one JSON object.

use std::{sync::Arc, time::Instant};

use burn::backend::Autodiff;
use clap::Parser;
use features::{FeatureBatch, Jagged};
use marquee_benches::{Backend, median, print, set_threads};
use models::{
    Cpu,
    ctr::{DcnV2Config, Normalisation, Pooling},
    ops::TrainingBackend,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use trainer::{
    ctr::{Groups, Learner, StepBatch, StepLimits, TrainingConfig},
    sharding::{Plan, ShardedTables, SparseOptimizerConfig, Storage, TableConfig},
};

/// Batches made before the clock starts; steps take them in turn.
const NUM_BATCHES: usize = 4;

#[derive(Parser)]
#[command(about = "Times one training step of the click model")]
struct Args {
    /// Sparse features, each with its own table and one id a row
    #[arg(long, default_value_t = 26)]
    num_sparse: usize,
    /// Rows of each table
    #[arg(long, default_value_t = 1_000_000)]
    table_rows: usize,
    /// Length of a table's row
    #[arg(long, default_value_t = 16)]
    dim: usize,
    /// Dense features
    #[arg(long, default_value_t = 13)]
    num_dense: usize,
    /// Cross layers; 0 leaves the plain perceptron
    #[arg(long, default_value_t = 3)]
    cross_layers: usize,
    /// Rank of the cross matrices; 0 means full
    #[arg(long, default_value_t = 64)]
    cross_rank: usize,
    /// Widths of the hidden layers
    #[arg(long, value_delimiter = ',', default_value = "400,400")]
    hidden: Vec<usize>,
    /// Rows of a step
    #[arg(long, default_value_t = 4096)]
    batch: usize,
    /// Threads of the dense and the sparse half alike
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Steps before the clock starts
    #[arg(long, default_value_t = 3)]
    warm_up: usize,
    /// Steps that are timed
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
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
    anyhow::ensure!(args.table_rows > 0, "--table-rows is 0, wanted at least 1");
    set_threads(args.threads)?;
    match args.backend {
        Backend::Flex => time::<Autodiff<Cpu>>(&args),
        #[cfg(feature = "tch")]
        Backend::Libtorch => time::<Autodiff<burn::backend::LibTorch>>(&args),
    }
}

fn time<B: TrainingBackend>(args: &Args) -> anyhow::Result<()> {
    let batches = batches(args);
    let mut learner = learner::<B>(args);
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
        samples_per_second: args.batch as f64 / median * 1e3,
        step_ms: median,
        min_ms: times[0],
        max_ms: times[times.len() - 1],
        optimizer: "rowwise-adagrad",
        backend: args.backend,
        threads: args.threads,
        n: args.steps,
    })
}

fn learner<B: TrainingBackend>(args: &Args) -> Learner<B> {
    let tables: Vec<TableConfig> = (0..args.num_sparse)
        .map(|feature| TableConfig {
            feature: format!("feature_{feature}"),
            rows: args.table_rows,
            dim: args.dim,
            pooling: Pooling::Mean,
            dynamic: None,
        })
        .collect();
    let model = DcnV2Config {
        num_cross_layers: args.cross_layers,
        cross_rank: args.cross_rank,
        hidden: args.hidden.clone(),
        ..DcnV2Config::default()
    };
    let normalisation = Normalisation {
        mean: vec![0.0; args.num_dense],
        std: vec![1.0; args.num_dense],
    };
    Learner::new(
        &model,
        &TrainingConfig::default(),
        ShardedTables::new(
            Arc::new(Plan::alone(&tables).with_first_column(args.num_dense)),
            0,
            SparseOptimizerConfig::default(),
            Storage::F32,
            args.seed,
        ),
        normalisation,
        args.seed,
        Default::default(),
    )
}

fn batches(args: &Args) -> Vec<StepBatch> {
    let mut random = ChaCha8Rng::seed_from_u64(args.seed);
    (0..NUM_BATCHES)
        .map(|_| StepBatch {
            features: features(args, &mut random),
            labels: (0..args.batch)
                .map(|_| f32::from(u8::from(random.random_bool(0.25))))
                .collect(),
            weights: vec![1.0; args.batch],
        })
        .collect()
}

fn features(args: &Args, random: &mut ChaCha8Rng) -> FeatureBatch {
    let mut features = FeatureBatch::with_widths(args.num_dense, args.num_sparse);
    features.num_rows = args.batch;
    features.dense = (0..args.batch * args.num_dense)
        .map(|_| random.random_range(-1.0..1.0))
        .collect();
    for bags in &mut features.sparse {
        *bags = Jagged {
            offsets: (0..=args.batch as u32).collect(),
            ids: (0..args.batch).map(|_| random.random()).collect(),
        };
    }
    features
}
