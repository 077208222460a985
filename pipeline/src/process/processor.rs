//! Applies one event after the other: the whole of the pipeline that touches no disk.
//!
//! What comes out (rows, dead letters, mended days) depends on the order of the events alone,
//! not on how they are cut into batches, nor on how often the processor was stored and restored
//! between them. Crash safety is then only a matter of committing its outputs and its state
//! together.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use features::{Aggregates, FeatureBatch, FeatureSet, RequestFacts, SourceEvent, facts, hash};
use prost::Message;
use wire::{
    events::{AgeBand, Context, Event, UserActivity, event::Payload},
    gate::{self, Subject},
};

use super::{
    ads::{Ads, What},
    attribution::AttributionModel,
    audit::Audit,
    book::{Book, Mend, Pending, Waiting},
    config::{GuardsConfig, PipelineConfig, ViewabilityConfig, Windows},
    counters::Counters,
    dead_letter::DeadLetter,
    deduplication::{Deduplicator, HashedMap},
    refusal::Refusal,
    sessions::InSession,
    source::SourceRecord,
    timer::{Kind, Timers},
    validation,
};
use crate::{calendar::DAY_US, facts::DailyFacts};

/// The processor's whole state and its outputs since they were last taken.
#[derive(Debug)]
pub struct Processor {
    pub(super) set: FeatureSet,
    pub(super) windows: Windows,
    pub(super) viewability: ViewabilityConfig,
    pub(super) attribution: AttributionModel,
    guards: GuardsConfig,
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
    /// What was counted, and what features were wanted for.
    pub(crate) facts: DailyFacts,
    /// What was done with those who are restricted.
    pub(crate) audit: Audit,
}

/// One row of the training table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) impression: Box<Pending>,
    /// Whether its labels are final already.
    pub(crate) matured: bool,
    /// Conversions until then are in its labels; of a final one, the end of its conversion window.
    pub(crate) labels_as_of_us: i64,
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

/// An event behind the age gate: it names nobody itself.
pub(super) struct Gated {
    pub(super) event: Event,
    pub(super) subject: Subject,
    /// Whether the event named somebody.
    named: bool,
}

impl Gated {
    pub(super) fn new(mut event: Event) -> Self {
        let named = !event.user_id.is_empty();
        let subject = gate::admit(&mut event);
        Self {
            event,
            subject,
            named,
        }
    }

