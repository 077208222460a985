//! The pre-scorer: boosted trees that thin out hundreds of candidates in well under a
//! millisecond.
//!
//! LightGBM trains them and writes its text format. [`model_text`] reads it without LightGBM,
//! [`tree`] follows one row through one tree as LightGBM does, [`bits`] takes many rows through
//! all trees at once with the same result, bit for bit, and [`trees`] chooses between the two.
//! [`PreScorer`] is the artifact: `model.txt`, and `prescorer.json` with the dense features in
//! the order that the trees know them by.

pub mod bits;
pub mod model_text;
pub mod tree;
pub mod trees;

use std::path::{Path, PathBuf};

use features::FeatureBatch;
use serde::{Deserialize, Serialize};

pub use model_text::TreesError;
pub use trees::Trees;

use crate::files::{self, ModelFileError};

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
    /// A file is missing or damaged.
    #[error(transparent)]
    File(#[from] ModelFileError),
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
        let info = files::read_json(&dir.join(INFO_FILE))?;
        let path = dir.join(MODEL_FILE);
        let text = String::from_utf8_lossy(&files::read(&path)?).into_owned();
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
        files::create_dir(dir)?;
        files::write_json(&dir.join(INFO_FILE), info)?;
        Ok(files::write(&dir.join(MODEL_FILE), model.as_bytes())?)
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SMALL: &str = include_str!("testdata/small.txt");

    fn saved(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let info = PreScorerInfo {
            feature_digest: "d".to_owned(),
            dense: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        PreScorer::save(dir.path(), &info, SMALL).unwrap();
        dir
    }

    #[test]
    fn a_pre_scorer_survives_its_folder_and_scores() {
        let scorer = PreScorer::load(saved(&["age", "rate", "bid"]).path()).unwrap();
        let mut batch = FeatureBatch::with_widths(3, 0);
        batch.dense = vec![0.2, 0.0, 0.0, 0.9, 0.0, 0.0];
        batch.num_rows = 2;
        let sigmoid = |x: f64| (1.0 / (1.0 + (-x).exp())) as f32;
        let expected = [sigmoid(-0.25 + 0.125), sigmoid(0.5 + 0.125)];
        assert_eq!(scorer.score(&batch).unwrap(), expected);
    }

    #[test]
    fn another_number_of_features_is_refused() {
        let loaded = PreScorer::load(saved(&["age", "rate"]).path());
        assert!(matches!(
            loaded,
            Err(PreScorerError::Width {
                found: 2,
                wanted: 3,
                ..
            })
        ));
        let scorer = PreScorer::load(saved(&["age", "rate", "bid"]).path()).unwrap();
        let error = scorer.score(&FeatureBatch::with_widths(2, 0)).unwrap_err();
        assert!(error.to_string().starts_with("the batch has 2"), "{error}");
    }

    #[test]
    fn damaged_files_are_named_with_the_line() {
        let dir = saved(&["age", "rate", "bid"]);
        let path = dir.path().join(MODEL_FILE);
        let damaged = SMALL.replace("threshold=0.5 0.25", "threshold=0.5");
        fs::write(&path, damaged).unwrap();
        let error = PreScorer::load(dir.path()).unwrap_err();
        let PreScorerError::Trees { source, .. } = &error else {
            panic!("{error}");
        };
        assert!(source.to_string().starts_with("line 18"), "{source}");
        fs::write(&path, [0xff, 0xfe]).unwrap();
        let error = PreScorer::load(dir.path()).unwrap_err();
        assert!(matches!(error, PreScorerError::Trees { .. }), "{error}");
        fs::remove_file(&path).unwrap();
        let error = PreScorer::load(dir.path()).unwrap_err();
        assert!(matches!(error, PreScorerError::File(_)), "{error}");
    }
}
