//! Daily budgets: what each campaign has reserved today.
//!
//! An impression reserves its expected cost (price × pCTR) when it is sold; the reservation is
//! the check, so no number of concurrent requests takes a campaign above its budget. The first
//! impression that no longer fits closes the campaign for that day.
//!
//! **The day** is the UTC day of the server's clock, whatever time a request says it was made
//! at: a client can neither open another day's budget nor spend from none.
//!
//! **The bound.** Reserved spend never exceeds the daily budget. Clicks are what is paid for in
//! the end: with calibrated pCTR their cost has the reserved sum as its mean and a standard
//! deviation of at most √(budget × highest bid). Reservations live in memory: a restart inside a
//! day forgets them, so a server that restarts `n` times can reserve up to `n + 1` budgets.
//! A retried request reserves again, which errs towards spending less.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use registry::now_us;

const DAY_US: i64 = 86_400_000_000;

/// Campaigns closed for a day, with the budget that was too small.
pub type Closed = Arc<BTreeMap<String, i64>>;

/// Tells the time, microseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// What one impression is expected to cost a campaign.
#[derive(Debug, Clone, Copy)]
pub struct Cost<'a> {
    /// The campaign.
    pub campaign_id: &'a str,
    /// Its budget of a day, in millionths of the account's currency.
    pub daily_budget_micros: i64,
    /// The cost, in the same.
    pub micros: i64,
}

#[derive(Debug, Default)]
struct Day {
    number: i64,
    reserved: BTreeMap<String, i64>,
    closed: Closed,
}

impl Day {
    fn reserved(&self, campaign_id: &str) -> i64 {
        self.reserved.get(campaign_id).copied().unwrap_or(0)
    }

    fn has_room(&self, cost: &Cost<'_>) -> bool {
        let total = self.reserved(cost.campaign_id).checked_add(cost.micros);
        total.is_some_and(|total| total <= cost.daily_budget_micros)
    }
}

/// Today's reservations by campaign.
pub struct Budgets {
    clock: Clock,
    today: Mutex<Day>,
}

impl Default for Budgets {
    fn default() -> Self {
        Self::new(Arc::new(now_us))
    }
}

impl Budgets {
    /// Budgets whose days are those of `clock`.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            today: Mutex::default(),
        }
    }

    /// The campaigns that are closed today.
    pub fn closed(&self) -> Closed {
        self.today().closed.clone()
    }

    /// Reserves the cost of every impression of a page, at most one of a campaign, or of none:
    /// then it tells which do not fit, by place, and their campaigns are closed for the day.
    ///
    /// # Errors
    /// The places of the costs that do not fit.
    pub fn reserve(&self, costs: &[Cost<'_>]) -> Result<(), Vec<usize>> {
        let mut today = self.today();
        let refused: Vec<usize> = (0..costs.len())
            .filter(|&place| !today.has_room(&costs[place]))
            .collect();
        for &place in &refused {
            let cost = &costs[place];
            Arc::make_mut(&mut today.closed)
                .insert(cost.campaign_id.to_owned(), cost.daily_budget_micros);
        }
        if !refused.is_empty() {
            return Err(refused);
        }
        for cost in costs {
            let reserved = today.reserved.entry(cost.campaign_id.to_owned());
            *reserved.or_default() += cost.micros;
        }
        Ok(())
    }

    /// What a campaign has reserved today.
    pub fn reserved(&self, campaign_id: &str) -> i64 {
        self.today().reserved(campaign_id)
    }

    /// A new day begins with empty books; a clock that is set back opens no old ones. Every
    /// change is one statement on plain numbers: they are whole after a panic.
    fn today(&self) -> MutexGuard<'_, Day> {
        let number = (self.clock)().div_euclid(DAY_US);
        let mut today = self.today.lock().unwrap_or_else(PoisonError::into_inner);
        if number > today.number {
            *today = Day {
                number,
                ..Day::default()
            };
        }
        today
    }
}

impl fmt::Debug for Budgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budgets")
            .field("today", &self.today)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicI64, Ordering},
        thread,
    };

    use super::*;

    fn cost(campaign_id: &str, daily_budget_micros: i64, micros: i64) -> Cost<'_> {
        Cost {
            campaign_id,
            daily_budget_micros,
            micros,
        }
    }

    #[test]
    fn a_campaign_closes_with_the_first_cost_that_does_not_fit() {
        let budgets = Budgets::default();
        let sixty = [cost("c", 100, 60)];
        assert_eq!(budgets.reserve(&sixty), Ok(()));
        assert!(budgets.closed().is_empty());
        assert_eq!(budgets.reserve(&sixty), Err(vec![0]));
        assert_eq!(budgets.closed().get("c"), Some(&100));
        assert_eq!(budgets.reserved("c"), 60);
    }

    #[test]
    fn a_page_reserves_all_or_nothing() {
        let budgets = Budgets::default();
        let page = [cost("a", 100, 60), cost("b", 50, 60), cost("c", 100, 60)];
        assert_eq!(budgets.reserve(&page), Err(vec![1]));
        assert_eq!((budgets.reserved("a"), budgets.reserved("c")), (0, 0));
        assert_eq!(budgets.reserve(&[page[0], page[2]]), Ok(()));
        assert_eq!((budgets.reserved("a"), budgets.reserved("c")), (60, 60));
    }

    #[test]
    fn concurrent_reservations_never_exceed_the_budget() {
        let budgets = Budgets::default();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        let _ = budgets.reserve(&[cost("c", 10_000, 7)]);
                    }
                });
            }
        });
        assert_eq!(budgets.reserved("c"), 10_000 / 7 * 7);
    }

    #[test]
    fn a_new_day_opens_the_budgets_and_a_clock_set_back_does_not() {
        let now_us = Arc::new(AtomicI64::new(20_000 * DAY_US));
        let clock = now_us.clone();
        let budgets = Budgets::new(Arc::new(move || clock.load(Ordering::Relaxed)));
        let all = [cost("c", 10, 10)];
        assert_eq!(budgets.reserve(&all), Ok(()));
        for (step_us, fits) in [(DAY_US - 1, false), (1, true), (-DAY_US, false)] {
            now_us.fetch_add(step_us, Ordering::Relaxed);
            assert_eq!(budgets.reserve(&all).is_ok(), fits, "after {step_us} µs");
        }
    }
}
