//! Each way in which an event can be bad has its own reason.

use wire::events::{
    CampaignChanged, CreativeChanged, Event, ImpressionServed, ImpressionViewed, event::Payload,
};

use super::*;
use crate::process::fixture::*;

const T: i64 = START_US + 10 * SECOND_US;

fn check(event: Event, reason: &str, words: &str) {
    let mut processor = processor();
    apply(&mut processor, &[event]);
    let outputs = processor.take_outputs();
    assert_eq!(reasons(&outputs), [reason]);
    let letter = &outputs.dead_letters[0];
    assert!(letter.message.contains(words), "{}", letter.message);
    assert_eq!(processor.counters().dead_by_reason[reason], 1);
}

fn changed(mut event: Event, change: impl FnOnce(&mut Event)) -> Event {
    change(&mut event);
    event
}

fn served_with(change: impl FnOnce(&mut ImpressionServed)) -> Event {
    changed(served("i", "c1-a", T), |event| match &mut event.payload {
        Some(Payload::ImpressionServed(it)) => change(it),
        _ => unreachable!("it was just made"),
    })
}

fn viewed_with(change: impl FnOnce(&mut ImpressionViewed)) -> Event {
    changed(viewed("i", T), |event| match &mut event.payload {
        Some(Payload::ImpressionViewed(it)) => change(it),
        _ => unreachable!("it was just made"),
    })
}

fn creative_with(change: impl FnOnce(&mut CreativeChanged)) -> Event {
    changed(creative("c1-x", "c1", T), |event| {
        match &mut event.payload {
            Some(Payload::CreativeChanged(it)) => change(it),
            _ => unreachable!("it was just made"),
        }
    })
}

fn campaign_with(change: impl FnOnce(&mut CampaignChanged)) -> Event {
    changed(campaign("c9", T), |event| match &mut event.payload {
        Some(Payload::CampaignChanged(it)) => change(it),
        _ => unreachable!("it was just made"),
    })
}

#[test]
fn envelopes() {
    let ok = || served("i", "c1-a", T);
    check(
        changed(ok(), |it| it.event_id.clear()),
        "empty_id",
        "`event_id`",
    );
    check(
        changed(ok(), |it| it.payload = None),
        "no_payload",
        "no payload",
    );
    check(
        changed(ok(), |it| it.schema_version = 0),
        "schema_version",
        "is 0",
    );
    check(
        changed(ok(), |it| it.schema_version = 9),
        "schema_version",
        "is 9",
    );
    check(
        changed(ok(), |it| it.event_time_us = -5),
        "time_out_of_range",
        "`event_time_us` is -5",
    );
    check(
        changed(ok(), |it| it.ingest_time_us = i64::MAX),
        "time_out_of_range",
        "`ingest_time_us`",
    );
    check(
        changed(ok(), |it| it.ingest_time_us -= 6 * MINUTE_US),
        "in_future",
        "clock runs ahead",
    );
    let far_us = 7_000_000_000 * SECOND_US;
    check(
        changed(ok(), |it| {
            (it.event_time_us, it.ingest_time_us) = (far_us, far_us)
        }),
        "in_future",
        "clock runs ahead",
    );
    check(
        changed(ok(), |it| it.event_id = "x".repeat(600)),
        "id_too_long",
        "600 bytes",
    );
}

#[test]
fn a_sender_may_be_a_little_ahead_and_anyone_anonymous() {
    let (_, outputs) = run(&[
        changed(served("i", "c1-a", T), |it| {
            it.ingest_time_us -= 4 * MINUTE_US
        }),
        changed(of_user(activity(5, T), ""), |it| it.age_band = 1),
        of_user(activity(6, T + 1), ""),
    ]);
    assert_eq!(reasons(&outputs), [""; 0]);
}

#[test]
fn impressions() {
    check(
        served_with(|it| it.impression_id.clear()),
        "empty_id",
        "`impression_id`",
    );
    check(
        served_with(|it| it.creative_id.clear()),
        "empty_id",
        "`creative_id`",
    );
    check(
        served_with(|it| it.campaign_id.clear()),
        "empty_id",
        "`campaign_id`",
    );
    check(
        served_with(|it| it.bid_micros = -1),
        "negative_amount",
        "`bid_micros` is -1",
    );
    check(
        served_with(|it| it.price_micros = -1),
        "negative_amount",
        "`price_micros`",
    );
    check(served_with(|it| it.pctr = f32::NAN), "not_finite", "`pctr`");
    check(
        served_with(|it| it.creative_id = "c7".to_owned()),
        "unknown_creative",
        "creative `c7` is not known",
    );
    let long = |it: &mut ImpressionServed| {
        it.context.get_or_insert_default().country = "x".repeat(1_000);
    };
    check(served_with(long), "id_too_long", "context.country");
}

