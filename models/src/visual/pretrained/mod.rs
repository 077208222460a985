//! Published weights: a safetensors file of timm or Hugging Face becomes a [`Vit`].
//!
//! [`keys`] knows how each source names its tensors, [`sheet`] takes them out of the file and says what is
//! missing, left over or damaged, [`source`] reads what the source's own JSON files say beside it.
//! The shape is read off the tensors. Two things are folded into weights, since they are constants after
//! training: the position of the pooled token into the token, and DINOv2's scales of layers (Touvron et
//! al., "Going Deeper with Image Transformers", ICCV 2021) into the layers before them.

mod keys;
mod sheet;
mod source;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use burn::prelude::Backend;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};

use self::{keys::KeyMap, sheet::Sheet, source::Described};
use super::{VisualConfig, VisualConfigError, Vit};
use crate::ops::Gelu;

/// Most bytes of a file of weights.
const MAX_FILE_BYTES: u64 = 8 << 30;

/// Where a backbone's weights are, and what they do not say themselves.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainedConfig {
    /// A safetensors file of timm, or of CLIP, SigLIP or DINOv2 from Hugging Face; `config.json` and
    /// `preprocessor_config.json` beside it are read too. Empty for fresh weights.
    pub weights: PathBuf,
    /// Pixels each way; positions are interpolated. 0 for what the source prepares pictures for.
    pub image_size: usize,
    /// Attention heads; 0 for what `config.json` says, and else one for every 64 numbers of a token.
    pub num_heads: usize,
    /// Form of the activation, if neither `config.json` nor the source's custom is right.
    pub gelu: Option<Gelu>,
}

impl PretrainedConfig {
    /// The files that are read, weights first; none of fresh weights.
    pub fn files(&self) -> Vec<PathBuf> {
        if self.weights.as_os_str().is_empty() {
            return Vec::new();
        }
        let described = source::NAMES
            .iter()
            .filter_map(|name| beside(&self.weights, name));
        std::iter::once(self.weights.clone())
            .chain(described)
            .collect()
    }
}

/// Why published weights could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum PretrainedError {
    /// The disk refused.
    #[error("reading weights {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that memory may not hold.
    #[error("weights {} have {bytes} bytes, wanted at most {most}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// No safetensors, or truncated.
    #[error("{} is no whole safetensors file", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with its header.
        source: SafeTensorError,
    },
    /// A JSON file beside the weights that cannot be read.
    #[error("reading {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Keys of no known source.
    #[error(
        "{} holds no vision transformer of timm, nor of CLIP, SigLIP or DINOv2 from Hugging Face; it begins with {}",
        path.display(), keys.join(", ")
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// Its first keys.
        keys: Vec<String>,
    },
    /// Keys that do not fit.
    #[error(
        "{} is laid out as {layout}, but lacks [{}] and has unexpected [{}]",
        path.display(), missing.join(", "), unexpected.join(", ")
    )]
    Keys {
        /// The file.
        path: PathBuf,
        /// Whose keys they are.
        layout: &'static str,
        /// Keys that are wanted and not there.
        missing: Vec<String>,
        /// Keys that nothing reads.
        unexpected: Vec<String>,
    },
    /// A tensor of another shape.
    #[error("`{key}` in {} is {found:?}, wanted {wanted}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// What it should be.
        wanted: String,
    },
    /// Numbers of a kind that is not read here.
    #[error("`{key}` in {} holds {found:?}, wanted F32, F16 or BF16", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its type.
        found: Dtype,
    },
    /// A weight that is no number.
    #[error("`{key}` in {} is not finite at {at}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Place in it, counted from 0, row-major.
        at: usize,
    },
    /// A shape that cannot be.
    #[error("the shape read from {}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The number.
        source: VisualConfigError,
    },
    /// A word of a JSON file that means nothing here.
    #[error("`{key}` in {} is {found}, wanted {wanted}", path.display())]
    Word {
        /// The file.
        path: PathBuf,
        /// Its key.
        key: &'static str,
        /// What it says.
        found: String,
        /// What would do.
        wanted: &'static str,
    },
}

/// A backbone with its published weights.
#[derive(Debug, Clone)]
pub struct Pretrained<B: Backend> {
    /// Its shape and its pictures' preparation, with the projections' default shape.
    pub config: VisualConfig,
    /// The network.
    pub vit: Vit<B>,
}

impl<B: Backend> Pretrained<B> {
    /// Reads a file of weights.
    ///
    /// # Errors
    /// [`PretrainedError`] that names the file, and the key where one is at fault.
    pub fn load(wanted: &PretrainedConfig, device: &B::Device) -> Result<Self, PretrainedError> {
        let path = &wanted.weights;
        let io = |source| PretrainedError::Io {
            path: path.clone(),
            source,
        };
        let bytes = fs::metadata(path).map_err(io)?.len();
        if bytes > MAX_FILE_BYTES {
            let most = MAX_FILE_BYTES;
            return Err(PretrainedError::TooLarge {
                path: path.clone(),
                bytes,
                most,
            });
        }
        let described = Described::beside(path)?;
        Self::read(&fs::read(path).map_err(io)?, &described, wanted, device)
    }

    /// Takes weights out of the bytes of a file, of which nothing further is known.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_bytes(
        bytes: &[u8],
        wanted: &PretrainedConfig,
        device: &B::Device,
    ) -> Result<Self, PretrainedError> {
        Self::read(bytes, &Described::default(), wanted, device)
    }

    fn read(
        bytes: &[u8],
        described: &Described,
        wanted: &PretrainedConfig,
        device: &B::Device,
    ) -> Result<Self, PretrainedError> {
        let path = &wanted.weights;
        let header = |source| PretrainedError::Header {
            path: path.clone(),
            source,
        };
        let file = SafeTensors::deserialize(bytes).map_err(header)?;
        let mut sheet = Sheet::new(path, &file);
        let (map, prefix) = KeyMap::of(&sheet)?;
        let config = map.config(&sheet, &prefix, described, wanted)?;
        let source = |source| PretrainedError::Config {
            path: path.clone(),
            source,
        };
        config.check().map_err(source)?;
        map.take(&mut sheet, &prefix, &config.vit)?;
        let snapshots = sheet.finish(map.layout, |key| map.ignores(key))?;
        // What is drawn here is overwritten.
        let mut vit = config.vit.init(&mut ChaCha8Rng::seed_from_u64(0), device);
        sheet::fill(&mut vit, snapshots);
        Ok(Self { config, vit })
    }
}

/// The folder's file of this name, if there is one.
fn beside(path: &Path, name: &str) -> Option<PathBuf> {
    Some(path.with_file_name(name)).filter(|path| path.is_file())
}

#[cfg(test)]
mod tests;
