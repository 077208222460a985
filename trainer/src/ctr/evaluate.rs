//! Measures a click model on rows.

use features::FeatureBatch;
use models::{
    ctr::{CtrModel, CtrModelError},
    metrics::{
        ReliabilityBin, auc, calibration_ratio, expected_calibration_error, log_loss,
        normalised_entropy, reliability,
    },
    ops::FusedOps,
};
use serde::{Deserialize, Serialize};

use super::config::Objective;
use crate::table::Examples;

/// Rows that are scored at once.
pub(super) const SCORE_BATCH: usize = 4096;

/// Bins of the reliability diagram.
const BINS: usize = 20;

/// How good a model is on some rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Rows.
    pub rows: usize,
    /// Area under the ROC curve; absent if the labels are all equal.
    pub auc: Option<f64>,
    /// Log loss, nats.
    pub log_loss: f64,
    /// Log loss over that of the base rate.
    pub normalised_entropy: f64,
    /// Sum of predictions over sum of clicks.
    pub calibration_ratio: f64,
    /// Expected calibration error.
    pub ece: f64,
    /// The reliability diagram.
    pub reliability: Vec<ReliabilityBin>,
    /// Of a model of two tasks, its conversions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversions: Option<ConversionEvaluation>,
    /// Of a model with two towers, how its vectors find what was clicked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<RetrievalEvaluation>,
}

impl Evaluation {
    /// What training makes small, and the best model has least of, nats: the log losses of all tasks, or
    /// the loss of retrieval.
    pub fn loss(&self, objective: Objective) -> f64 {
        match (objective, &self.retrieval) {
            (Objective::BatchSoftmax, Some(retrieval)) => retrieval.loss,
            // Without a click there is nothing to find.
            (Objective::BatchSoftmax, None) => f64::INFINITY,
            (Objective::CrossEntropy, _) => {
                self.log_loss + self.conversions.as_ref().map_or(0.0, |it| it.log_loss)
            }
        }
    }
}

/// How well two towers find clicked ads among all distinct ads of some rows, by nothing but the cosine of
/// their vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetrievalEvaluation {
    /// Clicks that were looked at.
    pub queries: usize,
    /// Ads among which each was sought; equal where all their sparse features are. Each is where its first
    /// row has it.
    pub items: usize,
    /// Mean cross-entropy of a softmax over all ads, nats.
    pub loss: f64,
    /// Share of clicks whose ad is the nearest.
    pub recall_at_1: f64,
    /// Share of clicks whose ad is among the ten nearest.
    pub recall_at_10: f64,
    /// Share of clicks whose ad is among the hundred nearest.
    pub recall_at_100: f64,
}

/// How good a model is at conversions after clicks, on rows of which not all may be known: what is
/// compared with labels is the probability that there is a conversion and that it would be known by now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConversionEvaluation {
    /// Rows with a conversion that is known.
    pub known: usize,
    /// The share of the clicked rows' conversions that would be known by now.
    pub observed: f64,
    /// Area under the ROC curve of click and conversion, over all rows; absent if none or all have
    /// one.
    pub auc: Option<f64>,
    /// Log loss of click and conversion over all rows, nats.
    pub log_loss: f64,
    /// Sum of predictions over sum of conversions, over all rows; absent without any.
    pub calibration_ratio: Option<f64>,
    /// Area under the ROC curve of conversion after a click, over the clicked rows.
    pub cvr_auc: Option<f64>,
    /// Sum of predictions after a click over sum of conversions, over the clicked rows.
    pub cvr_calibration_ratio: Option<f64>,
}

/// Does something with all rows, some at a time.
///
/// # Errors
/// Its own.
fn in_batches<T, E>(
    rows: &Examples,
    mut of_batch: impl FnMut(&FeatureBatch) -> Result<Vec<T>, E>,
) -> Result<Vec<T>, E> {
    let order: Vec<usize> = (0..rows.len()).collect();
    let mut all = Vec::with_capacity(rows.len());
    for chunk in order.chunks(SCORE_BATCH) {
        all.extend(of_batch(&rows.features.gather(chunk))?);
    }
    Ok(all)
}

/// Scores all rows with a model.
///
/// # Errors
/// [`CtrModelError`] if the rows do not fit the model.
pub fn score_all<B: FusedOps>(
    model: &CtrModel<B>,
    rows: &Examples,
    logits: bool,
) -> Result<Vec<f32>, CtrModelError> {
    in_batches(rows, |batch| match logits {
        true => model.logits(batch),
        false => model.score(batch),
    })
}