    /// Bytes as they may be kept.
    pub(super) fn bytes(payload: &[u8]) -> Cow<'_, [u8]> {
        let event = Event::decode(payload).ok();
        match event.as_ref().and_then(gate::stripped) {
            Some(stripped) => Cow::Owned(stripped.encode_to_vec()),
            None => Cow::Borrowed(payload),
        }
    }
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
        let set = set.with_every_fact();
        book.ads.restore(&set);
        let windows = config.windows();
        Self {
            scratch: FeatureBatch::new(set.schema()),
            set,
            windows,
            viewability: config.viewability.clone(),
            attribution: config.attribution.model,
            guards: config.guards.clone(),
            max_picture_pixels: config.validation.max_picture_pixels,
            touches: book.touches(),
            timers: book.timers(&windows),
            book,
            aggregates: aggregates.with_horizon(windows.horizon_us()),
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
                let admitted = self.admit(event);
                let accepted = admitted.and_then(|gated| match gated {
                    Some(gated) => self.accept(gated),
                    None => Ok(Applied::Done),
                });
                accepted.map(|applied| (applied, event_time_us))
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
                    payload: Gated::bytes(&payload).into_owned(),
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
        let letter = DeadLetter::new(partition, offset, &Gated::bytes(payload), refusal);
        self.outputs.dead_letters.push(letter);
    }

    /// The door: a valid event, behind the age gate; none if it was sent before.
    fn admit(&mut self, event: Event) -> Result<Option<Gated>, Refusal> {
        validation::check(&event, self.windows.skew_us)?;
        let gated = Gated::new(event);
        let event = &gated.event;
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
            return Ok(None);
        }
        if let Some(person) = gated.subject.person() {
            self.book.guards.check(person, event, &self.guards)?;
        }
        self.book.counters.late += u64::from(behind_us > 0);
        self.book.max_ingest_us = self.book.max_ingest_us.max(event.ingest_time_us);
        self.advance(event.event_time_us);
        Ok(Some(gated))
    }

    /// An event's way through the door alone, without effect: whether it comes through. For measuring.
    ///
    /// # Errors
    /// [`Refusal`] says why it does not.
    pub fn pass(&mut self, event: Event) -> Result<bool, Refusal> {
        self.admit(event).map(|gated| gated.is_some())
    }

    fn accept(&mut self, gated: Gated) -> Result<Applied, Refusal> {
        let event = &gated.event;
        let event_id = event.event_id.clone();
        let dispatched = self.dispatch(gated);
        if let Err(Refusal::UnknownCreative { .. } | Refusal::UnknownCampaign { .. }) = &dispatched
        {
            // What was missing may come, and then this event again.
            self.seen.remove(&event_id);
        }
        dispatched
    }

    fn dispatch(&mut self, mut gated: Gated) -> Result<Applied, Refusal> {
        let payload = gated.event.payload.take();
        let Some((what, id)) = payload.as_ref().and_then(What::of) else {
            let age = AgeBand::try_from(gated.event.age_band).unwrap_or(AgeBand::Unspecified);
            self.book.counters.age_unspecified += u64::from(age == AgeBand::Unspecified);
            return self.dispatch_of_user(gated, payload);
        };
        let event = gated.event;
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
        mut gated: Gated,
        payload: Option<Payload>,
    ) -> Result<Applied, Refusal> {
        self.audit(&gated, payload.as_ref());
        match payload {
            Some(Payload::ImpressionServed(served)) => self.serve(gated, served),
            Some(Payload::UserActivity(activity)) => {
                self.count_activity(&gated, activity);
                Ok(Applied::Done)
            }
            Some(Payload::Conversion(conversion)) => {
                self.wait_for_watermark(&gated, &conversion);
                Ok(Applied::Done)
            }
            outcome => {
                gated.event.payload = outcome;
                self.apply_outcome(&gated)
            }
        }
    }

    fn audit(&mut self, gated: &Gated, payload: Option<&Payload>) {
        if let Some(restricted) = gated.subject.restricted() {
            let audit = &mut self.outputs.audit;
            audit.restricted(restricted, payload, gated.named);
        }
    }

    fn count_activity(&mut self, gated: &Gated, activity: UserActivity) {
        let context = Context {
            experience_id: activity.experience_id,
            genre: activity.genre,
            ..Context::default()
        };
        let (event, subject) = (&gated.event, &gated.subject);
        let about = About::of(event, subject, &context);
        let request = bind_request(&self.set, &self.book.ads, about);
        self.see_session(gated, false);
        let value = f64::from(activity.dwell_seconds);
        let counted = self
            .book
            .counted(SourceEvent::Activity, value, event.event_time_us);
        self.aggregates.apply(&self.set, &request, None, counted);
        let number = self.book.counters.count_event();
        let facts = &mut self.outputs.facts;
        facts.push_event(&self.set, number, counted, &request, None);
        self.book.counters.activities += 1;
    }

    /// Where an event stands in its person's session.
    pub(super) fn see_session(&mut self, gated: &Gated, impression: bool) -> InSession {
        let gap_us = self.windows.session_gap_us;
        let (person, time_us) = (gated.subject.person(), gated.event.event_time_us);
        let sessions = &mut self.book.sessions;
        sessions.see(person, time_us, gap_us, impression)
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
            self.book.guards.expire(until_us - DAY_US);
            let gap_us = self.windows.session_gap_us;
            self.book.sessions.expire(until_us - DAY_US - gap_us);
        }
    }
}

/// What the log says of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) subject: &'a Subject,
    pub(super) age_band: i32,
    pub(super) context: &'a Context,
    pub(super) time_us: i64,
}

impl<'a> About<'a> {
    pub(super) fn of(event: &'a Event, subject: &'a Subject, context: &'a Context) -> Self {
        Self {
            subject,
            age_band: event.age_band,
            context,
            time_us: event.event_time_us,
        }
    }
}

/// Facts of a request as the log tells them.
pub(super) fn bind_request(set: &FeatureSet, ads: &Ads, about: About<'_>) -> RequestFacts {
    let About {
        subject,
        age_band,
        context,
        time_us,
    } = about;
    let age = AgeBand::try_from(age_band).unwrap_or(AgeBand::Unknown);
    let scene = ads.scene(&context.scene_id);
    let facts = facts::request_facts(subject, age, context, scene, time_us);
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
