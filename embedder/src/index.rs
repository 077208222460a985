//! `marquee index build | verify`: the nearest-neighbour index over the creatives.
//!
//! The artifact is `index.usearch` (usearch HNSW, keys are rows of the embeddings' creatives,
//! similarity is 1 − distance) and `index.json` ([`IndexInfo`]). Source of the method: Malkov
//! and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical
//! Navigable Small World graphs", TPAMI 2020.

use std::{collections::BTreeMap, collections::HashSet, fs, path::Path, time::Instant};

use anyhow::{Context, bail};
use cli::{CommonArgs, GateRefused, Layout, Loaded, out, progress, write_json};
use models::visual::EMBEDDING_DIM;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use registry::{Digest, Draft, Kind, Registry};
use serde::{Deserialize, Serialize};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

use crate::vectors::{Embeddings, Vector};

const INDEX_FILE: &str = "index.usearch";
const INFO_FILE: &str = "index.json";

/// `configs/index.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IndexConfig {
    /// Seed of the held-out queries.
    pub seed: u64,
    /// Edges of a node; more finds more and takes more memory.
    pub connectivity: usize,
    /// Candidates kept while building; more builds slower and better.
    pub ef_construction: usize,
    /// First number of candidates kept while searching; doubled until the target is reached.
    pub ef_search: usize,
    /// Largest number of candidates that is tried.
    pub max_ef_search: usize,
    /// Least recall@100 against exact search; below it the index is refused.
    pub target_recall: f64,
    /// Largest 99th percentile of one search, ms; above it the index is refused.
    pub target_p99_ms: f64,
    /// Held-out queries that are measured.
    pub queries: usize,
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            connectivity: 16,
            ef_construction: 128,
            ef_search: 128,
            max_ef_search: 4096,
            target_recall: 0.95,
            target_p99_ms: 8.0,
            queries: 500,
        }
    }
}

/// What `index.json` says: equal vectors and configuration give equal bytes, so no times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexInfo {
    /// Length of a vector.
    pub dim: usize,
    /// How values are stored.
    pub dtype: String,
    /// Edges of a node.
    pub connectivity: usize,
    /// Candidates kept while searching.
    pub ef_search: usize,
    /// How many vectors.
    pub count: usize,
    /// The embeddings it was built from.
    pub embeddings_digest: Digest,
    /// The model that made them.
    pub visual_digest: Digest,
    /// Share of the 100 nearest that is found, on held-out queries.
    pub recall_at_100: f64,
    /// Size of the index file.
    pub bytes: u64,
}

/// `reports/index.json`: an index and how fast it is on this machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Report {
    #[serde(flatten)]
    info: IndexInfo,
    /// Median time of one search, one thread.
    p50_ms: f64,
    /// 99th percentile of the same.
    p99_ms: f64,
    /// Time to build, seconds; none when it was only measured again.
    build_seconds: Option<f64>,
}

fn options(config: &IndexConfig) -> IndexOptions {
    IndexOptions {
        dimensions: EMBEDDING_DIM,
        metric: MetricKind::IP,
        quantization: ScalarKind::BF16,
        connectivity: config.connectivity,
        expansion_add: config.ef_construction,
        expansion_search: config.ef_search,
        multi: false,
    }
}

/// Builds the index of some vectors; row `i` gets key `i`. One thread, so that the same vectors
/// give the same index.
///
/// # Errors
/// What usearch says.
pub fn build(
    config: &IndexConfig,
    vectors: &[Vector],
    mut each: impl FnMut(),
) -> anyhow::Result<Index> {
    let index = Index::new(&options(config)).context("making an index")?;
    index
        .reserve(vectors.len())
        .context("reserving memory for the index")?;
    for (key, vector) in (0..).zip(vectors) {
        index
            .add(key, vector)
            .with_context(|| format!("adding vector {key}"))?;
        each();
    }
    Ok(index)
}

/// The keys of the `k` largest scalar products, by brute force.
pub fn exact(vectors: &[Vector], query: &Vector, k: usize) -> Vec<u64> {
    let dot = |vector: &Vector| -> f32 { vector.iter().zip(query).map(|(a, b)| a * b).sum() };
    let mut scored: Vec<(f32, u64)> = vectors.iter().map(dot).zip(0..).collect();
    let k = k.min(scored.len());
    if k < scored.len() {
        scored.select_nth_unstable_by(k, |a, b| b.0.total_cmp(&a.0));
    }
    scored[..k].iter().map(|(_, key)| *key).collect()
}

/// Recall and latency of an index on some queries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Share of the true `k` nearest that is found.
    pub recall: f64,
    /// Median time of one search, ms.
    pub p50_ms: f64,
    /// 99th percentile of the same.
    pub p99_ms: f64,
}

