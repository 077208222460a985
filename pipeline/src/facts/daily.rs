//! Facts by day, from one commit to the next.

use std::collections::BTreeMap;

use features::{AdFacts, Counted, FeatureSet, RequestFacts};

use super::{FactEvents, FactRequests};
use crate::calendar::day_of;

/// What was counted and what features were wanted for, by day.
#[derive(Debug, Default)]
pub(crate) struct DailyFacts {
    /// By the day in which an event counts: its own, or that in which it was learnt of if its sender's
    /// clock was ahead.
    pub(crate) events: BTreeMap<i32, FactEvents>,
    /// By the day of the request.
    pub(crate) requests: BTreeMap<i32, FactRequests>,
}

impl DailyFacts {
    /// Keeps an event; `number` is its own.
    pub(crate) fn push_event(
        &mut self,
        set: &FeatureSet,
        number: u64,
        event: Counted,
        request: &RequestFacts,
        ad: Option<&AdFacts>,
    ) {
        let day = day_of(event.event_us.min(event.known_us));
        let events = self.events.entry(day);
        let events = events.or_insert_with(|| FactEvents::new(set));
        events.push(&number.to_string(), event, request, ad);
    }

    /// Keeps a request.
    pub(crate) fn push_request(
        &mut self,
        set: &FeatureSet,
        request_id: &str,
        time_us: i64,
        store_as_of_us: Option<i64>,
        request: &RequestFacts,
        ad: &AdFacts,
    ) {
        let requests = self.requests.entry(day_of(time_us));
        let requests = requests.or_insert_with(|| FactRequests::new(set));
        requests.push(request_id, time_us, store_as_of_us, request, ad);
    }
}
