//! Vectors of creatives and scenes, and the search for the creatives nearest to a scene.
//!
//! Two ways, chosen per query by how many ads the targeting leaves: few are compared one by one,
//! which is exact and faster; many are searched in the graph with the targeting as a filter. The
//! similarity is always computed from the exact vectors, so both ways give the same number for
//! the same pair.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use roaring::RoaringBitmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use usearch::Index;

use super::Ads;

/// Why vectors or index were refused.
#[derive(Debug, thiserror::Error)]
pub enum VectorError {
    /// A file is missing or the disk refused.
    #[error("reading {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A record is not what the embedder writes.
    #[error("reading {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// The tensors are truncated or foreign.
    #[error("reading tensors of {}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: safetensors::SafeTensorError,
    },
    /// A tensor that is not 32-bit floats in two dimensions.
    #[error("tensor `{name}` is {found}, wanted f32 [{rows}, dim]")]
    Shape {
        /// The tensor.
        name: &'static str,
        /// What it is.
        found: String,
        /// How many rows there should be.
        rows: usize,
    },
    /// A vector with a component that is not finite.
    #[error("row {row} of tensor `{name}` is not finite")]
    NotFinite {
        /// The tensor.
        name: &'static str,
        /// The row.
        row: usize,
    },
    /// The index file cannot be opened.
    #[error("opening index {}: {reason}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the library said.
        reason: String,
    },
    /// A search in the graph failed.
    #[error("searching the index: {reason}")]
    Search {
        /// What the library said.
        reason: String,
    },
    /// Index and vectors do not belong together.
    #[error("the index has {what} {found}, the embeddings have {wanted}")]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// The index's.
        found: usize,
        /// The embeddings'.
        wanted: usize,
    },
}

#[derive(Deserialize)]
struct Row {
    id: String,
}

/// `ids.json` of an embeddings artifact; what serving does not need is passed over.
#[derive(Deserialize)]
struct Ids {
    creatives: Vec<Row>,
    scenes: Vec<Row>,
}

/// `index.json` of an index artifact; what serving does not need is passed over.
#[derive(Deserialize)]
struct IndexRecord {
    ef_search: Option<usize>,
}

/// An ad and how near its picture is to the scene.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Near {
    /// The ad's number.
    pub ad: u32,
    /// Cosine, -1 to 1.
    pub similarity: f32,
}

/// Vectors of a bundle with the index over them.
pub struct Vectors {
    dim: usize,
    /// `[rows, dim]`, row-major, unit length.
    creatives: Vec<f32>,
    /// Row of each ad; ads without picture have none.
    row_of_ad: Vec<Option<u32>>,
    /// Ad of each row; creatives that are not in the catalogue have none.
    ad_of_row: Vec<Option<u32>>,
    with_vector: RoaringBitmap,
    scenes: BTreeMap<String, Vec<f32>>,
    mean_scene: Vec<f32>,
    index: Index,
}

/// How candidates are searched.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// How many to find.
    pub count: usize,
    /// Up to this many eligible ads are compared one by one.
    pub exact_limit: u64,
}

impl Vectors {
    /// Loads an embeddings folder and an index folder for the ads of a catalogue; at most
    /// `threads` searches run at a time.
    ///
    /// # Errors
    /// [`VectorError`] names the file and what is wrong with it.
    pub fn load(
        embeddings: &Path,
        index: &Path,
        ads: &Ads,
        threads: usize,
    ) -> Result<Self, VectorError> {
        let ids: Ids = read_json(&embeddings.join("ids.json"))?;
        let (dim, creatives, scene_rows) = read_tensors(embeddings, &ids)?;
        let index = open_index(index, dim, ids.creatives.len(), threads)?;

        let numbers: BTreeMap<&str, u32> = (0..)
            .zip(&ads.ads)
            .map(|(number, ad)| (ad.creative.creative_id.as_str(), number))
            .collect();
        let mut row_of_ad = vec![None; ads.ads.len()];
        let ad_of_row: Vec<Option<u32>> = ids
            .creatives
            .iter()
            .map(|row| numbers.get(row.id.as_str()).copied())
            .collect();
        for (row, ad) in ad_of_row.iter().enumerate() {
            if let Some(ad) = ad {
                row_of_ad[*ad as usize] = Some(row as u32);
            }
        }
        let scenes: BTreeMap<String, Vec<f32>> = ids
            .scenes
            .iter()
            .zip(scene_rows.chunks_exact(dim))
            .map(|(row, vector)| (row.id.clone(), vector.to_vec()))
            .collect();
        Ok(Self {
            dim,
            creatives,
            with_vector: ad_of_row.iter().flatten().copied().collect(),
            row_of_ad,
            ad_of_row,
            mean_scene: mean(scenes.values(), dim),
            scenes,
            index,
        })
    }

    /// A scene's vector, if it has one.
    pub fn scene(&self, scene_id: &str) -> Option<&[f32]> {
        self.scenes.get(scene_id).map(Vec::as_slice)
    }

    /// The direction of all scenes together.
    pub fn mean_scene(&self) -> &[f32] {
        &self.mean_scene
    }

    /// The eligible ads nearest to `query`, nearest first, equals by creative id. Ads without a
    /// picture fill up what the others leave open, with similarity 0.
    ///
    /// # Errors
    /// [`VectorError::Search`] if the graph search fails.
    pub fn nearest(
        &self,
        query: &[f32],
        eligible: &RoaringBitmap,
        search: Search,
    ) -> Result<Vec<Near>, VectorError> {
        let with_vector = eligible & &self.with_vector;
        let mut near: Vec<Near> = if with_vector.len() <= search.exact_limit {
            with_vector.iter().map(|ad| self.near(query, ad)).collect()
        } else {
            self.graph(query, &with_vector, search.count)?
        };
        let by_similarity =
            |a: &Near, b: &Near| b.similarity.total_cmp(&a.similarity).then(a.ad.cmp(&b.ad));
        if near.len() > search.count && search.count > 0 {
            near.select_nth_unstable_by(search.count - 1, by_similarity);
        }
        near.truncate(search.count);
        near.sort_unstable_by(by_similarity);
        let open = search.count - near.len();
        let without = eligible - &self.with_vector;
        near.extend(without.iter().take(open).map(|ad| Near {
            ad,
            similarity: 0.0,
        }));
        Ok(near)
    }

