//! Measures a click model on rows.

use models::{
    ctr::{CtrModel, CtrModelError},
    metrics::{
        ReliabilityBin, auc, calibration_ratio, expected_calibration_error, log_loss,
        normalised_entropy, reliability,
    },
};
use serde::{Deserialize, Serialize};

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
}

/// Scores all rows with a model.
///
/// # Errors
/// [`CtrModelError`] if the rows do not fit the model.
pub fn score_all<B: models::ops::FusedOps>(
    model: &CtrModel<B>,
    rows: &Examples,
    logits: bool,
) -> Result<Vec<f32>, CtrModelError> {
    let order: Vec<usize> = (0..rows.len()).collect();
    let mut scores = Vec::with_capacity(rows.len());
    for chunk in order.chunks(SCORE_BATCH) {
        let batch = rows.features.gather(chunk);
        scores.extend(if logits {
            model.logits(&batch)?
        } else {
            model.score(&batch)?
        });
    }
    Ok(scores)
}

/// Measures predictions against clicks; all three have one number a row.
pub fn evaluate(scores: &[f32], clicks: &[f32], weights: &[f32]) -> Evaluation {
    let reliability = reliability(scores, clicks, BINS);
    Evaluation {
        rows: clicks.len(),
        auc: auc(scores, clicks),
        log_loss: log_loss(scores, clicks, weights),
        normalised_entropy: normalised_entropy(scores, clicks, weights),
        calibration_ratio: calibration_ratio(scores, clicks, weights),
        ece: expected_calibration_error(&reliability),
        reliability,
    }
}