/// Searches each query once, on one thread, after a first pass that warms the caches.
///
/// # Errors
/// What usearch says.
pub fn measure(
    index: &Index,
    queries: &[Vector],
    truth: &[Vec<u64>],
    k: usize,
) -> anyhow::Result<Measured> {
    let (mut times, mut found, mut wanted) = (Vec::new(), 0, 0);
    for query in queries {
        index.search(query, k).context("searching")?;
    }
    for (query, truth) in queries.iter().zip(truth) {
        let started = Instant::now();
        let matches = index.search(query, k).context("searching")?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
        let truth: HashSet<&u64> = truth.iter().collect();
        found += matches
            .keys
            .iter()
            .filter(|key| truth.contains(key))
            .count();
        wanted += truth.len();
    }
    times.sort_by(f64::total_cmp);
    let at =
        |share: f64| times.get(((share * times.len() as f64).ceil() as usize).saturating_sub(1));
    Ok(Measured {
        recall: found as f64 / wanted.max(1) as f64,
        p50_ms: at(0.5).copied().unwrap_or(0.0),
        p99_ms: at(0.99).copied().unwrap_or(0.0),
    })
}

/// Queries near the scenes, but none of them: a scene's vector with some noise, length 1.
fn held_out(embeddings: &Embeddings, count: usize, seed: u64) -> Vec<Vector> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let scenes = &embeddings.scenes;
    let one = |at: usize| {
        let mut vector = scenes[at % scenes.len()].1;
        for value in &mut vector {
            *value += random.random_range(-0.03..0.03);
        }
        let norm = vector
            .iter()
            .map(|value| value * value)
            .sum::<f32>()
            .sqrt()
            .max(1e-12);
        vector.map(|value| value / norm)
    };
    if scenes.is_empty() {
        Vec::new()
    } else {
        (0..count).map(one).collect()
    }
}

/// Builds, tunes, measures and publishes the index of the newest embeddings.
///
/// # Errors
/// [`GateRefused`] if recall or latency miss their target; else whatever keeps it from its end.
pub async fn run_build(common: &CommonArgs, loaded: &Loaded<IndexConfig>) -> anyhow::Result<()> {
    let config = &loaded.config;
    let layout = Layout::new(common);
    let registry = Registry::open(&layout.registry())?;
    let artifact = registry.newest(Kind::Embeddings).await?;
    let embeddings = Embeddings::load(&registry.fetch(&artifact.digest).await?)?;
    let vectors: Vec<Vector> = embeddings
        .creatives
        .iter()
        .map(|(_, vector)| *vector)
        .collect();
    if vectors.is_empty() || embeddings.scenes.is_empty() {
        bail!(
            "embeddings {} have no creatives or no scenes: nothing to index",
            artifact.digest.short()
        );
    }
    let bar = if common.json {
        indicatif::ProgressBar::hidden()
    } else {
        progress(vectors.len() as u64, "index")
    };
    let started = Instant::now();
    let index = build(config, &vectors, || bar.inc(1))?;
    let build_seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let queries = held_out(&embeddings, config.queries, config.seed);
    let truth: Vec<Vec<u64>> = queries
        .iter()
        .map(|query| exact(&vectors, query, 100))
        .collect();
    let (ef_search, measured) = tune(config, &index, &queries, &truth)?;

    let dir = tempfile::tempdir().context("making a temporary folder")?;
    let path = dir.path().join(INDEX_FILE);
    index
        .save(&path.display().to_string())
        .context("saving the index")?;
    let info = IndexInfo {
        dim: EMBEDDING_DIM,
        dtype: "bf16".to_owned(),
        connectivity: config.connectivity,
        ef_search,
        count: vectors.len(),
        embeddings_digest: artifact.digest.clone(),
        visual_digest: embeddings.model_digest.clone(),
        recall_at_100: measured.recall,
        bytes: fs::metadata(&path)
            .with_context(|| format!("reading {}", path.display()))?
            .len(),
    };
    write_json(&dir.path().join(INFO_FILE), &info)?;
    let report = Report {
        info,
        p50_ms: measured.p50_ms,
        p99_ms: measured.p99_ms,
        build_seconds: Some(build_seconds),
    };
    write_json(&layout.reports().join("index.json"), &report)?;
    print(common, "index", &report)?;
    gate(config, &report)?;
    let metrics = BTreeMap::from([
        ("recall_at_100".to_owned(), measured.recall),
        ("p50_ms".to_owned(), measured.p50_ms),
        ("p99_ms".to_owned(), measured.p99_ms),
    ]);
    let draft = Draft {
        kind: Kind::Index,
        dir: dir.path().to_owned(),
        parents: vec![artifact.digest],
        metrics,
        labels: BTreeMap::new(),
    };
    registry.publish(draft).await?;
    Ok(())
}

