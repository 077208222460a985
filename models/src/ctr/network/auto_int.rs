//! AutoInt: features attend to each other.
//!
//! Source: Song et al., "AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural
//! Networks", CIKM 2019, equations 5–9.

use burn::{
    module::Module,
    nn::Linear,
    prelude::Backend,
    tensor::{
        Tensor,
        activation::{relu, softmax},
    },
};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    InputLayout, NetworkError,
    layers::{Columns, DenseVectors, Mlp, Mode, affine, linear, perceptron, side_by_side},
};
use crate::ops::FusedOps;

/// Shape of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoIntConfig {
    /// Layers of attention; n layers reach products of n + 1 features.
    pub num_layers: usize,
    /// Heads of a layer.
    pub num_heads: usize,
    /// Length of a head's vectors.
    pub attention_dim: usize,
    /// Widths of a perceptron beside the attention; none: there is no such.
    pub hidden: Vec<usize>,
    /// Share of the perceptron's hidden values dropped in training.
    pub net_dropout: f64,
}

impl Default for AutoIntConfig {
    fn default() -> Self {
        Self {
            num_layers: 3,
            num_heads: 2,
            attention_dim: 32,
            hidden: vec![400, 400],
            net_dropout: 0.0,
        }
    }
}

#[derive(Module, Debug)]
struct Attention<B: Backend> {
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    residual: Linear<B>,
    #[module(skip)]
    num_heads: usize,
}

#[derive(Module, Debug)]
struct Deep<B: Backend> {
    mlp: Mlp<B>,
    output: Linear<B>,
}

/// The network.
#[derive(Module, Debug)]
pub struct AutoInt<B: Backend> {
    dense_vectors: DenseVectors<B>,
    attention: Vec<Attention<B>>,
    output: Linear<B>,
    deep: Option<Deep<B>>,
    #[module(skip)]
    columns: Columns,
}

impl AutoIntConfig {
    pub(super) fn check(&self, layout: &InputLayout) -> Result<(), NetworkError> {
        super::at_least_one("num_heads", self.num_heads)?;
        super::at_least_one("attention_dim", self.attention_dim)?;
        if self.hidden.is_empty() && self.net_dropout > 0.0 {
            return Err(NetworkError::Unused {
                key: "net_dropout",
                but: "model.hidden is empty, so that there is nothing to drop",
            });
        }
        layout.equal_dim().map(|_| ())
    }

    /// A fresh network for a layout that [fits](super::NetworkConfig::check).
    pub fn init<B: FusedOps>(
        &self,
        layout: &InputLayout,
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> AutoInt<B> {
        let columns = Columns::new(layout);
        let dim = columns.dim;
        let (num_heads, outputs) = (self.num_heads, self.num_heads * self.attention_dim);
        let dense_vectors = DenseVectors::new(layout.num_dense(), dim, random, device);
        let mut width = dim;
        let attention = (0..self.num_layers).map(|_| {
            let inputs = std::mem::replace(&mut width, outputs);
            let mut layer = || linear(inputs, outputs, false, random, device);
            Attention {
                query: layer(),
                key: layer(),
                value: layer(),
                residual: layer(),
                num_heads,
            }
        });
        let attention = attention.collect();
        let vectors = layout.num_dense() + layout.fields.len();
        let output = linear(vectors * width, 1, true, random, device);
        let deep = (!self.hidden.is_empty()).then(|| {
            let (inputs, dropout) = (layout.width(), self.net_dropout);
            let (mlp, output) = perceptron(inputs, &self.hidden, dropout, random, device);
            Deep { mlp, output }
        });
        AutoInt {
            dense_vectors,
            attention,
            output,
            deep,
            columns,
        }
    }
}

impl<B: FusedOps> AutoInt<B> {
    /// Logits of a batch.
    ///
    /// # Shapes
    /// - `input`: `[batch, num_dense + fields × dim]`; returns `[batch, 1]`
    pub fn forward(&self, input: Tensor<B, 2>, mode: Mode<'_>) -> Tensor<B, 2> {
        let (_, fields) = self.columns.split(input.clone());
        let mut vectors = self.dense_vectors.join(input.clone(), fields);
        for layer in &self.attention {
            vectors = layer.forward(vectors);
        }
        let logits = affine(&self.output, side_by_side(None, vectors));
        match &self.deep {
            Some(deep) => logits + affine(&deep.output, deep.mlp.forward(input, mode)),
            None => logits,
        }
    }
}

impl<B: FusedOps> Attention<B> {
    /// # Shapes
    /// - `x`: `[batch, features, inputs]`; returns `[batch, features, heads × attention_dim]`
    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, features, inputs] = x.dims();
        let rows = x.reshape([batch * features, inputs]);
        let outputs = self.query.weight.dims()[1];
        let dim = outputs / self.num_heads;
        // A head of a row is a matrix by itself.
        let heads = |layer: &Linear<B>| {
            let all = affine(layer, rows.clone());
            let all = all.reshape([batch, features, self.num_heads, dim]);
            let matrices = batch * self.num_heads;
            let heads: Tensor<B, 3> = all.swap_dims(1, 2).reshape([matrices, features, dim]);
            heads
        };
        let (query, key, value) = (heads(&self.query), heads(&self.key), heads(&self.value));
        let attended = softmax(query.matmul(key.swap_dims(1, 2)), 2).matmul(value);
        let attended = attended.reshape([batch, self.num_heads, features, dim]);
        let attended = attended.swap_dims(1, 2).reshape([batch, features, outputs]);
        let residual = affine(&self.residual, rows.clone()).reshape([batch, features, outputs]);
        relu(attended + residual)
    }
}
