//! Times the dense half alone: perceptron with and without cross layers, in training and serving.
//!
//! The peer is `benches/peers/dense.py`, which has the same flags. The last line on stdout is one
//! JSON object: median milliseconds by what was done.

use std::{collections::BTreeMap, time::Instant};

// The allocator of all programs.
use burn::{
    backend::Autodiff,
    tensor::{Tensor, TensorData},
};
use clap::Parser;
use cli as _;
use marquee_benches::{Backend, median, print, set_threads};
use models::{
    Cpu,
    ctr::{Mode, loss::weighted_bce, network::DcnV2Config},
    ops::{FusedOps, TrainingBackend},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

const INPUTS: usize = 429;
const TRAINING_ROWS: usize = 4096;
const SERVING_ROWS: [usize; 2] = [50, 800];

#[derive(Parser)]
#[command(about = "Times the dense half of the click model")]
struct Args {
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Turns that are timed
    #[arg(long, default_value_t = 20)]
    turns: usize,
    /// What computes
    #[arg(long, value_enum, default_value = "burn-flex")]
    backend: Backend,
}

/// The result line.
#[derive(Debug, Serialize)]
struct Timings {
    /// Median milliseconds.
    ms: BTreeMap<String, f64>,
    backend: Backend,
    n: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.turns > 0, "--turns is 0, wanted at least 1");
    set_threads(args.threads)?;
    let ms = match args.backend {
        Backend::Flex => all::<Autodiff<Cpu>>(args.turns),
        #[cfg(feature = "tch")]
        Backend::Libtorch => all::<Autodiff<burn::backend::LibTorch>>(args.turns),
    };
    print(&Timings {
        ms,
        backend: args.backend,
        n: args.turns,
    })
}

/// Median milliseconds by what was done.
fn all<B: TrainingBackend>(turns: usize) -> BTreeMap<String, f64> {
    let mut ms = BTreeMap::new();
    for (name, num_cross_layers) in [("mlp", 0), ("cross", 3)] {
        let config = DcnV2Config {
            num_cross_layers,
            cross_rank: 64,
            ..DcnV2Config::default()
        };
        ms.insert(format!("{name}/training"), training::<B>(&config, turns));
        for rows in SERVING_ROWS {
            let serving = serving::<B::InnerBackend>(&config, rows, turns * 10);
            ms.insert(format!("{name}/serving/{rows}"), serving);
        }
    }
    ms
}

fn random() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(1)
}

fn numbers(count: usize) -> Vec<f32> {
    let mut random = random();
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// Forward and backward, the gradient of the input included.
fn training<B: TrainingBackend>(config: &DcnV2Config, turns: usize) -> f64 {
    let device = Default::default();
    let network = config.init::<B>(INPUTS, &mut random(), &device);
    let tensor = |values, width| {
        Tensor::<B, 2>::from_data(TensorData::new(values, [TRAINING_ROWS, width]), &device)
    };
    let input = numbers(TRAINING_ROWS * INPUTS);
    median_ms(turns, || {
        let input = tensor(input.clone(), INPUTS).require_grad();
        let labels = tensor(vec![0.0; TRAINING_ROWS], 1);
        let weights = tensor(vec![1.0; TRAINING_ROWS], 1);
        let loss = weighted_bce(
            network.forward(input.clone(), Mode::Inference),
            labels,
            weights,
        );
        let gradients = loss.backward();
        std::hint::black_box(input.grad(&gradients));
    })
}

fn serving<B: FusedOps>(config: &DcnV2Config, rows: usize, turns: usize) -> f64 {
    let device = Default::default();
    let network = config.init::<B>(INPUTS, &mut random(), &device);
    let input = numbers(rows * INPUTS);
    median_ms(turns, || {
        let data = TensorData::new(input.clone(), [rows, INPUTS]);
        let logits = network.forward(Tensor::<B, 2>::from_data(data, &device), Mode::Inference);
        std::hint::black_box(logits.into_data());
    })
}

fn median_ms(turns: usize, mut body: impl FnMut()) -> f64 {
    (0..3).for_each(|_| body());
    median(
        (0..turns)
            .map(|_| {
                let started = Instant::now();
                body();
                started.elapsed().as_secs_f64() * 1e3
            })
            .collect(),
    )
}
