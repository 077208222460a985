//! Adam over a flat vector.

use rayon::prelude::*;

pub(super) const BETA_1: f32 = 0.9;
pub(super) const BETA_2: f32 = 0.999;
pub(super) const EPS: f32 = 1e-8;

/// Values that one task moves.
const CHUNK: usize = 16 * 1024;

/// Means of gradients and of their squares. Source: Kingma and Ba, "Adam", ICLR 2015.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Adam {
    /// `[num_weights]`, running mean of the gradient.
    pub means: Vec<f32>,
    /// `[num_weights]`, running mean of its square.
    pub squares: Vec<f32>,
    /// Steps so far.
    pub step: u64,
}

impl Adam {
    /// Moves the weights by one step.
    ///
    /// # Shapes
    /// - `weights`, `gradient`: `[num_weights]`
    pub fn step(&mut self, weights: &mut [f32], gradient: &[f32], rate: f64, weight_decay: f32) {
        self.step += 1;
        let (rate, square_scale) = corrected(rate, self.step);
        weights
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(self.means.par_chunks_mut(CHUNK))
            .zip(self.squares.par_chunks_mut(CHUNK))
            .for_each(|(((weights, gradient), means), squares)| {
                let all = weights.iter_mut().zip(gradient).zip(means).zip(squares);
                for (((w, g), m), v) in all {
                    let g = g + weight_decay * *w;
                    *m += (1.0 - BETA_1) * (g - *m);
                    *v += (1.0 - BETA_2) * (g * g - *v);
                    *w -= rate * *m / ((*v * square_scale).sqrt() + EPS);
                }
            });
    }
}

/// The step size and what mean squares are multiplied with in step `step`, from 1 on: both means
/// began at zero.
pub(super) fn corrected(rate: f64, step: u64) -> (f32, f32) {
    let steps = i32::try_from(step).unwrap_or(i32::MAX);
    let rate = (rate / (1.0 - f64::from(BETA_1).powi(steps))) as f32;
    let square_scale = (1.0 / (1.0 - f64::from(BETA_2).powi(steps))) as f32;
    (rate, square_scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(num_weights: usize) -> Adam {
        Adam {
            means: vec![0.0; num_weights],
            squares: vec![0.0; num_weights],
            step: 0,
        }
    }

    #[test]
    fn a_constant_gradient_moves_by_one_rate_a_step() {
        let mut weights = vec![1.0; 40_000];
        let mut adam = fresh(weights.len());
        for _ in 0..3 {
            let gradient = vec![0.3; weights.len()];
            adam.step(&mut weights, &gradient, 0.1, 0.0);
        }
        assert!(
            weights.iter().all(|weight| (weight - 0.7).abs() < 1e-5),
            "{}",
            weights[0]
        );
    }

    /// Two steps of `torch.optim.Adam(lr=0.1, weight_decay=0.5)` from 1 with gradients 0.2 and -0.4.
    #[test]
    fn decay_and_changing_gradients_follow_the_formula() {
        let (mut w, mut m, mut v) = (1.0f64, 0.0, 0.0);
        let mut weights = vec![1.0];
        let mut adam = fresh(1);
        for (step, gradient) in [0.2f64, -0.4].into_iter().enumerate() {
            let g = gradient + 0.5 * w;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let t = step as i32 + 1;
            let (mean, square) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.999f64.powi(t)));
            w -= 0.1 * mean / (square.sqrt() + 1e-8);
            adam.step(&mut weights, &[gradient as f32], 0.1, 0.5);
        }
        assert!(
            (f64::from(weights[0]) - w).abs() < 1e-6,
            "{} {w}",
            weights[0]
        );
    }
}
