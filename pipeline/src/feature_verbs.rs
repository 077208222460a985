//! `marquee features lint|show|skew|materialize`.
//!
//! Materialising publishes what the pipeline has committed: the aggregates to the online store,
//! the feature spec and the catalogue to the registry. Nothing is computed anew.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use cli::Layout;
use comfy_table::{Table, presets};
use features::{FeatureSet, FeatureSpec, online::Online};
use registry::{Artifact, Digest, Draft, FEATURE_DIGEST, Kind, Registry, now_us};
use serde::Serialize;
use wire::catalogue::{Catalogue, Pictures};

use crate::{
    files::{batch_of, entries},
    process::{
        self, PipelineConfig,
        state::{self, StateHeader},
        table::{APPLICATION, open_existing},
    },
    quality::QualityReport,
    skew::SkewReport,
};

/// What was published.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Materialized {
    /// The batch whose state was published.
    pub batch: u64,
    /// Everything that had arrived by then is in it, microseconds since the Unix epoch.
    pub as_of_us: i64,
    /// When it was published, microseconds since the Unix epoch.
    pub published_us: i64,
    /// How far the newest event in it lies behind that, seconds.
    pub lag_seconds: f64,
    /// Generation of the online store.
    pub online_generation: u64,
    /// Entities in the online store.
    pub entities: usize,
    /// How many of them were written: on Redis those that changed since the version before.
    pub entities_written: usize,
    /// Digest of the `features` artifact.
    pub features: String,
    /// Digest of the `catalogue` artifact.
    pub catalogue: String,
    /// Live campaigns.
    pub campaigns: usize,
    /// Live creatives.
    pub creatives: usize,
    /// Scenes.
    pub scenes: usize,
    /// Distinct pictures of live creatives and scenes.
    pub pictures: usize,
}

/// Publishes the newest committed state.
///
/// # Errors
/// If nothing was committed yet, the spec is not the one of the state, or a store refuses.
pub fn materialize(config: &PipelineConfig, layout: &Layout) -> anyhow::Result<Materialized> {
    let set = FeatureSet::load(&config.features).context("loading the feature spec")?;
    let digest = set.digest().to_owned();
    let batch = committed_batch(&layout.table(&config.table))?;
    ensure!(
        batch > 0,
        "nothing to publish: `marquee events process` has not committed a batch to {} yet",
        layout.table(&config.table).display()
    );
    let (header, mut processor) =
        state::load(&layout.state(&config.table), batch, config, set.clone())?;
    ensure!(
        header.feature_digest == digest,
        "the state of batch {batch} has features of spec {}, {} is spec {digest}: process the log with it first",
        header.feature_digest,
        config.features.display()
    );
    let catalogue = processor.ads().live();
    let as_of_us = header.as_of_us;
    let online = Online::new(&config.online, &layout.online())?;
    let online = online
        .publish(&set, processor.aggregates(), as_of_us)
        .context("publishing the online store")?;
    let pictures = live_pictures(&layout.state(&config.table), batch, &catalogue)?;

    let registry = Registry::open(&layout.registry())?;
    let staging = Staging::new(&layout.state(&config.table).join("publishing"))?;
    let features = publish_features(&registry, &staging, &config.features, &digest)?;
    let published = publish_catalogue(&registry, &staging, &header, &catalogue, &pictures)?;
    let published_us = now_us();
    Ok(Materialized {
        batch,
        as_of_us,
        published_us,
        lag_seconds: (published_us - as_of_us) as f64 / 1e6,
        online_generation: online.generation,
        entities: online.entities,
        entities_written: online.written,
        features: features.digest.to_string(),
        catalogue: published.digest.to_string(),
        campaigns: catalogue.campaigns.len(),
        creatives: catalogue.creatives.len(),
        scenes: catalogue.scenes.len(),
        pictures: pictures.len(),
    })
}

