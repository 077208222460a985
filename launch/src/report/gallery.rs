//! What the registry holds, for the page: artifacts, the live bundle, and pictures that match.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::Context;
use registry::{Artifact, Channel, Digest, Kind, Registry, block_on};
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::registry_verbs;

/// Scenes on the page.
const NUM_SCENES: usize = 6;
/// Ads beside each of them.
const NUM_ADS: usize = 7;

/// What the registry holds.
#[derive(Debug, Default)]
pub(super) struct Artifacts {
    /// All artifacts in the order of publishing.
    pub artifacts: Vec<Artifact>,
    /// Where channel `live` stands.
    pub live: Option<Channel>,
    /// Digests that the live bundles are made of.
    pub serving: BTreeSet<Digest>,
    /// Scenes and the ads nearest to them.
    pub matches: Vec<SceneMatch>,
    /// Why something of the above is not there.
    pub trouble: Option<String>,
}

/// A scene and the ads whose pictures fit it best.
#[derive(Debug)]
pub(super) struct SceneMatch {
    pub genre: String,
    pub scene_id: String,
    pub png: Vec<u8>,
    pub ads: Vec<AdMatch>,
}

/// An ad beside a scene.
#[derive(Debug)]
pub(super) struct AdMatch {
    pub title: String,
    pub category: String,
    /// Cosine of the two vectors.
    pub similarity: f32,
    pub png: Vec<u8>,
}

impl Artifacts {
    /// Reads what can be read; the page is made without the rest.
    pub fn read(root: &Path) -> Self {
        let mut found = Self::default();
        if let Err(error) = found.fill(root) {
            found.trouble = Some(format!("{error:#}"));
        }
        found
    }

    fn fill(&mut self, root: &Path) -> anyhow::Result<()> {
        let registry = registry_verbs::open(root)?;
        self.artifacts = block_on(registry.list(None))?;
        self.live = block_on(registry.channel("live"))?;
        for target in self.live.iter().flat_map(|live| &live.targets) {
            self.serving.insert(target.bundle.clone());
            self.serving
                .extend(block_on(registry.get(&target.bundle))?.parents);
        }
        let serving = |kind| {
            let serves = |artifact: &&Artifact| self.serving.contains(&artifact.digest);
            let of_kind = |artifact: &&Artifact| artifact.kind == kind;
            self.artifacts.iter().filter(of_kind).find(serves).cloned()
        };
        if let (Some(catalogue), Some(embeddings)) =
            (serving(Kind::Catalogue), serving(Kind::Embeddings))
        {
            self.matches = matches(&registry, &catalogue, &embeddings)?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Catalogue {
    creatives: BTreeMap<String, Creative>,
    scenes: BTreeMap<String, Scene>,
}

#[derive(Deserialize)]
struct Creative {
    category: String,
    title: String,
}

#[derive(Deserialize)]
struct Scene {
    genre: String,
}

#[derive(Deserialize)]
struct Ids {
    creatives: Vec<Row>,
    scenes: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    id: String,
    picture_digest: String,
}

fn matches(
    registry: &Registry,
    catalogue: &Artifact,
    embeddings: &Artifact,
) -> anyhow::Result<Vec<SceneMatch>> {
    let folder = block_on(registry.fetch(&catalogue.digest))?;
    let names: Catalogue = read_json(&folder.join("catalogue.json"))?;
    let pictures = read_bytes(&folder.join("pictures.safetensors"))?;
    let pictures =
        SafeTensors::deserialize(&pictures).context("reading the catalogue's pictures")?;
    let png = |row: &Row| {
        pictures
            .tensor(&row.picture_digest)
            .map(|png| png.data().to_vec())
    };

    let folder = block_on(registry.fetch(&embeddings.digest))?;
    let ids: Ids = read_json(&folder.join("ids.json"))?;
    let vectors = read_bytes(&folder.join("vectors.safetensors"))?;
    let vectors = SafeTensors::deserialize(&vectors).context("reading the vectors")?;
    let creatives = rows(&vectors, "creatives", ids.creatives.len())?;
    let scenes = rows(&vectors, "scenes", ids.scenes.len())?;

    let mut found = Vec::new();
    let mut genres = BTreeSet::new();
    for (row, vector) in ids.scenes.iter().zip(&scenes) {
        let Some(scene) = names.scenes.get(&row.id) else {
            continue;
        };
        if found.len() == NUM_SCENES || !genres.insert(&scene.genre) {
            continue;
        }
        let mut ads = Vec::new();
        for (at, similarity) in nearest(vector, &creatives) {
            let ad = &ids.creatives[at];
            let Some(creative) = names.creatives.get(&ad.id) else {
                continue;
            };
            ads.push(AdMatch {
                title: creative.title.clone(),
                category: creative.category.clone(),
                similarity,
                png: png(ad)?,
            });
        }
        found.push(SceneMatch {
            genre: scene.genre.clone(),
            scene_id: row.id.clone(),
            png: png(row)?,
            ads,
        });
    }
    Ok(found)
}

/// The rows with the largest dot products, best first.
fn nearest(query: &[f32], rows: &[Vec<f32>]) -> Vec<(usize, f32)> {
    let dot = |row: &Vec<f32>| row.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
    let mut scored: Vec<(usize, f32)> = rows.iter().map(dot).enumerate().collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    scored.truncate(NUM_ADS);
    scored
}

fn rows(tensors: &SafeTensors<'_>, name: &str, count: usize) -> anyhow::Result<Vec<Vec<f32>>> {
    let tensor = tensors
        .tensor(name)
        .with_context(|| format!("reading tensor `{name}`"))?;
    let values: Vec<f32> = tensor
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    let width = values.len().checked_div(count).unwrap_or(1).max(1);
    let rows: Vec<Vec<f32>> = values.chunks_exact(width).map(<[f32]>::to_vec).collect();
    anyhow::ensure!(
        rows.len() == count,
        "tensor `{name}` has {} rows, wanted {count}",
        rows.len()
    );
    Ok(rows)
}

fn read_bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    serde_json::from_slice(&read_bytes(path)?)
        .with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_come_first_and_ties_by_row() {
        let rows = [
            vec![0.0, 1.0],
            vec![1.0, 0.0],
            vec![1.0, 0.0],
            vec![0.6, 0.8],
        ];
        let order: Vec<usize> = nearest(&[1.0, 0.0], &rows)
            .into_iter()
            .map(|(at, _)| at)
            .collect();
        assert_eq!(order, [1, 2, 3, 0]);
    }

    #[test]
    fn a_missing_registry_is_told_and_leaves_the_rest_empty() {
        let found = Artifacts::read(Path::new("/nonexistent/registry"));
        assert!(found.trouble.unwrap().contains("no registry at"));
        assert!(found.artifacts.is_empty() && found.matches.is_empty());
    }
}
