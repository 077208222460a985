//! Splits rows in time: what is measured lies later than what was trained on.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::table::{DAY_US, Slice, TableError};

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

/// Why rows cannot be split.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// A part would be empty.
    #[error(
        "the split leaves no rows for {part}: {rows} rows over {days} days; split by fewer days or other fractions"
    )]
    Empty {
        /// The part.
        part: &'static str,
        /// Rows in all.
        rows: usize,
        /// Days in all.
        days: usize,
    },
    /// The times cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// The parts of a table, not read yet.
#[derive(Debug, Clone)]
pub struct Parts {
    /// To learn from.
    pub train: Slice,
    /// To stop and calibrate by.
    pub valid: Slice,
    /// To measure on.
    pub test: Slice,
}

/// From when on rows are held out, microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    valid: i64,
    test: i64,
}

impl SplitConfig {
    /// Splits rows by their time; rows of the same microsecond stay together.
    ///
    /// # Errors
    /// [`SplitError`] if a part would be empty.
    pub fn parts(&self, rows: &Slice) -> Result<Parts, SplitError> {
        let days = rows.days()?;
        let Bounds { valid, test } = match self {
            Self::Days {
                valid_days,
                test_days,
            } => by_days(&days, *valid_days, *test_days),
            Self::Fractions { train, valid } => by_fractions(rows.times()?, *train, *valid),
        };
        let parts = Parts {
            train: rows.between(i64::MIN..valid)?,
            valid: rows.between(valid..test)?,
            test: rows.between(test..i64::MAX)?,
        };
        let empty = [
            ("training", &parts.train),
            ("validation", &parts.valid),
            ("testing", &parts.test),
        ];
        match empty.iter().find(|(_, rows)| rows.is_empty()) {
            Some((part, _)) => Err(SplitError::Empty {
                part,
                rows: rows.len(),
                days: days.len(),
            }),
            None => Ok(parts),
        }
    }
}

fn by_days(days: &BTreeSet<i64>, valid_days: usize, test_days: usize) -> Bounds {
    let start = |back: usize| match back.checked_sub(1) {
        None => i64::MAX,
        Some(at) => days.iter().rev().nth(at).map_or(i64::MIN, |d| d * DAY_US),
    };
    Bounds {
        valid: start(valid_days + test_days),
        test: start(test_days),
    }
}

fn by_fractions(mut times: Vec<i64>, train: f64, valid: f64) -> Bounds {
    times.sort_unstable();
    let start = |share: f64| {
        let at = (times.len() as f64 * share).round() as usize;
        times.get(at).copied().unwrap_or(i64::MAX)
    };
    Bounds {
        valid: start(train),
        test: start(train + valid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::testing;

    #[test]
    fn days_at_the_end_are_held_out() {
        let days = BTreeSet::from([1, 2, 4, 9]);
        let starts = |valid, test| Bounds {
            valid: valid * DAY_US,
            test: test * DAY_US,
        };
        assert_eq!(by_days(&days, 1, 1), starts(4, 9));
        assert_eq!(by_days(&days, 2, 1), starts(2, 9));
        let all = Bounds {
            valid: i64::MIN,
            test: 9 * DAY_US,
        };
        assert_eq!(by_days(&days, 9, 1), all);
        assert_eq!(by_days(&days, 1, 0).test, i64::MAX);
    }

    #[test]
    fn fractions_follow_the_order_of_time() {
        let times = vec![9, 8, 7, 6, 5, 4, 3, 2, 1, 0];
        assert_eq!(by_fractions(times, 0.8, 0.1), Bounds { valid: 8, test: 9 });
        let bounds = by_fractions(vec![1, 1, 1, 2], 0.5, 0.5);
        assert_eq!((bounds.valid, bounds.test), (1, i64::MAX));
    }

    #[test]
    fn an_empty_part_is_named() {
        let (_dir, rows) = testing::table(&testing::rows(&[DAY_US, 2 * DAY_US]), 10);
        let error = SplitConfig::default().parts(&rows).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the split leaves no rows for training: 2 rows over 2 days; split by fewer days or other fractions"
        );
    }

    #[test]
    fn each_row_lies_in_one_part_by_its_time() {
        // Two row groups have rows on both sides of midnight.
        let times = [
            1,
            5,
            9,
            DAY_US - 1,
            DAY_US,
            DAY_US + 7,
            2 * DAY_US - 1,
            2 * DAY_US,
        ];
        let (_dir, rows) = testing::table(&testing::rows(&times), 3);
        let parts = SplitConfig::default().parts(&rows).unwrap();
        let loaded = |rows: &Slice| rows.load().unwrap().event_time_us;
        assert_eq!(loaded(&parts.train), times[..4]);
        assert_eq!(loaded(&parts.valid), times[4..7]);
        assert_eq!(loaded(&parts.test), times[7..]);
    }
}
