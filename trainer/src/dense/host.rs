//! In host memory.

use burn::{module::AutodiffModule, optim::GradientsParams, tensor::Tensor};
use models::ops::TrainingBackend;

use super::{
    DenseState, Move, Precision, Rule, Saved, Total,
    flat::{add_gradients, load_weights, to_vec},
    optimizer::Optimizer,
};
use crate::collective::{ExchangeError, ProcessGroup};

/// Numbers after the gradient that travel with it: the loss, and whether to stop.
const REST: usize = 2;

/// [`DenseState`] of backends on the CPU.
#[derive(Debug)]
pub struct HostDense<B: TrainingBackend> {
    weights: Vec<f32>,
    optimizer: Optimizer,
    averages: Option<Vec<f32>>,
    /// `[num_weights + REST]`.
    sum: Vec<f32>,
    device: B::Device,
}

impl<B: TrainingBackend> DenseState<B> for HostDense<B> {
    fn load(saved: Saved, rule: &Rule, device: &B::Device) -> Self {
        Self {
            sum: vec![0.0; saved.weights.len() + REST],
            weights: saved.weights,
            averages: saved.averages,
            optimizer: Optimizer {
                rule: rule.clone(),
                means: saved.means,
                squares: saved.squares,
                step: saved.updates,
            },
            device: device.clone(),
        }
    }

    fn save(&self) -> Saved {
        Saved {
            weights: self.weights.clone(),
            means: self.optimizer.means.clone(),
            squares: self.optimizer.squares.clone(),
            averages: self.averages.clone(),
            updates: self.optimizer.step,
        }
    }

    fn network<M: AutodiffModule<B>>(&self, network: M, precision: Precision) -> M {
        load_weights(network, &self.weights, precision, &self.device)
    }

    fn averaged<M: AutodiffModule<B>>(&self, network: M, precision: Precision) -> M {
        let weights = self.averages.as_ref().unwrap_or(&self.weights);
        load_weights(network, weights, precision, &self.device)
    }

    fn add<M: AutodiffModule<B>>(
        &mut self,
        network: &M,
        gradients: GradientsParams,
        loss: Tensor<B::InnerBackend, 1>,
    ) {
        add_gradients(network, gradients, &mut self.sum);
        self.sum[self.weights.len()] += to_vec(loss)[0];
    }

    fn reduce(&mut self, stop: bool, group: &mut impl ProcessGroup) -> Result<(), ExchangeError> {
        self.sum[self.weights.len() + 1] = f32::from(u8::from(stop));
        match group.world_size() {
            1 => Ok(()),
            _ => Ok(group.all_reduce(&mut self.sum)?),
        }
    }

    fn total(&self) -> Total {
        let (gradient, rest) = self.sum.split_at(self.weights.len());
        let squares = gradient.iter().map(|value| f64::from(*value).powi(2));
        Total {
            loss: rest[0],
            gradient_norm: squares.sum::<f64>().sqrt() as f32,
            stopping: rest[1] != 0.0,
        }
    }

    fn apply(&mut self, total: &Total, by: Move) {
        let gradient = &mut self.sum[..self.weights.len()];
        if let Some(scale) = by.scale(total) {
            gradient.iter_mut().for_each(|value| *value *= scale);
        }
        self.optimizer
            .step(&mut self.weights, gradient, by.rate, by.weight_decay);
        if let Some(averages) = &mut self.averages {
            let moved = 1.0 - by.kept(self.optimizer.step);
            for (average, weight) in averages.iter_mut().zip(&self.weights) {
                *average += moved * (weight - *average);
            }
        }
    }

    fn clear(&mut self) {
        self.sum.fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use models::Cpu;

    use super::*;
    use crate::dense::DenseOptimizerConfig;

    /// Source of the numbers: the recurrence, in f64.
    #[test]
    fn the_running_mean_of_the_weights_is_that_of_the_formula() {
        let rule = Rule {
            config: DenseOptimizerConfig::default(),
            segments: [2].into(),
        };
        let saved = Saved::fresh(vec![1.0, -2.0], true);
        let mut dense = HostDense::<Autodiff<Cpu>>::load(saved, &rule, &Default::default());
        let by = Move {
            rate: 0.1,
            weight_decay: 0.0,
            max_norm: 0.0,
            average: 0.3,
        };
        let mut wanted = [1.0f64, -2.0];
        // Of the first updates less is kept: 2/11, 3/12, and then what was asked for.
        for kept in [2.0 / 11.0, 0.25, 0.3, 0.3] {
            dense.sum[..2].copy_from_slice(&[0.3, -0.7]);
            let total = dense.total();
            dense.apply(&total, by);
            for (mean, weight) in wanted.iter_mut().zip(&dense.weights) {
                *mean = kept * *mean + (1.0 - kept) * f64::from(*weight);
            }
            let found = dense.averages.as_ref().unwrap();
            let apart = found
                .iter()
                .zip(wanted)
                .map(|(it, mean)| (f64::from(*it) - mean).abs());
            assert!(apart.fold(0.0, f64::max) < 1e-6, "{found:?} {wanted:?}");
        }
        assert_ne!(dense.averages.as_ref(), Some(&dense.weights));
    }
}
