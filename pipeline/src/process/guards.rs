//! Bots and fraud at the door: how much one person does, and how fast.
//!
//! A person's events are counted in the minute and the hour of the event that came last; what comes late
//! for an earlier one counts in the later. So a flood is cut off wherever it hides, and what people do
//! stays far below the bounds.

use features::hash::hash_text;
use serde::{Deserialize, Serialize};
use wire::{
    events::{Event, event::Payload},
    gate::UserId,
};

use super::{config::GuardsConfig, deduplication::HashedMap, refusal::Refusal};

const MINUTE_US: i64 = 60_000_000;
const HOUR_US: i64 = 60 * MINUTE_US;

/// How much each person did lately.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Guards {
    of_users: HashedMap<Lately>,
}

/// What one person did in the newest minute and hour.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Lately {
    /// Minutes since the Unix epoch.
    minute: i64,
    events: u32,
    /// Hours since the Unix epoch.
    hour: i64,
    clicks: u32,
}

impl Guards {
    /// Counts an event of a person.
    pub(crate) fn check(
        &mut self,
        person: &UserId,
        event: &Event,
        config: &GuardsConfig,
    ) -> Result<(), Refusal> {
        let click = matches!(event.payload, Some(Payload::Click(_)));
        let lately = self.of_users.entry(hash_text(person.as_str())).or_default();
        let minute = event.event_time_us.div_euclid(MINUTE_US);
        if minute > lately.minute {
            (lately.minute, lately.events) = (minute, 0);
        }
        let hour = event.event_time_us.div_euclid(HOUR_US);
        if hour > lately.hour {
            (lately.hour, lately.clicks) = (hour, 0);
        }
        lately.events = lately.events.saturating_add(1);
        lately.clicks = lately.clicks.saturating_add(u32::from(click));
        let refused = |what, found, most, key| {
            Err(Refusal::TooMany {
                what,
                user_id: person.as_str().to_owned(),
                found,
                most,
                key,
            })
        };
        let (most, clicks) = (config.max_events_per_minute, config.max_clicks_per_hour);
        if lately.events > most {
            return refused(
                "events in a minute",
                lately.events,
                most,
                "max_events_per_minute",
            );
        }
        if click && lately.clicks > clicks {
            return refused(
                "clicks in an hour",
                lately.clicks,
                clicks,
                "max_clicks_per_hour",
            );
        }
        Ok(())
    }

    /// Forgets who did nothing since a time.
    pub(crate) fn expire(&mut self, before_us: i64) {
        let before = before_us.div_euclid(MINUTE_US);
        self.of_users.retain(|_, lately| lately.minute >= before);
    }
}
