//! MMoE: experts that all tasks share, mixed by a gate of each task.
//!
//! Source: Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
//! Mixture-of-Experts", KDD 2018, equations 4–7.

use burn::{
    module::Module,
    nn::Linear,
    prelude::Backend,
    tensor::{Tensor, activation::softmax},
};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    InputLayout, NetworkError,
    layers::{Mlp, Mode, affine, linear},
};
use crate::ops::{FusedOps, cat};

/// Shape of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MmoeConfig {
    /// Experts.
    pub num_experts: usize,
    /// Widths of an expert's layers.
    pub expert_hidden: Vec<usize>,
    /// Widths of the hidden layers of each task.
    pub tower_hidden: Vec<usize>,
    /// Share of hidden values dropped in training.
    pub net_dropout: f64,
}

impl Default for MmoeConfig {
    fn default() -> Self {
        Self {
            num_experts: 4,
            expert_hidden: vec![256, 128],
            tower_hidden: vec![64],
            net_dropout: 0.0,
        }
    }
}

/// A task's mix of the experts, and what it makes of it.
#[derive(Module, Debug)]
struct Tower<B: Backend> {
    gate: Linear<B>,
    mlp: Mlp<B>,
    output: Linear<B>,
}

/// The network.
#[derive(Module, Debug)]
pub struct Mmoe<B: Backend> {
    experts: Vec<Mlp<B>>,
    towers: Vec<Tower<B>>,
}

impl MmoeConfig {
    /// Click, and conversion of a click.
    pub(super) const NUM_TASKS: usize = 2;

    pub(super) fn check(&self, _layout: &InputLayout) -> Result<(), NetworkError> {
        super::at_least_one("num_experts", self.num_experts)?;
        super::at_least_one("expert_hidden's length", self.expert_hidden.len())
    }

    /// A fresh network for a layout that [fits](super::NetworkConfig::check).
    ///
    /// # Panics
    /// If the experts have no layers.
    pub fn init<B: FusedOps>(
        &self,
        layout: &InputLayout,
        random: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> Mmoe<B> {
        let inputs = layout.width();
        let mut layers = 0;
        let mut mlp = |inputs, widths: &[usize], random: &mut ChaCha8Rng| {
            layers += widths.len();
            let mlp = Mlp::new(inputs, widths, random, device);
            mlp.with_dropout(self.net_dropout, layers - widths.len())
        };
        let experts = (0..self.num_experts).map(|_| mlp(inputs, &self.expert_hidden, random));
        let experts = experts.collect();
        let mixed = *self.expert_hidden.last().expect("experts with layers");
        let last = self.tower_hidden.last().copied().unwrap_or(mixed);
        let towers = (0..Self::NUM_TASKS).map(|_| Tower {
            gate: linear(inputs, self.num_experts, false, random, device),
            mlp: mlp(mixed, &self.tower_hidden, random),
            output: linear(last, 1, true, random, device),
        });
        Mmoe {
            experts,
            towers: towers.collect(),
        }
    }
}

impl<B: FusedOps> Mmoe<B> {
    /// Logits of a batch: of a click, and of a conversion after one.
    ///
    /// # Shapes
    /// - `input`: `[batch, num_dense + columns of fields]`; returns `[batch, 2]`
    pub fn forward(&self, input: Tensor<B, 2>, mode: Mode<'_>) -> Tensor<B, 2> {
        let expert = |expert: &Mlp<B>| expert.forward(input.clone(), mode).unsqueeze_dim(1);
        let experts: Tensor<B, 3> = cat(self.experts.iter().map(expert).collect(), 1);
        let task = |tower: &Tower<B>| {
            let shares = softmax(affine(&tower.gate, input.clone()), 1);
            let mixed = (experts.clone() * shares.unsqueeze_dim(2)).sum_dim(1);
            affine(&tower.output, tower.mlp.forward(mixed.squeeze_dim(1), mode))
        };
        cat(self.towers.iter().map(task).collect(), 1)
    }
}
