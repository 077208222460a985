//! What attribution must remember between events: impressions that wait for their labels,
//! events that wait for their impression, and what was seen lately.

use std::collections::{BTreeMap, BTreeSet};

use features::{Counted, RequestFacts, SourceEvent, hash};
use serde::{Deserialize, Serialize};
use wire::{
    events::{Event, ImpressionServed},
    gate::{Subject, UserId},
};

use super::{
    ads::Ads,
    config::Windows,
    counters::Counters,
    deduplication::HashedMap,
    guards::Guards,
    protobuf::Encoded,
    sessions::{InSession, Sessions},
    timer::{Kind, Timer, Timers},
    viewability::ViewRule,
};
use crate::calendar::{DAY_US, day_of};

/// Everything that a commit must keep, but the dedup set and the aggregates, which have compact
/// forms of their own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Book {
    /// Newest event time so far.
    pub(crate) max_event_us: i64,
    /// Newest ingest time so far.
    pub(crate) max_ingest_us: i64,
    pub(crate) counters: Counters,
    pub(crate) ads: Ads,
    /// Impressions whose row is not written, by hash of the impression id.
    pub(crate) impressions: HashedMap<Box<Pending>>,
    /// Views and clicks whose impression has not come, by hash of the impression id.
    pub(crate) waiting: HashedMap<Vec<Waiting>>,
    /// Conversions that wait for the watermark, by hash of the event id.
    pub(crate) conversions: HashedMap<PendingConversion>,
    /// Viewed impressions that a conversion may still be attributed to, by hash of the
    /// impression id.
    pub(crate) viewed: HashedMap<Viewed>,
    /// Days with rows whose labels may still change.
    pub(crate) open_days: BTreeSet<i32>,
    pub(crate) guards: Guards,
    pub(crate) sessions: Sessions,
    /// Label changes of written rows, by day and hash of the impression id.
    pub(crate) mends: BTreeMap<i32, BTreeMap<u64, Mend>>,
}

/// An impression that waits for its labels.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) subject: Subject,
    pub(crate) age_band: i32,
    pub(crate) served_us: i64,
    pub(crate) category: String,
    /// The event without candidates; its snapshot holds the features, from wherever they came.
    #[serde(with = "super::protobuf")]
    pub(crate) served: ImpressionServed,
    /// Whether the features are those that the server logged.
    pub(crate) logged: bool,
    pub(crate) session: InSession,
    pub(crate) view_us: Option<i64>,
    /// The rule by which it was seen first.
    pub(crate) view_rule: ViewRule,
    pub(crate) click_us: Option<i64>,
    /// Conversions, each as far as it is credited to this one.
    pub(crate) conversion_credit: f64,
    pub(crate) conversion_micros: i64,
    /// The first of them.
    pub(crate) conversion_us: Option<i64>,
    /// Facts of the request, bound once; bound again after a restart.
    #[serde(skip)]
    pub(crate) request: Option<RequestFacts>,
}

/// A view or click whose impression has not come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Waiting {
    pub(crate) partition: String,
    pub(crate) offset: u64,
    pub(crate) event_time_us: i64,
    pub(crate) payload: Vec<u8>,
}

/// A conversion that waits for the watermark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PendingConversion {
    pub(crate) event_time_us: i64,
    /// [`pair`] of user and campaign.
    pub(crate) pair: u64,
    pub(crate) value_micros: i64,
}

/// A viewed impression that a conversion may still be attributed to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Viewed {
    /// [`pair`] of user and campaign; none for people who are not known, to whom no conversion
    /// can be attributed.
    pub(crate) pair: Option<u64>,
    pub(crate) day: i32,
    pub(crate) viewed_us: i64,
    pub(crate) click_us: Option<i64>,
    /// User, age, ad and context, for counting a late click or a conversion; empty while the
    /// impression is pending.
    pub(crate) about: Encoded<Event>,
}

