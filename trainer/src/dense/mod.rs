//! The dense half's weights and gradients as flat vectors, and the optimizer over them.
//!
//! Flat, a network's gradients travel between ranks in one piece and are cut as a whole, its
//! optimizer is one pass over memory, and its checkpoint is three vectors. They lie where the
//! backend's tensors do ([`DenseState`]), as f32 whatever the network computes in.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod device;
mod flat;
mod host;
mod optimizer;
mod persist;

use burn::{
    module::AutodiffModule,
    optim::GradientsParams,
    tensor::{FloatDType, Tensor},
};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub use device::DeviceDense;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) use device::{from_buffer, to_buffer};
pub(crate) use flat::{cast, flatten_weights, load_weights, segments, to_vec};
pub use host::HostDense;
use models::ops::TrainingBackend;
pub use optimizer::{DenseOptimizer, DenseOptimizerConfig, Rule};
use serde::{Deserialize, Serialize};

use crate::collective::{ExchangeError, ProcessGroup};

/// What a network computes in. Weights, their gradients' sum and the optimizer stay f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the exponent of f32, which needs no scaling of the loss; fast where there are
    /// units for it, as on GPUs. Source: Micikevicius et al., "Mixed Precision Training", ICLR
    /// 2018, and Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training" (2019).
    Bf16,
}

impl Precision {
    /// As burn calls it.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
        }
    }
}

/// What a step knows once all ranks have added theirs.
#[derive(Debug, Clone, Copy)]
pub struct Total {
    /// Mean loss of all ranks' rows.
    pub loss: f32,
    /// Length of the gradient.
    pub gradient_norm: f32,
    /// Whether some rank was asked to stop.
    pub stopping: bool,
}

/// How weights are moved.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    /// Step size.
    pub rate: f64,
    /// Pull towards zero.
    pub weight_decay: f32,
    /// Longest gradient. 0: no limit.
    pub max_norm: f32,
    /// Share of the old mean of the weights that a step keeps, where there is one. Source: Polyak
    /// and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    pub average: f32,
}

impl Move {
    /// What a gradient that is too long is to be multiplied with.
    fn scale(&self, total: &Total) -> Option<f32> {
        let norm = total.gradient_norm;
        (self.max_norm > 0.0 && norm > self.max_norm && norm.is_finite())
            .then(|| self.max_norm / norm)
    }

    /// What the running mean of the weights keeps in an update, from 1 on: less in the first ones,
    /// so that it soon forgets where the network began.
    fn kept(&self, update: u64) -> f32 {
        let update = update as f32;
        self.average.min((1.0 + update) / (10.0 + update))
    }
}

/// Weights of a network, and the state of their optimizer, as they are saved.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// `[num_weights]`.
    pub weights: Vec<f32>,
    /// `[num_weights]`, running mean of the gradient.
    pub means: Vec<f32>,
    /// `[num_weights]`, running mean of its square.
    pub squares: Vec<f32>,
    /// `[num_weights]`, running mean of the weights, where there is one ([`Move::average`]).
    pub averages: Option<Vec<f32>>,
    /// Updates so far.
    pub updates: u64,
}

impl Saved {
    /// Before the first step, with a running mean of the weights or without.
    pub fn fresh(weights: Vec<f32>, averaged: bool) -> Self {
        let zeros = vec![0.0; weights.len()];
        Self {
            averages: averaged.then(|| weights.clone()),
            weights,
            means: zeros.clone(),
            squares: zeros,
            updates: 0,
        }
    }
}

/// Weights of a network, the sum of their gradients over a step, and the optimizer's state, in the
/// memory that a backend's tensors lie in.
pub trait DenseState<B: TrainingBackend>: Send {
    /// From what was saved, to be moved by a rule.
    fn load(saved: Saved, rule: &Rule, device: &B::Device) -> Self;

    /// Copies what is saved.
    fn save(&self) -> Saved;

    /// A network with these weights in a precision.
    fn network<M: AutodiffModule<B>>(&self, network: M, precision: Precision) -> M;

    /// A network with the running mean of the weights, where there is one; else with the weights.
    fn averaged<M: AutodiffModule<B>>(&self, network: M, precision: Precision) -> M;

    /// Adds the gradients of this rank's rows, and the loss.
    fn add<M: AutodiffModule<B>>(
        &mut self,
        network: &M,
        gradients: GradientsParams,
        loss: Tensor<B::InnerBackend, 1>,
    );

    /// Adds what the other ranks have; `stop` tells them that this one was asked to.
    ///
    /// # Errors
    /// [`ExchangeError`].
    fn reduce(&mut self, stop: bool, group: &mut impl ProcessGroup) -> Result<(), ExchangeError>;

    /// What came of it.
    fn total(&self) -> Total;

    /// Moves the weights by the sum, as `total` has it.
    fn apply(&mut self, total: &Total, by: Move);

    /// The sum is zero again.
    fn clear(&mut self);
}
