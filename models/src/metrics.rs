//! How good predictions are.

/// Area under the ROC curve: the chance that a positive scores above a negative, ties counting
/// half. `None` unless both labels occur. O(n log n), exact.
///
/// # Shapes
/// - all: one value a row; `weights`: how many rows each stands for
pub fn auc(scores: &[f32], labels: &[f32], weights: &[f32]) -> Option<f64> {
    weighted_auc(&by_rising_score(scores), scores, labels, |row| {
        f64::from(weights[row])
    })
}

/// Rows by rising score.
pub fn by_rising_score(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    order
}

/// [`auc`] of rows that weigh differently, in an order that was made once ([`by_rising_score`]).
pub fn weighted_auc(
    order: &[usize],
    scores: &[f32],
    labels: &[f32],
    weight: impl Fn(usize) -> f64,
) -> Option<f64> {
    let (mut negatives, mut positives, mut won) = (0.0f64, 0.0f64, 0.0);
    for tied in order.chunk_by(|a, b| scores[*a] == scores[*b]) {
        let (mut tied_positives, mut tied_negatives) = (0.0, 0.0);
        for row in tied {
            match labels[*row] > 0.5 {
                true => tied_positives += weight(*row),
                false => tied_negatives += weight(*row),
            }
        }
        won += tied_positives * (negatives + 0.5 * tied_negatives);
        negatives += tied_negatives;
        positives += tied_positives;
    }
    (positives > 0.0 && negatives > 0.0).then(|| won / (positives * negatives))
}

/// The AUC of the group that a row is of; `None` for rows of groups with one label only.
///
/// # Shapes
/// - all: one value a row
pub fn aucs_by_group(
    scores: &[f32],
    labels: &[f32],
    weights: &[f32],
    groups: &[u32],
) -> Vec<Option<f64>> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by_key(|row| groups[*row]);
    let mut found = vec![None; scores.len()];
    for group in order.chunk_by(|one, other| groups[*one] == groups[*other]) {
        let part = |values: &[f32]| -> Vec<f32> { group.iter().map(|row| values[*row]).collect() };
        let auc = auc(&part(scores), &part(labels), &part(weights));
        for row in group {
            found[*row] = auc;
        }
    }
    found
}

/// Weighted mean negative log likelihood, nats. Probabilities are kept 1e-7 away from 0 and 1.
pub fn log_loss(probabilities: &[f32], labels: &[f32], weights: &[f32]) -> f64 {
    let total: f64 = weights.iter().copied().map(f64::from).sum();
    let sum: f64 = probabilities
        .iter()
        .zip(labels)
        .zip(weights)
        .map(|((p, y), w)| {
            let p = f64::from(*p).clamp(1e-7, 1.0 - 1e-7);
            let y = f64::from(*y);
            -f64::from(*w) * (y * p.ln() + (1.0 - y) * (1.0 - p).ln())
        })
        .sum();
    sum / total
}

/// Log loss over that of always predicting the mean label; below 1 is better than knowing only
/// the base rate. Source: He et al., "Practical Lessons from Predicting Clicks on Ads at
/// Facebook", ADKDD 2014.
pub fn normalised_entropy(probabilities: &[f32], labels: &[f32], weights: &[f32]) -> f64 {
    let total: f64 = weights.iter().copied().map(f64::from).sum();
    let clicks: f64 = labels
        .iter()
        .zip(weights)
        .map(|(y, w)| f64::from(*y) * f64::from(*w))
        .sum();
    let base = vec![(clicks / total) as f32; labels.len()];
    log_loss(probabilities, labels, weights) / log_loss(&base, labels, weights)
}

/// Weighted sum of predictions over weighted sum of labels; 1 is calibrated.
pub fn calibration_ratio(probabilities: &[f32], labels: &[f32], weights: &[f32]) -> f64 {
    let sum = |values: &[f32]| -> f64 {
        values
            .iter()
            .zip(weights)
            .map(|(v, w)| f64::from(*v) * f64::from(*w))
            .sum()
    };
    sum(probabilities) / sum(labels)
}

/// One bin of a reliability diagram.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ReliabilityBin {
    /// Lowest prediction.
    pub lo: f64,
    /// Highest prediction.
    pub hi: f64,
    /// Predictions in the bin.
    pub count: usize,
    /// What they weigh.
    #[serde(default)]
    pub weight: f64,
    /// Their weighted mean.
    pub mean_predicted: f64,
    /// Weighted mean label.
    pub mean_observed: f64,
}

/// Rows by rising score, in bins of equal count, at most `bins`.
pub fn equal_bins(order: &[usize], bins: usize) -> std::slice::Chunks<'_, usize> {
    order.chunks(order.len().div_ceil(bins.max(1)).max(1))
}

/// [`equal_bins`] of predictions, measured.
pub fn reliability(
    probabilities: &[f32],
    labels: &[f32],
    weights: &[f32],
    bins: usize,
) -> Vec<ReliabilityBin> {
    let order = by_rising_score(probabilities);
    weighted_reliability(&order, probabilities, labels, bins, |row| {
        f64::from(weights[row])
    })
}

