//! Impressions, and the views and clicks that belong to them.
//!
//! Views and clicks may come in any order and before their impression; what comes of them is the
//! same. A click counts as a view: nobody clicks what is not in view.

use features::{FeatureBatch, RequestFacts, Schema, SnapshotError, SourceEvent};
use prost::Message;
use wire::{
    events::{Context, Event, ImpressionServed, ImpressionViewed, event::Payload},
    gate::Subject,
};

use super::{
    book::{Pending, Viewed, Waiting, pair},
    config::Windows,
    processor::{About, Applied, Gated, Processor, bind_request, key},
    protobuf::Encoded,
    refusal::Refusal,
    timer::Kind,
    viewability::ViewRule,
};

/// What happened to an impression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    View,
    Click,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Click => "click",
        }
    }
}

/// What came of an impression's features.
struct Taken {
    /// The ad's.
    category: String,
    request: RequestFacts,
    /// Whether the server sent them.
    logged: bool,
}

impl Processor {
    /// Takes an impression in, with its features as of now, and what has waited for it.
    pub(super) fn serve(
        &mut self,
        gated: Gated,
        mut served: ImpressionServed,
    ) -> Result<Applied, Refusal> {
        let key = key(&served.impression_id);
        if self.book.impressions.contains_key(&key) || self.book.viewed.contains_key(&key) {
            return Err(Refusal::RepeatedImpression {
                impression_id: served.impression_id,
            });
        }
        let taken = self.take_features(&gated, &mut served)?;
        let session = self.see_session(&gated, true);
        served.candidates = Vec::new();
        let pending = Pending {
            subject: gated.subject,
            age_band: gated.event.age_band,
            served_us: gated.event.event_time_us,
            category: taken.category,
            served,
            logged: taken.logged,
            session,
            view_us: None,
            view_rule: ViewRule::default(),
            click_us: None,
            conversion_credit: 0.0,
            conversion_micros: 0,
            conversion_us: None,
            request: Some(taken.request),
        };
        let deadline_us = pending.deadline_us(&self.windows);
        self.timers.push(deadline_us, Kind::Impression, key);
        self.book.impressions.insert(key, Box::new(pending));
        self.book.counters.impressions_served += 1;
        for waiting in self.book.waiting.remove(&key).unwrap_or_default() {
            self.apply_waiting(&waiting);
        }
        Ok(Applied::Done)
    }

    /// Sees to it that the snapshot holds the features of this spec: as sent, or else computed
    /// from what was known at its time; an impression so far behind that this cannot be told any
    /// more has defaults where events would be counted. Keeps the facts of request and ad.
    fn take_features(
        &mut self,
        gated: &Gated,
        served: &mut ImpressionServed,
    ) -> Result<Taken, Refusal> {
        let Gated { event, subject, .. } = gated;
        self.clear_scratch();
        let (creative, ad) = self.book.ads.creative(&served.creative_id)?;
        let category = creative.category.clone();
        let context = served.context.get_or_insert_default();
        let request = bind_request(
            &self.set,
            &self.book.ads,
            About::of(event, subject, context),
        );
        let time_us = event.event_time_us;
        let counters = &mut self.book.counters;
        let digest = self.set.digest();
        let sent = served.snapshot.as_mut();
        let sent = sent.filter(|snapshot| snapshot.spec_digest == digest);
        let logged = sent.is_some();
        let mut store_as_of_us = None;
        if let Some(snapshot) = sent {
            let fits = self.scratch.push_snapshot(snapshot);
            fits.map_err(Refusal::BadSnapshot)?;
            single_values(self.set.schema(), &self.scratch).map_err(Refusal::BadSnapshot)?;
            // Every row has the same digest: the table's. When the store was made stands with the facts.
            snapshot.spec_digest.clear();
            let as_of_us = std::mem::take(&mut snapshot.store_as_of_us);
            store_as_of_us = Some(as_of_us).filter(|as_of_us| *as_of_us != 0);
            if !subject.is_personal() {
                let withheld = self.set.withhold(snapshot);
                self.outputs.audit.values_withheld += withheld;
                counters.features_withheld += withheld;
            }
            counters.snapshots_used += 1;
        } else {
            let (set, states, row) = (&self.set, &self.aggregates, &mut self.scratch);
            let counts = set.evaluate(&request, &[ad], states, time_us, row);
            self.outputs.audit.values_withheld += counts.withheld;
            counters.evaluated(counts);
            served.snapshot = Some(self.scratch.snapshot(0, ""));
        }
        let (set, id) = (&self.set, &served.impression_id);
        let facts = &mut self.outputs.facts;
        facts.push_request(set, id, time_us, store_as_of_us, &request, ad);
        Ok(Taken {
            category,
            request,
            logged,
        })
    }

