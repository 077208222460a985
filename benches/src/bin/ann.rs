//! Measures nearest-neighbour search of our index: recall@100, latency on one thread, size.
//!
//! The data are 2,000 overlapping clusters with 24 intrinsic dimensions plus noise, of unit
//! length, and queries from the same distribution. Data, queries and the true neighbours are
//! written to a folder, where the peer, `benches/peers/ann_faiss.py`, reads the same bytes:
//!
//! ```text
//! vectors.f32   [n, 128] little-endian     queries.f32   [queries, 128]
//! truth.u32     [queries, 100], the keys of the nearest by scalar product
//! meta.json     {"n", "dim", "queries", "k", "seed"}
//! ```
//!
//! The last line on stdout is one JSON object.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context;
use clap::Parser;
use embedder::{
    index::{IndexConfig, build, exact, measure},
    vectors::Vector,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Length of a vector, as the product has it.
const DIM: usize = std::mem::size_of::<Vector>() / std::mem::size_of::<f32>();
/// Neighbours of a query.
const K: usize = 100;
const NUM_CLUSTERS: usize = 2_000;
/// Dimensions in which clusters differ and points of one cluster spread.
const INTRINSIC_DIM: usize = 24;
/// Deviation of a cluster's points; centres have 1, so clusters overlap.
const SPREAD: f32 = 0.7;
/// Deviation of the noise in every dimension, where the signal has about 1.
const NOISE: f32 = 0.1;

#[derive(Parser)]
#[command(about = "Measures nearest-neighbour search of our index")]
struct Args {
    /// Vectors in the index
    #[arg(long, default_value_t = 100_000)]
    n: usize,
    /// Queries; each is searched twice, and the second time counts
    #[arg(long, default_value_t = 500)]
    queries: usize,
    /// Edges of a node
    #[arg(long, default_value_t = 16)]
    connectivity: usize,
    /// Candidates kept while building
    #[arg(long, default_value_t = 128)]
    ef_construction: usize,
    /// Recall@100 to reach, by as many candidates as it takes
    #[arg(long, default_value_t = 0.95)]
    target_recall: f64,
    /// Folder of the data; made when it is not there
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Write the data and stop
    #[arg(long)]
    data_only: bool,
    /// Seed of the data
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What `meta.json` says: data of other numbers are not reused.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Meta {
    n: usize,
    dim: usize,
    queries: usize,
    k: usize,
    seed: u64,
}

/// The result line.
#[derive(Debug, Serialize)]
struct Report {
    recall_at_100: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Of the index file.
    bytes: u64,
    build_seconds: f64,
    ef_search: usize,
    connectivity: usize,
    ef_construction: usize,
    /// Instructions that distances are computed with.
    simd: String,
    n: usize,
    threads: usize,
    dir: PathBuf,
}

struct Data {
    vectors: Vec<Vector>,
    queries: Vec<Vector>,
    truth: Vec<Vec<u64>>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let name = format!("marquee-ann-{}-{}-{}", args.n, args.queries, args.seed);
    let dir = args
        .dir
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(name));
    let data = Data::load_or_make(&args, &dir)?;
    if args.data_only {
        print(&serde_json::json!({"dir": dir, "n": args.n}));
        return Ok(());
    }
    print(&search(&args, &data, dir)?);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the program")]
fn print(report: &impl Serialize) {
    println!("{}", serde_json::json!(report));
}

/// Builds the index and raises the number of candidates until the recall is reached.
fn search(args: &Args, data: &Data, dir: PathBuf) -> anyhow::Result<Report> {
    let config = IndexConfig {
        connectivity: args.connectivity,
        ef_construction: args.ef_construction,
        ..IndexConfig::default()
    };
    let started = Instant::now();
    let index = build(&config, &data.vectors, || {})?;
    let build_seconds = started.elapsed().as_secs_f64();
    let mut ef_search = K;
    let measured = loop {
        index.change_expansion_search(ef_search);
        let measured = measure(&index, &data.queries, &data.truth, K)?;
        if measured.recall >= args.target_recall || ef_search >= config.max_ef_search {
            break measured;
        }
        // Steps of a quarter: the smallest number that will do is what the peer gets too.
        ef_search += ef_search.div_ceil(4);
    };
    let path = dir.join("index.usearch");
    index.save(&path.display().to_string())?;
    let bytes = fs::metadata(&path)?.len();
    fs::remove_file(&path)?;
    Ok(Report {
        recall_at_100: measured.recall,
        p50_ms: measured.p50_ms,
        p99_ms: measured.p99_ms,
        bytes,
        build_seconds,
        ef_search,
        connectivity: args.connectivity,
        ef_construction: args.ef_construction,
        simd: index.hardware_acceleration(),
        n: args.n,
        threads: 1,
        dir,
    })
}

impl Data {
    fn load_or_make(args: &Args, dir: &Path) -> anyhow::Result<Self> {
        let meta = Meta {
            n: args.n,
            dim: DIM,
            queries: args.queries,
            k: K.min(args.n),
            seed: args.seed,
        };
        let meta_path = dir.join("meta.json");
        let known = fs::read(&meta_path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Meta>(&text).ok());
        if known.as_ref() == Some(&meta) {
            return Self::load(dir, meta.k);
        }
        let data = Self::make(args);
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        write_floats(&dir.join("vectors.f32"), &data.vectors)?;
        write_floats(&dir.join("queries.f32"), &data.queries)?;
        let keys = data.truth.iter().flatten();
        let bytes: Vec<u8> = keys.flat_map(|key| (*key as u32).to_le_bytes()).collect();
        write(&dir.join("truth.u32"), &bytes)?;
        // Last, so that it stands for a whole folder.
        write(&meta_path, &serde_json::to_vec(&meta)?)?;
        Ok(data)
    }

    fn load(dir: &Path, k: usize) -> anyhow::Result<Self> {
        let truth = read(&dir.join("truth.u32"))?;
        let (keys, _) = truth.as_chunks::<4>();
        let keys: Vec<u64> = keys
            .iter()
            .map(|b| u64::from(u32::from_le_bytes(*b)))
            .collect();
        Ok(Self {
            vectors: read_floats(&dir.join("vectors.f32"))?,
            queries: read_floats(&dir.join("queries.f32"))?,
            truth: keys.chunks(k).map(<[u64]>::to_vec).collect(),
        })
    }

    fn make(args: &Args) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(args.seed);
        let directions: Vec<Vector> = (0..INTRINSIC_DIM)
            .map(|_| std::array::from_fn(|_| normal(&mut random)))
            .collect();
        let centres: Vec<[f32; INTRINSIC_DIM]> = (0..NUM_CLUSTERS)
            .map(|_| std::array::from_fn(|_| normal(&mut random)))
            .collect();
        let mut points = |count: usize| -> Vec<Vector> {
            (0..count)
                .map(|_| point(&directions, &centres, &mut random))
                .collect()
        };
        let (vectors, queries) = (points(args.n), points(args.queries));
        let truth = queries
            .par_iter()
            .map(|query| exact(&vectors, query, K))
            .collect();
        Self {
            vectors,
            queries,
            truth,
        }
    }
}

/// A point of a random cluster, of unit length.
fn point(
    directions: &[Vector],
    centres: &[[f32; INTRINSIC_DIM]],
    random: &mut ChaCha8Rng,
) -> Vector {
    let centre = &centres[random.random_range(0..centres.len())];
    let mut vector: Vector = std::array::from_fn(|_| NOISE * normal(random));
    // Directions have length √128 or so; each adds a part with deviation near √(1/24).
    let scale = 1.0 / (INTRINSIC_DIM as f32).sqrt();
    for (place, direction) in centre.iter().zip(directions) {
        let weight = (place + SPREAD * normal(random)) * scale;
        for (value, part) in vector.iter_mut().zip(direction) {
            *value += weight * part;
        }
    }
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.map(|value| value / length.max(1e-12))
}

/// A normal number, by Box and Muller.
fn normal(random: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - random.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * random.random::<f32>()).cos()
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn write_floats(path: &Path, vectors: &[Vector]) -> anyhow::Result<()> {
    let values = vectors.iter().flatten();
    let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
    write(path, &bytes)
}

fn read_floats(path: &Path) -> anyhow::Result<Vec<Vector>> {
    let bytes = read(path)?;
    let (values, _) = bytes.as_chunks::<4>();
    let values: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let (vectors, _) = values.as_chunks::<DIM>();
    Ok(vectors.to_vec())
}
