//! Fits the last correction of the logits on held-out rows.

use models::ctr::Calibration;

/// Newton steps; the problem is convex in two unknowns and settles within a few.
const STEPS: usize = 100;

/// Longest step of either unknown.
const MAX_STEP: f64 = 0.2;

/// Fits `scale × logit + offset` to labels by logistic regression (Platt 1999), which makes the
/// weighted sum of predictions equal that of the labels on these rows. Falls back to no
/// correction if the labels are all equal.
pub fn fit_calibration(logits: &[f32], labels: &[f32], weights: &[f32]) -> Calibration {
    let (mut scale, mut offset) = (1.0f64, 0.0f64);
    for _ in 0..STEPS {
        // Gradient and Hessian of the log loss.
        let (mut ga, mut gb, mut haa, mut hab, mut hbb) = (0.0, 0.0, 1e-9, 0.0, 1e-9);
        for ((logit, label), weight) in logits.iter().zip(labels).zip(weights) {
            let (x, w) = (f64::from(*logit), f64::from(*weight));
            let p = 1.0 / (1.0 + (-(scale * x + offset)).exp());
            let (error, curvature) = (w * (p - f64::from(*label)), w * p * (1.0 - p));
            ga += error * x;
            gb += error;
            haa += curvature * x * x;
            hab += curvature * x;
            hbb += curvature;
        }
        let determinant = haa * hbb - hab * hab;
        if determinant.abs() < 1e-12 {
            return Calibration::default();
        }
        let step = [
            (hbb * ga - hab * gb) / determinant,
            (haa * gb - hab * ga) / determinant,
        ];
        // Far from the solution the curvature says little: keep each step short.
        let size = step[0].abs().max(step[1].abs());
        let share = if size > MAX_STEP {
            MAX_STEP / size
        } else {
            1.0
        };
        scale -= share * step[0];
        offset -= share * step[1];
    }
    let found = Calibration {
        scale: scale as f32,
        offset: offset as f32,
    };
    let sound = scale > 0.0 && found.scale.is_finite() && found.offset.is_finite();
    if sound { found } else { Calibration::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shifted_and_stretched_logit_is_put_right() {
        // Labels that follow sigmoid(x) exactly, as fractions; logits are 2x + 1.
        let x: Vec<f32> = (-30..=30).map(|at| at as f32 * 0.1).collect();
        let labels: Vec<f32> = x.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
        let logits: Vec<f32> = x.iter().map(|x| 2.0 * x + 1.0).collect();
        let found = fit_calibration(&logits, &labels, &vec![1.0; x.len()]);
        assert!(
            (found.scale - 0.5).abs() < 1e-4 && (found.offset + 0.5).abs() < 1e-4,
            "{found:?}"
        );
    }

    #[test]
    fn labels_that_are_all_equal_change_nothing() {
        let found = fit_calibration(&[0.1, 0.2], &[0.0, 0.0], &[1.0, 1.0]);
        assert_eq!(found, Calibration::default());
    }
}
