//! DLRM: dot products of all pairs of vectors, between a perceptron over dense numbers and one
//! over all.
//!
//! Source: Naumov et al., "Deep Learning Recommendation Model for Personalization and
//! Recommendation Systems", 2019, section 2.

use burn::{
    module::Module,
    nn::Linear,
    prelude::Backend,
    tensor::{Int, Tensor, TensorData},
};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    InputLayout, NetworkError,
    layers::{Columns, Mlp, Mode, affine, perceptron},
};
use crate::ops::{FusedOps, cat};

/// Shape of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DlrmConfig {
    /// Widths of the layers over dense numbers, before one of `tables.embedding_dim`.
    pub bottom_hidden: Vec<usize>,
    /// Widths of the layers over all, before the logit.
    pub top_hidden: Vec<usize>,
    /// Share of hidden values of the upper layers dropped in training.
    pub net_dropout: f64,
}

impl Default for DlrmConfig {
    fn default() -> Self {
        Self {
            bottom_hidden: vec![512, 256],
            top_hidden: vec![512, 256],
            net_dropout: 0.0,
        }
    }
}

/// The network.
#[derive(Module, Debug)]
pub struct Dlrm<B: Backend> {
    bottom: Option<Mlp<B>>,
    top: Mlp<B>,
    output: Linear<B>,
    #[module(skip)]
    columns: Columns,
}

impl DlrmConfig {
    pub(super) fn check(&self, layout: &InputLayout) -> Result<(), NetworkError> {
        layout.equal_dim().map(|_| ())
    }

    /// A fresh network for a layout that [fits](super::NetworkConfig::check).
    pub fn init<B: FusedOps>(
        &self,
        layout: &InputLayout,
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> Dlrm<B> {
        let columns = Columns::new(layout);
        let dim = columns.dim;
        let bottom = (layout.num_dense() > 0).then(|| {
            let widths = [&self.bottom_hidden[..], &[dim]].concat();
            Mlp::new(layout.num_dense(), &widths, random, device)
        });
        let dense = usize::from(bottom.is_some());
        let vectors = layout.fields.len() + dense;
        let inputs = dense * dim + vectors * (vectors - 1) / 2;
        let (top, output) = perceptron(inputs, &self.top_hidden, self.net_dropout, random, device);
        Dlrm {
            bottom,
            top,
            output,
            columns,
        }
    }
}

impl<B: FusedOps> Dlrm<B> {
    /// Logits of a batch.
    ///
    /// # Shapes
    /// - `input`: `[batch, num_dense + fields × dim]`; returns `[batch, 1]`
    pub fn forward(&self, input: Tensor<B, 2>, mode: Mode<'_>) -> Tensor<B, 2> {
        let (dense, fields) = self.columns.split(input);
        let top = match (&self.bottom, dense) {
            (Some(bottom), Some(dense)) => {
                let dense = bottom.forward(dense, Mode::Inference);
                let vectors = cat(vec![dense.clone().unsqueeze_dim(1), fields], 1);
                cat(vec![dense, dot_products(vectors)], 1)
            }
            _ => dot_products(fields),
        };
        affine(&self.output, self.top.forward(top, mode))
    }
}

/// `⟨v_i, v_j⟩` of all `j < i`, row by row of the lower triangle.
///
/// # Shapes
/// - `vectors`: `[batch, features, dim]`; returns `[batch, features × (features − 1) / 2]`
fn dot_products<B: Backend>(vectors: Tensor<B, 3>) -> Tensor<B, 2> {
    let [_, count, _] = vectors.dims();
    let below =
        (0..count).flat_map(|row| (0..row).map(move |column| (row * count + column) as i32));
    let below: Vec<i32> = below.collect();
    let len = below.len();
    let device = vectors.device();
    let below = Tensor::<B, 1, Int>::from_data(TensorData::new(below, [len]), &device);
    let products = vectors.clone().matmul(vectors.swap_dims(1, 2));
    products.flatten::<2>(1, 2).select(1, below)
}
