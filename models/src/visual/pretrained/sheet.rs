//! Tensors of a file, taken out one by one and noted.

use std::{collections::BTreeSet, path::Path};

use burn::{module::ParamId, prelude::Backend, tensor::TensorData};
use burn_store::{ModuleSnapshot, TensorSnapshot};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use super::{super::Vit, PretrainedError};

/// A file of weights, and what has been taken out of it.
pub(super) struct Sheet<'a> {
    path: &'a Path,
    file: &'a SafeTensors<'a>,
    taken: BTreeSet<String>,
    missing: Vec<String>,
    filled: Vec<TensorSnapshot>,
}

impl<'a> Sheet<'a> {
    pub(super) fn new(path: &'a Path, file: &'a SafeTensors<'a>) -> Self {
        Self {
            path,
            file,
            taken: BTreeSet::new(),
            missing: Vec::new(),
            filled: Vec::new(),
        }
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// All keys, in order.
    pub(super) fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.file.iter().map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys
    }

    /// Lengths of a tensor that is there.
    pub(super) fn shape(&self, key: &str) -> Option<Vec<usize>> {
        self.file.tensor(key).ok().map(|view| view.shape().to_vec())
    }

    /// The first of some names, each with `prefix` before it, under which the file has a tensor that ends so.
    pub(super) fn first_of(&self, prefix: &str, names: &[&str], end: &str) -> Option<String> {
        let names = names.iter().map(|name| format!("{prefix}{name}"));
        names
            .into_iter()
            .find(|name| self.shape(&format!("{name}{end}")).is_some())
    }

    pub(super) fn wrong_shape(&self, key: &str, wanted: impl Into<String>) -> PretrainedError {
        PretrainedError::Shape {
            path: self.path.to_owned(),
            key: key.to_owned(),
            found: self.shape(key).unwrap_or_default(),
            wanted: wanted.into(),
        }
    }

    /// The numbers of a tensor of this many numbers, if it is there; else it is noted as missing.
    pub(super) fn take(
        &mut self,
        key: &str,
        shape: &[usize],
    ) -> Result<Option<Vec<f32>>, PretrainedError> {
        let Ok(view) = self.file.tensor(key) else {
            self.missing.push(key.to_owned());
            return Ok(None);
        };
        if view.shape() != shape {
            return Err(self.wrong_shape(key, format!("{shape:?}")));
        }
        let bytes = view.data();
        let pairs = || bytes.as_chunks::<2>().0.iter();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => {
                let words = bytes.as_chunks::<4>().0.iter();
                words.map(|word| f32::from_le_bytes(*word)).collect()
            }
            Dtype::F16 => pairs()
                .map(|pair| f16::from_le_bytes(*pair).to_f32())
                .collect(),
            Dtype::BF16 => pairs()
                .map(|pair| bf16::from_le_bytes(*pair).to_f32())
                .collect(),
            found => {
                let (path, key) = (self.path.to_owned(), key.to_owned());
                return Err(PretrainedError::Type { path, key, found });
            }
        };
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let (path, key) = (self.path.to_owned(), key.to_owned());
            return Err(PretrainedError::NotFinite { path, key, at });
        }
        self.taken.insert(key.to_owned());
        Ok(Some(values))
    }

    /// Gives numbers to a parameter of the network, by its path there.
    pub(super) fn put(&mut self, parameter: &str, values: Vec<f32>, shape: &[usize]) {
        let path = parameter.split('.').map(str::to_owned).collect();
        let data = TensorData::new(values, shape.to_vec());
        let snapshot = TensorSnapshot::from_data(data, path, Vec::new(), ParamId::new());
        self.filled.push(snapshot);
    }

    /// What was put, if nothing is missing and nothing left over but what may be.
    pub(super) fn finish(
        self,
        layout: &'static str,
        may_stay: impl Fn(&str) -> bool,
    ) -> Result<Vec<TensorSnapshot>, PretrainedError> {
        let left = |key: &&str| !self.taken.contains(*key) && !may_stay(key);
        let unexpected: Vec<String> = self
            .keys()
            .into_iter()
            .filter(left)
            .map(str::to_owned)
            .collect();
        if self.missing.is_empty() && unexpected.is_empty() {
            return Ok(self.filled);
        }
        Err(PretrainedError::Keys {
            path: self.path.to_owned(),
            layout,
            missing: self.missing,
            unexpected,
        })
    }
}

/// Gives a network its weights.
///
/// # Panics
/// If they are not those of its parameters, one for one.
pub(super) fn fill<B: Backend>(vit: &mut Vit<B>, snapshots: Vec<TensorSnapshot>) {
    let done = vit.apply(snapshots, None, None, true);
    let whole = done.errors.is_empty() && done.missing.is_empty() && done.unused.is_empty();
    assert!(whole, "a key map does not fit the network: {done:?}");
}