#[test]
fn a_second_impression_of_one_id_is_refused() {
    let again = changed(served("i", "c1-b", T + SECOND_US), |it| {
        it.event_id = "another".to_owned();
    });
    let (_, outputs) = run(&[served("i", "c1-a", T), again, viewed("i", T)]);
    assert_eq!(reasons(&outputs), ["repeated_impression"]);
    assert_eq!(outputs.rows.len(), 1);
}

#[test]
fn views() {
    let share = "share_out_of_range";
    check(
        viewed_with(|it| it.viewport_share = 1.5),
        share,
        "`viewport_share` is 1.5",
    );
    check(
        viewed_with(|it| it.viewport_share = f32::NAN),
        share,
        "is NaN",
    );
    check(
        viewed_with(|it| it.occluded_share = -0.1),
        share,
        "`occluded_share` is -0.1",
    );
    check(
        viewed_with(|it| it.impression_id.clear()),
        "empty_id",
        "`impression_id`",
    );
}

#[test]
fn conversions() {
    check(
        conversion("c1", -1, T),
        "negative_amount",
        "`value_micros` is -1",
    );
    check(conversion("", 1, T), "empty_id", "`campaign_id`");
}

#[test]
fn catalogue_changes() {
    check(
        campaign_with(|it| it.bid_micros = -5),
        "negative_amount",
        "`bid_micros` is -5",
    );
    check(
        campaign_with(|it| it.daily_budget_micros = -5),
        "negative_amount",
        "budget",
    );
    check(
        campaign_with(|it| it.campaign_id.clear()),
        "empty_id",
        "`campaign_id`",
    );
    check(
        creative_with(|it| it.creative_id.clear()),
        "empty_id",
        "`creative_id`",
    );
    check(
        creative_with(|it| it.campaign_id.clear()),
        "empty_id",
        "`campaign_id`",
    );
    check(
        creative_with(|it| it.picture_png.truncate(30)),
        "bad_picture",
        "picture of creative `c1-x`: not a whole PNG",
    );
    check(
        creative_with(|it| it.picture_png = b"\x89PNG".to_vec()),
        "bad_picture",
        "not a whole PNG",
    );
    let broken_scene = changed(experience("e9", T), |event| match &mut event.payload {
        Some(Payload::ExperienceChanged(it)) => it.scenes[0].picture_png = vec![1, 2, 3],
        _ => unreachable!("it was just made"),
    });
    check(broken_scene, "bad_picture", "picture of scene `e9-scene`");
}

#[test]
fn a_refused_picture_leaves_the_creative_as_it_was() {
    let mut processor = processor();
    let broken = changed(creative("c1-a", "c2", T), |event| {
        match &mut event.payload {
            Some(Payload::CreativeChanged(it)) => it.picture_png = vec![1],
            _ => unreachable!("it was just made"),
        }
    });
    apply(&mut processor, &[broken]);
    assert_eq!(processor.ads().live().creatives["c1-a"].campaign_id, "c1");
}

#[test]
fn a_creative_without_picture_is_one() {
    let mut processor = processor();
    apply(
        &mut processor,
        &[creative_with(|it| it.picture_png.clear())],
    );
    let live = processor.ads().live();
    assert_eq!(live.creatives["c1-x"].picture_digest, "");
    assert_eq!(live.creatives["c1-x"].style, [0.0; 0]);
}

#[test]
fn a_creative_waits_for_its_campaign() {
    let mut processor = processor();
    apply(
        &mut processor,
        &[creative("c3-a", "c3", T), served("i", "c3-a", T)],
    );
    assert_eq!(reasons(&processor.take_outputs()), ["unknown_campaign"]);
    assert!(!processor.ads().live().creatives.contains_key("c3-a"));

    apply(&mut processor, &[campaign("c3", T), served("j", "c3-a", T)]);
    assert_eq!(reasons(&processor.take_outputs()), [""; 0]);
    assert!(processor.ads().live().creatives.contains_key("c3-a"));
}

#[test]
fn what_is_older_than_deduplication_remembers_is_refused() {
    let mut processor = processor();
    apply(
        &mut processor,
        &[activity(5, T + 30 * 24 * HOUR_US), activity(5, T)],
    );
    assert_eq!(reasons(&processor.take_outputs()), ["too_old"]);
}

#[test]
fn bytes_that_are_no_event() {
    let mut processor = processor();
    processor.apply(payload_record(vec![0xff; 9]));
    let outputs = processor.take_outputs();
    assert_eq!(reasons(&outputs), ["malformed"]);
    assert_eq!(outputs.dead_letters[0].payload_hex, "ff".repeat(9));
}
