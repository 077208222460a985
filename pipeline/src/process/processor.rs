//! Applies one event after the other: the whole of the pipeline that touches no disk.
//!
//! What comes out (rows, dead letters, mended days) depends on the order of the events alone,
//! not on how they are cut into batches, nor on how often the processor was stored and restored
//! between them. Crash safety is then only a matter of committing its outputs and its state
//! together.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use features::{Aggregates, FeatureBatch, FeatureSet, RequestFacts, SourceEvent, facts, hash};
use wire::events::{AgeBand, Context, Event, UserActivity, event::Payload};

use super::{
    ads::{Ads, What},
    book::{Book, DAY_US, Mend, Pending, Waiting},
    config::{PipelineConfig, ViewabilityConfig, Windows},
    counters::Counters,
    dead_letter::DeadLetter,
    deduplication::{Deduplicator, HashedMap},
    refusal::Refusal,
    source::SourceRecord,
    timer::{Kind, Timers},
    validation,
};

/// The processor's whole state and its outputs since they were last taken.
#[derive(Debug)]
pub struct Processor {
    pub(super) set: FeatureSet,
    pub(super) windows: Windows,
    pub(super) viewability: ViewabilityConfig,
    max_picture_pixels: u64,
    pub(super) book: Book,
    pub(super) aggregates: Aggregates,
    seen: Deduplicator,
    /// Impressions in `book.viewed` by user and campaign.
    pub(super) touches: HashedMap<Vec<u64>>,
    pub(super) timers: Timers,
    pub(super) outputs: Outputs,
    pub(super) scratch: FeatureBatch,
}

/// What some events led to.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Rows for the training table, in the order in which their windows closed.
    pub(crate) rows: Vec<Row>,
    /// Refused events.
    pub(crate) dead_letters: Vec<DeadLetter>,
    /// Days whose labels are final, with the label changes since their rows were written.
    pub(crate) matured: BTreeMap<i32, BTreeMap<u64, Mend>>,
}

/// One row of the training table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) impression: Box<Pending>,
    /// Whether its labels are final already.
    pub(crate) matured: bool,
}

/// What a state file holds of a [`Processor`].
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) book: Book,
    pub(crate) aggregates: Aggregates,
    pub(crate) seen: Deduplicator,
}

/// Whether an event took effect.
pub(super) enum Applied {
    /// It did.
    Done,
    /// It waits for the impression with this hash.
    Waits(u64),
}

impl Processor {
    /// A processor that has seen nothing.
    pub fn new(config: &PipelineConfig, set: FeatureSet) -> Self {
        let parts = Parts {
            book: Book::default(),
            aggregates: Aggregates::default(),
            seen: Deduplicator::default(),
        };
        Self::restore(config, set, parts)
    }

    /// A processor that goes on where another one was stored.
    pub(crate) fn restore(config: &PipelineConfig, set: FeatureSet, parts: Parts) -> Self {
        let Parts {
            mut book,
            aggregates,
            seen,
        } = parts;
        book.ads.restore(&set);
        let windows = config.windows();
        Self {
            scratch: FeatureBatch::new(set.schema()),
            set,
            windows,
            viewability: config.viewability.clone(),
            max_picture_pixels: config.validation.max_picture_pixels,
            touches: book.touches(),
            timers: book.timers(&windows),
            book,
            aggregates: aggregates.with_horizon(windows.delay_us + windows.skew_us),
            seen,
            outputs: Outputs::default(),
        }
    }

    /// Applies one record. A bad one ends in the dead letters.
    pub fn apply(&mut self, record: SourceRecord) {
        self.book.counters.events_in += 1;
        let SourceRecord {
            partition,
            offset,
            payload,
            event,
        } = record;
        let applied = match event {
            Ok(event) => {
                let event_time_us = event.event_time_us;
                self.accept(event).map(|applied| (applied, event_time_us))
            }
            Err(error) => Err(Refusal::Malformed(error)),
        };
        match applied {
            Ok((Applied::Done, _)) => {}
            Ok((Applied::Waits(impression), event_time_us)) => {
                let waiting = Waiting {
                    partition: partition.to_string(),
                    offset,
                    event_time_us,
                    payload,
                };
                let deadline_us = waiting.deadline_us(&self.windows);
                self.timers.push(deadline_us, Kind::Waiting, impression);
                let queue = self.book.waiting.entry(impression);
                queue.or_default().push(waiting);
            }
            Err(refusal) => self.refuse(&partition, offset, &payload, &refusal),
        }
    }

