//! The last correction of a logit.

use serde::{Deserialize, Serialize};

/// What becomes of a logit before it is a probability. Both ways keep the order of scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum Calibration {
    /// `scale × logit + offset`. Source: Platt, "Probabilistic Outputs for Support Vector
    /// Machines", 1999.
    Platt {
        /// Above 1 sharpens.
        scale: f32,
        /// Shifts all predictions.
        offset: f32,
    },
    /// Straight lines between points, which an isotonic regression gave, and on from the outer ones
    /// with a slope of 1. Source: Zadrozny and Elkan, "Transforming Classifier Scores into Accurate
    /// Multiclass Probability Estimates", KDD 2002.
    Isotonic {
        /// Logits of the points, rising.
        logits: Vec<f32>,
        /// What becomes of them, not falling.
        corrected: Vec<f32>,
    },
}

/// Scales above cannot be meant.
const MOST_SCALE: f32 = 1e6;

impl Default for Calibration {
    /// No correction.
    fn default() -> Self {
        Self::Platt {
            scale: 1.0,
            offset: 0.0,
        }
    }
}

impl Calibration {
    /// The probability of a logit.
    pub fn probability(&self, logit: f32) -> f32 {
        1.0 / (1.0 + (-self.corrected(logit)).exp())
    }

    /// The logit put right.
    pub fn corrected(&self, logit: f32) -> f32 {
        match self {
            Self::Platt { scale, offset } => scale * logit + offset,
            Self::Isotonic { logits, corrected } => {
                let after = logits.partition_point(|point| *point <= logit);
                if after == 0 {
                    return corrected[0] + (logit - logits[0]);
                }
                let [x, y] = [logits[after - 1], corrected[after - 1]];
                match (logits.get(after), corrected.get(after)) {
                    (Some(next_x), Some(next_y)) => y + (next_y - y) * ((logit - x) / (next_x - x)),
                    _ => y + (logit - x),
                }
            }
        }
    }

    /// Whether it can be; else what is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::Platt { scale, offset } => {
                let usable = scale.abs() < MOST_SCALE && offset.is_finite();
                usable.then_some(()).ok_or_else(|| {
                    format!("calibration is ({scale}, {offset}), wanted finite numbers")
                })
            }
            Self::Isotonic { logits, corrected } => {
                let finite = logits
                    .iter()
                    .chain(corrected)
                    .all(|value| value.is_finite());
                let rising = logits.is_sorted_by(|a, b| a < b) && corrected.is_sorted();
                let usable = finite && rising && logits.len() == corrected.len();
                (usable && !logits.is_empty()).then_some(()).ok_or_else(|| {
                    format!(
                        "calibration has {} logits and {} corrected ones, wanted as many of each, finite and rising",
                        logits.len(),
                        corrected.len()
                    )
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_met_and_joined_by_lines() {
        let isotonic = Calibration::Isotonic {
            logits: vec![-1.0, 1.0, 2.0],
            corrected: vec![-2.0, 0.0, 4.0],
        };
        let found = [-3.0, -1.0, 0.0, 1.0, 1.25, 2.0, 2.5].map(|logit| isotonic.corrected(logit));
        assert_eq!(found, [-4.0, -2.0, -1.0, 0.0, 1.0, 4.0, 4.5]);
        assert_eq!(isotonic.probability(1.0), 0.5);
    }
}
