//! Factorization machines, alone and beside a multi-layer perceptron.
//!
//! Sources: Rendle, "Factorization Machines", ICDM 2010, equation 1 and lemma 3.1; Guo et al.,
//! "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI 2017.

use burn::{module::Module, nn::Linear, prelude::Backend, tensor::Tensor};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    InputLayout, NetworkError,
    layers::{Columns, DenseVectors, FirstOrder, Mlp, Mode, affine, perceptron, side_by_side},
};
use crate::ops::FusedOps;

/// There is nothing to choose: `tables.embedding_dim` is the rank. An id's row is its weight and
/// its vector.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FmConfig {}

/// Shape of DeepFM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeepFmConfig {
    /// Widths of the perceptron's hidden layers.
    pub hidden: Vec<usize>,
    /// Share of hidden values dropped in training.
    pub net_dropout: f64,
}

impl Default for DeepFmConfig {
    fn default() -> Self {
        Self {
            hidden: vec![400, 400],
            net_dropout: 0.0,
        }
    }
}

/// A factorization machine of the second order.
#[derive(Module, Debug)]
pub struct Fm<B: Backend> {
    first_order: FirstOrder<B>,
    dense_vectors: DenseVectors<B>,
    #[module(skip)]
    columns: Columns,
}

/// A factorization machine and a perceptron over the same vectors.
#[derive(Module, Debug)]
pub struct DeepFm<B: Backend> {
    fm: Fm<B>,
    mlp: Mlp<B>,
    output: Linear<B>,
}

/// Columns of a row: its weight, and at least one of its vector.
fn dim_with_weight(layout: &InputLayout) -> Result<usize, NetworkError> {
    match layout.equal_dim()? {
        0 | 1 => Err(NetworkError::NoVector),
        dim => Ok(dim),
    }
}

impl FmConfig {
    pub(super) fn check(&self, layout: &InputLayout) -> Result<(), NetworkError> {
        dim_with_weight(layout).map(|_| ())
    }

    /// A fresh network for a layout that [fits](super::NetworkConfig::check).
    pub fn init<B: FusedOps>(
        &self,
        layout: &InputLayout,
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> Fm<B> {
        let columns = Columns::new(layout);
        Fm {
            first_order: FirstOrder::new(layout.num_dense(), device),
            dense_vectors: DenseVectors::new(layout.num_dense(), columns.dim - 1, random, device),
            columns,
        }
    }
}

impl DeepFmConfig {
    pub(super) fn check(&self, layout: &InputLayout) -> Result<(), NetworkError> {
        dim_with_weight(layout).map(|_| ())
    }

    /// A fresh network for a layout that [fits](super::NetworkConfig::check).
    pub fn init<B: FusedOps>(
        &self,
        layout: &InputLayout,
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> DeepFm<B> {
        let fm: Fm<B> = FmConfig {}.init(layout, random, device);
        let inputs = layout.width() - layout.fields.len();
        let (mlp, output) = perceptron(inputs, &self.hidden, self.net_dropout, random, device);
        DeepFm { fm, mlp, output }
    }
}

impl<B: FusedOps> Fm<B> {
    /// Logits of a batch.
    ///
    /// # Shapes
    /// - `input`: `[batch, num_dense + fields × (1 + dim)]`, a field's weight before its vector;
    ///   returns `[batch, 1]`
    pub fn forward(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        let (dense, weights, vectors) = self.split(input.clone());
        let vectors = self.dense_vectors.join(input, vectors);
        self.first_order.forward(dense, weights) + pairs(vectors)
    }

    /// Dense numbers, and the fields' weights and vectors.
    fn split(&self, input: Tensor<B, 2>) -> (Option<Tensor<B, 2>>, Tensor<B, 2>, Tensor<B, 3>) {
        let (dense, fields) = self.columns.split(input);
        let weights = fields.clone().narrow(2, 0, 1).flatten(1, 2);
        let vectors = fields.narrow(2, 1, self.columns.dim - 1);
        (dense, weights, vectors)
    }
}

impl<B: FusedOps> DeepFm<B> {
    /// Logits of a batch.
    ///
    /// # Shapes
    /// As [`Fm::forward`]; the perceptron sees the dense numbers and the vectors.
    pub fn forward(&self, input: Tensor<B, 2>, mode: Mode<'_>) -> Tensor<B, 2> {
        let (dense, _, vectors) = self.fm.split(input.clone());
        let deep = side_by_side(dense, vectors);
        self.fm.forward(input) + affine(&self.output, self.mlp.forward(deep, mode))
    }
}

/// `Σ_{i<j} ⟨v_i, v_j⟩ = ½ Σ_d ((Σ_i v_id)² − Σ_i v_id²)`.
///
/// # Shapes
/// - `vectors`: `[batch, features, dim]`; returns `[batch, 1]`
fn pairs<B: Backend>(vectors: Tensor<B, 3>) -> Tensor<B, 2> {
    let sum = vectors.clone().sum_dim(1);
    let squares = (vectors.clone() * vectors).sum_dim(1);
    let rest: Tensor<B, 2> = (sum.clone() * sum - squares).squeeze_dim(1);
    rest.sum_dim(1) * 0.5
}
