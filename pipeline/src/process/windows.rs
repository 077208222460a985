//! What happens when the watermark passes a deadline.

use features::SourceEvent;
use wire::events::Conversion;

use super::{
    attribution::{Credit, Touch},
    book::{Mend, PendingConversion, Viewed, Waiting, day_deadline_us, earlier, pair},
    impressions::about,
    processor::{Gated, Processor, Row, key},
    refusal::Refusal,
    timer::{Kind, Timer},
};

impl Processor {
    /// Keeps a conversion until the clicks and views before it have come.
    pub(super) fn wait_for_watermark(&mut self, gated: &Gated, conversion: &Conversion) {
        let event = &gated.event;
        let Some(person) = gated.subject.person() else {
            // Nobody knows whose click or view it could follow from.
            self.book.counters.conversions_unattributed += 1;
            return;
        };
        let key = key(&event.event_id);
        let pending = PendingConversion {
            event_time_us: event.event_time_us,
            pair: pair(person, &conversion.campaign_id),
            value_micros: conversion.value_micros,
        };
        self.book.conversions.insert(key, pending);
        self.timers.push(event.event_time_us, Kind::Conversion, key);
    }

    /// Acts on a deadline that `until_us` has passed, unless it has moved since.
    pub(super) fn fire(&mut self, timer: Timer, until_us: i64) {
        match timer.kind {
            Kind::Conversion => self.attribute(timer.key),
            Kind::Impression => self.close_impression(timer, until_us),
            Kind::Waiting => self.give_up(timer.key, until_us),
            Kind::Viewed => self.forget(timer),
            Kind::Day => self.mature(timer),
        }
    }

    /// Credits a conversion to clicks in its window, or else to views. Features count it once: for the
    /// impression with most credit, the last one of these.
    fn attribute(&mut self, conversion: u64) {
        let Some(conversion) = self.book.conversions.remove(&conversion) else {
            return;
        };
        let PendingConversion {
            event_time_us,
            pair,
            value_micros,
        } = conversion;
        let touches = self.touches_before(pair, event_time_us);
        let half_life_us = self.windows.half_life_us;
        let credits = self
            .attribution
            .credit(touches, event_time_us, half_life_us, value_micros);
        let most = credits.iter().max_by(|a, b| a.share.total_cmp(&b.share));
        let Some(counted) = most.map(|most| most.impression) else {
            self.book.counters.conversions_unattributed += 1;
            return;
        };
        self.book.counters.conversions += 1;
        for credit in credits {
            self.credit(credit, event_time_us);
        }
        let value = value_micros as f64 / 1e6;
        if self.book.impressions.contains_key(&counted) {
            self.count_pending(counted, SourceEvent::Conversion, value, event_time_us);
        } else {
            self.count_written(counted, SourceEvent::Conversion, value, event_time_us);
        }
    }

    fn credit(&mut self, credit: Credit, conversion_us: i64) {
        let Credit {
            impression,
            share,
            value_micros,
        } = credit;
        if let Some(pending) = self.book.impressions.get_mut(&impression) {
            pending.conversion_credit += share;
            pending.conversion_micros = pending.conversion_micros.saturating_add(value_micros);
            pending.conversion_us = earlier(pending.conversion_us, Some(conversion_us));
        } else if let Some(day) = self.book.viewed.get(&impression).map(|viewed| viewed.day) {
            let mend = self.mend(day, impression);
            mend.conversion_credit += share;
            mend.conversion_micros = mend.conversion_micros.saturating_add(value_micros);
            mend.conversion_us = earlier(mend.conversion_us, Some(conversion_us));
        }
    }

    /// The clicks on a campaign's ads in the window before `time_us`, or else their views.
    fn touches_before(&self, pair: u64, time_us: i64) -> Vec<Touch> {
        let within = |at_us: &i64| (0..=self.windows.conversion_us).contains(&(time_us - at_us));
        let Some(impressions) = self.touches.get(&pair) else {
            return Vec::new();
        };
        let touches = |at: fn(&Viewed) -> Option<i64>| {
            let times = impressions.iter().filter_map(|key| {
                let at_us = at(self.book.viewed.get(key)?).filter(within)?;
                Some(Touch {
                    at_us,
                    impression: *key,
                })
            });
            times.collect::<Vec<_>>()
        };
        let clicks = touches(|viewed| viewed.click_us);
        match clicks.is_empty() {
            true => touches(|viewed| Some(viewed.viewed_us)),
            false => clicks,
        }
    }

