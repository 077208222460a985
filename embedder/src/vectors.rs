//! The embeddings artifact: `vectors.safetensors` (`creatives` and `scenes`, f32 `[n, 128]`, rows
//! of length 1) and `ids.json`, which says whose row is whose and which model made them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use models::visual::EMBEDDING_DIM;
use registry::Digest;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

const IDS_FILE: &str = "ids.json";
const VECTORS_FILE: &str = "vectors.safetensors";

/// One vector.
pub type Vector = [f32; EMBEDDING_DIM];

/// Whose picture a row embeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Id of the creative or scene.
    pub id: String,
    /// SHA-256 of the picture, hex.
    pub picture_digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ids {
    creatives: Vec<Row>,
    scenes: Vec<Row>,
    model_digest: Digest,
}

/// Vectors of a catalogue's pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// The visual model that made them.
    pub model_digest: Digest,
    /// Creatives by rising id.
    pub creatives: Vec<(Row, Vector)>,
    /// Scenes by rising id.
    pub scenes: Vec<(Row, Vector)>,
}

/// Why embeddings could not be stored or loaded.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddingsError {
    /// The disk refused.
    #[error("accessing embeddings file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `ids.json` is not one.
    #[error("reading {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// The vectors are damaged.
    #[error("reading {}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: safetensors::SafeTensorError,
    },
    /// A tensor of another shape than its ids.
    #[error("tensor `{name}` in {} has shape {found:?}, wanted F32 [{rows}, {EMBEDDING_DIM}]", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// How many ids there are.
        rows: usize,
    },
}

impl Embeddings {
    /// Writes the artifact's files into a folder.
    ///
    /// # Errors
    /// [`EmbeddingsError`] if the disk refuses.
    pub fn save(&self, dir: &Path) -> Result<(), EmbeddingsError> {
        let io = |path: &Path, source| EmbeddingsError::Io {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(|source| io(dir, source))?;
        let rows = |side: &[(Row, Vector)]| side.iter().map(|(row, _)| row.clone()).collect();
        let ids = Ids {
            creatives: rows(&self.creatives),
            scenes: rows(&self.scenes),
            model_digest: self.model_digest.clone(),
        };
        let path = dir.join(IDS_FILE);
        let text = serde_json::to_vec(&ids).map_err(|source| EmbeddingsError::Json {
            path: path.clone(),
            source,
        })?;
        fs::write(&path, text).map_err(|source| io(&path, source))?;

        let path = dir.join(VECTORS_FILE);
        let tensors = |source| EmbeddingsError::Tensors {
            path: path.clone(),
            source,
        };
        let bytes = |side: &[(Row, Vector)]| -> Vec<u8> {
            side.iter()
                .flat_map(|(_, vector)| vector.iter().flat_map(|value| value.to_le_bytes()))
                .collect()
        };
        let (creatives, scenes) = (bytes(&self.creatives), bytes(&self.scenes));
        let view =
            |rows: usize, bytes| TensorView::new(Dtype::F32, vec![rows, EMBEDDING_DIM], bytes);
        let views = [
            (
                "creatives",
                view(self.creatives.len(), &creatives).map_err(tensors)?,
            ),
            ("scenes", view(self.scenes.len(), &scenes).map_err(tensors)?),
        ];
        let data = safetensors::serialize(views, None).map_err(tensors)?;
        fs::write(&path, data).map_err(|source| io(&path, source))
    }

    /// Reads the artifact's files.
    ///
    /// # Errors
    /// [`EmbeddingsError`] that names the file.
    pub fn load(dir: &Path) -> Result<Self, EmbeddingsError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|source| EmbeddingsError::Io {
                path: path.to_owned(),
                source,
            })
        };
        let path = dir.join(IDS_FILE);
        let ids: Ids = serde_json::from_slice(&read(&path)?)
            .map_err(|source| EmbeddingsError::Json { path, source })?;
        let path = dir.join(VECTORS_FILE);
        let bytes = read(&path)?;
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|source| EmbeddingsError::Tensors {
                path: path.clone(),
                source,
            })?;
        let side = |name: &'static str, rows: Vec<Row>| {
            let view = tensors.tensor(name);
            let view = view.map_err(|source| EmbeddingsError::Tensors {
                path: path.clone(),
                source,
            })?;
            if view.dtype() != Dtype::F32 || view.shape() != [rows.len(), EMBEDDING_DIM] {
                let found = view.shape().to_vec();
                return Err(EmbeddingsError::Shape {
                    path: path.clone(),
                    name,
                    found,
                    rows: rows.len(),
                });
            }
            let values: Vec<f32> = view
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect();
            Ok(rows
                .into_iter()
                .zip(values.as_chunks::<EMBEDDING_DIM>().0.iter().copied())
                .collect())
        };
        Ok(Self {
            creatives: side("creatives", ids.creatives)?,
            scenes: side("scenes", ids.scenes)?,
            model_digest: ids.model_digest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embeddings() -> Embeddings {
        let row = |id: &str, value: f32| {
            let picture_digest = format!("p-{id}");
            (
                Row {
                    id: id.into(),
                    picture_digest,
                },
                [value; EMBEDDING_DIM],
            )
        };
        Embeddings {
            model_digest: Digest::of(b"model"),
            creatives: vec![row("k1", 0.1), row("k2", 0.2)],
            scenes: vec![row("s1", 0.3)],
        }
    }

    #[test]
    fn embeddings_survive_their_files() {
        let dir = tempfile::tempdir().unwrap();
        embeddings().save(dir.path()).unwrap();
        assert_eq!(Embeddings::load(dir.path()).unwrap(), embeddings());
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for file in [IDS_FILE, VECTORS_FILE] {
            embeddings().save(dir.path()).unwrap();
            let path = dir.path().join(file);
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
            let error = Embeddings::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
        }
        embeddings().save(dir.path()).unwrap();
        let path = dir.path().join(IDS_FILE);
        let fewer = fs::read_to_string(&path)
            .unwrap()
            .replace("{\"id\":\"k1\",\"picture_digest\":\"p-k1\"},", "");
        fs::write(&path, fewer).unwrap();
        assert!(matches!(
            Embeddings::load(dir.path()),
            Err(EmbeddingsError::Shape { rows: 1, .. })
        ));
    }
}
