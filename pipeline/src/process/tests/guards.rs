//! What bots do ends in the dead letters; what people do does not.

use proptest::prelude::*;

use super::*;
use crate::process::{
    AttributionModel, PipelineConfig, config::SamplingConfig, fixture::*, viewability::ViewRule,
};

const T: i64 = START_US + HOUR_US;

fn processor_with(change: impl FnOnce(&mut PipelineConfig)) -> Processor {
    let mut config = PipelineConfig::default();
    change(&mut config);
    let mut processor = Processor::new(&config, feature_set());
    let catalogue = [
        campaign("c1", START_US),
        creative("c1-a", "c1", START_US),
        creative("c1-b", "c1", START_US),
        experience("e1", START_US),
    ];
    apply(&mut processor, &catalogue);
    processor
}

#[test]
fn a_flood_of_one_person_is_cut_off_and_others_are_not() {
    let mut processor = processor_with(|config| config.guards.max_events_per_minute = 3);
    for at in 0..5 {
        apply(&mut processor, &[activity(1, T + at)]);
    }
    let other = of_user(activity(1, T + 6), "u2");
    apply(&mut processor, &[other, activity(1, T + MINUTE_US)]);
    let outputs = processor.take_outputs();
    assert_eq!(reasons(&outputs), ["too_many", "too_many"]);
    let message = &outputs.dead_letters[0].message;
    let wanted =
        "user `u1` has 4 events in a minute, wanted at most 3 (`guards.max_events_per_minute`)";
    assert!(message.contains(wanted), "{message}");
    assert_eq!(processor.counters().activities, 5);
}

#[test]
fn more_clicks_than_a_person_makes_are_a_bots() {
    let mut processor = processor_with(|config| config.guards.max_clicks_per_hour = 2);
    for at in 0..4 {
        let (impression, time_us) = (format!("i{at}"), T + at * MINUTE_US);
        let events = [
            served(&impression, "c1-a", time_us),
            click(&impression, time_us + SECOND_US),
        ];
        apply(&mut processor, &events);
    }
    let outputs = processor.take_outputs();
    assert_eq!(reasons(&outputs), ["too_many", "too_many"]);
    assert_eq!(processor.counters().clicks, 2);
}

#[test]
fn a_click_at_once_was_made_by_nobody() {
    let (processor, outputs) = run(&[
        served("bot", "c1-a", T),
        click("bot", T + 49_000),
        served("person", "c1-a", T),
        click("person", T + 50_000),
    ]);
    assert_eq!(reasons(&outputs), ["too_fast"]);
    assert_eq!(processor.counters().clicks, 1);
}

#[test]
fn evidence_of_more_time_than_there_was_is_refused() {
    // Five minutes are the clocks'.
    let minutes = |minutes: u32| evidence("i", 1.0, 0.0, minutes * 60_000, T + MINUTE_US);
    let (_, outputs) = run(&[served("i", "c1-a", T), minutes(7)]);
    assert_eq!(reasons(&outputs), ["impossible_duration"]);
    let (_, outputs) = run(&[served("i", "c1-a", T), minutes(6)]);
    assert_eq!(reasons(&outputs), [""; 0]);
}

#[test]
fn the_rule_of_the_first_view_stands_in_the_row_whatever_comes_first() {
    let large = |time_us| {
        let mut event = evidence("i", 0.4, 0.0, 2_000, time_us);
        if let Some(wire::events::event::Payload::ImpressionViewed(it)) = &mut event.payload {
            it.ad_pixels = 300_000;
        }
        event
    };
    let check = |events: &[Event], expected| {
        let mut all = vec![served("i", "c1-a", T)];
        all.extend_from_slice(events);
        let (_, outputs) = run(&all);
        assert_eq!(outputs.rows[0].impression.view_rule, expected);
    };
    let whole = |time_us| viewed("i", time_us);
    check(&[large(T + 1), whole(T + 9)], ViewRule::LargeDisplay);
    check(&[whole(T + 9), large(T + 1)], ViewRule::LargeDisplay);
    check(&[whole(T + 1), large(T + 9)], ViewRule::Display);
    check(&[click("i", T + SECOND_US)], ViewRule::Click);
    check(
        &[click("i", T + SECOND_US), whole(T + 9)],
        ViewRule::Display,
    );
}

#[test]
fn a_session_ends_with_a_pause() {
    let (_, outputs) = run(&[
        activity(1, T),
        served("first", "c1-a", T + MINUTE_US),
        viewed("first", T + 2 * MINUTE_US),
        served("second", "c1-b", T + 20 * MINUTE_US),
        viewed("second", T + 21 * MINUTE_US),
        served("later", "c1-b", T + 51 * MINUTE_US),
        viewed("later", T + 51 * MINUTE_US),
    ]);
    let session = |id: &str| {
        let mut rows = outputs.rows.iter();
        let row = rows.find(|row| row.impression.served.impression_id == id);
        row.unwrap().impression.session
    };
    assert_eq!(session("first").id, session("second").id);
    assert_eq!(session("second").impression, 1);
    assert_ne!(session("later").id, session("first").id);
    assert_eq!(session("later").impression, 0);
}

#[test]
fn a_conversion_is_shared_as_the_model_says_and_counted_once() {
    let mut processor = processor_with(|config| {
        config.attribution.model = AttributionModel::Linear;
    });
    let events = [
        served("a", "c1-a", T),
        click("a", T + SECOND_US),
        served("b", "c1-b", T),
        click("b", T + 2 * SECOND_US),
        conversion("c1", 5, T + MINUTE_US),
        activity(1, T + 30 * MINUTE_US),
    ];
    apply(&mut processor, &events);
    processor.close();
    let outputs = processor.take_outputs();
    let of = |row: &Row| {
        let it = &row.impression;
        (
            it.served.impression_id.clone(),
            it.conversion_credit,
            it.conversion_micros,
        )
    };
    let mut rows: Vec<_> = outputs.rows.iter().map(of).collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(rows, [("a".to_owned(), 0.5, 3), ("b".to_owned(), 0.5, 2)]);
    assert_eq!(processor.counters().conversions, 1);
}

proptest! {
    #[test]
    fn no_rate_of_a_minute_within_the_bound_is_refused(
        gaps_us in prop::collection::vec(0i64..3 * MINUTE_US, 1..60),
    ) {
        let mut processor = processor_with(|config| config.guards.max_events_per_minute = 60);
        let mut time_us = T;
        for gap_us in gaps_us {
            time_us += gap_us;
            let mut event = activity(1, time_us);
            event.event_id = format!("{time_us}-{gap_us}");
            apply(&mut processor, &[event]);
        }
        prop_assert_eq!(processor.counters().events_dead, 0);
    }
}

#[test]
fn a_sampling_rate_out_of_range_is_a_setting_error() {
    let config = PipelineConfig {
        sampling: SamplingConfig {
            negative_rate: 0.0,
            seed: 0,
        },
        ..PipelineConfig::default()
    };
    assert_eq!(config.check().unwrap_err().key, "sampling.negative_rate");
}
