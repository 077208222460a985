//! How the dense weights are moved, over a flat vector.

use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Values that one task moves.
const CHUNK: usize = 16 * 1024;

/// The method and its constants.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenseOptimizerConfig {
    /// The method.
    pub kind: DenseOptimizer,
    /// Share of the old mean gradient that a step keeps; not used by Adagrad.
    pub beta1: f32,
    /// Share of the old mean square that a step keeps; not used by Adagrad.
    pub beta2: f32,
    /// Keeps the divisor from 0.
    pub eps: f32,
}

impl Default for DenseOptimizerConfig {
    fn default() -> Self {
        Self {
            kind: DenseOptimizer::Adam,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
        }
    }
}

/// Methods. `g` is the gradient, `m` and `v` its running mean and mean square put right for their
/// start at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenseOptimizer {
    /// `w −= lr · m / (√v + eps)`, with the decay as a part of the gradient. Source: Kingma and
    /// Ba, "Adam", ICLR 2015.
    Adam,
    /// Adam with a decay that is not divided: `w −= lr · decay · w`. Source: Loshchilov and
    /// Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    AdamW,
    /// `v += g²; w −= lr · g / (√v + eps)`. Source: Duchi et al., "Adaptive Subgradient Methods",
    /// JMLR 2011.
    Adagrad,
    /// AdamW's step, as long as each layer's weights are: for very large batches. Source: You et
    /// al., "Large Batch Optimization for Deep Learning", ICLR 2020.
    Lamb,
}

/// A method over the weights of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The method.
    pub config: DenseOptimizerConfig,
    /// Numbers of each of the network's tensors, in its order.
    pub segments: Arc<[usize]>,
}

/// The numbers of one step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// Step size.
    pub rate: f32,
    /// What mean gradients are multiplied with, for they began at 0.
    pub mean_scale: f32,
    /// The same of mean squares.
    pub square_scale: f32,
    /// Pull towards zero.
    pub weight_decay: f32,
}

impl DenseOptimizerConfig {
    /// Of step `step`, from 1 on.
    pub(super) fn step(&self, rate: f64, weight_decay: f32, step: u64) -> Step {
        let steps = i32::try_from(step).unwrap_or(i32::MAX);
        let scale = |beta: f32| (1.0 / (1.0 - f64::from(beta).powi(steps))) as f32;
        Step {
            rate: rate as f32,
            mean_scale: scale(self.beta1),
            square_scale: scale(self.beta2),
            weight_decay,
        }
    }

    /// Whether the decay is a part of the gradient.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub(super) fn decays_by_gradient(&self) -> bool {
        matches!(self.kind, DenseOptimizer::Adam | DenseOptimizer::Adagrad)
    }
}

/// A rule and what it remembers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Optimizer {
    pub rule: Rule,
    /// `[num_weights]`, running mean of the gradient.
    pub means: Vec<f32>,
    /// `[num_weights]`, running mean of its square, or their sum.
    pub squares: Vec<f32>,
    /// Steps so far.
    pub step: u64,
}

impl Optimizer {
    /// Moves the weights by one step.
    ///
    /// # Shapes
    /// - `weights`, `gradient`: `[num_weights]`; `gradient` is not to be used after it
    pub fn step(
        &mut self,
        weights: &mut [f32],
        gradient: &mut [f32],
        rate: f64,
        weight_decay: f32,
    ) {
        self.step += 1;
        let config = self.rule.config;
        let step = config.step(rate, weight_decay, self.step);
        let Step {
            rate, weight_decay, ..
        } = step;
        match config.kind {
            DenseOptimizer::Adam => self.each(weights, gradient, |w, g, m, v| {
                *g += weight_decay * *w;
                *w -= rate * adam(&config, &step, *g, m, v);
            }),
            DenseOptimizer::AdamW => self.each(weights, gradient, |w, g, m, v| {
                *w -= rate * (weight_decay * *w + adam(&config, &step, *g, m, v));
            }),
            DenseOptimizer::Adagrad => self.each(weights, gradient, |w, g, _, v| {
                *g += weight_decay * *w;
                *v += *g * *g;
                *w -= rate * *g / (v.sqrt() + config.eps);
            }),
            DenseOptimizer::Lamb => {
                // The gradient becomes the direction, of which each layer takes its own length.
                self.each(weights, gradient, |w, g, m, v| {
                    *g = adam(&config, &step, *g, m, v) + weight_decay * *w;
                });
                self.move_by_layer(weights, gradient, rate);
            }
        }
    }

