//! How certain a measure is: by drawing people again.

use features::hash::{SEED, chain_integer};

/// Times that each person is drawn in a replicate: Poisson of mean 1, which is what drawing with
/// replacement gives for many, and needs no pass over all. People and not rows are drawn, for the
/// rows of one person are alike. Source: Chamandy et al., "Estimating Uncertainty for Massive Data
/// Streams" (2012).
///
/// # Shapes
/// - returns `[people]`
pub fn drawn(seed: u64, replicate: usize, people: usize) -> Vec<f64> {
    let of_replicate = chain_integer(chain_integer(SEED, seed as i64), replicate as i64);
    (0..people)
        .map(|person| {
            let hash = chain_integer(of_replicate, person as i64);
            // 53 bits, which an f64 holds.
            poisson((hash >> 11) as f64 / (1u64 << 53) as f64)
        })
        .collect()
}

/// The Poisson number of mean 1 below which a share of them lies.
fn poisson(share: f64) -> f64 {
    let (mut count, mut probability) = (0.0, (-1f64).exp());
    let mut below = probability;
    while share >= below && count < 20.0 {
        count += 1.0;
        probability /= count;
        below += probability;
    }
    count
}

/// The middle `confidence` of values; none without any.
pub fn interval(mut values: Vec<f64>, confidence: f64) -> Option<(f64, f64)> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| values[(share * last as f64).round() as usize];
    let outside = (1.0 - confidence) / 2.0;
    Some((at(outside), at(1.0 - outside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_drawn_once_on_average_and_each_replicate_is_another() {
        let draws = drawn(1, 0, 100_000);
        assert_eq!(drawn(1, 0, 100_000), draws);
        assert_ne!(drawn(1, 1, 100_000), draws);
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / 1e5;
        assert!(
            (mean - 1.0).abs() < 0.02 && (variance - 1.0).abs() < 0.03,
            "{mean} {variance}"
        );
        let none = draws.iter().filter(|draw| **draw == 0.0).count() as f64 / 1e5;
        assert!((none - (-1f64).exp()).abs() < 0.01, "{none}");
    }

    #[test]
    fn an_interval_leaves_the_same_out_on_both_sides() {
        let values = (0..=100).map(f64::from).chain([f64::NAN]).collect();
        assert_eq!(interval(values, 0.9), Some((5.0, 95.0)));
        assert_eq!(interval(vec![], 0.9), None);
    }

    /// Of means of 400 rows with a known spread, the interval is as wide as theory has it.
    #[test]
    fn the_interval_of_a_mean_is_that_of_theory() {
        let values: Vec<f64> = (0..400).map(|row| f64::from(row % 2)).collect();
        let means = (0..1000).map(|replicate| {
            let draws = drawn(7, replicate, values.len());
            let total: f64 = draws.iter().sum();
            values
                .iter()
                .zip(&draws)
                .map(|(value, draw)| value * draw)
                .sum::<f64>()
                / total
        });
        let (low, high) = interval(means.collect(), 0.95).unwrap();
        // 1.96 standard errors of 0.5 / √400.
        let half = (high - low) / 2.0;
        assert!((half - 0.049).abs() < 0.005, "{low} {high}");
    }
}