/// Changes to the labels of a written row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mend {
    pub(crate) click_us: Option<i64>,
    pub(crate) conversion_credit: f64,
    pub(crate) conversion_micros: i64,
    /// The first conversion.
    pub(crate) conversion_us: Option<i64>,
}

/// The earlier of two times that may be known.
pub(crate) fn earlier(one: Option<i64>, other: Option<i64>) -> Option<i64> {
    one.into_iter().chain(other).min()
}

impl Pending {
    /// When it came into view: by evidence, or by a click if that was earlier.
    pub(crate) fn viewed_us(&self) -> Option<i64> {
        earlier(self.view_us, self.click_us)
    }

    /// When the watermark closes it.
    pub(crate) fn deadline_us(&self, windows: &Windows) -> i64 {
        self.viewed_us().map_or(
            self.served_us + windows.view_us + windows.lateness_us,
            |it| it + windows.click_us,
        )
    }

    pub(crate) fn day(&self) -> i32 {
        day_of(self.served_us)
    }
}

impl Waiting {
    /// When the watermark gives it up.
    pub(crate) fn deadline_us(&self, windows: &Windows) -> i64 {
        self.event_time_us + windows.click_us + windows.lateness_us
    }
}

impl Viewed {
    /// When the watermark passes the last conversion that could be attributed to it.
    pub(crate) fn deadline_us(&self, windows: &Windows) -> i64 {
        let touched_us = self.viewed_us.max(self.click_us.unwrap_or(i64::MIN));
        touched_us + windows.conversion_us + windows.lateness_us
    }
}

/// When the labels of all rows of a day are final.
pub(crate) fn day_deadline_us(day: i32, windows: &Windows) -> i64 {
    let end = (i64::from(day) + 1) * DAY_US;
    let viewed = end + windows.view_us + windows.skew_us;
    viewed + windows.click_us + windows.lateness_us + windows.conversion_us
}

impl Book {
    /// An event to count, which the platform has learnt of now.
    pub(crate) fn counted(&self, source: SourceEvent, value: f64, event_us: i64) -> Counted {
        Counted {
            source,
            value,
            event_us,
            known_us: self.max_ingest_us,
        }
    }

    /// The impressions of each user and campaign that a conversion may be attributed to.
    pub(crate) fn touches(&self) -> HashedMap<Vec<u64>> {
        let mut touches: HashedMap<Vec<u64>> = HashedMap::default();
        for (&impression, viewed) in &self.viewed {
            if let Some(pair) = viewed.pair {
                touches.entry(pair).or_default().push(impression);
            }
        }
        touches
    }

    /// A timer for everything that waits.
    pub(crate) fn timers(&self, windows: &Windows) -> Timers {
        let timer = |deadline_us, kind, key| Timer {
            deadline_us,
            kind,
            key,
        };
        let impressions = self.impressions.iter();
        let impressions =
            impressions.map(|(key, it)| timer(it.deadline_us(windows), Kind::Impression, *key));
        let waiting = self.waiting.iter().flat_map(|(key, items)| {
            let deadlines = items.iter().map(|item| item.deadline_us(windows));
            deadlines.map(|deadline_us| timer(deadline_us, Kind::Waiting, *key))
        });
        let conversions = self.conversions.iter();
        let conversions =
            conversions.map(|(key, it)| timer(it.event_time_us, Kind::Conversion, *key));
        let viewed = self.viewed.iter();
        let viewed = viewed.map(|(key, it)| timer(it.deadline_us(windows), Kind::Viewed, *key));
        let days = self.open_days.iter();
        let days = days.map(|day| timer(day_deadline_us(*day, windows), Kind::Day, *day as u64));
        impressions
            .chain(waiting)
            .chain(conversions)
            .chain(viewed)
            .chain(days)
            .collect()
    }
}

/// Names a user and a campaign together.
pub(crate) fn pair(person: &UserId, campaign_id: &str) -> u64 {
    hash::chain_text(hash::hash_text(person.as_str()), campaign_id)
}