/// The last batch that the table has committed; 0 if there is no table.
pub(crate) fn committed_batch(table: &Path) -> anyhow::Result<u64> {
    if !table.join("_delta_log").exists() {
        return Ok(0);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let version = runtime.block_on(async {
        let table = open_existing(table).await?;
        let log_store = table.log_store();
        let snapshot = table.snapshot()?;
        let version = snapshot
            .transaction_version(&*log_store, APPLICATION)
            .await?;
        anyhow::Ok(version)
    });
    let version = version.with_context(|| format!("reading table {}", table.display()))?;
    Ok(version
        .and_then(|batch| u64::try_from(batch).ok())
        .unwrap_or(0))
}

/// The pictures that the live catalogue names, from the batches that brought them.
fn live_pictures(state: &Path, batch: u64, catalogue: &Catalogue) -> anyhow::Result<Pictures> {
    let creatives = catalogue.creatives.values().map(|it| &it.picture_digest);
    let scenes = catalogue.scenes.values().map(|it| &it.picture_digest);
    let wanted: std::collections::BTreeSet<&str> = creatives
        .chain(scenes)
        .map(String::as_str)
        .filter(|digest| !digest.is_empty())
        .collect();
    let mut pictures = Pictures::default();
    for folder in entries(&process::pictures_folder(state))? {
        if batch_of(&folder).is_none_or(|of| of > batch) {
            continue;
        }
        let of_batch = Pictures::load(&folder)?;
        for (digest, png) in of_batch
            .iter()
            .filter(|(digest, _)| wanted.contains(digest))
        {
            pictures.insert(digest.to_owned(), png.to_vec());
        }
    }
    let missing = wanted.iter().find(|digest| pictures.get(digest).is_none());
    ensure!(
        missing.is_none(),
        "picture {} is missing below {}: restore it, or process the log again",
        missing.unwrap_or(&""),
        process::pictures_folder(state).display()
    );
    Ok(pictures)
}

fn publish_features(
    registry: &Registry,
    staging: &Staging,
    spec: &Path,
    digest: &str,
) -> anyhow::Result<Artifact> {
    let dir = staging.folder("features")?;
    let to = dir.join("features.toml");
    fs::copy(spec, &to).with_context(|| format!("copying {}", spec.display()))?;
    let labels = BTreeMap::from([(FEATURE_DIGEST.to_owned(), digest.to_owned())]);
    publish_if_new(registry, Kind::Features, dir, BTreeMap::new(), labels)
}

fn publish_catalogue(
    registry: &Registry,
    staging: &Staging,
    header: &StateHeader,
    catalogue: &Catalogue,
    pictures: &Pictures,
) -> anyhow::Result<Artifact> {
    let dir = staging.folder("catalogue")?;
    catalogue.save(&dir)?;
    pictures.save(&dir)?;
    let count = |name: &str, count: usize| (name.to_owned(), count as f64);
    let metrics = BTreeMap::from([
        count("campaigns", catalogue.campaigns.len()),
        count("creatives", catalogue.creatives.len()),
        count("scenes", catalogue.scenes.len()),
        count("pictures", pictures.len()),
    ]);
    let labels = BTreeMap::from([("as_of_us".to_owned(), header.as_of_us.to_string())]);
    publish_if_new(registry, Kind::Catalogue, dir, metrics, labels)
}

/// Publishes unless the newest artifact of the kind has these very files.
fn publish_if_new(
    registry: &Registry,
    kind: Kind,
    dir: PathBuf,
    metrics: BTreeMap<String, f64>,
    labels: BTreeMap<String, String>,
) -> anyhow::Result<Artifact> {
    let mut files = BTreeMap::new();
    for path in entries(&dir)? {
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        files.insert(name.into_owned(), Digest::of(&bytes));
    }
    registry::block_on(async {
        if let Some(latest) = registry.latest(kind).await? {
            let known = latest.files.iter();
            if known.map(|(name, file)| (name, &file.sha256)).eq(&files) {
                return Ok(latest);
            }
        }
        let draft = Draft {
            kind,
            dir,
            parents: Vec::new(),
            metrics,
            labels,
        };
        Ok(registry.publish(draft).await?)
    })
}

/// A folder for artifacts in the making, gone when done.
struct Staging(PathBuf);

impl Staging {
    fn new(path: &Path) -> anyhow::Result<Self> {
        if path.exists() {
            fs::remove_dir_all(path).with_context(|| format!("clearing {}", path.display()))?;
        }
        Ok(Self(path.to_owned()))
    }

    fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.0.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What stays behind is cleared by the next one.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A table of a spec's features for people.
pub fn table(spec: &FeatureSpec) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["feature", "kind", "entity", "from", "child safe", "version"]);
    for feature in &spec.features {
        let from = match (&feature.expression, feature.aggregation) {
            (Some(expression), _) => expression.clone(),
            (None, Some(aggregation)) => {
                let source = feature.source.map(|source| name(&source));
                let window = feature.window.clone().unwrap_or_default();
                format!(
                    "{} of {} per {} over {window}",
                    name(&aggregation),
                    source.unwrap_or_default(),
                    feature.key.join(", ")
                )
            }
            (None, None) => String::new(),
        };
        table.add_row([
            feature.name.clone(),
            name(&feature.kind),
            name(&feature.entity),
            from,
            if feature.child_safe { "yes" } else { "no" }.to_owned(),
            feature.version.to_string(),
        ]);
    }
    table
}

/// A table of quality rules for people.
pub fn quality_table(report: &QualityReport) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["rule", "column", "found", "wanted", "holds"]);
    for it in &report.findings {
        table.add_row([
            it.rule.clone(),
            it.column.clone().unwrap_or_default(),
            format!("{:.4}", it.found),
            it.wanted.clone(),
            if it.holds { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    table
}

/// A table of features' two sides for people.
pub fn skew_table(report: &SkewReport) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "feature",
        "PSI",
        "KL",
        "missing offline, online",
        "rows that differ",
        "above",
    ]);
    for it in &report.features {
        let [offline, online] = it.distribution.missing;
        table.add_row([
            it.feature.clone(),
            format!("{:.4}", it.distribution.psi),
            format!("{:.4}", it.distribution.kl),
            format!("{offline:.4}, {online:.4}"),
            format!("{} of {}", it.served.differing, it.served.rows),
            it.exceeded.iter().map(name).collect::<Vec<_>>().join(", "),
        ]);
    }
    table
}

/// The word that stands for a value in the spec.
fn name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}