    fn clear_scratch(&mut self) {
        self.scratch.num_rows = 0;
        self.scratch.dense.clear();
        for column in &mut self.scratch.sparse {
            column.ids.clear();
            column.offsets.truncate(1);
        }
    }

    /// Applies a view or click, or says which impression it waits for.
    pub(super) fn apply_outcome(&mut self, gated: &Gated) -> Result<Applied, Refusal> {
        let event = &gated.event;
        let (impression_id, outcome) = match &event.payload {
            Some(Payload::ImpressionViewed(viewed)) => (&viewed.impression_id, Outcome::View),
            Some(Payload::Click(click)) => (&click.impression_id, Outcome::Click),
            _ => return Ok(Applied::Done),
        };
        let key = key(impression_id);
        if self.book.impressions.contains_key(&key) {
            self.check_pending(key, gated, impression_id, outcome)?;
        } else if self.book.viewed.contains_key(&key) {
            self.check_written(key, gated, impression_id, outcome)?;
        } else {
            return Ok(Applied::Waits(key));
        }
        let mut rule = ViewRule::Click;
        if let Some(Payload::ImpressionViewed(evidence)) = &event.payload {
            let Some(found) = self.view_rule(key, evidence) else {
                self.book.counters.views_not_viewable += 1;
                return Ok(Applied::Done);
            };
            rule = found;
        }
        if self.book.impressions.contains_key(&key) {
            self.mark_pending(key, outcome, rule, event.event_time_us);
        } else {
            self.mark_written(key, outcome, event.event_time_us);
        }
        Ok(Applied::Done)
    }

    fn view_rule(&self, key: u64, evidence: &ImpressionViewed) -> Option<ViewRule> {
        let pending = self.book.impressions.get(&key);
        let creative = pending.and_then(|it| self.book.ads.creative(&it.served.creative_id).ok());
        let creative = creative.map(|(creative, _)| creative);
        ViewRule::of(evidence, creative, &self.viewability)
    }

    fn check_pending(
        &self,
        key: u64,
        gated: &Gated,
        impression_id: &str,
        outcome: Outcome,
    ) -> Result<(), Refusal> {
        let event = &gated.event;
        let pending = &self.book.impressions[&key];
        check_user(&pending.subject, &gated.subject, impression_id)?;
        let windows = &self.windows;
        let (since, since_us, most_us) = match (outcome, pending.viewed_us()) {
            (Outcome::View, _) => ("serving", pending.served_us, windows.view_us),
            (Outcome::Click, None) => {
                let most_us = windows.view_us + windows.click_us;
                ("serving", pending.served_us, most_us)
            }
            (Outcome::Click, Some(viewed_us)) => {
                // The click may be older than the view that it is measured from.
                let since_us = viewed_us.min(event.event_time_us.max(pending.served_us));
                ("the view", since_us, windows.click_us)
            }
        };
        self.check_window(event, outcome, since, since_us, most_us)?;
        check_pace(pending.served_us, event, windows)
    }

    fn check_written(
        &self,
        key: u64,
        gated: &Gated,
        impression_id: &str,
        outcome: Outcome,
    ) -> Result<(), Refusal> {
        let event = &gated.event;
        let viewed = &self.book.viewed[&key];
        let Gated {
            event: about,
            subject,
            ..
        } = Gated::new(viewed.about.decode());
        check_user(&subject, &gated.subject, impression_id)?;
        match outcome {
            Outcome::View => Ok(()),
            Outcome::Click => {
                let served_us = about.event_time_us;
                let since_us = viewed.viewed_us.min(event.event_time_us.max(served_us));
                let most_us = self.windows.click_us;
                self.check_window(event, outcome, "the view", since_us, most_us)
            }
        }
    }

    fn check_window(
        &self,
        event: &Event,
        outcome: Outcome,
        since: &'static str,
        since_us: i64,
        most_us: i64,
    ) -> Result<(), Refusal> {
        let after_us = event.event_time_us - since_us;
        let least_us = -self.windows.skew_us;
        if (least_us..=most_us).contains(&after_us) {
            return Ok(());
        }
        Err(Refusal::OutsideWindow {
            what: outcome.name(),
            since,
            after_us,
            least_us,
            most_us,
        })
    }

