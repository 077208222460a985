//! Loops that compilers turn into vector instructions: no branches, no calls, and run under the widest
//! instructions that the machine has. A [`WithSimd`] is inlined where those are allowed; a closure would
//! stay a function of its own, with the narrow ones of every machine.

use pulp::{Arch, Simd, WithSimd};

use crate::ops::Gelu;

/// `z + bias` in the place of `z`, and a residual added where there is one.
pub(super) struct BiasAdd<'a> {
    pub(super) rows: &'a mut [f32],
    pub(super) bias: &'a [f32],
    pub(super) residual: Option<&'a [f32]>,
}

impl WithSimd for BiasAdd<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for row in self.rows.chunks_exact_mut(self.bias.len()) {
            for (z, b) in row.iter_mut().zip(self.bias) {
                *z += b;
            }
        }
        if let Some(residual) = self.residual {
            for (z, r) in self.rows.iter_mut().zip(residual) {
                *z += r;
            }
        }
    }
}

/// `gelu(z + bias)` in the place of `z`.
pub(super) struct BiasGelu<'a> {
    pub(super) rows: &'a mut [f32],
    pub(super) bias: &'a [f32],
    pub(super) gelu: Gelu,
}

impl WithSimd for BiasGelu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for row in self.rows.chunks_exact_mut(self.bias.len()) {
            gelu_row(row, self.bias, self.gelu);
        }
    }
}

/// Rows of mean 0 and variance 1, then `γ ⊙ x + β`.
pub(super) struct Normalise<'a> {
    pub(super) from: &'a [f32],
    pub(super) to: &'a mut [f32],
    pub(super) gamma: &'a [f32],
    pub(super) beta: &'a [f32],
    pub(super) eps: f32,
}

impl WithSimd for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.gamma.len();
        let rows = self
            .from
            .chunks_exact(width)
            .zip(self.to.chunks_exact_mut(width));
        for (from, to) in rows {
            normalise_row(from, to, self.gamma, self.beta, self.eps);
        }
    }
}

/// The softmax of each row in its place.
pub(super) struct Softmax<'a> {
    pub(super) rows: &'a mut [f32],
    pub(super) width: usize,
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for row in self.rows.chunks_exact_mut(self.width) {
            softmax_row(row);
        }
    }
}

/// Runs a loop with the widest instructions of this machine.
pub(super) fn vectorised<W: WithSimd>(body: W) -> W::Output {
    Arch::new().dispatch(body)
}

/// `eˣ` to two units in the last place, for `x` of at most 88; 0 below −87.
///
/// The exponent of the result is the nearest whole number of `x / ln 2`, which falls into the low bits
/// of a sum with 1.5 · 2²³; the rest, at most `ln 2 / 2`, goes through a polynomial. Source: Cephes,
/// `expf`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let whole = shifted - SHIFT;
    let rest = x - whole * LN_2_HIGH - whole * LN_2_LOW;
    let mut sum = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_66,
        0.5,
    ] {
        sum = sum * rest + coefficient;
    }
    let mantissa = sum * rest * rest + rest + 1.0;
    f32::from_bits(mantissa.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// The Gaussian distribution below `x`, to 1e-7. Source: Abramowitz and Stegun, 7.1.26.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut sum = 1.061_405_4f32;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        sum = sum * t + coefficient;
    }
    let tail = 0.5 * sum * t * exp(-z * z);
    if x < 0.0 { tail } else { 1.0 - tail }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(if -x > 88.0 { 88.0 } else { -x }))
}

/// `gelu(z + bias)` of a row.
#[inline(always)]
fn gelu_row(row: &mut [f32], bias: &[f32], gelu: Gelu) {
    match gelu {
        Gelu::Exact => {
            for (z, b) in row.iter_mut().zip(bias) {
                let x = *z + b;
                *z = x * normal_cdf(x);
            }
        }
        // (1 + tanh u) / 2 is the sigmoid of 2 u.
        Gelu::Tanh => {
            for (z, b) in row.iter_mut().zip(bias) {
                let x = *z + b;
                *z = x * sigmoid(1.595_769 * (x + 0.044_715 * x * x * x));
            }
        }
        Gelu::Quick => {
            for (z, b) in row.iter_mut().zip(bias) {
                let x = *z + b;
                *z = x * sigmoid(1.702 * x);
            }
        }
    }
}