/// Doubles `ef_search` until the recall is reached or the limit is.
fn tune(
    config: &IndexConfig,
    index: &Index,
    queries: &[Vector],
    truth: &[Vec<u64>],
) -> anyhow::Result<(usize, Measured)> {
    let mut ef_search = config.ef_search.max(1);
    loop {
        index.change_expansion_search(ef_search);
        let measured = measure(index, queries, truth, 100)?;
        if measured.recall >= config.target_recall || ef_search * 2 > config.max_ef_search {
            return Ok((ef_search, measured));
        }
        ef_search *= 2;
    }
}

fn gate(config: &IndexConfig, report: &Report) -> Result<(), GateRefused> {
    let info = &report.info;
    let refused = |reason| Err(GateRefused { reason });
    if info.recall_at_100 < config.target_recall {
        return refused(format!(
            "recall@100 is {:.4} at ef_search {}, wanted {:.4}: raise max_ef_search or connectivity",
            info.recall_at_100, info.ef_search, config.target_recall
        ));
    }
    if report.p99_ms > config.target_p99_ms {
        return refused(format!(
            "p99 of a search is {:.2} ms at ef_search {}, wanted at most {:.2}: lower target_recall or connectivity",
            report.p99_ms, info.ef_search, config.target_p99_ms
        ));
    }
    Ok(())
}

fn print(common: &CommonArgs, what: &str, report: &Report) -> anyhow::Result<()> {
    if common.json {
        out!("{}", serde_json::to_string(report)?);
    } else {
        let info = &report.info;
        let built = report.build_seconds.map_or(String::new(), |seconds| {
            format!(", built in {seconds:.1} s")
        });
        out!(
            "{what}: {} vectors, recall@100 {:.4} at ef_search {}, p50 {:.3} ms, p99 {:.3} ms, {} bytes{built}",
            info.count,
            info.recall_at_100,
            info.ef_search,
            report.p50_ms,
            report.p99_ms,
            info.bytes,
        );
    }
    Ok(())
}

/// Opens an index file whose bytes were checked against their digest, with the search width of
/// its record.
///
/// # Errors
/// If the file is no index, or of another length or number of vectors than its record says.
pub fn open(dir: &Path) -> anyhow::Result<(Index, IndexInfo)> {
    let path = dir.join(INFO_FILE);
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let info: IndexInfo =
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
    let path = dir.join(INDEX_FILE);
    let bytes = fs::metadata(&path)
        .with_context(|| format!("reading {}", path.display()))?
        .len();
    if bytes != info.bytes {
        bail!(
            "{} has {bytes} bytes, wanted {}: build the index again",
            path.display(),
            info.bytes
        );
    }
    let index = Index::restore(&path.display().to_string())
        .with_context(|| format!("opening index {}", path.display()))?;
    if (index.dimensions(), index.size()) != (info.dim, info.count) {
        bail!(
            "{} holds {} vectors of length {}, its record says {} of {}",
            path.display(),
            index.size(),
            index.dimensions(),
            info.count,
            info.dim
        );
    }
    index.change_expansion_search(info.ef_search);
    Ok((index, info))
}