    /// Closes every window but those of conversions, as if the watermark had passed them: for
    /// the end of an input that will not go on. Returns how many there were.
    pub fn close(&mut self) -> usize {
        let mut closing = self.timers.take_closing();
        let mut closed = 0;
        while let Some(timer) = closing.pop_due(i64::MAX) {
            self.fire(timer, i64::MAX);
            closed += 1;
        }
        closed
    }

    /// Counts since the beginning.
    pub fn counters(&self) -> &Counters {
        &self.book.counters
    }

    /// Impressions that wait for their windows.
    pub fn impressions_pending(&self) -> usize {
        self.book.impressions.len()
    }

    pub(crate) fn take_outputs(&mut self) -> Outputs {
        std::mem::take(&mut self.outputs)
    }

    /// The aggregates as of the last event.
    pub fn aggregates(&self) -> &Aggregates {
        &self.aggregates
    }

    /// The newest time at which an event arrived, microseconds since the Unix epoch.
    pub fn as_of_us(&self) -> i64 {
        self.book.max_ingest_us
    }

    pub(crate) fn ads(&mut self) -> &mut Ads {
        &mut self.book.ads
    }

    /// The state to store: book, aggregates and deduplication set.
    pub(crate) fn state(&self) -> (&Book, &Aggregates, &Deduplicator) {
        (&self.book, &self.aggregates, &self.seen)
    }

    pub(super) fn refuse(
        &mut self,
        partition: &str,
        offset: u64,
        payload: &[u8],
        refusal: &Refusal,
    ) {
        self.book.counters.dead(refusal.code());
        let letter = DeadLetter::new(partition, offset, payload, refusal);
        self.outputs.dead_letters.push(letter);
    }

    fn accept(&mut self, event: Event) -> Result<Applied, Refusal> {
        validation::check(&event, self.windows.skew_us)?;
        // One event from the future would move the watermark past everything that is real.
        let ahead_us = event.ingest_time_us - wall_clock_us();
        if ahead_us > self.windows.skew_us {
            let most_us = self.windows.skew_us;
            return Err(Refusal::InFuture { ahead_us, most_us });
        }
        let behind_us = self.watermark_us() - event.event_time_us;
        let most_us = self.windows.deduplication_us;
        if behind_us > most_us {
            return Err(Refusal::TooOld { behind_us, most_us });
        }
        if !self.seen.insert(&event.event_id, event.event_time_us) {
            self.book.counters.duplicates += 1;
            return Ok(Applied::Done);
        }
        self.book.counters.late += u64::from(behind_us > 0);
        self.book.max_ingest_us = self.book.max_ingest_us.max(event.ingest_time_us);
        self.advance(event.event_time_us);
        let event_id = event.event_id.clone();
        let dispatched = self.dispatch(event);
        if let Err(Refusal::UnknownCreative { .. } | Refusal::UnknownCampaign { .. }) = &dispatched
        {
            // What was missing may come, and then this event again.
            self.seen.remove(&event_id);
        }
        dispatched
    }