/// Lanes of sums that run beside each other: floats may not be added in another order by themselves.
const LANES: usize = 16;

#[inline(always)]
fn sum(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane];
        }
    }
    let mut total: f32 = 0.0;
    for x in sums.iter().chain(rest) {
        total += x;
    }
    total
}

/// Of squared distances from `mean`.
#[inline(always)]
fn sum_of_squares(row: &[f32], mean: f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            let distance = chunk[lane] - mean;
            sums[lane] += distance * distance;
        }
    }
    let mut total = sum(&sums);
    for x in rest {
        total += (x - mean) * (x - mean);
    }
    total
}

/// A row with mean 0 and variance 1, then `γ ⊙ x + β`.
#[inline(always)]
fn normalise_row(from: &[f32], to: &mut [f32], gamma: &[f32], beta: &[f32], eps: f32) {
    let count = from.len() as f32;
    let mean = sum(from) / count;
    let variance = sum_of_squares(from, mean) / count;
    let scale = 1.0 / (variance + eps).sqrt();
    for (((to, x), gamma), beta) in to.iter_mut().zip(from).zip(gamma).zip(beta) {
        *to = (x - mean) * scale * gamma + beta;
    }
}

/// A row's softmax in its place.
#[inline(always)]
fn softmax_row(row: &mut [f32]) {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut tops = [f32::MIN; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            tops[lane] = if chunk[lane] > tops[lane] {
                chunk[lane]
            } else {
                tops[lane]
            };
        }
    }
    let mut top = f32::MIN;
    for x in tops.iter().chain(rest) {
        top = if *x > top { *x } else { top };
    }
    for x in row.iter_mut() {
        *x = exp(*x - top);
    }
    let inverse = 1.0 / sum(row);
    for x in row {
        *x *= inverse;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_a_millionth() {
        for at in -8700..=8800 {
            let x = at as f32 / 100.0;
            let wanted = f64::from(x).exp();
            let error = (f64::from(exp(x)) / wanted - 1.0).abs();
            assert!(error < 3e-7, "{x}: {error}");
        }
        assert!(exp(-1e9) < 1e-37);
    }

    #[test]
    fn gelu_has_its_three_forms() {
        for at in -1000..=1000 {
            let x = f64::from(at) / 100.0;
            let of = |gelu| {
                let mut row = [x as f32 - 1.0];
                gelu_row(&mut row, &[1.0], gelu);
                f64::from(row[0])
            };
            // The integral of the density by Simpson's rule, in 2,000 steps from 0.
            let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let step = x / 2000.0;
            let area: f64 = (0..1000)
                .map(|k| {
                    let t = 2.0 * f64::from(k) * step;
                    (density(t) + 4.0 * density(t + step) + density(t + 2.0 * step)) * step / 3.0
                })
                .sum();
            assert!((of(Gelu::Exact) - x * (0.5 + area)).abs() < 2e-6, "{x}");
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            assert!(
                (of(Gelu::Tanh) - 0.5 * x * (1.0 + inner.tanh())).abs() < 2e-6,
                "{x}"
            );
            assert!(
                (of(Gelu::Quick) - x / (1.0 + (-1.702 * x).exp())).abs() < 2e-6,
                "{x}"
            );
        }
    }

    #[test]
    fn softmax_adds_up_to_one_however_large_its_numbers() {
        let mut row: Vec<f32> = (0..37).map(|at| 1e4 + at as f32).collect();
        softmax_row(&mut row);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((f64::from(row[36] / row[35]) - 1f64.exp()).abs() < 1e-5);
    }
}
