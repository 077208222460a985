//! Optimizers fused with the update of touched rows.

use serde::{Deserialize, Serialize};

/// Which optimizer moves the rows, and how far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparseOptimizerConfig {
    /// The method.
    pub kind: SparseOptimizer,
    /// Step size; Adagrad and Adam divide it.
    pub learning_rate: f32,
    /// Keeps the first update of a fresh row finite.
    pub eps: f32,
    /// Pull of touched rows towards zero, per step; more forgets rare ids faster.
    pub weight_decay: f32,
    /// Longest gradient of a row; longer ones are scaled down to it. 0: no limit.
    pub max_row_norm: f32,
    /// Adam: share of the old mean that a step keeps.
    pub beta1: f32,
    /// Adam: share of the old mean square that a step keeps.
    pub beta2: f32,
    /// FTRL: weights whose sum of gradients stays below are zero.
    pub l1: f32,
    /// FTRL: pull towards zero.
    pub l2: f32,
}

impl Default for SparseOptimizerConfig {
    fn default() -> Self {
        Self {
            kind: SparseOptimizer::RowwiseAdagrad,
            learning_rate: 0.05,
            eps: 1e-8,
            weight_decay: 0.0,
            max_row_norm: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            l1: 0.0,
            l2: 0.0,
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
    /// One accumulator a weight: `a += g²; w −= lr · g / (√a + eps)`. Source: Duchi, Hazan and
    /// Singer, "Adaptive Subgradient Methods", JMLR 12, 2011.
    Adagrad,
    /// Mean and mean square of touched rows alone; the correction counts all steps. Source:
    /// Kingma and Ba, "Adam", ICLR 2015, and TensorFlow's `LazyAdam`.
    Adam,
    /// `w −= lr · g`.
    Sgd,
    /// Source: McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013,
    /// algorithm 1, with beta 1.
    Ftrl,
}

/// One row, or a rank's columns of it.
pub(super) struct Row<'a> {
    pub weights: &'a mut [f32],
    /// As many as [`SparseOptimizerConfig::state_len`] says.
    pub state: &'a mut [f32],
    pub gradient: &'a mut [f32],
}

/// What an update needs to know beyond the row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update {
    /// Updates so far, this one included.
    pub step: u64,
    /// Times the learning rate: the schedule's.
    pub rate_scale: f32,
    /// Length of a whole row.
    pub dim: usize,
}

impl SparseOptimizerConfig {
    /// Numbers of state for `dim` columns of a row.
    pub fn state_len(&self, dim: usize) -> usize {
        match self.kind {
            SparseOptimizer::RowwiseAdagrad => 1,
            SparseOptimizer::Adagrad => dim,
            SparseOptimizer::Adam | SparseOptimizer::Ftrl => 2 * dim,
            SparseOptimizer::Sgd => 0,
        }
    }

    /// Whether [`Self::apply`] looks at the sum of squares.
    pub(super) fn needs_square_sum(&self) -> bool {
        self.kind == SparseOptimizer::RowwiseAdagrad || self.max_row_norm > 0.0
    }

    /// Adds the decay to a gradient and returns the sum of its squares.
    pub(super) fn square_sum(&self, weights: &[f32], gradient: &mut [f32]) -> f32 {
        if self.weight_decay > 0.0 {
            for (g, w) in gradient.iter_mut().zip(weights) {
                *g += self.weight_decay * w;
            }
        }
        gradient.iter().map(|g| g * g).sum()
    }

    /// Moves one row; `square_sum` is that of the gradient of all its columns.
    pub(super) fn apply(&self, row: Row<'_>, square_sum: f32, update: Update) {
        let Row {
            weights,
            state,
            gradient,
        } = row;
        let mut square_sum = square_sum;
        if self.max_row_norm > 0.0 && square_sum > self.max_row_norm * self.max_row_norm {
            let scale = self.max_row_norm / square_sum.sqrt();
            gradient.iter_mut().for_each(|g| *g *= scale);
            square_sum = self.max_row_norm * self.max_row_norm;
        }
        let rate = self.learning_rate * update.rate_scale;
        match self.kind {
            SparseOptimizer::Sgd => step(weights, gradient, rate),
            SparseOptimizer::RowwiseAdagrad => {
                state[0] += square_sum / update.dim as f32;
                step(weights, gradient, rate / (state[0].sqrt() + self.eps));
            }
            SparseOptimizer::Adagrad => {
                for ((w, a), g) in weights.iter_mut().zip(state).zip(gradient.iter()) {
                    *a += g * g;
                    *w -= rate * g / (a.sqrt() + self.eps);
                }
            }
            SparseOptimizer::Adam => self.adam(weights, state, gradient, rate, update.step),
            SparseOptimizer::Ftrl => self.ftrl(weights, state, gradient, rate),
        }
    }

