//! Splits rows in time: what is measured lies later than what was trained on.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::table::Examples;

/// How rows are split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "by", rename_all = "lowercase")]
pub enum SplitConfig {
    /// The last days (UTC) are for testing, those before for validation.
    Days {
        /// Days for validation.
        valid_days: usize,
        /// Days for testing.
        test_days: usize,
    },
    /// Shares of the rows in the order of time; the rest is for testing.
    Fractions {
        /// Share for training.
        train: f64,
        /// Share for validation.
        valid: f64,
    },
}

impl Default for SplitConfig {
    fn default() -> Self {
        Self::Days {
            valid_days: 1,
            test_days: 1,
        }
    }
}

/// Row numbers of each part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// To learn from.
    pub train: Range<usize>,
    /// To stop and calibrate by.
    pub valid: Range<usize>,
    /// To measure on.
    pub test: Range<usize>,
}

/// A split that leaves a part empty.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the split leaves no rows for {part}: {rows} rows over {days} days; split by fewer days or other fractions"
)]
pub struct SplitError {
    /// The empty part.
    pub part: &'static str,
    /// Rows in all.
    pub rows: usize,
    /// Days in all.
    pub days: usize,
}

/// Rows of each part.
#[derive(Debug, Clone)]
pub struct Parts {
    /// To learn from.
    pub train: Examples,
    /// To stop and calibrate by.
    pub valid: Examples,
    /// To measure on.
    pub test: Examples,
}

const DAY_US: i64 = 86_400_000_000;

impl SplitConfig {
    /// Splits rows that are in the order of time, and copies them.
    ///
    /// # Errors
    /// [`SplitError`] if a part would be empty.
    pub fn parts(&self, examples: &Examples) -> Result<Parts, SplitError> {
        let Split { train, valid, test } = self.split(examples)?;
        let part = |range: Range<usize>| examples.gather(&range.collect::<Vec<_>>());
        Ok(Parts {
            train: part(train),
            valid: part(valid),
            test: part(test),
        })
    }

    /// Splits rows that are in the order of time.
    ///
    /// # Errors
    /// [`SplitError`] if a part would be empty.
    pub fn split(&self, examples: &Examples) -> Result<Split, SplitError> {
        let days: Vec<i64> = examples
            .event_time_us
            .iter()
            .map(|time| time.div_euclid(DAY_US))
            .collect();
        let mut distinct = days.clone();
        distinct.dedup();
        let rows = days.len();
        let (valid, test) = match self {
            Self::Days {
                valid_days,
                test_days,
            } => {
                let start = |back: usize| {
                    let first = distinct
                        .len()
                        .checked_sub(back)
                        .and_then(|at| distinct.get(at));
                    first.map_or(0, |first| days.partition_point(|day| day < first))
                };
                let test = if *test_days == 0 {
                    rows
                } else {
                    start(*test_days)
                };
                (start(valid_days + test_days), test)
            }
            Self::Fractions { train, valid } => {
                let at = |share: f64| ((rows as f64 * share).round() as usize).min(rows);
                (at(*train), at(train + valid))
            }
        };
        let split = Split {
            train: 0..valid,
            valid: valid..test.max(valid),
            test: test.max(valid)..rows,
        };
        let parts = [
            ("training", &split.train),
            ("validation", &split.valid),
            ("testing", &split.test),
        ];
        match parts.iter().find(|(_, range)| range.is_empty()) {
            Some((part, _)) => Err(SplitError {
                part,
                rows,
                days: distinct.len(),
            }),
            None => Ok(split),
        }
    }
}

#[cfg(test)]
mod tests {
    use features::Schema;

    use super::*;

    fn examples(days: &[i64]) -> Examples {
        let mut examples = Examples::empty(&Schema::default());
        examples.event_time_us = days.iter().map(|day| day * DAY_US + 5).collect();
        examples
    }

    #[test]
    fn days_at_the_end_are_held_out() {
        let split = SplitConfig::default()
            .split(&examples(&[1, 1, 2, 4, 4, 9]))
            .unwrap();
        assert_eq!(
            split,
            Split {
                train: 0..3,
                valid: 3..5,
                test: 5..6
            }
        );
    }

    #[test]
    fn fractions_follow_the_order_of_time() {
        let config = SplitConfig::Fractions {
            train: 0.8,
            valid: 0.1,
        };
        let split = config.split(&examples(&[1; 10])).unwrap();
        assert_eq!(
            split,
            Split {
                train: 0..8,
                valid: 8..9,
                test: 9..10
            }
        );
    }

    #[test]
    fn an_empty_part_is_named() {
        let error = SplitConfig::default()
            .split(&examples(&[1, 2]))
            .unwrap_err();
        assert_eq!(
            error,
            SplitError {
                part: "training",
                rows: 2,
                days: 2
            }
        );
    }
}
