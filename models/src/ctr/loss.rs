//! What training makes small.

use burn::{
    prelude::Backend,
    tensor::{
        Tensor, TensorData,
        activation::{log_softmax, relu, softplus},
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

/// The items of a batch, among which each query has to find its own.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    /// `[candidates]`: which item each is. The same one twice is no negative of itself.
    pub items: &'a [u64],
    /// `[candidates]`: logarithm of how often the item is drawn, up to a constant; zeros correct nothing.
    pub log_frequency: &'a [f32],
    /// `[queries]`: the candidate that belongs to each.
    pub own: &'a [usize],
}

/// Far below any logit, and still finite.
const MASKED: f32 = -1e9;

impl Candidates<'_> {
    /// `[queries × candidates]`, added to the logits.
    fn offsets(&self) -> Vec<f32> {
        let of_query = |own: &usize| {
            let columns = self.items.iter().zip(self.log_frequency).enumerate();
            let own = *own;
            columns.map(move |(column, (item, log_frequency))| {
                match *item == self.items[own] && column != own {
                    true => MASKED,
                    false => -log_frequency,
                }
            })
        };
        self.own.iter().flat_map(of_query).collect()
    }
}

/// Mean loss, nats, weighted, of finding each query's item among those of the batch. Frequent items stand
/// in a batch more often than others: what that adds to their logits as negatives is taken off.
///
/// Source: Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations",
/// RecSys 2019, equations 3 to 5.
///
/// # Shapes
/// - `queries`: `[queries, dim]`, `items`: `[candidates, dim]`, both of unit length
/// - `scale`: `[1]`, the inverse temperature; `weights`: `[queries]`; returns `[1]`
pub fn batch_softmax<B: Backend>(
    queries: Tensor<B, 2>,
    items: Tensor<B, 2>,
    scale: Tensor<B, 1>,
    candidates: Candidates<'_>,
    weights: &[f32],
) -> Tensor<B, 1> {
    let device = queries.device();
    let [rows, columns] = [candidates.own.len(), candidates.items.len()];
    let offsets = TensorData::new(candidates.offsets(), [rows, columns]);
    let logits = queries.matmul(items.transpose()) * scale.unsqueeze::<2>()
        + Tensor::from_data(offsets, &device);
    let own = candidates.own.iter().map(|own| *own as i64).collect();
    let own = Tensor::from_data(TensorData::new::<i64, _>(own, [rows, 1]), &device);
    let found = log_softmax(logits, 1).gather(1, own);
    let weights = Tensor::from_data(TensorData::new(weights.to_vec(), [rows, 1]), &device);
    (found * weights.clone()).sum().neg() / weights.sum()
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;

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

    type Vectors = Tensor<Autodiff<Cpu>, 2>;

    fn vectors(values: &[f32]) -> Vectors {
        let data = TensorData::new(values.to_vec(), [values.len() / 2, 2]);
        Tensor::from_data(data, &Default::default())
    }

    fn softmax(queries: &Vectors, items: &Vectors, scale: f32, of: Candidates<'_>) -> f32 {
        let scale = Tensor::from_floats([scale], &Default::default());
        batch_softmax(queries.clone(), items.clone(), scale, of, &[1.0, 3.0]).into_scalar()
    }

    const QUERIES: [f32; 4] = [0.8, 0.6, 0.0, 1.0];
    const ITEMS: [f32; 8] = [1.0, 0.0, 0.6, 0.8, -0.8, 0.6, 0.6, 0.8];

    #[test]
    fn the_loss_of_retrieval_equals_the_textbook_formula() {
        let log_frequency = [-1.0, -2.0, -0.5, -2.0];
        // The second and the last are one item.
        let of = Candidates {
            items: &[7, 8, 9, 8],
            log_frequency: &log_frequency,
            own: &[0, 1],
        };
        let logit = |query: usize, item: usize| {
            let dot: f32 = (0..2)
                .map(|at| QUERIES[2 * query + at] * ITEMS[2 * item + at])
                .sum();
            f64::from(2.0 * dot - log_frequency[item])
        };
        let of_query = |query: usize, items: &[usize]| {
            let sum: f64 = items.iter().map(|item| logit(query, *item).exp()).sum();
            sum.ln() - logit(query, query)
        };
        let wanted = (of_query(0, &[0, 1, 2, 3]) + 3.0 * of_query(1, &[0, 1, 2])) / 4.0;
        let found = softmax(&vectors(&QUERIES), &vectors(&ITEMS), 2.0, of);
        assert!((f64::from(found) - wanted).abs() < 1e-5, "{found} {wanted}");
    }

    #[test]
    fn corrected_samples_have_the_gradient_of_the_whole_corpus() {
        // Items of a batch as often as they are drawn: the correction makes up for it.
        let (queries, times) = (vectors(&QUERIES), [1, 5, 2]);
        let drawn: Vec<usize> = (0..3).flat_map(|item| vec![item; times[item]]).collect();
        // Other numbers for the copies, so that none is masked.
        let names: Vec<u64> = (0..drawn.len() as u64).collect();
        let of_items = |drawn: &[usize], log_frequency: &[f32], own: [usize; 2]| {
            let items = vectors(&ITEMS[..6]).require_grad();
            let rows: Vec<i64> = drawn.iter().map(|item| *item as i64).collect();
            let rows = Tensor::from_data(TensorData::new(rows, [drawn.len()]), &items.device());
            let candidates = Candidates {
                items: &names[..drawn.len()],
                log_frequency,
                own: &own,
            };
            let scale = Tensor::from_floats([2.0], &items.device());
            let picked = items.clone().select(0, rows);
            let loss = batch_softmax(queries.clone(), picked, scale, candidates, &[1.0, 1.0]);
            items
                .grad(&loss.backward())
                .unwrap()
                .into_data()
                .to_vec::<f32>()
                .unwrap()
        };
        let log_frequency: Vec<f32> = drawn
            .iter()
            .map(|item| (times[*item] as f32).ln())
            .collect();
        let wanted = of_items(&[0, 1, 2], &[0.0; 3], [0, 2]);
        let close = |found: Vec<f32>| {
            let apart = found
                .iter()
                .zip(&wanted)
                .map(|(found, wanted)| (found - wanted).abs());
            apart.fold(0.0, f32::max)
        };
        assert!(close(of_items(&drawn, &log_frequency, [0, 6])) < 1e-6);
        assert!(close(of_items(&drawn, &[0.0; 8], [0, 6])) > 0.01);
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
