//! Optimizers fused with the update of touched rows.

use serde::{Deserialize, Serialize};

/// Which optimizer moves the rows, and how far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparseOptimizerConfig {
    /// The method.
    pub kind: SparseOptimizer,
    /// Step size; Adagrad divides it by the accumulator.
    pub learning_rate: f32,
    /// Keeps the first update of a fresh row finite.
    pub eps: f32,
    /// Pull of touched rows towards zero, per step; more forgets rare ids faster.
    pub weight_decay: f32,
}

impl Default for SparseOptimizerConfig {
    fn default() -> Self {
        Self {
            kind: SparseOptimizer::RowwiseAdagrad,
            learning_rate: 0.05,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// The method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SparseOptimizer {
    /// One accumulator a row: `a += mean(g²); w −= lr · g / (√a + eps)`. Source: Mudigere et
    /// al., "Software-Hardware Co-design for Fast and Scalable Training of Deep Learning
    /// Recommendation Models", ISCA 2022, section 4.1.
    RowwiseAdagrad,
    /// `w −= lr · g`.
    Sgd,
}

impl SparseOptimizerConfig {
    /// Moves one row by its gradient. `accumulator` is the row's own.
    pub(super) fn step(&self, weights: &mut [f32], accumulator: &mut f32, gradient: &mut [f32]) {
        if self.weight_decay > 0.0 {
            for (g, w) in gradient.iter_mut().zip(weights.iter()) {
                *g += self.weight_decay * w;
            }
        }
        let rate = match self.kind {
            SparseOptimizer::Sgd => self.learning_rate,
            SparseOptimizer::RowwiseAdagrad => {
                let mean = gradient.iter().map(|g| g * g).sum::<f32>() / gradient.len() as f32;
                *accumulator += mean;
                self.learning_rate / (accumulator.sqrt() + self.eps)
            }
        };
        for (w, g) in weights.iter_mut().zip(gradient.iter()) {
            *w -= rate * g;
        }
    }
}