/// Scores all rows with a model of two tasks: clicks, and conversions after them.
///
/// # Errors
/// [`CtrModelError`] if the rows do not fit the model, or it has one task.
pub fn score_conversions<B: FusedOps>(
    model: &CtrModel<B>,
    rows: &Examples,
) -> Result<Vec<[f32; 2]>, CtrModelError> {
    in_batches(rows, |batch| model.score_conversions(batch))
}

/// Measures predictions against clicks; all three have one number a row.
pub fn evaluate(scores: &[f32], clicks: &[f32], weights: &[f32]) -> Evaluation {
    let reliability = reliability(scores, clicks, weights, BINS);
    Evaluation {
        rows: clicks.len(),
        auc: auc(scores, clicks, weights),
        log_loss: log_loss(scores, clicks, weights),
        normalised_entropy: normalised_entropy(scores, clicks, weights),
        calibration_ratio: calibration_ratio(scores, clicks, weights),
        ece: expected_calibration_error(&reliability),
        reliability,
        conversions: None,
        retrieval: None,
    }
}

/// Measures predictions of clicks and of conversions after them.
///
/// # Shapes
/// - `scores`, `labels`: `[rows]`, of a click and of a conversion; `observed`, `weights`: `[rows]`
pub fn evaluate_conversions(
    scores: &[[f32; 2]],
    labels: &[[f32; 2]],
    observed: &[f32],
    weights: &[f32],
) -> ConversionEvaluation {
    let conversions: Vec<f32> = labels.iter().map(|[_, conversion]| *conversion).collect();
    let both: Vec<f32> = scores.iter().map(|[click, after]| click * after).collect();
    let known = both.iter().zip(observed).map(|(both, known)| both * known);
    let known: Vec<f32> = known.collect();
    let clicked: Vec<usize> = (0..labels.len())
        .filter(|row| labels[*row][0] > 0.5)
        .collect();
    let of_clicked = |value: &dyn Fn(usize) -> f32| -> Vec<f32> {
        clicked.iter().map(|row| value(*row)).collect()
    };
    let after = of_clicked(&|row| scores[row][1]);
    let after_known = of_clicked(&|row| scores[row][1] * observed[row]);
    let converted = of_clicked(&|row| conversions[row]);
    let weighed = of_clicked(&|row| weights[row]);
    let observed = of_clicked(&|row| observed[row]);
    let num_known = conversions.iter().filter(|label| **label > 0.0).count();
    let ratio = |predicted: &[f32], labels: &[f32], weights: &[f32]| {
        (num_known > 0).then(|| calibration_ratio(predicted, labels, weights))
    };
    ConversionEvaluation {
        known: num_known,
        observed: observed.iter().copied().map(f64::from).sum::<f64>()
            / clicked.len().max(1) as f64,
        auc: auc(&both, &conversions, weights),
        log_loss: log_loss(&known, &conversions, weights),
        calibration_ratio: ratio(&known, &conversions, weights),
        cvr_auc: auc(&after, &converted, &weighed),
        cvr_calibration_ratio: ratio(&after_known, &converted, &weighed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_are_measured_by_what_would_be_known() {
        // Two clicked rows, of which one converted, and two others; half would be known.
        let labels = [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]];
        let scores = [[0.5, 0.8], [0.5, 0.4], [0.5, 0.9], [0.1, 0.1]];
        let found = evaluate_conversions(&scores, &labels, &[0.5; 4], &[1.0; 4]);
        assert_eq!((found.known, found.observed), (1, 0.5));
        // Of the others one scores above it.
        assert!((found.auc.unwrap() - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(found.cvr_auc, Some(1.0));
        let sum = 0.5 * (0.4 + 0.2 + 0.45 + 0.01);
        assert!((found.calibration_ratio.unwrap() - sum).abs() < 1e-6);
        assert!((found.cvr_calibration_ratio.unwrap() - 0.6).abs() < 1e-6);
        let known = [0.2f64, 0.1, 0.225, 0.005];
        let loss = -(known[0].ln() + known[1..].iter().map(|p| (1.0 - p).ln()).sum::<f64>()) / 4.0;
        assert!((found.log_loss - loss).abs() < 1e-6);

        let none = evaluate_conversions(&scores, &[[1.0, 0.0]; 4], &[0.0; 4], &[1.0; 4]);
        assert_eq!((none.auc, none.calibration_ratio), (None, None));
    }
}
