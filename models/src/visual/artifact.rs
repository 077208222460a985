//! A trained visual tower as files: `model.json`, `weights.safetensors`.

use std::path::{Path, PathBuf};

use burn::{
    prelude::Backend,
    tensor::{Tensor, TensorData},
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    network::{EMBEDDING_DIM, VisualConfig, VisualConfigError, VisualNetwork},
    picture::Picture,
};
use crate::{
    Cpu,
    files::{self, ModelFileError},
    ops::FusedOps,
};

const ARCHITECTURE: &str = "vit_two_heads";
const MODEL_FILE: &str = "model.json";
const WEIGHTS_FILE: &str = "weights.safetensors";

/// Pictures that go through the network at once.
const EMBED_BATCH: usize = 256;

/// Why a visual tower could not be stored, loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum VisualModelError {
    /// A file is missing, damaged or of another model.
    #[error(transparent)]
    File(#[from] ModelFileError),
    /// Numbers that cannot be.
    #[error("configuration in {}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The number.
        source: VisualConfigError,
    },
    /// A vector that is no number: weights that diverged, or were damaged in their values.
    #[error("picture {picture} gets a vector that is not finite: train the visual model again")]
    NotFinite {
        /// Its place in the call.
        picture: usize,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    architecture: String,
    embedding_dim: usize,
    config: VisualConfig,
}

/// A visual tower that is ready to embed.
#[derive(Debug, Clone)]
pub struct VisualModel<B: Backend = Cpu> {
    config: VisualConfig,
    network: VisualNetwork<B>,
    device: B::Device,
}

impl<B: FusedOps> VisualModel<B> {
    /// Joins the parts of a trained tower.
    pub fn new(config: VisualConfig, network: VisualNetwork<B>, device: B::Device) -> Self {
        Self {
            config,
            network,
            device,
        }
    }

    /// Its shape.
    pub fn config(&self) -> &VisualConfig {
        &self.config
    }

    /// Vectors of creatives' pictures, of unit length.
    ///
    /// # Errors
    /// [`VisualModelError::NotFinite`] if the weights are broken.
    pub fn embed_creatives(
        &self,
        pictures: &[Picture],
    ) -> Result<Vec<[f32; EMBEDDING_DIM]>, VisualModelError> {
        self.embed(pictures, |features| {
            self.network.project_creatives(features)
        })
    }

    /// Vectors of scenes' pictures, of unit length.
    ///
    /// # Errors
    /// [`VisualModelError::NotFinite`] if the weights are broken.
    pub fn embed_scenes(
        &self,
        pictures: &[Picture],
    ) -> Result<Vec<[f32; EMBEDDING_DIM]>, VisualModelError> {
        self.embed(pictures, |features| self.network.project_scenes(features))
    }

    /// Vectors of creatives out of the backbone's, as [`Self::embed_creatives`] has them.
    ///
    /// # Shapes
    /// - `features`: `[pictures, output_dim]`
    ///
    /// # Errors
    /// [`VisualModelError::NotFinite`] if the weights are broken.
    pub fn project_creatives(
        &self,
        features: &[f32],
    ) -> Result<Vec<[f32; EMBEDDING_DIM]>, VisualModelError> {
        finite(rows_of(self.network.project_creatives(self.rows(features))))
    }

    /// Vectors of scenes, likewise.
    ///
    /// # Errors
    /// [`VisualModelError::NotFinite`] if the weights are broken.
    pub fn project_scenes(
        &self,
        features: &[f32],
    ) -> Result<Vec<[f32; EMBEDDING_DIM]>, VisualModelError> {
        finite(rows_of(self.network.project_scenes(self.rows(features))))
    }

    fn rows(&self, features: &[f32]) -> Tensor<B, 2> {
        let dim = self.config.vit.output_dim();
        let data = TensorData::new(features.to_vec(), [features.len() / dim, dim]);
        Tensor::from_data(data, &self.device)
    }

