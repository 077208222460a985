//! FinalMLP: two perceptrons that see the features through gates of their own, joined by a
//! bilinear form.
//!
//! Source: Mao et al., "FinalMLP: An Enhanced Two-Stream MLP Model for CTR Prediction", AAAI 2023,
//! equations 3–9.

use std::ops::Range;

use burn::{
    module::{Module, Param},
    nn::Linear,
    prelude::Backend,
    tensor::{Tensor, activation::sigmoid},
};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    InputLayout, NetworkError,
    layers::{Mlp, Mode, affine, linear, uniform},
};
use crate::ops::{FusedOps, cat};

/// Shape of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinalMlpConfig {
    /// Widths of the first stream's hidden layers.
    pub hidden_1: Vec<usize>,
    /// Widths of the second stream's hidden layers.
    pub hidden_2: Vec<usize>,
    /// Parts into which the last hidden layers are cut for the bilinear form.
    pub num_heads: usize,
    /// Whether the streams have gates.
    pub use_gates: bool,
    /// Widths of the hidden layers of the gates.
    pub gate_hidden: Vec<usize>,
    /// Sparse features that the first stream's gate depends on; none: it is the same for all rows.
    pub gate_context_1: Vec<String>,
    /// The same of the second stream.
    pub gate_context_2: Vec<String>,
    /// Share of hidden values of the streams dropped in training.
    pub net_dropout: f64,
}

impl Default for FinalMlpConfig {
    fn default() -> Self {
        Self {
            hidden_1: vec![400, 400],
            hidden_2: vec![400, 400],
            num_heads: 2,
            use_gates: true,
            gate_hidden: vec![64],
            gate_context_1: Vec::new(),
            gate_context_2: Vec::new(),
            net_dropout: 0.0,
        }
    }
}

/// Width of a context that is learnt instead of read from features.
const LEARNT_CONTEXT: usize = 16;

/// Factors of 0 to 2 for a stream's input, made of some features.
#[derive(Module, Debug)]
struct Gate<B: Backend> {
    /// `[1, width]`, where there are no features for it.
    context: Option<Param<Tensor<B, 2>>>,
    mlp: Mlp<B>,
    output: Linear<B>,
    #[module(skip)]
    columns: Vec<Range<usize>>,
}

/// `wₓ·x + w_y·y + Σ_h x_hᵀ W_h y_h`.
#[derive(Module, Debug)]
struct Fusion<B: Backend> {
    of_first: Linear<B>,
    of_second: Linear<B>,
    /// `[heads, width of x / heads, width of y / heads]`.
    bilinear: Param<Tensor<B, 3>>,
}

/// The network.
#[derive(Module, Debug)]
pub struct FinalMlp<B: Backend> {
    gates: Vec<Gate<B>>,
    first: Mlp<B>,
    second: Mlp<B>,
    fusion: Fusion<B>,
}

impl FinalMlpConfig {
    pub(super) fn check(&self, layout: &InputLayout) -> Result<(), NetworkError> {
        super::at_least_one("num_heads", self.num_heads)?;
        for (key, hidden) in [("hidden_1", &self.hidden_1), ("hidden_2", &self.hidden_2)] {
            let width = hidden.last().copied().unwrap_or(0);
            if width == 0 || !width.is_multiple_of(self.num_heads) {
                return Err(NetworkError::Heads {
                    key,
                    width,
                    num_heads: self.num_heads,
                });
            }
        }
        let contexts = [
            ("gate_context_1", &self.gate_context_1),
            ("gate_context_2", &self.gate_context_2),
        ];
        for (key, features) in contexts {
            layout.columns_of(key, features)?;
            if !self.use_gates && !features.is_empty() {
                return Err(NetworkError::Unused {
                    key,
                    but: "model.use_gates is false",
                });
            }
        }
        Ok(())
    }

