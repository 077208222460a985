//! Daily budgets: what each campaign has reserved today.
//!
//! An impression reserves its expected cost (price × pCTR) when it is sold; the reservation is
//! the check, so no number of concurrent requests takes a campaign above its budget. The first
//! impression that no longer fits closes the campaign for that day.
//!
//! **The bound.** Reserved spend never exceeds the daily budget. Clicks are what is paid for in
//! the end: with calibrated pCTR their cost has the reserved sum as its mean and a standard
//! deviation of at most √(budget × highest bid). Reservations live in memory: a restart inside a
//! day forgets them, so a server that restarts `n` times can reserve up to `n + 1` budgets.
//! A retried request reserves again, which errs towards spending less.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

const DAY_US: i64 = 86_400_000_000;

/// Days that are kept; the oldest goes when another begins.
const MAX_DAYS: usize = 8;

/// Campaigns closed for a day, with the budget that was too small.
pub type Closed = Arc<BTreeMap<String, i64>>;

#[derive(Debug, Default)]
struct Day {
    reserved: BTreeMap<String, i64>,
    closed: Closed,
}

/// Reservations by day and campaign.
#[derive(Debug, Default)]
pub struct Budgets {
    days: Mutex<BTreeMap<i64, Day>>,
}

/// The UTC day of a time, in days since the Unix epoch.
pub fn day(time_us: i64) -> i64 {
    time_us.div_euclid(DAY_US)
}

impl Budgets {
    /// The campaigns that are closed on a day.
    pub fn closed(&self, day: i64) -> Closed {
        let days = self.lock();
        days.get(&day)
            .map(|day| day.closed.clone())
            .unwrap_or_default()
    }

    /// Reserves `cost` of a campaign's `budget` and says whether it fitted. If not, the campaign
    /// is closed for the day.
    pub fn reserve(&self, day: i64, campaign_id: &str, budget: i64, cost: i64) -> bool {
        let mut days = self.lock();
        let day = days.entry(day).or_default();
        let reserved = day.reserved.get(campaign_id).copied().unwrap_or(0);
        let fits = reserved
            .checked_add(cost)
            .is_some_and(|total| total <= budget);
        if fits {
            day.reserved.insert(campaign_id.to_owned(), reserved + cost);
        } else {
            Arc::make_mut(&mut day.closed).insert(campaign_id.to_owned(), budget);
        }
        while days.len() > MAX_DAYS {
            days.pop_first();
        }
        fits
    }

    /// Gives back a reservation of an impression that was not served after all.
    pub fn release(&self, day: i64, campaign_id: &str, cost: i64) {
        if let Some(reserved) = self
            .lock()
            .get_mut(&day)
            .and_then(|day| day.reserved.get_mut(campaign_id))
        {
            *reserved = (*reserved - cost).max(0);
        }
    }

    /// What a campaign has reserved on a day.
    pub fn reserved(&self, day: i64, campaign_id: &str) -> i64 {
        let days = self.lock();
        days.get(&day)
            .and_then(|day| day.reserved.get(campaign_id))
            .copied()
            .unwrap_or(0)
    }

    /// Every change is one statement on plain numbers: they are whole after a panic.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i64, Day>> {
        self.days.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_campaign_closes_with_the_first_cost_that_does_not_fit() {
        let budgets = Budgets::default();
        assert!(budgets.reserve(1, "c", 100, 60));
        assert!(budgets.closed(1).is_empty());
        assert!(!budgets.reserve(1, "c", 100, 60));
        assert_eq!(budgets.closed(1).get("c"), Some(&100));
        assert!(budgets.closed(2).is_empty());
        assert_eq!(budgets.reserved(1, "c"), 60);
    }

    #[test]
    fn concurrent_reservations_never_exceed_the_budget() {
        let budgets = Budgets::default();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        budgets.reserve(1, "c", 10_000, 7);
                    }
                });
            }
        });
        assert_eq!(budgets.reserved(1, "c"), 10_000 / 7 * 7);
    }

    #[test]
    fn what_was_released_can_be_reserved_again() {
        let budgets = Budgets::default();
        assert!(budgets.reserve(1, "c", 100, 100));
        budgets.release(1, "c", 100);
        assert!(budgets.reserve(1, "c", 100, 100));
    }

    #[test]
    fn old_days_make_room() {
        let budgets = Budgets::default();
        for day in 0..100 {
            budgets.reserve(day, "c", 10, 1);
        }
        assert_eq!(budgets.reserved(0, "c"), 0);
        assert_eq!(budgets.reserved(99, "c"), 1);
    }
}
