//! A trained model's files: JSON, text and safetensors, with errors that name the file.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use burn::prelude::Backend;
use burn_store::{ApplyError, ModuleSnapshot, SafetensorsStore};
use serde::{Serialize, de::DeserializeOwned};

/// Why a model's file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ModelFileError {
    /// The disk refused.
    #[error("accessing model file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not the JSON that it should be.
    #[error("reading {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// Another architecture.
    #[error("{} is a `{found}` model, wanted `{wanted}`", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What is read here.
        wanted: &'static str,
    },
    /// Values that are damaged, of another shape, or do not fit each other.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl ModelFileError {
    pub(crate) fn content(path: &Path, what: impl ToString) -> Self {
        Self::Content {
            path: path.to_owned(),
            what: what.to_string(),
        }
    }
}

/// `map_err` argument that adds the path.
fn io(path: &Path) -> impl FnOnce(io::Error) -> ModelFileError {
    move |source| ModelFileError::Io {
        path: path.to_owned(),
        source,
    }
}

/// `map_err` argument that adds the path.
fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> ModelFileError {
    move |source| ModelFileError::Json {
        path: path.to_owned(),
        source,
    }
}

pub(crate) fn create_dir(dir: &Path) -> Result<(), ModelFileError> {
    fs::create_dir_all(dir).map_err(io(dir))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ModelFileError> {
    fs::read(path).map_err(io(path))
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), ModelFileError> {
    fs::write(path, bytes).map_err(io(path))
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelFileError> {
    serde_json::from_slice(&read(path)?).map_err(json(path))
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ModelFileError> {
    write(path, &serde_json::to_vec_pretty(value).map_err(json(path))?)
}

/// Writes a network's weights; equal weights give equal bytes.
pub(crate) fn save_weights<B: Backend>(
    network: &impl ModuleSnapshot<B>,
    path: &Path,
) -> Result<(), ModelFileError> {
    // Metadata are written in the order of a hash map, which differs from run to run.
    let mut store = SafetensorsStore::from_file(path)
        .overwrite(true)
        .clear_metadata();
    network
        .save_into(&mut store)
        .map_err(|error| ModelFileError::content(path, error))
}

/// Reads weights into a network of their shape; nothing may be missing, left over or no number.
pub(crate) fn load_weights<B: Backend>(
    network: &mut impl ModuleSnapshot<B>,
    path: &Path,
) -> Result<(), ModelFileError> {
    // What does not fit is told below, in fewer lines.
    let mut store = SafetensorsStore::from_file(path)
        .allow_partial(true)
        .validate(false);
    let loaded = network
        .load_from(&mut store)
        .map_err(|error| ModelFileError::content(path, error))?;
    let misshapen = loaded.errors.iter().map(ApplyError::to_string);
    let missing = loaded
        .missing
        .iter()
        .map(|(name, _)| format!("`{name}` is missing"));
    let unused = loaded
        .unused
        .iter()
        .map(|name| format!("`{name}` is of no use"));
    let misfits: Vec<String> = misshapen.chain(missing).chain(unused).collect();
    if let Some(first) = misfits.first() {
        let more = match misfits.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        let what = format!("the weights do not fit the model: {first}{more}");
        return Err(ModelFileError::content(path, what));
    }
    for weight in network.collect(None, None, false) {
        let data = weight
            .to_data()
            .map_err(|error| ModelFileError::content(path, error))?;
        if let Some(at) = data.iter::<f32>().position(|value| !value.is_finite()) {
            let what = format!(
                "number {at} of weight `{}` is not finite",
                weight.full_path()
            );
            return Err(ModelFileError::content(path, what));
        }
    }
    Ok(())
}