    fn adam(&self, weights: &mut [f32], state: &mut [f32], gradient: &[f32], rate: f32, step: u64) {
        let steps = i32::try_from(step).unwrap_or(i32::MAX);
        let rate = rate / (1.0 - self.beta1.powi(steps));
        let square_scale = 1.0 / (1.0 - self.beta2.powi(steps));
        let (means, squares) = state.split_at_mut(weights.len());
        let row = weights.iter_mut().zip(means).zip(squares).zip(gradient);
        for (((w, m), v), g) in row {
            *m += (1.0 - self.beta1) * (g - *m);
            *v += (1.0 - self.beta2) * (g * g - *v);
            *w -= rate * *m / ((*v * square_scale).sqrt() + self.eps);
        }
    }

    fn ftrl(&self, weights: &mut [f32], state: &mut [f32], gradient: &[f32], rate: f32) {
        let (sums, squares) = state.split_at_mut(weights.len());
        let row = weights.iter_mut().zip(sums).zip(squares).zip(gradient);
        for (((w, z), n), g) in row {
            let before = n.sqrt();
            *n += g * g;
            *z += g - (n.sqrt() - before) / rate * *w;
            *w = if z.abs() <= self.l1 {
                0.0
            } else {
                -(*z - self.l1.copysign(*z)) / ((1.0 + n.sqrt()) / rate + self.l2)
            };
        }
    }
}

fn step(weights: &mut [f32], gradient: &[f32], rate: f32) {
    for (w, g) in weights.iter_mut().zip(gradient) {
        *w -= rate * g;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of two after some steps of the same gradient.
    fn after(config: &SparseOptimizerConfig, steps: u64) -> [f32; 2] {
        let mut weights = [0.5, -0.5];
        let mut state = vec![0.0; config.state_len(2)];
        for step in 1..=steps {
            let mut gradient = [0.3, -0.4];
            let square_sum = config.square_sum(&weights, &mut gradient);
            let row = Row {
                weights: &mut weights,
                state: &mut state,
                gradient: &mut gradient,
            };
            let update = Update {
                step,
                rate_scale: 1.0,
                dim: 2,
            };
            config.apply(row, square_sum, update);
        }
        weights
    }

    fn config(kind: SparseOptimizer) -> SparseOptimizerConfig {
        SparseOptimizerConfig {
            kind,
            learning_rate: 0.1,
            ..Default::default()
        }
    }

    fn check(config: &SparseOptimizerConfig, steps: u64, wanted: [f32; 2]) {
        for (found, wanted) in after(config, steps).into_iter().zip(wanted) {
            assert!(
                (found - wanted).abs() < 1e-5,
                "{:?}: {found} {wanted}",
                config.kind
            );
        }
    }

    #[test]
    fn each_method_takes_the_step_of_its_paper() {
        check(&config(SparseOptimizer::Sgd), 2, [0.44, -0.42]);
        // mean(g²) = 0.125, then 0.25
        let moved = 0.1 / 0.125f32.sqrt() + 0.1 / 0.25f32.sqrt();
        check(
            &config(SparseOptimizer::RowwiseAdagrad),
            2,
            [0.5 - 0.3 * moved, -0.5 + 0.4 * moved],
        );
        // The first step is one rate, the second 1/√2 of it.
        let moved = 0.1 + 0.1 / 2f32.sqrt();
        check(
            &config(SparseOptimizer::Adagrad),
            2,
            [0.5 - moved, -0.5 + moved],
        );
        // A constant gradient moves by one rate a step.
        check(&config(SparseOptimizer::Adam), 3, [0.2, -0.2]);
        // z = g − (|g| / rate) w = 0.3 − 1.5 and −0.4 + 2; w = −z / ((1 + |g|) / rate)
        check(&config(SparseOptimizer::Ftrl), 1, [1.2 / 13.0, -1.6 / 14.0]);
    }

    #[test]
    fn ftrl_with_l1_makes_zeros() {
        let config = SparseOptimizerConfig {
            l1: 10.0,
            ..config(SparseOptimizer::Ftrl)
        };
        check(&config, 1, [0.0, 0.0]);
    }

    #[test]
    fn long_gradients_are_cut_and_decay_pulls() {
        let mut clipped = config(SparseOptimizer::Sgd);
        clipped.max_row_norm = 0.25;
        check(&clipped, 1, [0.5 - 0.015, -0.5 + 0.02]);
        let mut decayed = config(SparseOptimizer::Sgd);
        decayed.weight_decay = 0.2;
        check(&decayed, 1, [0.5 - 0.04, -0.5 + 0.05]);
    }
}
