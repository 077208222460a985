//! The contrastive loss: a clicked pair against the other pairs of its batch.
//!
//! Sources: symmetric loss with a learnt temperature from Radford et al., "Learning Transferable
//! Visual Models From Natural Language Supervision", ICML 2021; the correction for popular
//! creatives from Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
//! Recommendations", RecSys 2019, equation 5.

use std::collections::HashSet;

use burn::{
    prelude::Backend,
    tensor::{Tensor, TensorData, activation::log_softmax},
};

/// Which pairs stand in a batch.
#[derive(Debug, Clone, Copy)]
pub struct ContrastBatch<'a> {
    /// The creative of each pair: a row of the vectors of creatives.
    pub creatives: &'a [usize],
    /// The scene of each pair: a row of the vectors of scenes.
    pub scenes: &'a [usize],
    /// Further creatives, which stand as negatives for all scenes: rows of the vectors of creatives.
    pub negatives: &'a [usize],
    /// `[pairs + negatives]`: what is taken from the logits of a creative where it stands as a negative:
    /// the logarithm of how often it is drawn, up to a constant. Zeros change nothing.
    pub correction: &'a [f32],
    /// Rows of a scene and of a creative that are known to go together, so that they are no negatives of
    /// each other, whatever the pairs of this batch are.
    pub known: &'a HashSet<(usize, usize)>,
}

impl ContrastBatch<'_> {
    /// `[pairs × (pairs + negatives)]`, added to the logits of (scene of the row, creative of the column):
    /// correction of the creative, and minus infinity, in effect, for what is no negative: a creative or a
    /// scene that stands in the row's own pair too, or one that is known to go with the scene.
    fn offsets(&self) -> Vec<f32> {
        let columns = || self.creatives.iter().chain(self.negatives);
        let mut offsets = Vec::with_capacity(self.scenes.len() * self.correction.len());
        for (row, (scene, own)) in self.scenes.iter().zip(self.creatives).enumerate() {
            offsets.extend(columns().enumerate().map(|(column, creative)| {
                let same = creative == own
                    || self.scenes.get(column) == Some(scene)
                    || self.known.contains(&(*scene, *creative));
                if same && row != column {
                    MASKED
                } else {
                    -self.correction[column]
                }
            }));
        }
        offsets
    }
}

/// Far below any logit, and still finite.
const MASKED: f32 = -1e9;