    fn each(
        &mut self,
        weights: &mut [f32],
        gradient: &mut [f32],
        one: impl Fn(&mut f32, &mut f32, &mut f32, &mut f32) + Sync,
    ) {
        weights
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks_mut(CHUNK))
            .zip(self.means.par_chunks_mut(CHUNK))
            .zip(self.squares.par_chunks_mut(CHUNK))
            .for_each(|(((weights, gradient), means), squares)| {
                let all = weights.iter_mut().zip(gradient).zip(means).zip(squares);
                for (((w, g), m), v) in all {
                    one(w, g, m, v);
                }
            });
    }

    fn move_by_layer(&self, mut weights: &mut [f32], mut direction: &[f32], rate: f32) {
        for len in self.rule.segments.iter() {
            let (mine, rest) = std::mem::take(&mut weights).split_at_mut(*len);
            weights = rest;
            let (moved, rest) = direction.split_at(*len);
            direction = rest;
            let rate = rate * trust(norm(mine), norm(moved));
            for (w, d) in mine.iter_mut().zip(moved) {
                *w -= rate * d;
            }
        }
    }
}

/// `m / (√v + eps)` after both have taken a gradient in.
fn adam(config: &DenseOptimizerConfig, step: &Step, g: f32, m: &mut f32, v: &mut f32) -> f32 {
    *m += (1.0 - config.beta1) * (g - *m);
    *v += (1.0 - config.beta2) * (g * g - *v);
    *m * step.mean_scale / ((*v * step.square_scale).sqrt() + config.eps)
}

fn norm(values: &[f32]) -> f32 {
    let squares = values.iter().map(|value| f64::from(*value).powi(2));
    squares.sum::<f64>().sqrt() as f32
}

/// How much of a direction a layer goes, by the lengths of its weights and of the direction.
pub(super) fn trust(weights: f32, direction: f32) -> f32 {
    match weights > 0.0 && direction > 0.0 {
        true => weights / direction,
        false => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(kind: DenseOptimizer, segments: &[usize]) -> Optimizer {
        let num_weights = segments.iter().sum();
        Optimizer {
            rule: Rule {
                config: DenseOptimizerConfig {
                    kind,
                    ..DenseOptimizerConfig::default()
                },
                segments: segments.into(),
            },
            means: vec![0.0; num_weights],
            squares: vec![0.0; num_weights],
            step: 0,
        }
    }

    #[test]
    fn a_constant_gradient_moves_by_one_rate_a_step() {
        let mut weights = vec![1.0; 40_000];
        let mut adam = fresh(DenseOptimizer::Adam, &[40_000]);
        for _ in 0..3 {
            let mut gradient = vec![0.3; weights.len()];
            adam.step(&mut weights, &mut gradient, 0.1, 0.0);
        }
        assert!(
            weights.iter().all(|weight| (weight - 0.7).abs() < 1e-5),
            "{}",
            weights[0]
        );
    }

    /// What `torch.optim` makes of it in f64, with `lr=0.1, weight_decay=0.5` (Adagrad: `eps=1e-8`);
    /// LAMB's by the paper's algorithm 2 in f64.
    const WANTED: [(DenseOptimizer, [f32; 3]); 4] = [
        (
            DenseOptimizer::Adam,
            [0.827_860_2, -1.804_449_9, 0.301_955_8],
        ),
        (
            DenseOptimizer::AdamW,
            [0.844_110_4, -1.759_419, 0.266_392_5],
        ),
        (
            DenseOptimizer::Adagrad,
            [0.892_875_3, -1.849_127, 0.340_863_6],
        ),
        (DenseOptimizer::Lamb, [0.833_886_5, -1.622_015_3, 0.405]),
    ];

    #[test]
    fn two_steps_equal_those_of_pytorch() {
        let gradients = [[0.2, -0.1, 0.05], [-0.4, 0.3, 0.02]];
        for (kind, wanted) in WANTED {
            let mut optimizer = fresh(kind, &[2, 1]);
            let mut weights = vec![1.0, -2.0, 0.5];
            for gradient in &gradients {
                optimizer.step(&mut weights, &mut gradient.to_vec(), 0.1, 0.5);
            }
            for (found, wanted) in weights.iter().zip(wanted) {
                assert!(
                    (found - wanted).abs() < 1e-6,
                    "{kind:?}: {weights:?} {wanted:?}"
                );
            }
        }
    }
}
