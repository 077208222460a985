//! Times the pre-scorer: rows × features through boosted trees, on one thread, beside LightGBM's
//! own C interface on the same trees and rows.
//!
//! Both sides run in this process, in turn; their results must be equal. The last line on stdout
//! is one JSON object.

use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use lightgbm3::{Booster, Dataset};
use models::prescorer::Trees;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

#[derive(Parser)]
#[command(about = "Times the pre-scorer beside LightGBM")]
struct Args {
    /// Candidates of a request
    #[arg(long, default_value_t = 500)]
    rows: usize,
    /// Dense features
    #[arg(long, default_value_t = 40)]
    features: usize,
    /// Trees
    #[arg(long, default_value_t = 200)]
    trees: usize,
    /// Leaves of a tree
    #[arg(long, default_value_t = 31)]
    leaves: usize,
    /// Requests that are timed
    #[arg(long, default_value_t = 300)]
    repetitions: usize,
    /// Seed of rows and trees
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let booster = train(&args).context("training trees with LightGBM")?;
    let trees = Trees::parse(&booster.save_string()?)?;
    let mut random = ChaCha8Rng::seed_from_u64(args.seed + 1);
    let rows = draw(args.rows, args.features, &mut random);
    let (width, threads) = (args.features as i32, "num_threads=1");
    let theirs = booster.predict_with_params(&rows, width, true, threads)?;
    ensure!(trees.predict(&rows) == theirs, "the results differ");

    let (mut ours_us, mut peer_us) = (Vec::new(), Vec::new());
    for _ in 0..args.repetitions {
        let started = Instant::now();
        std::hint::black_box(trees.predict(std::hint::black_box(&rows)));
        ours_us.push(started.elapsed().as_secs_f64() * 1e6);
        let started = Instant::now();
        std::hint::black_box(booster.predict_with_params(&rows, width, true, threads)?);
        peer_us.push(started.elapsed().as_secs_f64() * 1e6);
    }
    let (ours, peer) = (Times::of(ours_us), Times::of(peer_us));
    print(&json!({
        "ours_p50_us": ours.p50,
        "ours_p99_us": ours.p99,
        "peer_p50_us": peer.p50,
        "peer_p99_us": peer.p99,
        "ratio": peer.p50 / ours.p50,
        "rows": args.rows,
        "features": args.features,
        "trees": trees.num_trees(),
        "leaves": args.leaves,
        "threads": 1,
        "n": args.repetitions,
    }));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the program")]
fn print(report: &serde_json::Value) {
    println!("{report}");
}

struct Times {
    p50: f64,
    p99: f64,
}

impl Times {
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (share * times.len() as f64).ceil() as usize;
            times.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self {
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

fn draw(rows: usize, features: usize, random: &mut ChaCha8Rng) -> Vec<f32> {
    (0..rows * features)
        .map(|_| random.random_range(-1.0..1.0))
        .collect()
}

/// Trees over noisy labels, so that all features are used and no tree stays small.
fn train(args: &Args) -> lightgbm3::Result<Booster> {
    let mut random = ChaCha8Rng::seed_from_u64(args.seed);
    let rows = draw(20_000, args.features, &mut random);
    let labels: Vec<f32> = rows
        .chunks_exact(args.features)
        .map(|row| {
            let signal: f32 = row
                .iter()
                .zip([1.0, -1.0].iter().cycle())
                .map(|(a, b)| a * b)
                .sum();
            f32::from(u8::from(signal + random.random_range(-2.0..2.0) > 0.0))
        })
        .collect();
    let data = Dataset::from_slice(&rows, &labels, args.features as i32, true)?;
    let parameters = json!({
        "objective": "binary",
        "num_iterations": args.trees,
        "num_leaves": args.leaves,
        "seed": args.seed,
        "deterministic": true,
        "force_row_wise": true,
        "verbosity": -1,
    });
    Booster::train(data, &parameters)
}
