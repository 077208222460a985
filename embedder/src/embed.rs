//! `marquee embed`: vectors for every picture of the newest catalogue.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context;
use cli::{CommonArgs, Layout, out, progress, write_json};
use models::visual::{Picture, VisualModel};
use registry::{Digest, Draft, Kind, Registry};
use serde::{Deserialize, Serialize};
use wire::catalogue::{Catalogue, Pictures};

use crate::vectors::{Embeddings, Row, Vector};

/// `configs/embed.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbedConfig {
    /// Pictures between two movements of the progress bar.
    pub batch_size: usize,
    /// Whether vectors of unchanged pictures are taken from the last embeddings of the same model.
    pub reuse: bool,
}

impl Default for EmbedConfig {
    fn default() -> Self {
        Self {
            batch_size: 64,
            reuse: true,
        }
    }
}

/// What was embedded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Embedded {
    /// Creatives with a vector.
    pub creatives: usize,
    /// Scenes with a vector.
    pub scenes: usize,
    /// Vectors taken from the embeddings before.
    pub reused: usize,
    /// Pictures that went through the model.
    pub computed: usize,
    /// Pictures that could not be decoded and have no vector.
    pub refused: usize,
    /// Computed pictures per second.
    pub pictures_per_second: f64,
    /// The artifact.
    pub artifact: Digest,
}

/// Vectors of a model by side and picture.
type Known = HashMap<(bool, String), Vector>;

/// Embeds what is new and publishes the vectors.
///
/// # Errors
/// If there is no catalogue or visual model, or one of them is damaged. A picture that does not
/// decode is counted, logged and left out.
pub async fn run(common: &CommonArgs, config: &EmbedConfig) -> anyhow::Result<()> {
    let layout = Layout::new(common);
    let registry = Registry::open(&layout.registry())?;
    let catalogue_artifact = registry.newest(Kind::Catalogue).await?;
    let visual = registry.newest(Kind::Visual).await?;
    let folder = registry.fetch(&catalogue_artifact.digest).await?;
    let (catalogue, pictures) = (Catalogue::load(&folder)?, Pictures::load(&folder)?);
    let model = VisualModel::load(&registry.fetch(&visual.digest).await?)?;
    let known = if config.reuse {
        known(&registry, &visual.digest).await?
    } else {
        Known::new()
    };

    let creatives = catalogue
        .creatives
        .values()
        .map(|creative| (&creative.creative_id, &creative.picture_digest));
    let scenes = catalogue
        .scenes
        .values()
        .map(|scene| (&scene.scene_id, &scene.picture_digest));
    let mut work = Work {
        model: &model,
        pictures: &pictures,
        known,
        config,
        reused: 0,
        computed: 0,
        refused: 0,
    };
    let total = (catalogue.creatives.len() + catalogue.scenes.len()) as u64;
    let bar = if common.json {
        indicatif::ProgressBar::hidden()
    } else {
        progress(total, "embed")
    };
    let started = std::time::Instant::now();
    let embeddings = Embeddings {
        model_digest: visual.digest.clone(),
        creatives: work.side(true, &rows(creatives), &bar)?,
        scenes: work.side(false, &rows(scenes), &bar)?,
    };
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();

    let dir = tempfile::tempdir().context("making a temporary folder")?;
    embeddings.save(dir.path())?;
    let draft = Draft {
        kind: Kind::Embeddings,
        dir: dir.path().to_owned(),
        parents: vec![catalogue_artifact.digest, visual.digest],
        metrics: BTreeMap::new(),
        labels: BTreeMap::new(),
    };
    let embedded = Embedded {
        creatives: embeddings.creatives.len(),
        scenes: embeddings.scenes.len(),
        reused: work.reused,
        computed: work.computed,
        refused: work.refused,
        pictures_per_second: work.computed as f64 / seconds.max(1e-9),
        artifact: registry.publish(draft).await?.digest,
    };
    write_json(&layout.reports().join("embed.json"), &embedded)?;
    if common.json {
        out!("{}", serde_json::to_string(&embedded)?);
    } else {
        out!(
            "embeddings {}: {} creatives, {} scenes; {} reused, {} computed ({:.0} pictures/s), {} refused",
            embedded.artifact.short(),
            embedded.creatives,
            embedded.scenes,
            embedded.reused,
            embedded.computed,
            embedded.pictures_per_second,
            embedded.refused,
        );
    }
    Ok(())
}

/// Ids with a picture.
fn rows<'a>(pairs: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<Row> {
    pairs
        .filter(|(_, digest)| !digest.is_empty())
        .map(|(id, digest)| Row {
            id: id.clone(),
            picture_digest: digest.clone(),
        })
        .collect()
}

/// Vectors of the last embeddings, if the same model made them.
async fn known(registry: &Registry, visual: &Digest) -> anyhow::Result<Known> {
    let Some(last) = registry.latest(Kind::Embeddings).await? else {
        return Ok(Known::new());
    };
    let embeddings = Embeddings::load(&registry.fetch(&last.digest).await?)?;
    if embeddings.model_digest != *visual {
        return Ok(Known::new());
    }
    let side = |is_creative: bool, rows: Vec<(Row, Vector)>| {
        rows.into_iter()
            .map(move |(row, vector)| ((is_creative, row.picture_digest), vector))
    };
    Ok(side(true, embeddings.creatives)
        .chain(side(false, embeddings.scenes))
        .collect())
}

struct Work<'a> {
    model: &'a VisualModel,
    pictures: &'a Pictures,
    known: Known,
    config: &'a EmbedConfig,
    reused: usize,
    computed: usize,
    refused: usize,
}

impl Work<'_> {
    fn side(
        &mut self,
        is_creative: bool,
        rows: &[Row],
        bar: &indicatif::ProgressBar,
    ) -> anyhow::Result<Vec<(Row, Vector)>> {
        let mut out = Vec::with_capacity(rows.len());
        for chunk in rows.chunks(self.config.batch_size.max(1)) {
            let (mut new_rows, mut new_pictures) = (Vec::new(), Vec::new());
            for row in chunk {
                if let Some(vector) = self.known.get(&(is_creative, row.picture_digest.clone())) {
                    out.push((row.clone(), *vector));
                    self.reused += 1;
                } else if let Some(picture) = self.decode(row) {
                    new_rows.push(row.clone());
                    new_pictures.push(picture);
                }
            }
            self.computed += new_rows.len();
            let vectors = if is_creative {
                self.model.embed_creatives(&new_pictures)?
            } else {
                self.model.embed_scenes(&new_pictures)?
            };
            out.extend(new_rows.into_iter().zip(vectors));
            bar.inc(chunk.len() as u64);
        }
        out.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
        Ok(out)
    }

    fn decode(&mut self, row: &Row) -> Option<Picture> {
        let decoded = match self.pictures.get(&row.picture_digest) {
            Some(png) => Picture::decode(png).map_err(anyhow::Error::from),
            None => Err(anyhow::anyhow!("its picture is not in the catalogue")),
        };
        decoded
            .inspect_err(|error| {
                tracing::warn!(
                    id = row.id,
                    digest = row.picture_digest,
                    ?error,
                    "picture left out"
                );
                self.refused += 1;
            })
            .ok()
    }
}