    fn mark_pending(&mut self, key: u64, outcome: Outcome, rule: ViewRule, time_us: i64) {
        let Some(pending) = self.book.impressions.get_mut(&key) else {
            return;
        };
        let was_viewed = pending.viewed_us().is_some();
        if outcome == Outcome::View {
            // The first view decides, in whatever order they come.
            let known = pending.view_us.map(|view_us| (view_us, pending.view_rule));
            let first = known.map_or((time_us, rule), |known| known.min((time_us, rule)));
            pending.view_rule = first.1;
        }
        let time = match outcome {
            Outcome::View => &mut pending.view_us,
            Outcome::Click => &mut pending.click_us,
        };
        let repeated = time.is_some();
        *time = Some(time.map_or(time_us, |known| known.min(time_us)));

        let counters = &mut self.book.counters;
        match outcome {
            Outcome::View => counters.views_repeated += u64::from(repeated),
            Outcome::Click if repeated => counters.clicks_repeated += 1,
            Outcome::Click => counters.clicks += 1,
        }
        counters.impressions_viewed += u64::from(!was_viewed);
        let deadline_us = pending.deadline_us(&self.windows);
        self.timers.push(deadline_us, Kind::Impression, key);
        self.remember_viewed(key);
        if !was_viewed {
            self.count_pending(key, SourceEvent::Impression, 0.0, time_us);
        }
        if outcome == Outcome::Click && !repeated {
            self.count_pending(key, SourceEvent::Click, 0.0, time_us);
        }
    }

    /// Marks an impression whose row is written: its labels are mended when its day matures.
    fn mark_written(&mut self, key: u64, outcome: Outcome, time_us: i64) {
        let Some(viewed) = self.book.viewed.get_mut(&key) else {
            return;
        };
        let counters = &mut self.book.counters;
        match (outcome, viewed.click_us) {
            (Outcome::View, _) => counters.views_repeated += 1,
            (Outcome::Click, Some(_)) => counters.clicks_repeated += 1,
            (Outcome::Click, None) => {
                counters.clicks += 1;
                counters.clicks_late += 1;
                viewed.click_us = Some(time_us);
                let day = viewed.day;
                let deadline_us = viewed.deadline_us(&self.windows);
                self.timers.push(deadline_us, Kind::Viewed, key);
                self.mend(day, key).click_us = Some(time_us);
                self.count_written(key, SourceEvent::Click, 0.0, time_us);
            }
        }
    }

    /// Brings `viewed` up to date with a pending impression that is in view.
    fn remember_viewed(&mut self, key: u64) {
        let pending = &self.book.impressions[&key];
        let Some(viewed_us) = pending.viewed_us() else {
            return;
        };
        let click_us = pending.click_us;
        let viewed = self.book.viewed.entry(key).or_insert_with(|| {
            let person = pending.subject.person();
            let pair = person.map(|person| pair(person, &pending.served.campaign_id));
            if let Some(pair) = pair {
                self.touches.entry(pair).or_default().push(key);
            }
            Viewed {
                pair,
                day: pending.day(),
                viewed_us,
                click_us,
                about: Encoded::default(),
            }
        });
        viewed.viewed_us = viewed_us;
        viewed.click_us = click_us;
        let deadline_us = viewed.deadline_us(&self.windows);
        self.timers.push(deadline_us, Kind::Viewed, key);
    }

    /// Counts something that happened to an impression whose row is not written.
    pub(super) fn count_pending(
        &mut self,
        key: u64,
        source: SourceEvent,
        value: f64,
        time_us: i64,
    ) {
        let counted = self.book.counted(source, value, time_us);
        let Some(pending) = self.book.impressions.get_mut(&key) else {
            return;
        };
        if pending.request.is_none() {
            let about = About {
                subject: &pending.subject,
                age_band: pending.age_band,
                context: pending.served.context.get_or_insert_default(),
                time_us: pending.served_us,
            };
            pending.request = Some(bind_request(&self.set, &self.book.ads, about));
        }
        if let Some(request) = &pending.request {
            let ad = self.book.ads.facts(&pending.served.creative_id);
            self.aggregates.apply(&self.set, request, ad, counted);
            let number = self.book.counters.count_event();
            let facts = &mut self.outputs.facts;
            facts.push_event(&self.set, number, counted, request, ad);
        }
    }