    /// Label changes of a written row; its day stays open for them.
    pub(super) fn mend(&mut self, day: i32, impression: u64) -> &mut Mend {
        self.open_day(day);
        let of_day = self.book.mends.entry(day).or_default();
        of_day.entry(impression).or_default()
    }

    fn close_impression(&mut self, timer: Timer, until_us: i64) {
        let pending = self.book.impressions.get(&timer.key);
        if pending.is_none_or(|it| it.deadline_us(&self.windows) != timer.deadline_us) {
            return;
        }
        let Some(mut impression) = self.book.impressions.remove(&timer.key) else {
            return;
        };
        let Some(viewed_us) = impression.viewed_us() else {
            self.book.counters.impressions_unviewed += 1;
            return;
        };
        impression.request = None;
        if let Some(viewed) = self.book.viewed.get_mut(&timer.key) {
            viewed.about = about(&mut impression);
        }
        let final_us = impression.click_us.unwrap_or(viewed_us) + self.windows.conversion_us;
        // The watermark counts, also when the input has ended: conversions may still come.
        let watermark_us = until_us.min(self.watermark_us());
        let matured = watermark_us >= final_us;
        if !matured {
            self.open_day(impression.day());
        }
        self.book.counters.rows_written += 1;
        self.outputs.rows.push(Row {
            impression,
            matured,
            // Conversions fire in the order of time, and those after the deadline have not yet.
            labels_as_of_us: match matured {
                true => final_us,
                false => timer.deadline_us.min(watermark_us),
            },
        });
    }

    fn open_day(&mut self, day: i32) {
        if self.book.open_days.insert(day) {
            let deadline_us = day_deadline_us(day, &self.windows);
            self.timers.push(deadline_us, Kind::Day, day as u64);
        }
    }

    /// Refuses the views and clicks that have waited too long for their impression.
    fn give_up(&mut self, impression: u64, until_us: i64) {
        let Some(waiting) = self.book.waiting.remove(&impression) else {
            return;
        };
        let windows = self.windows;
        let (over, staying): (Vec<Waiting>, Vec<Waiting>) = waiting
            .into_iter()
            .partition(|it| it.deadline_us(&windows) <= until_us);
        if !staying.is_empty() {
            self.book.waiting.insert(impression, staying);
        }
        for waiting in over {
            let refusal = unattributed(&waiting);
            let Waiting {
                partition,
                offset,
                payload,
                ..
            } = waiting;
            self.refuse(&partition, offset, &payload, &refusal);
        }
    }

    fn forget(&mut self, timer: Timer) {
        let viewed = self.book.viewed.get(&timer.key);
        if viewed.is_none_or(|it| it.deadline_us(&self.windows) != timer.deadline_us) {
            return;
        }
        let Some(viewed) = self.book.viewed.remove(&timer.key) else {
            return;
        };
        let Some(pair) = viewed.pair else { return };
        if let Some(of_pair) = self.touches.get_mut(&pair) {
            of_pair.retain(|key| *key != timer.key);
            if of_pair.is_empty() {
                self.touches.remove(&pair);
            }
        }
    }

    fn mature(&mut self, timer: Timer) {
        let day = timer.key as i32;
        if !self.book.open_days.remove(&day) {
            return;
        }
        let mends = self.book.mends.remove(&day).unwrap_or_default();
        self.book.counters.days_matured += 1;
        self.book.counters.rows_mended += mends.len() as u64;
        self.outputs.matured.entry(day).or_default().extend(mends);
    }
}

fn unattributed(waiting: &Waiting) -> Refusal {
    use prost::Message;
    use wire::events::{Event, event::Payload};

    let event = Event::decode(waiting.payload.as_slice()).unwrap_or_default();
    let (what, impression_id) = match event.payload {
        Some(Payload::ImpressionViewed(viewed)) => ("view", viewed.impression_id),
        Some(Payload::Click(click)) => ("click", click.impression_id),
        _ => ("event", String::new()),
    };
    Refusal::Unattributed {
        what,
        impression_id,
    }
}
