//! Times a vision transformer's forward pass, and compares its vectors with the peer's.
//!
//! The peer is `benches/peers/vit.py`, whose `--export` writes weights in timm's layout, a batch of prepared
//! pixels and its vectors of them; with `--size` they are those of `models/tests/parity/visual.py`, in any
//! layout. The last line on stdout is one JSON object.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context, ensure};
use burn::tensor::{Tensor, TensorData};
use clap::Parser;
use cli as _;
use marquee_benches::{median, print, set_threads};
use models::{
    Cpu,
    visual::{Pretrained, PretrainedConfig, Vit},
};
use safetensors::SafeTensors;
use serde::Serialize;

#[derive(Parser)]
#[command(about = "Times a vision transformer's forward pass")]
struct Args {
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Turns that are timed
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Folder that the peer's --export wrote
    #[arg(long)]
    exported: PathBuf,
    /// Pixels each way, where the names of tensors say them: `pixels:SIZE`
    #[arg(long)]
    size: Option<usize>,
}

/// The result line.
#[derive(Debug, Serialize)]
struct Timings {
    pictures_per_second: f64,
    /// Between a number of ours and one of the peer's.
    largest_difference: f32,
    batch: usize,
    n: usize,
}

/// Pixels `[batch, 3, size, size]` as patches `[batch, patches, 3 × patch × patch]`.
fn patches(pixels: &Tensor<Cpu, 4>, patch: usize) -> Tensor<Cpu, 3> {
    let [batch, channels, height, width] = pixels.dims();
    let (down, across) = (height / patch, width / patch);
    pixels
        .clone()
        .reshape([batch, channels, down, patch, across, patch])
        .permute([0, 2, 4, 1, 3, 5])
        .reshape([batch, down * across, channels * patch * patch])
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.turns > 0, "--turns is 0, wanted at least 1");
    set_threads(args.threads)?;
    let device = Default::default();
    let weights = args.exported.join("weights.safetensors");
    let wanted = PretrainedConfig {
        weights,
        image_size: args.size.unwrap_or(0),
        ..PretrainedConfig::default()
    };
    let Pretrained { config, vit } = Pretrained::<Cpu>::load(&wanted, &device)?;
    let bytes = fs::read(args.exported.join("vectors.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let tensor = |name: &str| -> anyhow::Result<TensorData> {
        let name = match args.size {
            Some(size) => format!("{name}:{size}"),
            None => name.to_owned(),
        };
        let view = file
            .tensor(&name)
            .with_context(|| format!("tensor {name}"))?;
        let words = view.data().as_chunks::<4>().0.iter();
        let values: Vec<f32> = words.map(|word| f32::from_le_bytes(*word)).collect();
        Ok(TensorData::new(values, view.shape().to_vec()))
    };
    let pixels = Tensor::<Cpu, 4>::from_data(tensor("pixels")?, &device);
    let forward = |vit: &Vit<Cpu>| vit.infer(patches(&pixels, config.vit.patch_size));

    let found = forward(&vit)
        .into_data()
        .to_vec::<f32>()
        .context("vectors of f32")?;
    let wanted = tensor("features")?
        .to_vec::<f32>()
        .context("vectors of f32")?;
    ensure!(
        found.len() == wanted.len(),
        "{} numbers, wanted {}",
        found.len(),
        wanted.len()
    );
    let differences = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs());
    ensure!(
        differences.clone().all(f32::is_finite),
        "the vectors have values that are no numbers"
    );
    let largest_difference = differences.fold(0.0, f32::max);

    let mut seconds = Vec::with_capacity(args.turns);
    for _ in 0..args.turns {
        let started = Instant::now();
        std::hint::black_box(forward(&vit).into_data());
        seconds.push(started.elapsed().as_secs_f64());
    }
    let batch = pixels.dims()[0];
    print(&Timings {
        pictures_per_second: batch as f64 / median(seconds),
        largest_difference,
        batch,
        n: args.turns,
    })
}
