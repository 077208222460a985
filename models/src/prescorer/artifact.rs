//! A trained pre-scorer as files: `model.txt` of LightGBM, and `prescorer.json`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use features::{FeatureBatch, Schema};
use serde::{Deserialize, Serialize};

use super::{
    forest::{Forest, ForestError},
    model_text::{ModelText, ModelTextError},
};

const MODEL_FILE: &str = "model.txt";
const RECORD_FILE: &str = "prescorer.json";

/// Why a pre-scorer could not be stored, loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum PreScorerError {
    /// The disk refused.
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
    /// `model.txt` is damaged or does what cannot be done here.
    #[error("reading {}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// The line and what is wrong with it.
        source: ModelTextError,
    },
    /// The trees are of other features than the record says.
    #[error("the trees take features {found}, the schema has {wanted}: train the pre-scorer again")]
    Features {
        /// Of the trees.
        found: String,
        /// Of the schema.
        wanted: String,
    },
    /// A batch of another width.
    #[error("the batch has {found} dense features, the pre-scorer takes {wanted}")]
    Width {
        /// Of the batch.
        found: usize,
        /// Of the pre-scorer.
        wanted: usize,
    },
    /// A batch whose values are no whole rows.
    #[error("scoring a batch")]
    Batch(#[from] ForestError),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// The features of the table it was trained on; the trees take the dense ones, in order.
    schema: Schema,
}

/// A pre-scorer that is ready to score.
#[derive(Debug, Clone)]
pub struct PreScorer {
    schema: Schema,
    text: String,
    forest: Forest,
}

impl PreScorer {
    /// Joins a model file's text with the features it was trained on.
    ///
    /// # Errors
    /// [`PreScorerError::Model`] for a bad text, [`PreScorerError::Features`] if the two do not
    /// belong together.
    pub fn new(text: String, schema: Schema) -> Result<Self, PreScorerError> {
        Self::from_parts(text, schema, Path::new(MODEL_FILE))
    }

    fn from_parts(text: String, schema: Schema, path: &Path) -> Result<Self, PreScorerError> {
        let model: ModelText = text.parse().map_err(|source| PreScorerError::Model {
            path: path.to_owned(),
            source,
        })?;
        let wanted: Vec<&str> = schema
            .dense
            .iter()
            .map(|field| field.name.as_str())
            .collect();
        if wanted.len() != model.num_features || wanted != model.feature_names {
            return Err(PreScorerError::Features {
                found: model.feature_names.join(", "),
                wanted: wanted.join(", "),
            });
        }
        Ok(Self {
            forest: Forest::new(model),
            schema,
            text,
        })
    }

    /// Loads a pre-scorer from its folder.
    ///
    /// # Errors
    /// [`PreScorerError`] that names the file, and for `model.txt` the line.
    pub fn load(dir: &Path) -> Result<Self, PreScorerError> {
        let read = |name: &str| {
            let path = dir.join(name);
            match fs::read(&path) {
                Ok(bytes) => Ok((path, bytes)),
                Err(source) => Err(PreScorerError::Io { path, source }),
            }
        };
        let (path, bytes) = read(RECORD_FILE)?;
        let record: Record = serde_json::from_slice(&bytes)
            .map_err(|source| PreScorerError::Json { path, source })?;
        let (path, bytes) = read(MODEL_FILE)?;
        let text = String::from_utf8(bytes).map_err(|error| PreScorerError::Io {
            path: path.clone(),
            source: io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()),
        })?;
        Self::from_parts(text, record.schema, &path)
    }

    /// Writes the pre-scorer's files into a folder.
    ///
    /// # Errors
    /// [`PreScorerError::Io`] if the disk refuses.
    pub fn save(&self, dir: &Path) -> Result<(), PreScorerError> {
        let io = |path: PathBuf| move |source| PreScorerError::Io { path, source };
        fs::create_dir_all(dir).map_err(io(dir.to_owned()))?;
        let path = dir.join(MODEL_FILE);
        fs::write(&path, &self.text).map_err(io(path))?;
        let path = dir.join(RECORD_FILE);
        let record = Record {
            schema: self.schema.clone(),
        };
        let text = serde_json::to_vec_pretty(&record).map_err(|source| PreScorerError::Json {
            path: path.clone(),
            source,
        })?;
        fs::write(&path, text).map_err(io(path))
    }

    /// The features of the table it was trained on; it takes the dense ones.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The trees.
    pub fn forest(&self) -> &Forest {
        &self.forest
    }

    /// Probability of a click for each row. A value that is not a number is treated as LightGBM
    /// treats it: as missing.
    ///
    /// # Errors
    /// [`PreScorerError::Width`] or [`PreScorerError::Batch`] if the batch does not fit.
    pub fn score(&self, batch: &FeatureBatch) -> Result<Vec<f32>, PreScorerError> {
        if batch.num_dense != self.schema.dense.len() {
            return Err(PreScorerError::Width {
                found: batch.num_dense,
                wanted: self.schema.dense.len(),
            });
        }
        let scores = self.forest.probabilities(&batch.dense)?;
        Ok(scores.into_iter().map(|score| score as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = include_str!("testdata/small.txt");

    fn schema(names: &[&str]) -> Schema {
        serde_json::from_value(serde_json::json!({
            "digest": "d",
            "dense": names.iter().map(|name| serde_json::json!({"name": name})).collect::<Vec<_>>(),
            "sparse": [],
        }))
        .unwrap()
    }

    fn saved() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let scorer = PreScorer::new(SMALL.to_owned(), schema(&["age", "rate", "bid"])).unwrap();
        scorer.save(dir.path()).unwrap();
        dir
    }

    #[test]
    fn a_pre_scorer_survives_its_folder_and_scores() {
        let dir = saved();
        let scorer = PreScorer::load(dir.path()).unwrap();
        let mut batch = FeatureBatch::new(scorer.schema());
        batch.dense = vec![0.2, 0.0, 0.0, 0.9, 0.0, 0.0];
        batch.num_rows = 2;
        let sigmoid = |x: f64| (1.0 / (1.0 + (-x).exp())) as f32;
        assert_eq!(
            scorer.score(&batch).unwrap(),
            [sigmoid(-0.25 + 0.125), sigmoid(0.5 + 0.125)]
        );
    }

    #[test]
    fn other_features_are_refused() {
        let other = PreScorer::new(SMALL.to_owned(), schema(&["age", "bid", "rate"]));
        assert!(matches!(other, Err(PreScorerError::Features { .. })));
        let scorer = PreScorer::load(saved().path()).unwrap();
        let batch = FeatureBatch::with_widths(2, 0);
        assert!(matches!(
            scorer.score(&batch),
            Err(PreScorerError::Width {
                found: 2,
                wanted: 3
            })
        ));
    }

    #[test]
    fn damaged_files_are_named() {
        let dir = saved();
        let path = dir.path().join(MODEL_FILE);
        fs::write(&path, SMALL.replace("threshold=0.5 0.25", "threshold=0.5")).unwrap();
        let error = PreScorer::load(dir.path()).unwrap_err();
        let PreScorerError::Model { source, .. } = &error else {
            panic!("{error}");
        };
        assert!(source.to_string().starts_with("line 18"), "{source}");

        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(
            PreScorer::load(dir.path()),
            Err(PreScorerError::Io { .. })
        ));
        fs::remove_file(&path).unwrap();
        assert!(matches!(
            PreScorer::load(dir.path()),
            Err(PreScorerError::Io { .. })
        ));
    }
}