/// Measures the newest index again, from its stored files.
///
/// # Errors
/// [`GateRefused`] if it misses the target now; else whatever keeps it from its end.
pub async fn run_verify(common: &CommonArgs, loaded: &Loaded<IndexConfig>) -> anyhow::Result<()> {
    let layout = Layout::new(common);
    let registry = Registry::open(&layout.registry())?;
    let artifact = registry.newest(Kind::Index).await?;
    let (index, mut info) = open(&registry.fetch(&artifact.digest).await?)?;
    let embeddings = Embeddings::load(&registry.fetch(&info.embeddings_digest).await?)?;
    let vectors: Vec<Vector> = embeddings
        .creatives
        .iter()
        .map(|(_, vector)| *vector)
        .collect();
    let queries = held_out(&embeddings, loaded.config.queries, loaded.config.seed);
    let truth: Vec<Vec<u64>> = queries
        .iter()
        .map(|query| exact(&vectors, query, 100))
        .collect();
    let measured = measure(&index, &queries, &truth, 100)?;
    info.recall_at_100 = measured.recall;
    let report = Report {
        info,
        p50_ms: measured.p50_ms,
        p99_ms: measured.p99_ms,
        build_seconds: None,
    };
    print(
        common,
        &format!("index {}", artifact.digest.short()),
        &report,
    )?;
    Ok(gate(&loaded.config, &report)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors::Row;

    fn unit(random: &mut ChaCha8Rng) -> Vector {
        let vector: Vector = std::array::from_fn(|_| random.random_range(-1.0..1.0));
        let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
        vector.map(|value| value / norm)
    }

    fn embeddings(count: usize) -> Embeddings {
        let mut random = ChaCha8Rng::seed_from_u64(9);
        let mut row = |id: String| {
            (
                Row {
                    id,
                    picture_digest: String::new(),
                },
                unit(&mut random),
            )
        };
        Embeddings {
            model_digest: Digest::of(b"m"),
            creatives: (0..count).map(|at| row(format!("k{at}"))).collect(),
            scenes: (0..5).map(|at| row(format!("s{at}"))).collect(),
        }
    }

    #[test]
    fn tuning_raises_the_recall_to_its_target() {
        let embeddings = embeddings(2_000);
        let vectors: Vec<Vector> = embeddings
            .creatives
            .iter()
            .map(|(_, vector)| *vector)
            .collect();
        let config = IndexConfig {
            ef_search: 8,
            queries: 50,
            connectivity: 8,
            ..IndexConfig::default()
        };
        let index = build(&config, &vectors, || {}).unwrap();
        let queries = held_out(&embeddings, config.queries, 1);
        let truth: Vec<Vec<u64>> = queries
            .iter()
            .map(|query| exact(&vectors, query, 100))
            .collect();
        index.change_expansion_search(8);
        let first = measure(&index, &queries, &truth, 100).unwrap();
        let (ef_search, tuned) = tune(&config, &index, &queries, &truth).unwrap();
        assert!(
            first.recall < 0.95 && tuned.recall >= 0.95 && ef_search > 8,
            "{first:?} {tuned:?} {ef_search}"
        );
    }

    #[test]
    fn exact_search_finds_a_vector_by_itself() {
        let vectors: Vec<Vector> = embeddings(300)
            .creatives
            .iter()
            .map(|(_, vector)| *vector)
            .collect();
        for key in [0, 17, 299] {
            assert!(exact(&vectors, &vectors[key], 1) == [key as u64]);
        }
        assert_eq!(exact(&vectors, &vectors[0], 1_000).len(), 300);
    }

    #[test]
    fn an_index_below_its_target_is_refused_with_figures() {
        let info = IndexInfo {
            dim: EMBEDDING_DIM,
            dtype: "bf16".into(),
            connectivity: 16,
            ef_search: 4096,
            count: 1,
            embeddings_digest: Digest::of(b"e"),
            visual_digest: Digest::of(b"v"),
            recall_at_100: 0.91,
            bytes: 1,
        };
        let report = |recall_at_100, p99_ms| Report {
            info: IndexInfo {
                recall_at_100,
                ..info.clone()
            },
            p50_ms: 1.0,
            p99_ms,
            build_seconds: None,
        };
        let error = gate(&IndexConfig::default(), &report(0.91, 2.0))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("recall@100 is 0.9100 at ef_search 4096, wanted 0.9500"),
            "{error}"
        );
        assert!(gate(&IndexConfig::default(), &report(1.0, 9.0)).is_err());
        assert!(gate(&IndexConfig::default(), &report(1.0, 2.0)).is_ok());
    }

    #[test]
    fn equal_vectors_give_equal_files() {
        let dir = tempfile::tempdir().unwrap();
        let embeddings = embeddings(400);
        let vectors: Vec<Vector> = embeddings
            .creatives
            .iter()
            .map(|(_, vector)| *vector)
            .collect();
        let bytes = |name: &str| {
            let path = dir.path().join(name);
            let index = build(&IndexConfig::default(), &vectors, || {}).unwrap();
            index.save(&path.display().to_string()).unwrap();
            fs::read(path).unwrap()
        };
        assert!(bytes("one") == bytes("two"));
    }

    #[test]
    fn a_cut_index_is_refused_before_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let vectors: Vec<Vector> = embeddings(50)
            .creatives
            .iter()
            .map(|(_, vector)| *vector)
            .collect();
        let index = build(&IndexConfig::default(), &vectors, || {}).unwrap();
        let path = dir.path().join(INDEX_FILE);
        index.save(&path.display().to_string()).unwrap();
        let bytes = fs::read(&path).unwrap();
        let info = serde_json::json!({
            "dim": EMBEDDING_DIM, "dtype": "bf16", "connectivity": 16, "ef_search": 64, "count": 50,
            "embeddings_digest": Digest::of(b"e"), "visual_digest": Digest::of(b"v"),
            "recall_at_100": 1.0, "bytes": bytes.len(),
        });
        fs::write(dir.path().join(INFO_FILE), info.to_string()).unwrap();
        assert_eq!(open(dir.path()).unwrap().0.size(), 50);
        fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
        let error = open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("build the index again"), "{error}");
    }
}
