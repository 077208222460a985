//! Deadlines by event time. One that has moved is left behind: whoever is woken looks at the
//! deadline that holds now.

use std::{cmp::Reverse, collections::BinaryHeap};

/// What a deadline is for, in the order in which equal deadlines fire: conversions are
/// attributed before the impressions that they may belong to are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A conversion is attributed.
    Conversion,
    /// An impression becomes a row, or is given up as unviewed.
    Impression,
    /// Views and clicks without an impression are given up.
    Waiting,
    /// A viewed impression is forgotten.
    Viewed,
    /// The labels of a day are final.
    Day,
}

/// One deadline. The order is total, so that firing is deterministic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timer {
    pub(crate) deadline_us: i64,
    pub(crate) kind: Kind,
    pub(crate) key: u64,
}

/// Deadlines, earliest first.
#[derive(Debug, Default)]
pub(crate) struct Timers(BinaryHeap<Reverse<Timer>>);

impl Timers {
    pub(crate) fn push(&mut self, deadline_us: i64, kind: Kind, key: u64) {
        self.0.push(Reverse(Timer {
            deadline_us,
            kind,
            key,
        }));
    }

    /// The earliest deadline, if it is at or before `until_us`.
    pub(crate) fn pop_due(&mut self, until_us: i64) -> Option<Timer> {
        let Reverse(first) = self.0.peek()?;
        if first.deadline_us > until_us {
            return None;
        }
        self.0.pop().map(|Reverse(timer)| timer)
    }

    /// Takes out what an end of input closes: all but what waits for conversions.
    pub(crate) fn take_closing(&mut self) -> Self {
        let (closing, staying) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|Reverse(timer)| timer.kind < Kind::Viewed);
        self.0 = staying;
        Self(closing)
    }
}

impl FromIterator<Timer> for Timers {
    fn from_iter<T: IntoIterator<Item = Timer>>(timers: T) -> Self {
        Self(timers.into_iter().map(Reverse).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_deadlines_fire_conversions_first() {
        let mut timers = Timers::default();
        timers.push(5, Kind::Impression, 1);
        timers.push(5, Kind::Conversion, 9);
        timers.push(7, Kind::Conversion, 2);
        let keys: Vec<u64> =
            std::iter::from_fn(|| timers.pop_due(5).map(|timer| timer.key)).collect();
        assert_eq!(keys, [9, 1]);
    }

    #[test]
    fn an_end_of_input_leaves_what_waits_for_conversions() {
        let mut timers = Timers::default();
        timers.push(5, Kind::Day, 1);
        timers.push(6, Kind::Waiting, 2);
        let mut closing = timers.take_closing();
        assert_eq!(closing.pop_due(i64::MAX).map(|timer| timer.key), Some(2));
        assert_eq!(closing.pop_due(i64::MAX), None);
        assert_eq!(timers.pop_due(i64::MAX).map(|timer| timer.key), Some(1));
    }
}