    fn embed(
        &self,
        pictures: &[Picture],
        project: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Result<Vec<[f32; EMBEDDING_DIM]>, VisualModelError> {
        let (tokens, values) = (
            self.config.vit.num_patches(),
            self.config.vit.patch_values(),
        );
        let mut vectors = Vec::with_capacity(pictures.len());
        for batch in pictures.chunks(EMBED_BATCH) {
            let patches: Vec<f32> = batch.iter().flat_map(|p| self.config.patches(p)).collect();
            let data = TensorData::new(patches, [batch.len(), tokens, values]);
            let patches = Tensor::from_data(data, &self.device);
            let features = self.network.backbone().infer(patches);
            vectors.extend(rows_of(project(features)));
        }
        finite(vectors)
    }

    /// Writes the tower's files into a folder.
    ///
    /// # Errors
    /// [`VisualModelError`] if the disk refuses.
    pub fn save(&self, dir: &Path) -> Result<(), VisualModelError> {
        files::create_dir(dir)?;
        let file = ModelFile {
            architecture: ARCHITECTURE.to_owned(),
            embedding_dim: EMBEDDING_DIM,
            config: self.config.clone(),
        };
        files::write_json(&dir.join(MODEL_FILE), &file)?;
        Ok(files::save_weights(&self.network, &dir.join(WEIGHTS_FILE))?)
    }

    /// Loads a tower from its folder.
    ///
    /// # Errors
    /// [`VisualModelError`] that names the file, if one is missing, damaged or of another shape.
    pub fn load_on(dir: &Path, device: B::Device) -> Result<Self, VisualModelError> {
        let path = dir.join(MODEL_FILE);
        let file: ModelFile = files::read_json(&path)?;
        if file.architecture != ARCHITECTURE || file.embedding_dim != EMBEDDING_DIM {
            return Err(ModelFileError::Architecture {
                path,
                found: format!("{} of dim {}", file.architecture, file.embedding_dim),
                wanted: ARCHITECTURE,
            }
            .into());
        }
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut network = file
            .config
            .init(&mut random, &device)
            .map_err(|source| VisualModelError::Config { path, source })?;
        files::load_weights(&mut network, &dir.join(WEIGHTS_FILE))?;
        Ok(Self {
            config: file.config,
            network,
            device,
        })
    }
}

fn rows_of<B: Backend>(output: Tensor<B, 2>) -> Vec<[f32; EMBEDDING_DIM]> {
    let output = output.into_data().convert::<f32>();
    // The data were converted to f32 just before.
    let output = output.as_slice::<f32>().expect("vectors are f32");
    output.as_chunks::<EMBEDDING_DIM>().0.to_vec()
}

fn finite(
    vectors: Vec<[f32; EMBEDDING_DIM]>,
) -> Result<Vec<[f32; EMBEDDING_DIM]>, VisualModelError> {
    let broken = |vector: &[f32; EMBEDDING_DIM]| vector.iter().any(|value| !value.is_finite());
    match vectors.iter().position(broken) {
        Some(picture) => Err(VisualModelError::NotFinite { picture }),
        None => Ok(vectors),
    }
}

impl VisualModel<Cpu> {
    /// Loads a tower for the CPU.
    ///
    /// # Errors
    /// As [`Self::load_on`].
    pub fn load(dir: &Path) -> Result<Self, VisualModelError> {
        Self::load_on(dir, Default::default())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn model(seed: u64) -> VisualModel {
        let mut config = VisualConfig::default();
        config.vit.dim = 16;
        let device = Default::default();
        let network = config.init(&mut ChaCha8Rng::seed_from_u64(seed), &device);
        VisualModel::new(config, network.unwrap(), device)
    }

    fn pictures(count: usize) -> Vec<Picture> {
        let picture = |at: usize| {
            let rgb = (0..20 * 30 * 3).map(|byte| (byte * (at + 3) % 251) as u8);
            Picture::new(20, 30, rgb.collect()).unwrap()
        };
        (0..count).map(picture).collect()
    }

    #[test]
    fn equal_towers_give_equal_files() {
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for _ in 0..4 {
            model(1).save(one.path()).unwrap();
            model(1).save(two.path()).unwrap();
            let bytes = |dir: &tempfile::TempDir| fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
            assert!(bytes(&one) == bytes(&two));
        }
    }

    #[test]
    fn a_saved_tower_embeds_the_same_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let (model, pictures) = (model(1), pictures(3));
        model.save(dir.path()).unwrap();
        let loaded = VisualModel::load(dir.path()).unwrap();
        let creatives = model.embed_creatives(&pictures).unwrap();
        assert_eq!(loaded.embed_creatives(&pictures).unwrap(), creatives);
        assert_ne!(loaded.embed_scenes(&pictures).unwrap(), creatives);
        assert!(model.embed_scenes(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_picture_s_vector_does_not_depend_on_its_batch() {
        let (model, pictures) = (model(2), pictures(EMBED_BATCH + 2));
        let together = model.embed_creatives(&pictures).unwrap();
        for at in [0, EMBED_BATCH, EMBED_BATCH + 1] {
            let alone = model.embed_creatives(&pictures[at..=at]).unwrap()[0];
            let cosine: f32 = alone.iter().zip(&together[at]).map(|(a, b)| a * b).sum();
            assert!((cosine - 1.0).abs() < 1e-5, "{at}: {cosine}");
        }
    }

    #[test]
    fn damaged_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let check = |file: &str, bytes: &[u8]| {
            model(1).save(dir.path()).unwrap();
            fs::write(dir.path().join(file), bytes).unwrap();
            let error = VisualModel::load(dir.path()).unwrap_err();
            assert!(error.to_string().contains(file), "{error}");
            error
        };
        model(1).save(dir.path()).unwrap();
        let weights = fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
        let text = fs::read_to_string(dir.path().join(MODEL_FILE)).unwrap();
        check(WEIGHTS_FILE, &weights[..weights.len() / 2]);
        check(MODEL_FILE, b"{}");
        let wider = text.replace("\"dim\": 16", "\"dim\": 32");
        assert!(matches!(
            check(MODEL_FILE, text.replace(ARCHITECTURE, "resnet").as_bytes()),
            VisualModelError::File(ModelFileError::Architecture { .. })
        ));
        assert!(matches!(
            check(
                MODEL_FILE,
                text.replace("\"dim\": 16", "\"dim\": 18").as_bytes()
            ),
            VisualModelError::Config { .. }
        ));
        fs::write(dir.path().join(MODEL_FILE), wider).unwrap();
        assert!(matches!(
            VisualModel::load(dir.path()),
            Err(VisualModelError::File(ModelFileError::Content { .. }))
        ));
    }
}
