//! How good scores are, and how good they could be at best.

/// Area under the ROC curve of scores against labels in {0, 1}; ties count half. `None` without
/// both labels.
pub fn auc(scores: &[f64], labels: &[f64]) -> Option<f64> {
    weighted_auc(
        scores,
        labels,
        &labels.iter().map(|label| 1.0 - label).collect::<Vec<_>>(),
    )
}

/// The AUC to expect of the true probabilities as scores, over draws of the labels: each item is
/// a positive with weight `p` and a negative with weight `1 - p`. No scores can expect more.
pub fn expected_auc(probabilities: &[f64]) -> Option<f64> {
    expected_auc_of(probabilities, probabilities)
}

/// The AUC to expect of any scores, over draws of the labels from true probabilities.
pub fn expected_auc_of(scores: &[f64], probabilities: &[f64]) -> Option<f64> {
    let negatives: Vec<f64> = probabilities.iter().map(|p| 1.0 - p).collect();
    weighted_auc(scores, probabilities, &negatives)
}

fn weighted_auc(scores: &[f64], positives: &[f64], negatives: &[f64]) -> Option<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let (mut below, mut won, mut at) = (0.0, 0.0, 0);
    while at < order.len() {
        let same = order[at..]
            .iter()
            .take_while(|other| scores[**other].total_cmp(&scores[order[at]]).is_eq())
            .count();
        let tied = &order[at..at + same];
        let positive: f64 = tied.iter().map(|at| positives[*at]).sum();
        let negative: f64 = tied.iter().map(|at| negatives[*at]).sum();
        won += positive * (below + 0.5 * negative);
        below += negative;
        at += same;
    }
    let pairs = positives.iter().sum::<f64>() * below;
    (pairs > 0.0).then(|| won / pairs)
}

/// Mean negative log likelihood of labels under probabilities, in nats.
pub fn log_loss(probabilities: &[f64], labels: &[f64]) -> f64 {
    let clip = |p: f64| p.clamp(1e-12, 1.0 - 1e-12);
    let sum: f64 = probabilities
        .iter()
        .zip(labels)
        .map(|(p, y)| -(y * clip(*p).ln() + (1.0 - y) * (1.0 - clip(*p)).ln()))
        .sum();
    sum / labels.len().max(1) as f64
}

/// Sum of predictions over sum of labels.
pub fn calibration_ratio(probabilities: &[f64], labels: &[f64]) -> f64 {
    probabilities.iter().sum::<f64>() / labels.iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auc_counts_ties_half() {
        assert_eq!(
            auc(&[0.1, 0.4, 0.35, 0.8], &[0.0, 0.0, 1.0, 1.0]),
            Some(0.75)
        );
        assert_eq!(auc(&[0.5, 0.5], &[0.0, 1.0]), Some(0.5));
        assert_eq!(auc(&[0.5, 0.5], &[1.0, 1.0]), None);
    }

    #[test]
    fn certain_probabilities_expect_a_perfect_auc() {
        assert_eq!(expected_auc(&[0.0, 1.0, 0.0]), Some(1.0));
        assert_eq!(expected_auc(&[0.3, 0.3]), Some(0.5));
    }
}
