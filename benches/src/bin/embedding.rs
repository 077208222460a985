//! Times the sparse half alone: routing, lookup and update of one batch, by themselves.
//!
//! Ids are uniform over the rows, the worst case for caches. The peer is
//! `benches/peers/embedding.py`, which has the same flags. The last line on stdout is one JSON
//! object; next to the times stand the bytes of rows that were read and written, and the rate at
//! which this machine copies.

use std::{sync::Arc, time::Instant};

use clap::Parser;
use features::Jagged;
use marquee_benches::{median, print};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use trainer::{
    collective::TcpGroup,
    sharding::{Bags, Plan, ShardedTables, SparseOptimizerConfig, Storage, TableConfig},
};

const NUM_BATCHES: usize = 4;

#[derive(Parser)]
#[command(about = "Times lookup and update of embedding tables")]
struct Args {
    /// Tables, each with one id a row
    #[arg(long, default_value_t = 26)]
    num_sparse: usize,
    /// Rows of each table
    #[arg(long, default_value_t = 1_000_000)]
    table_rows: usize,
    /// Length of a table's row
    #[arg(long, default_value_t = 16)]
    dim: usize,
    /// Rows of a batch
    #[arg(long, default_value_t = 4096)]
    batch: usize,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Turns that are timed
    #[arg(long, default_value_t = 30)]
    turns: usize,
}

/// The result line.
#[derive(Debug, Serialize)]
struct Timing {
    /// Median milliseconds of all three.
    step_ms: f64,
    route_ms: f64,
    lookup_ms: f64,
    update_ms: f64,
    /// Rows read for the lookup, and rows and state read and written for the update, GB/s.
    rows_gb_per_second: f64,
    /// What this machine copies with as many threads, GB/s, read and written.
    copy_gb_per_second: f64,
    /// Of weights and optimizer state over that of the numbers they hold.
    memory_over_least: f64,
    n: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.turns > 0, "--turns is 0, wanted at least 1");
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build_global()?;
    let configs: Vec<TableConfig> = (0..args.num_sparse)
        .map(|feature| {
            TableConfig::of_feature(format!("feature_{feature}"), args.table_rows, args.dim)
        })
        .collect();
    let plan = Arc::new(Plan::alone(&configs));
    let optimizer = SparseOptimizerConfig::default();
    let mut tables = ShardedTables::new(plan, 0, optimizer, Storage::F32, 1);
    let mut group = TcpGroup::alone();
    let batches = batches(&args);
    let gradients = vec![0.01; args.batch * tables.width()];
    let (mut route, mut lookup, mut update, mut step) = (vec![], vec![], vec![], vec![]);
    for turn in 0..args.turns + 3 {
        let bags = Bags {
            ids: &batches[turn % NUM_BATCHES],
            weights: None,
            rows: args.batch,
        };
        let mut gradient = gradients.clone();
        let started = Instant::now();
        let routed = tables.router().route(bags, &mut group)?;
        let routed_at = started.elapsed();
        let pooled = tables.lookup(&routed, &mut group)?;
        let looked_up_at = started.elapsed();
        gradient[0] = pooled[0];
        let received = tables.exchange(&routed, gradient, &mut group)?;
        tables.apply(&[received], 1.0, &mut group)?;
        let done_at = started.elapsed();
        if turn >= 3 {
            let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
            route.push(ms(routed_at));
            lookup.push(ms(looked_up_at - routed_at));
            update.push(ms(done_at - looked_up_at));
            step.push(ms(done_at));
        }
    }
    let rows = (args.num_sparse * args.batch) as f64;
    // Lookup reads a row; update reads and writes a row and its accumulator.
    let bytes = rows * 4.0 * (args.dim as f64 + 2.0 * (args.dim as f64 + 1.0));
    let (lookup_ms, update_ms) = (median(lookup), median(update));
    let least = args.num_sparse * args.table_rows * (args.dim + 1) * 4;
    print(&Timing {
        step_ms: median(step),
        route_ms: median(route),
        lookup_ms,
        update_ms,
        rows_gb_per_second: bytes / (lookup_ms + update_ms) / 1e6,
        copy_gb_per_second: copy_rate(args.threads),
        memory_over_least: tables.bytes() as f64 / least as f64,
        n: args.turns,
    })
}

fn batches(args: &Args) -> Vec<Vec<Jagged>> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut bags = || Jagged {
        offsets: (0..=args.batch as u32).collect(),
        ids: (0..args.batch).map(|_| random.random()).collect(),
    };
    (0..NUM_BATCHES)
        .map(|_| (0..args.num_sparse).map(|_| bags()).collect())
        .collect()
}

/// Of long vectors, by all threads.
fn copy_rate(threads: usize) -> f64 {
    const BYTES: usize = 64 << 20;
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = (0..threads)
        .map(|_| (vec![1; BYTES], vec![0; BYTES]))
        .collect();
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in &mut pairs {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
        best = best.min(started.elapsed().as_secs_f64());
    }
    (2 * BYTES * threads) as f64 / best / 1e9
}
