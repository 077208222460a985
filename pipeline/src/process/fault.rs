//! Stops the process on purpose between two durable steps, for tests of crash safety.

use std::{cell::Cell, str::FromStr};

/// Environment variable that names where to stop.
pub const VARIABLE: &str = "MARQUEE_CRASH_AT";

/// The durable steps of a batch in order; a crash can be asked for right after each of them.
pub const POINTS: [&str; 11] = [
    "read",
    "dead-letters",
    "pictures",
    "rows",
    "facts",
    "archive",
    "audit",
    "state-partial",
    "state",
    "committed",
    "cleaned",
];

/// Where to stop.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fault {
    target: Target,
    passed: Cell<u64>,
}

#[derive(Debug, Clone, Default, PartialEq)]
enum Target {
    #[default]
    Nowhere,
    /// The n-th time, from 1, that this point is reached.
    Point { name: String, time: u64 },
    /// The n-th durable step, from 1, whichever it is.
    Step(u64),
}

/// A place to stop that there is not.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error(
    "`{VARIABLE}={text}` names no point: wanted a number, or NAME or NAME:TIME with NAME one of {}",
    POINTS.join(", ")
)]
pub struct FaultError {
    text: String,
}

impl FromStr for Fault {
    type Err = FaultError;

    /// Reads `NAME`, `NAME:TIME` or a step number.
    fn from_str(text: &str) -> Result<Self, FaultError> {
        let bad = || FaultError {
            text: text.to_owned(),
        };
        let (name, time) = text.split_once(':').unwrap_or((text, "1"));
        let time: u64 = time.parse().ok().ok_or_else(bad)?;
        let target = match name.parse() {
            Ok(step) => Target::Step(step),
            Err(_) if POINTS.contains(&name) => Target::Point {
                name: name.to_owned(),
                time,
            },
            Err(_) => return Err(bad()),
        };
        Ok(Self {
            target,
            passed: Cell::new(0),
        })
    }
}

impl Fault {
    /// Aborts the process if this is where to stop.
    pub(crate) fn point(&self, point: &str) {
        if self.hits(point) {
            std::process::abort();
        }
    }

    fn hits(&self, point: &str) -> bool {
        let wanted = match &self.target {
            Target::Nowhere => return false,
            Target::Point { name, .. } if name != point => return false,
            Target::Point { time, .. } => *time,
            Target::Step(step) => *step,
        };
        self.passed.set(self.passed.get() + 1);
        self.passed.get() == wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(text: &str, points: &[&str]) -> Vec<bool> {
        let fault: Fault = text.parse().unwrap();
        points.iter().map(|point| fault.hits(point)).collect()
    }

    #[test]
    fn a_point_is_hit_at_its_time_and_a_step_whatever_it_is() {
        assert_eq!(
            hits("rows", &["state", "rows", "rows"]),
            [false, true, false]
        );
        assert_eq!(hits("rows:2", &["rows", "rows"]), [false, true]);
        assert_eq!(hits("2", &["rows", "state"]), [false, true]);
    }

    #[test]
    fn an_unknown_point_is_refused_with_the_known_ones() {
        let error = "nowhere".parse::<Fault>().unwrap_err();
        assert!(error.to_string().contains("state-partial"), "{error}");
        assert!("rows:x".parse::<Fault>().is_err());
    }
}