    fn dispatch(&mut self, mut event: Event) -> Result<Applied, Refusal> {
        let payload = event.payload.take();
        let Some((what, id)) = payload.as_ref().and_then(What::of) else {
            let age = AgeBand::try_from(event.age_band).unwrap_or(AgeBand::Unspecified);
            self.book.counters.age_unspecified += u64::from(age == AgeBand::Unspecified);
            return self.dispatch_of_user(event, payload);
        };
        let (set, ads) = (&self.set, &mut self.book.ads);
        if ads.is_stale(what, &id, event.event_time_us) {
            self.book.counters.catalogue_changes_stale += 1;
            return Ok(Applied::Done);
        }
        let max_pixels = self.max_picture_pixels;
        match payload {
            Some(Payload::CampaignChanged(campaign)) => ads.change_campaign(set, &campaign),
            Some(Payload::CreativeChanged(creative)) => {
                ads.change_creative(set, &creative, event.ingest_time_us, max_pixels)?;
            }
            Some(Payload::ExperienceChanged(experience)) => {
                ads.change_experience(&experience, max_pixels)?;
            }
            _ => {}
        }
        ads.changed(what, id, event.event_time_us);
        self.book.counters.catalogue_changes += 1;
        Ok(Applied::Done)
    }

    fn dispatch_of_user(
        &mut self,
        mut event: Event,
        payload: Option<Payload>,
    ) -> Result<Applied, Refusal> {
        match payload {
            Some(Payload::ImpressionServed(served)) => self.serve(event, served),
            Some(Payload::UserActivity(activity)) => {
                self.count_activity(&event, activity);
                Ok(Applied::Done)
            }
            Some(Payload::Conversion(conversion)) => {
                self.wait_for_watermark(&event, &conversion);
                Ok(Applied::Done)
            }
            outcome => {
                event.payload = outcome;
                self.apply_outcome(&event)
            }
        }
    }

    fn count_activity(&mut self, event: &Event, activity: UserActivity) {
        let context = Context {
            experience_id: activity.experience_id,
            genre: activity.genre,
            ..Context::default()
        };
        let request = bind_request(&self.set, &self.book.ads, About::of(event, &context));
        let value = f64::from(activity.dwell_seconds);
        let counted = self
            .book
            .counted(SourceEvent::Activity, value, event.event_time_us);
        self.aggregates.apply(&self.set, &request, None, counted);
        self.book.counters.activities += 1;
    }

    pub(super) fn watermark_us(&self) -> i64 {
        self.book.max_event_us - self.windows.delay_us
    }

    /// Moves the watermark and fires what it has passed.
    fn advance(&mut self, event_time_us: i64) {
        let before_us = self.watermark_us();
        self.book.max_event_us = self.book.max_event_us.max(event_time_us);
        let until_us = self.watermark_us();
        while let Some(timer) = self.timers.pop_due(until_us) {
            self.fire(timer, until_us);
        }
        if before_us.div_euclid(DAY_US) != until_us.div_euclid(DAY_US) {
            let hours = self.set.longest_window_hours();
            // A day of grace, for impressions behind the watermark.
            self.aggregates.expire(until_us - DAY_US, hours);
            self.seen.expire(until_us - self.windows.deduplication_us);
        }
    }
}

/// What the log says of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) user_id: &'a str,
    pub(super) age_band: i32,
    pub(super) context: &'a Context,
    pub(super) time_us: i64,
}

impl<'a> About<'a> {
    pub(super) fn of(event: &'a Event, context: &'a Context) -> Self {
        Self {
            user_id: &event.user_id,
            age_band: event.age_band,
            context,
            time_us: event.event_time_us,
        }
    }
}

/// Facts of a request as the log tells them. Consent is part of the context's attributes
/// (`consent` = `false` withdraws it), since only Marquee's own servers know it, and those send
/// their feature values along.
pub(super) fn bind_request(set: &FeatureSet, ads: &Ads, about: About<'_>) -> RequestFacts {
    let About {
        user_id,
        age_band,
        context,
        time_us,
    } = about;
    let age = AgeBand::try_from(age_band).unwrap_or(AgeBand::Unknown);
    let refused = |value: &String| value == "false";
    let consent = !context.attributes.get("consent").is_some_and(refused);
    let scene = ads.scene(&context.scene_id);
    let facts = facts::request_facts(user_id, age, consent, context, scene, time_us);
    set.bind_request(&facts)
}

fn wall_clock_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(i64::MAX)
}

/// Names an impression, or another event, by its id.
pub(super) fn key(id: &str) -> u64 {
    hash::hash_text(id)
}