/// [`reliability`] of rows that weigh differently, in an order that was made once ([`by_rising_score`]).
pub fn weighted_reliability(
    order: &[usize],
    probabilities: &[f32],
    labels: &[f32],
    bins: usize,
    weight: impl Fn(usize) -> f64,
) -> Vec<ReliabilityBin> {
    let bin = |rows: &[usize]| {
        let total: f64 = rows.iter().map(|row| weight(*row)).sum();
        let mean = |values: &[f32]| {
            let weighted = rows
                .iter()
                .map(|row| weight(*row) * f64::from(values[*row]));
            weighted.sum::<f64>() / total
        };
        ReliabilityBin {
            lo: f64::from(probabilities[rows[0]]),
            hi: f64::from(probabilities[rows[rows.len() - 1]]),
            count: rows.len(),
            weight: total,
            mean_predicted: mean(probabilities),
            mean_observed: mean(labels),
        }
    };
    equal_bins(order, bins).map(bin).collect()
}

/// Expected calibration error: the mean distance of prediction and label over bins, by weight.
/// Source: Naeini et al., AAAI 2015, with bins of equal count.
pub fn expected_calibration_error(bins: &[ReliabilityBin]) -> f64 {
    // A bin that weighs nothing has no means.
    let weighing = || bins.iter().filter(|bin| bin.weight > 0.0);
    let distance = |bin: &ReliabilityBin| (bin.mean_predicted - bin.mean_observed).abs();
    let sum: f64 = weighing().map(|bin| bin.weight * distance(bin)).sum();
    sum / weighing().map(|bin| bin.weight).sum::<f64>()
}

/// Share of queries whose wanted item is among the first `k` of its ranking.
pub fn recall_at_k(ranks: &[usize], k: usize) -> f64 {
    ranks.iter().filter(|rank| **rank < k).count() as f64 / ranks.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    // Reference values: scikit-learn 1.9, roc_auc_score and log_loss on these vectors.
    const SCORES: [f32; 6] = [0.1, 0.4, 0.35, 0.8, 0.8, 0.2];
    const LABELS: [f32; 6] = [0.0, 0.0, 1.0, 1.0, 0.0, 1.0];

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-6,
            "found {found}, expected {expected}"
        );
    }

    #[test]
    fn every_row_has_the_auc_of_its_group() {
        let scores = [0.1, 0.9, 0.8, 0.2, 0.5, 0.7];
        let labels = [0.0, 1.0, 0.0, 1.0, 1.0, 1.0];
        let weights = [1.0, 2.0, 1.0, 1.0, 1.0, 3.0];
        let of = |groups: &[u32]| aucs_by_group(&scores, &labels, &weights, groups);
        // Right, wrong, and of one label only.
        let (right, wrong) = (Some(1.0), Some(0.0));
        let wanted = [right, right, wrong, wrong, None, None];
        assert_eq!(of(&[7, 7, 3, 3, 5, 5]), wanted);
        assert_eq!(of(&[0; 6]), [auc(&scores, &labels, &weights); 6]);
    }

    /// A row that stands for several is as good as several rows.
    #[test]
    fn weights_are_repetitions() {
        let times = [1usize, 3, 2, 1, 2, 4];
        let weights = times.map(|times| times as f32);
        let repeated = |values: &[f32]| -> Vec<f32> {
            let all = values.iter().zip(times);
            all.flat_map(|(value, times)| vec![*value; times]).collect()
        };
        let (scores, labels) = (repeated(&SCORES), repeated(&LABELS));
        let ones = vec![1.0; scores.len()];
        let found = auc(&SCORES, &LABELS, &weights).unwrap();
        close(found, auc(&scores, &labels, &ones).unwrap());
        let found = expected_calibration_error(&reliability(&SCORES, &LABELS, &weights, 1));
        let wanted = reliability(&scores, &labels, &ones, 1);
        close(found, expected_calibration_error(&wanted));
        assert!(found > 0.01, "{found}");
    }

    #[test]
    fn measures_equal_the_reference() {
        close(auc(&SCORES, &LABELS, &[1.0; 6]).unwrap(), 0.5);
        close(
            auc(&[0.1, 0.4, 0.35, 0.8, 0.7, 0.2], &LABELS, &[1.0; 6]).unwrap(),
            5.0 / 9.0,
        );
        close(log_loss(&SCORES, &LABELS, &[1.0; 6]), 0.851_337_94);
        close(
            log_loss(&SCORES, &LABELS, &[1.0, 2.0, 1.0, 1.0, 1.0, 2.0]),
            0.903_536_40,
        );
        close(calibration_ratio(&SCORES, &LABELS, &[1.0; 6]), 2.65 / 3.0);
    }

    #[test]
    fn the_base_rate_has_a_normalised_entropy_of_one() {
        close(normalised_entropy(&[0.5; 6], &LABELS, &[1.0; 6]), 1.0);
    }

    #[test]
    fn one_label_alone_has_no_auc() {
        assert_eq!(auc(&[0.1, 0.2], &[1.0, 1.0], &[1.0, 1.0]), None);
    }

    #[test]
    fn reliability_bins_hold_every_row_once() {
        let bins = reliability(&SCORES, &LABELS, &[1.0; 6], 3);
        assert_eq!(
            bins.iter().map(|bin| bin.count).collect::<Vec<_>>(),
            [2, 2, 2]
        );
        close(bins[0].mean_predicted, 0.15);
        close(bins[0].mean_observed, 0.5);
        close(bins[2].mean_observed, 0.5);
        close(
            expected_calibration_error(&bins),
            (0.35 + 0.125 + 0.3) / 3.0,
        );
    }

    #[test]
    fn recall_counts_ranks_below_k() {
        close(recall_at_k(&[0, 9, 10, 50], 10), 0.5);
    }
}
