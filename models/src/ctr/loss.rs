//! What training makes small.

use burn::{
    prelude::Backend,
    tensor::{
        Tensor,
        activation::{relu, softplus},
    },
};

/// Mean binary cross-entropy of logits, weighted: `Σ w (max(x,0) − x y + ln(1 + e^−|x|)) / Σ w`.
///
/// # Shapes
/// - all three: `[batch, 1]`; returns `[1]`
pub fn weighted_bce<B: Backend>(
    logits: Tensor<B, 2>,
    labels: Tensor<B, 2>,
    weights: Tensor<B, 2>,
) -> Tensor<B, 1> {
    let positive = relu(logits.clone());
    let tail = (logits.clone().abs().neg().exp() + 1.0).log();
    let loss = positive - logits * labels + tail;
    (loss * weights.clone()).sum() / weights.sum()
}

/// The largest length of a logit that [`entire_space`] tells from a larger one.
const MOST_CERTAIN: f32 = 30.0;

/// Mean loss of clicks and of conversions, both over all rows, weighted. A conversion is a click
/// and what follows: its probability is `p = σ(a) σ(b)`, so that `b` learns from rows that were
/// shown and is right for all of them. Conversions that have not arrived yet are allowed for: one
/// that is not there costs `−ln(1 − p F)`, `F` being the probability that it would be known by now.
/// The truth makes the mean of this small only if `F` does not depend on whether there was a click:
/// rows without one must wait for their conversions as long as those with one.
///
/// Sources: Ma et al., "Entire Space Multi-Task Model", SIGIR 2018, equation 4; Chapelle,
/// "Modeling Delayed Feedback in Display Advertising", KDD 2014, equation 8.
///
/// # Shapes
/// - `logits`: `[batch, 2]`: `a` and `b`
/// - `labels`: `[batch, 2]`: whether there was a click, and whether there is a conversion
/// - `observed`: `[batch, 1]`: `F`; 1 where labels are final
/// - `weights`: `[batch, 1]`; returns `[1]`
pub fn entire_space<B: Backend>(
    logits: Tensor<B, 2>,
    labels: Tensor<B, 2>,
    observed: Tensor<B, 2>,
    weights: Tensor<B, 2>,
) -> Tensor<B, 1> {
    let clicks = labels.clone().narrow(1, 0, 1);
    let conversions = labels.narrow(1, 1, 1);
    let of_clicks = weighted_bce(logits.clone().narrow(1, 0, 1), clicks, weights.clone());

    let certain = logits.clamp(-MOST_CERTAIN, MOST_CERTAIN);
    // −ln p is that of both sigmoids.
    let minus_log_p: Tensor<B, 2> = softplus(certain.clone().neg(), 1.0).sum_dim(1);
    // 1 − p F = p ((1 − F) + e^−a + e^−b + e^−(a+b)), which is small without cancelling.
    let [a, b] = [0, 1].map(|at| certain.clone().narrow(1, at, 1).neg().exp());
    let rest = observed.neg() + 1.0 + a.clone() + b.clone() + a * b;
    let loss = minus_log_p - (conversions.neg() + 1.0) * rest.log();
    of_clicks + (loss * weights.clone()).sum() / weights.sum()
}

#[cfg(test)]
mod tests {
    use burn::{backend::Autodiff, tensor::TensorData};

    use super::*;
    use crate::Cpu;

    fn loss(a: f32, b: f32, labels: [f32; 2], observed: f32) -> (f32, Vec<f32>) {
        let device = Default::default();
        let tensor = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [1, values.len()]);
            Tensor::<Autodiff<Cpu>, 2>::from_data(data, &device)
        };
        let logits = tensor(&[a, b]).require_grad();
        let loss = entire_space(
            logits.clone(),
            tensor(&labels),
            tensor(&[observed]),
            tensor(&[2.0]),
        );
        let gradient = logits.grad(&loss.backward()).unwrap().into_data();
        (loss.into_scalar(), gradient.to_vec().unwrap())
    }

    #[test]
    fn the_loss_of_clicks_equals_the_textbook_formula() {
        let column = |values: [f32; 3]| {
            let data = TensorData::new(values.to_vec(), [3, 1]);
            Tensor::<Cpu, 2>::from_data(data, &Default::default())
        };
        let found = weighted_bce(
            column([2.0, -1.0, 40.0]),
            column([1.0, 0.0, 1.0]),
            column([1.0, 2.0, 1.0]),
        );
        let ln = |x: f64| (1.0 / (1.0 + (-x).exp())).ln();
        let expected = -(ln(2.0) + 2.0 * ln(1.0) + ln(40.0)) / 4.0;
        assert!((f64::from(found.into_scalar()) - expected).abs() < 1e-6);
    }

    #[test]
    fn certain_logits_have_finite_losses_and_gradients() {
        for a in [-1e4, -40.0, 0.0, 40.0, 1e4] {
            for b in [-1e4, -40.0, 0.0, 40.0, 1e4] {
                for labels in [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]] {
                    for observed in [0.0, 0.3, 1.0] {
                        let (loss, gradient) = loss(a, b, labels, observed);
                        let finite = gradient.iter().all(|value| value.is_finite());
                        assert!(loss.is_finite() && finite, "{a} {b} {labels:?}: {loss}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_truth_has_the_least_loss_however_much_is_known() {
        // Rows of one kind: no click, a click, a click and a known conversion.
        let (click, conversion) = (0.3, 0.4);
        let logit = |p: f32| (p / (1.0 - p)).ln();
        let gradient = |observed: [f32; 3]| {
            let known = click * conversion * observed[2];
            let shares = [1.0 - click, click - known, known];
            let labels = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]];
            let of_rows = labels.iter().zip(observed).map(|(labels, observed)| {
                loss(logit(click), logit(conversion), *labels, observed).1[1]
            });
            let terms = of_rows.zip(shares).map(|(of_row, share)| share * of_row);
            terms.sum::<f32>()
        };
        for observed in [0.1, 0.5, 1.0] {
            let found = gradient([observed; 3]);
            assert!(found.abs() < 1e-6, "{observed}: {found}");
        }
        // Were it certain that without a click none comes, conversions would seem rarer than they are.
        assert!(gradient([1.0, 0.1, 0.1]) > 0.04);
    }

    #[test]
    fn a_click_that_was_only_just_says_nothing_of_its_conversion() {
        let (_, gradient) = loss(0.3, 0.8, [1.0, 0.0], 0.0);
        assert!(gradient[1].abs() < 1e-6, "{gradient:?}");
        // The later it is, the more it counts against one.
        let at = |observed| loss(0.3, 0.8, [1.0, 0.0], observed).1[1];
        assert!(at(0.2) < at(0.6) && at(0.6) < at(1.0));
    }
}