    /// A fresh network for a layout that [fits](super::NetworkConfig::check).
    ///
    /// # Panics
    /// If it does not.
    pub fn init<B: FusedOps>(
        &self,
        layout: &InputLayout,
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> FinalMlp<B> {
        let inputs = layout.width();
        let contexts = [&self.gate_context_1, &self.gate_context_2];
        let gates = match self.use_gates {
            true => &contexts[..],
            false => &[],
        };
        let mut gate = |features: &&Vec<String>| {
            let columns = layout
                .columns_of("gate_context", features)
                .expect("a layout that fits");
            let width = match columns.is_empty() {
                true => LEARNT_CONTEXT,
                false => columns.iter().map(ExactSizeIterator::len).sum(),
            };
            let zeros = || Param::from_tensor(Tensor::zeros([1, width], device));
            let last = self.gate_hidden.last().copied().unwrap_or(width);
            Gate {
                context: columns.is_empty().then(zeros),
                mlp: Mlp::new(width, &self.gate_hidden, random, device),
                output: linear(last, inputs, true, random, device),
                columns,
            }
        };
        let gates = gates.iter().map(&mut gate).collect();
        let mut stream = |hidden: &[usize], before| {
            let stream = Mlp::new(inputs, hidden, random, device);
            stream.with_dropout(self.net_dropout, before)
        };
        let first = stream(&self.hidden_1, 0);
        let second = stream(&self.hidden_2, self.hidden_1.len());
        let last = |hidden: &[usize]| *hidden.last().expect("a layer, as checked");
        let [x, y] = [last(&self.hidden_1), last(&self.hidden_2)];
        let heads = self.num_heads;
        let bound = (6.0 / (x / heads + y / heads) as f32).sqrt();
        FinalMlp {
            gates,
            first,
            second,
            fusion: Fusion {
                of_first: linear(x, 1, true, random, device),
                of_second: linear(y, 1, false, random, device),
                bilinear: uniform([heads, x / heads, y / heads], bound, random, device),
            },
        }
    }
}

impl<B: FusedOps> FinalMlp<B> {
    /// Logits of a batch.
    ///
    /// # Shapes
    /// - `input`: `[batch, num_dense + columns of fields]`; returns `[batch, 1]`
    pub fn forward(&self, input: Tensor<B, 2>, mode: Mode<'_>) -> Tensor<B, 2> {
        let stream = |at: usize| match self.gates.get(at) {
            Some(gate) => gate.forward(input.clone()),
            None => input.clone(),
        };
        let first = self.first.forward(stream(0), mode);
        let second = self.second.forward(stream(1), mode);
        self.fusion.forward(first, second)
    }
}

impl<B: FusedOps> Gate<B> {
    /// # Shapes
    /// - `input`: `[batch, inputs]`, as is what it returns
    fn forward(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        let context = match &self.context {
            Some(context) => context.val(),
            None => {
                let part =
                    |columns: &Range<usize>| input.clone().narrow(1, columns.start, columns.len());
                cat(self.columns.iter().map(part).collect(), 1)
            }
        };
        let hidden = self.mlp.forward(context, Mode::Inference);
        input * (sigmoid(affine(&self.output, hidden)) * 2.0)
    }
}

impl<B: FusedOps> Fusion<B> {
    /// # Shapes
    /// - `x`: `[batch, width of x]`; `y`: `[batch, width of y]`; returns `[batch, 1]`
    fn forward(&self, x: Tensor<B, 2>, y: Tensor<B, 2>) -> Tensor<B, 2> {
        let [heads, x_dim, y_dim] = self.bilinear.dims();
        let batch = x.dims()[0];
        let linear = affine(&self.of_first, x.clone()) + affine(&self.of_second, y.clone());
        let x = x.reshape([batch, heads, x_dim]).swap_dims(0, 1);
        let y = y.reshape([batch, heads, y_dim]).swap_dims(0, 1);
        let of_heads = (x.matmul(self.bilinear.val()) * y).sum_dim(2).sum_dim(0);
        linear + of_heads.reshape([batch, 1])
    }
}