    /// Counts something that happened to an impression whose row is written.
    pub(super) fn count_written(
        &mut self,
        key: u64,
        source: SourceEvent,
        value: f64,
        time_us: i64,
    ) {
        let Some(viewed) = self.book.viewed.get(&key) else {
            return;
        };
        let Gated { event, subject, .. } = Gated::new(viewed.about.decode());
        let Some(Payload::ImpressionServed(served)) = &event.payload else {
            return;
        };
        let none = Context::default();
        let context = served.context.as_ref().unwrap_or(&none);
        let about = About::of(&event, &subject, context);
        let request = bind_request(&self.set, &self.book.ads, about);
        let ad = self.book.ads.facts(&served.creative_id);
        let counted = self.book.counted(source, value, time_us);
        self.aggregates.apply(&self.set, &request, ad, counted);
        let number = self.book.counters.count_event();
        let facts = &mut self.outputs.facts;
        facts.push_event(&self.set, number, counted, &request, ad);
    }

    fn apply_waiting(&mut self, waiting: &Waiting) {
        // It was decoded when it came.
        let Ok(event) = Event::decode(waiting.payload.as_slice()) else {
            return;
        };
        if let Err(refusal) = self.apply_outcome(&Gated::new(event)) {
            let Waiting {
                partition,
                offset,
                payload,
                ..
            } = waiting;
            self.refuse(partition, *offset, payload, &refusal);
        }
    }
}

/// One of whom it may not be known who it is cannot be told from another.
fn check_user(served_to: &Subject, by: &Subject, impression_id: &str) -> Result<(), Refusal> {
    match (served_to.person(), by.person()) {
        (Some(served_to), Some(by)) if served_to != by => Err(Refusal::OtherUser {
            impression_id: impression_id.to_owned(),
            user_id: by.as_str().to_owned(),
        }),
        _ => Ok(()),
    }
}

/// What a person cannot have done: a click at once, or a view for longer than the ad was there.
fn check_pace(served_us: i64, event: &Event, windows: &Windows) -> Result<(), Refusal> {
    match &event.payload {
        Some(Payload::Click(_)) => {
            // By the platform's clocks, not the client's.
            let after_us = event.ingest_time_us - served_us;
            let least_us = windows.min_click_us;
            if (0..least_us).contains(&after_us) {
                return Err(Refusal::TooFast { after_us, least_us });
            }
        }
        Some(Payload::ImpressionViewed(evidence)) => {
            let (duration_ms, after_us) = (evidence.duration_ms, event.event_time_us - served_us);
            if i64::from(duration_ms) * 1_000 > after_us + windows.skew_us {
                return Err(Refusal::ImpossibleDuration {
                    duration_ms,
                    after_us,
                });
            }
        }
        _ => {}
    }
    Ok(())
}

/// What [`Processor::count_written`] needs to know of an impression.
pub(super) fn about(pending: &mut Pending) -> Encoded<Event> {
    let person = pending.subject.person();
    // Lent to the message while it is encoded, and not copied.
    let mut event = Event {
        event_time_us: pending.served_us,
        user_id: person.map_or_else(String::new, |person| person.as_str().to_owned()),
        age_band: pending.age_band,
        ..Event::default()
    };
    let served = ImpressionServed {
        creative_id: std::mem::take(&mut pending.served.creative_id),
        context: pending.served.context.take(),
        ..ImpressionServed::default()
    };
    event.payload = Some(Payload::ImpressionServed(served));
    let encoded = Encoded::new(&event);
    if let Some(Payload::ImpressionServed(served)) = event.payload {
        pending.served.creative_id = served.creative_id;
        pending.served.context = served.context;
    }
    encoded
}

/// A column that is not multi-valued has one id a row.
fn single_values(schema: &Schema, row: &FeatureBatch) -> Result<(), SnapshotError> {
    let columns = schema.sparse.iter().zip(&row.sparse);
    for (_, ids) in columns.filter(|(field, _)| !field.multi) {
        let found = ids.row(0).len();
        if found != 1 {
            return Err(SnapshotError {
                what: "ids of a single-valued feature",
                found,
                wanted: 1,
            });
        }
    }
    Ok(())
}