/// Mean loss, nats, of finding each pair's creative for its scene and its scene for its creative.
///
/// # Shapes
/// - `creatives`: `[distinct creatives, dim]`, unit length; `scenes`: `[distinct scenes, dim]`
/// - `scale`: `[1]`, the inverse temperature; returns `[1]`
pub fn info_nce<B: Backend>(
    creatives: Tensor<B, 2>,
    scenes: Tensor<B, 2>,
    scale: Tensor<B, 1>,
    batch: ContrastBatch<'_>,
) -> Tensor<B, 1> {
    let device = creatives.device();
    let (pairs, columns) = (batch.creatives.len(), batch.correction.len());
    let rows = |of: &[usize]| {
        let ids: Vec<i64> = of.iter().map(|row| *row as i64).collect();
        Tensor::from_data(TensorData::new(ids, [of.len()]), &device)
    };
    let creatives = creatives.select(0, rows(&[batch.creatives, batch.negatives].concat()));
    let scenes = scenes.select(0, rows(batch.scenes));
    let offsets = TensorData::new(batch.offsets(), [pairs, columns]);
    let logits = scenes.matmul(creatives.transpose()) * scale.unsqueeze::<2>()
        + Tensor::from_data(offsets, &device);
    let diagonal: Tensor<B, 2> = Tensor::eye(pairs, &device);
    let of_scenes = log_softmax(logits.clone(), 1).narrow(1, 0, pairs);
    // In a column the correction is one constant, which a softmax does not see.
    let of_creatives = log_softmax(logits.narrow(1, 0, pairs), 0);
    ((of_scenes + of_creatives) * diagonal).sum() / (-2.0 * pairs as f64)
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;

    use super::*;
    use crate::Cpu;

    type B = Autodiff<Cpu>;

    fn vectors(values: &[f32]) -> Tensor<B, 2> {
        let rows = values.len() / 2;
        Tensor::from_data(
            TensorData::new(values.to_vec(), [rows, 2]),
            &Default::default(),
        )
    }

    fn scale(value: f32) -> Tensor<B, 1> {
        Tensor::from_floats([value], &Default::default())
    }

    const CREATIVES: [f32; 6] = [1.0, 0.0, 0.6, 0.8, -0.8, 0.6];
    const SCENES: [f32; 6] = [0.8, 0.6, 0.0, 1.0, -1.0, 0.0];

    fn pairs<'a>(
        creatives: &'a [usize],
        scenes: &'a [usize],
        correction: &'a [f32],
        known: &'a HashSet<(usize, usize)>,
    ) -> ContrastBatch<'a> {
        ContrastBatch {
            creatives,
            scenes,
            negatives: &[],
            correction,
            known,
        }
    }

    fn loss(batch: ContrastBatch<'_>) -> f32 {
        info_nce(vectors(&CREATIVES), vectors(&SCENES), scale(2.0), batch).into_scalar()
    }

    #[test]
    fn the_loss_equals_the_textbook_formula() {
        // Cross-entropy of rows and columns, by hand in f64.
        let dot = |s: usize, c: usize| {
            f64::from(SCENES[2 * s] * CREATIVES[2 * c] + SCENES[2 * s + 1] * CREATIVES[2 * c + 1])
        };
        let correction = [0.0, 0.5, -0.25];
        let mut expected = 0.0;
        for at in 0..3 {
            let row: f64 = (0..3)
                .map(|c| (2.0 * dot(at, c) - f64::from(correction[c])).exp())
                .sum();
            let column: f64 = (0..3).map(|s| (2.0 * dot(s, at)).exp()).sum();
            expected -= 2.0 * dot(at, at) - f64::from(correction[at]) - row.ln();
            expected -= 2.0 * dot(at, at) - column.ln();
        }
        let none = HashSet::new();
        let found = loss(pairs(&[0, 1, 2], &[0, 1, 2], &correction, &none));
        assert!((f64::from(found) - expected / 6.0).abs() < 1e-5, "{found}");
    }

    #[test]
    fn the_same_creative_or_scene_is_no_negative() {
        // Two pairs that share their scene: nothing is left to tell apart, for either.
        let none = HashSet::new();
        let batch = |scenes| pairs(&[0, 2], scenes, &[0.0, 0.0], &none);
        assert_eq!(loss(batch(&[0, 0])), 0.0);
        assert!(loss(batch(&[0, 1])) > 0.1);
        // Nor is what went together elsewhere, in either direction.
        let known = HashSet::from([(0, 2), (1, 0)]);
        assert_eq!(loss(pairs(&[0, 2], &[0, 1], &[0.0, 0.0], &known)), 0.0);
    }

    #[test]
    fn further_creatives_are_negatives_of_scenes_alone() {
        let none = HashSet::new();
        let correction = [0.0, 0.5, -0.25];
        let batch = |negatives, correction| ContrastBatch {
            negatives,
            ..pairs(&[0, 1], &[0, 1], correction, &none)
        };
        let found = loss(batch(&[2], &correction));
        let dot = |s: usize, c: usize| {
            f64::from(SCENES[2 * s] * CREATIVES[2 * c] + SCENES[2 * s + 1] * CREATIVES[2 * c + 1])
        };
        let mut expected = 0.0;
        for at in 0..2 {
            let logit = |c: usize| 2.0 * dot(at, c) - f64::from(correction[c]);
            let row: f64 = (0..3).map(|c| logit(c).exp()).sum();
            let column: f64 = (0..2).map(|s| (2.0 * dot(s, at)).exp()).sum();
            expected -= logit(at) - row.ln() + 2.0 * dot(at, at) - column.ln();
        }
        assert!((f64::from(found) - expected / 4.0).abs() < 1e-5, "{found}");
        // One that stands in the row's own pair is none.
        let own = loss(batch(&[0, 1], &[0.0; 4]));
        let known = HashSet::from([(0, 1), (1, 0)]);
        let masked = ContrastBatch {
            negatives: &[0, 1],
            ..pairs(&[0, 1], &[0, 1], &[0.0; 4], &known)
        };
        assert!(own > 0.1);
        assert_eq!(loss(masked), 0.0);
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let known = HashSet::from([(1, 0)]);
        let batch = ContrastBatch {
            creatives: &[0, 1, 2, 1],
            scenes: &[0, 1, 2, 2],
            negatives: &[2, 0],
            correction: &[0.0, 0.3, 0.1, 0.3, 0.1, 0.0],
            known: &known,
        };
        let creatives = vectors(&CREATIVES).require_grad();
        let inverse = scale(2.0).require_grad();
        let gradients =
            info_nce(creatives.clone(), vectors(&SCENES), inverse.clone(), batch).backward();
        let found = creatives
            .grad(&gradients)
            .unwrap()
            .into_data()
            .to_vec::<f32>()
            .unwrap();
        let step = 1e-2;
        for at in 0..CREATIVES.len() {
            let moved = |by: f32| {
                let mut values = CREATIVES;
                values[at] += by;
                info_nce(vectors(&values), vectors(&SCENES), scale(2.0), batch).into_scalar()
            };
            let expected = (moved(step) - moved(-step)) / (2.0 * step);
            // f32 and a step of 1e-2 leave about 1e-4.
            assert!(
                (found[at] - expected).abs() < 1e-3,
                "{at}: {} {expected}",
                found[at]
            );
        }
        let of_scale = |value| {
            info_nce(vectors(&CREATIVES), vectors(&SCENES), scale(value), batch).into_scalar()
        };
        let expected = (of_scale(2.0 + step) - of_scale(2.0 - step)) / (2.0 * step);
        let found = inverse.grad(&gradients).unwrap().into_scalar();
        assert!((found - expected).abs() < 1e-3, "{found} {expected}");
    }
}
