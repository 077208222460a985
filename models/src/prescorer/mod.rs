//! The pre-scorer: gradient-boosted trees that LightGBM trained, compiled into flat arrays.
//!
//! [`trees`] reads LightGBM's text format and predicts as LightGBM does; [`PreScorer`] is the
//! artifact: `model.txt`, and `prescorer.json` with the dense features in the order that the
//! trees know them by.

pub mod trees;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use features::FeatureBatch;
use serde::{Deserialize, Serialize};

pub use trees::{Trees, TreesError};

const MODEL_FILE: &str = "model.txt";
const INFO_FILE: &str = "prescorer.json";

/// What `prescorer.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreScorerInfo {
    /// Digest of the feature spec.
    pub feature_digest: String,
    /// Dense features in the order of the trees' columns.
    pub dense: Vec<String>,
}

/// Why a pre-scorer could not be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum PreScorerError {
    /// A file is missing or the disk refused.
    #[error("accessing pre-scorer file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `prescorer.json` is not one.
    #[error("reading {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// `model.txt` is not one that this reader knows.
    #[error("reading trees from {}", path.display())]
    Trees {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: TreesError,
    },
    /// The trees and the list of features disagree, or the batch is of another width.
    #[error("{what} has {found} dense features, the pre-scorer takes {wanted}")]
    Width {
        /// The batch or the file.
        what: &'static str,
        /// How many it has.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
}

/// A pre-scorer that is ready to score.
#[derive(Debug, Clone)]
pub struct PreScorer {
    info: PreScorerInfo,
    trees: Trees,
}

impl PreScorer {
    /// Loads a pre-scorer from its folder.
    ///
    /// # Errors
    /// [`PreScorerError`] that names the file.
    pub fn load(dir: &Path) -> Result<Self, PreScorerError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|source| PreScorerError::Io {
                path: path.to_owned(),
                source,
            })
        };
        let path = dir.join(INFO_FILE);
        let info = serde_json::from_slice(&read(&path)?)
            .map_err(|source| PreScorerError::Json { path, source })?;
        let path = dir.join(MODEL_FILE);
        let text = String::from_utf8_lossy(&read(&path)?).into_owned();
        let trees = Trees::parse(&text).map_err(|source| PreScorerError::Trees { path, source })?;
        Self::new(info, trees)
    }

    /// Joins trees with the names of their features.
    ///
    /// # Errors
    /// [`PreScorerError::Width`] if their numbers differ.
    pub fn new(info: PreScorerInfo, trees: Trees) -> Result<Self, PreScorerError> {
        let (found, wanted) = (info.dense.len(), trees.num_features());
        if found != wanted {
            return Err(PreScorerError::Width {
                what: INFO_FILE,
                found,
                wanted,
            });
        }
        Ok(Self { info, trees })
    }

    /// Writes the files that [`Self::load`] reads; `model` is LightGBM's text.
    ///
    /// # Errors
    /// [`PreScorerError`] if the disk refuses.
    pub fn save(dir: &Path, info: &PreScorerInfo, model: &str) -> Result<(), PreScorerError> {
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            fs::write(&path, bytes).map_err(|source| PreScorerError::Io { path, source })
        };
        fs::create_dir_all(dir).map_err(|source| PreScorerError::Io {
            path: dir.to_owned(),
            source,
        })?;
        let text = serde_json::to_vec_pretty(info).map_err(|source| PreScorerError::Json {
            path: dir.join(INFO_FILE),
            source,
        })?;
        write(INFO_FILE, &text)?;
        write(MODEL_FILE, model.as_bytes())
    }

    /// Its features.
    pub fn info(&self) -> &PreScorerInfo {
        &self.info
    }

    /// Probability of a click for each row, from the dense features alone.
    ///
    /// # Errors
    /// [`PreScorerError::Width`] if the batch has another number of dense features.
    pub fn score(&self, batch: &FeatureBatch) -> Result<Vec<f32>, PreScorerError> {
        let wanted = self.info.dense.len();
        if batch.num_dense != wanted {
            return Err(PreScorerError::Width {
                what: "the batch",
                found: batch.num_dense,
                wanted,
            });
        }
        Ok(self
            .trees
            .predict(&batch.dense)
            .into_iter()
            .map(|score| score as f32)
            .collect())
    }
}