    fn graph(
        &self,
        query: &[f32],
        eligible: &RoaringBitmap,
        count: usize,
    ) -> Result<Vec<Near>, VectorError> {
        let admits = |row: u64| {
            let ad = self.ad_of_row.get(row as usize).copied().flatten();
            ad.is_some_and(|ad| eligible.contains(ad))
        };
        let found = self.index.filtered_search(query, count, admits);
        let found = found.map_err(|error| VectorError::Search {
            reason: error.to_string(),
        })?;
        let ads: BTreeSet<u32> = found
            .keys
            .iter()
            .filter_map(|row| self.ad_of_row.get(*row as usize).copied().flatten())
            .collect();
        Ok(ads.into_iter().map(|ad| self.near(query, ad)).collect())
    }

    fn near(&self, query: &[f32], ad: u32) -> Near {
        let vector = self.row_of_ad[ad as usize].map_or(&[][..], |row| {
            &self.creatives[row as usize * self.dim..][..self.dim]
        });
        Near {
            ad,
            similarity: dot(vector, query),
        }
    }
}

/// Inner product in eight running sums: the order is fixed, and the compiler can use vector
/// instructions, as it may not for one sum.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a
        .remainder()
        .iter()
        .zip(b.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (a, b) in a.zip(b) {
        for ((sum, x), y) in sums.iter_mut().zip(a).zip(b) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f32>() + rest
}

impl std::fmt::Debug for Vectors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vectors")
            .field("dim", &self.dim)
            .field("creatives", &self.ad_of_row.len())
            .field("scenes", &self.scenes.len())
            .finish_non_exhaustive()
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, VectorError> {
    let text = fs::read(path).map_err(|source| VectorError::Io {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| VectorError::Json {
        path: path.to_owned(),
        source,
    })
}

/// Dimension, creative rows and scene rows.
fn read_tensors(folder: &Path, ids: &Ids) -> Result<(usize, Vec<f32>, Vec<f32>), VectorError> {
    let path = folder.join("vectors.safetensors");
    let bytes = fs::read(&path).map_err(|source| VectorError::Io {
        path: path.clone(),
        source,
    })?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|source| VectorError::Tensors {
        path: path.clone(),
        source,
    })?;
    let (dim, creatives) = matrix(&path, &tensors, "creatives", ids.creatives.len())?;
    let (scene_dim, scenes) = matrix(&path, &tensors, "scenes", ids.scenes.len())?;
    if scene_dim != dim {
        return Err(VectorError::Shape {
            name: "scenes",
            found: format!("of dim {scene_dim} beside creatives of dim {dim}"),
            rows: ids.scenes.len(),
        });
    }
    Ok((dim, creatives, scenes))
}

fn matrix(
    path: &Path,
    tensors: &SafeTensors<'_>,
    name: &'static str,
    rows: usize,
) -> Result<(usize, Vec<f32>), VectorError> {
    let tensor = tensors.tensor(name);
    let tensor = tensor.map_err(|source| VectorError::Tensors {
        path: path.to_owned(),
        source,
    })?;
    let dim = match tensor.shape() {
        [found, dim] if *found == rows && *dim > 0 && tensor.dtype() == Dtype::F32 => *dim,
        shape => {
            let found = format!("{:?} {shape:?}", tensor.dtype());
            return Err(VectorError::Shape { name, found, rows });
        }
    };
    let values: Vec<f32> = tensor
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(VectorError::NotFinite {
            name,
            row: at / dim,
        }),
        None => Ok((dim, values)),
    }
}

fn open_index(
    folder: &Path,
    dim: usize,
    rows: usize,
    threads: usize,
) -> Result<Index, VectorError> {
    let record: IndexRecord = read_json(&folder.join("index.json"))?;
    let path = folder.join("index.usearch");
    let failed = |reason: String| VectorError::Open {
        path: path.clone(),
        reason,
    };
    let index = Index::restore(&path.display().to_string());
    let index = index.map_err(|error| failed(error.to_string()))?;
    for (what, found, wanted) in [
        ("dimension", index.dimensions(), dim),
        ("number of creatives", index.size(), rows),
    ] {
        if found != wanted {
            return Err(VectorError::Mismatch {
                what,
                found,
                wanted,
            });
        }
    }
    if let Some(ef_search) = record.ef_search {
        index.change_expansion_search(ef_search);
    }
    // A loaded index admits as many threads as there are cores; ours may be more.
    let reserved = index.reserve_capacity_and_threads(index.size(), threads.max(1));
    reserved.map_err(|error| failed(error.to_string()))?;
    Ok(index)
}

/// The mean of some unit vectors, again of unit length; zeros if there are none.
fn mean<'a>(vectors: impl Iterator<Item = &'a Vec<f32>>, dim: usize) -> Vec<f32> {
    let mut sum = vec![0.0f64; dim];
    for vector in vectors {
        for (total, value) in sum.iter_mut().zip(vector) {
            *total += f64::from(*value);
        }
    }
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    let scale = if length > 1e-12 { 1.0 / length } else { 0.0 };
    sum.into_iter()
        .map(|value| (value * scale) as f32)
        .collect()
}
