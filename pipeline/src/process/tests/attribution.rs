//! Which views, clicks and conversions end up in which row.

use super::*;
use crate::process::fixture::*;

/// 10 seconds after the start.
const T: i64 = START_US + 10 * SECOND_US;
const DAY_US: i64 = 24 * HOUR_US;

#[test]
fn only_viewable_evidence_or_a_click_makes_a_row() {
    let (processor, outputs) = run(&[
        served("seen", "c1-a", T),
        viewed("seen", T + SECOND_US),
        served("occluded", "c1-a", T),
        evidence("occluded", 0.9, 0.5, 5_000, T + SECOND_US),
        served("short", "c1-a", T),
        evidence("short", 1.0, 0.0, 999, T + SECOND_US),
        served("just", "c1-a", T),
        evidence("just", 0.5, 0.0, 1_000, T + SECOND_US),
        served("clicked", "c1-a", T),
        click("clicked", T + 2 * SECOND_US),
        served("unseen", "c1-a", T),
    ]);
    let mut rows: Vec<_> = outputs.rows.iter().map(labels).collect();
    rows.sort();
    assert_eq!(
        rows,
        [
            ("clicked", true, 0, false),
            ("just", false, 0, false),
            ("seen", false, 0, false),
        ]
    );
    let counters = processor.counters();
    assert_eq!(counters.views_not_viewable, 2);
    assert_eq!(counters.impressions_unviewed, 3);
    assert_eq!(counters.impressions_viewed, 3);
    assert_eq!(reasons(&outputs), [""; 0]);
}

#[test]
fn the_order_of_arrival_does_not_matter() {
    let mut events = [
        served("i", "c1-a", T),
        viewed("i", T + SECOND_US),
        click("i", T + 3 * SECOND_US),
    ];
    for (from, to) in [(0, 0), (0, 1), (1, 2), (0, 1), (1, 2), (0, 1)] {
        events.swap(from, to);
        let (processor, outputs) = run(&events);
        let rows: Vec<_> = outputs.rows.iter().map(labels).collect();
        assert_eq!(rows, [("i", true, 0, false)], "{events:?}");
        assert_eq!(outputs.rows[0].impression.viewed_us(), Some(T + SECOND_US));
        assert_eq!(processor.counters().clicks, 1);
        assert_eq!(processor.counters().impressions_viewed, 1);
    }
}

#[test]
fn a_row_waits_for_its_click_window_by_the_watermark() {
    let mut processor = processor();
    let viewed_us = T + SECOND_US;
    let rows_at = |processor: &mut Processor, time_us| {
        apply(processor, &[activity(5, time_us)]);
        processor.take_outputs().rows.len()
    };
    apply(
        &mut processor,
        &[served("i", "c1-a", T), viewed("i", viewed_us)],
    );
    let due_us = viewed_us + 30 * MINUTE_US + 10 * MINUTE_US;
    assert_eq!(rows_at(&mut processor, due_us - 1), 0);
    assert_eq!(processor.impressions_pending(), 1);
    assert_eq!(rows_at(&mut processor, due_us), 1);
    assert_eq!(processor.impressions_pending(), 0);
}

#[test]
fn a_view_that_comes_hours_late_still_makes_a_row() {
    let mut processor = processor();
    apply(&mut processor, &[served("i", "c1-a", T)]);
    apply(
        &mut processor,
        &[activity(5, T + 5 * HOUR_US), viewed("i", T + SECOND_US)],
    );
    apply(&mut processor, &[activity(6, T + 6 * HOUR_US)]);
    let outputs = processor.take_outputs();
    let rows: Vec<_> = outputs.rows.iter().map(labels).collect();
    assert_eq!(rows, [("i", false, 0, false)]);
    assert_eq!(reasons(&outputs), [""; 0]);
    assert_eq!(processor.counters().late, 1);
}

#[test]
fn duplicates_count_once() {
    let events = [
        served("i", "c1-a", T),
        viewed("i", T + SECOND_US),
        click("i", T + 2 * SECOND_US),
    ];
    let twice: Vec<Event> = events
        .iter()
        .flat_map(|it| [it.clone(), it.clone()])
        .collect();
    let (processor, outputs) = run(&twice);
    let counters = processor.counters();
    assert_eq!(outputs.rows.len(), 1);
    assert_eq!((counters.duplicates, counters.clicks), (3, 1));
    assert_eq!(counters.events_in, 6 + 6);
}

#[test]
fn a_second_click_or_view_is_counted_and_changes_nothing() {
    let (processor, outputs) = run(&[
        served("i", "c1-a", T),
        viewed("i", T + SECOND_US),
        viewed("i", T + 2 * SECOND_US),
        click("i", T + 3 * SECOND_US),
        click("i", T + 4 * SECOND_US),
    ]);
    let counters = processor.counters();
    assert_eq!((counters.clicks, counters.clicks_repeated), (1, 1));
    assert_eq!(
        (counters.impressions_viewed, counters.views_repeated),
        (1, 1)
    );
    assert_eq!(outputs.rows.len(), 1);
}

#[test]
fn a_late_click_mends_the_row_when_its_day_matures() {
    let mut processor = processor();
    apply(&mut processor, &[served("i", "c1-a", T), viewed("i", T)]);
    apply(&mut processor, &[activity(5, T + 2 * HOUR_US)]);
    let rows = processor.take_outputs().rows;
    assert_eq!(labels(&rows[0]), ("i", false, 0, false));

    // Within the click window by its own time; the row is written already.
    apply(&mut processor, &[click("i", T + MINUTE_US)]);
    apply(
        &mut processor,
        &[conversion("c1", 7_000_000, T + 3 * HOUR_US)],
    );
    apply(&mut processor, &[activity(5, T + 6 * DAY_US)]);
    assert!(processor.take_outputs().matured.is_empty());
    apply(&mut processor, &[activity(5, T + 10 * DAY_US)]);
    let matured = processor.take_outputs().matured;
    let of_day: Vec<_> = matured.values().flatten().collect();
    let (_, mend) = of_day[0];
    assert_eq!(mend.click_us, Some(T + MINUTE_US));
    assert_eq!(mend.conversion_us, Some(T + 3 * HOUR_US));
    assert_eq!(
        (mend.conversion_credit, mend.conversion_micros),
        (1.0, 7_000_000)
    );
    assert_eq!(processor.counters().clicks_late, 1);
    assert_eq!(processor.counters().late, 1);
    assert_eq!(processor.counters().days_matured, 1);
}

#[test]
fn clicks_and_views_outside_their_windows_are_refused() {
    let (processor, outputs) = run(&[
        served("i", "c1-a", T),
        viewed("i", T + SECOND_US),
        click("i", T + 31 * MINUTE_US + 1),
        served("j", "c1-a", T + 31 * MINUTE_US),
        viewed("j", T),
    ]);
    assert_eq!(reasons(&outputs), ["outside_window", "outside_window"]);
    assert_eq!(processor.counters().clicks, 0);
}

#[test]
fn a_click_of_someone_else_is_refused() {
    let (_, outputs) = run(&[
        served("i", "c1-a", T),
        viewed("i", T),
        of_user(click("i", T + SECOND_US), "u2"),
    ]);
    assert_eq!(reasons(&outputs), ["other_user"]);
    assert_eq!(labels(&outputs.rows[0]), ("i", false, 0, false));
}

#[test]
fn views_and_clicks_without_an_impression_wait_and_are_then_refused() {
    let mut processor = processor();
    apply(&mut processor, &[viewed("i", T), click("j", T)]);
    let due_us = T + DAY_US + 40 * MINUTE_US;
    apply(&mut processor, &[activity(5, due_us - MINUTE_US)]);
    assert_eq!(reasons(&processor.take_outputs()), [""; 0]);
    apply(&mut processor, &[activity(5, due_us)]);
    let outputs = processor.take_outputs();
    assert_eq!(reasons(&outputs), ["unattributed"; 2]);
    assert_eq!(processor.counters().events_dead, 2);
}

fn conversions_of(events: &[Event]) -> Vec<(String, f64)> {
    let (_, outputs) = run(events);
    let rows = outputs
        .rows
        .iter()
        .filter(|row| row.impression.conversion_credit > 0.0);
    let mut rows: Vec<_> = rows
        .map(|row| {
            let it = &row.impression;
            (it.served.impression_id.clone(), it.conversion_credit)
        })
        .collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    rows
}

#[test]
fn a_conversion_goes_to_the_last_click_and_else_to_the_last_view() {
    let clicked = [
        served("a", "c1-a", T),
        viewed("a", T),
        click("a", T + SECOND_US),
        served("b", "c1-b", T),
        viewed("b", T + 5 * SECOND_US),
    ];
    let converted = conversion("c1", 1, T + MINUTE_US);
    let mut events = clicked.to_vec();
    events.push(converted.clone());
    assert_eq!(conversions_of(&events), [("a".to_owned(), 1.0)]);

    // Without the click, the later view wins.
    events.remove(2);
    assert_eq!(conversions_of(&events), [("b".to_owned(), 1.0)]);

    // A click that happened before and arrives after the conversion still wins.
    let mut events = clicked.to_vec();
    let click = events.remove(2);
    events.extend([converted, click]);
    assert_eq!(conversions_of(&events), [("a".to_owned(), 1.0)]);
}

#[test]
fn conversions_of_others_or_outside_the_window_are_nobodys() {
    let seen = [served("a", "c1-a", T), viewed("a", T)];
    let check = |conversion: Event| {
        let mut events = seen.to_vec();
        events.push(conversion);
        let (processor, outputs) = run(&events);
        assert_eq!(outputs.rows[0].impression.conversion_credit, 0.0);
        assert_eq!(processor.counters().conversions_unattributed, 1);
        assert_eq!(reasons(&outputs), [""; 0]);
    };
    check(conversion("c2", 1, T + MINUTE_US));
    check(of_user(conversion("c1", 1, T + MINUTE_US), "u2"));
    check(conversion("c1", 1, T - SECOND_US));
    check(conversion("c1", 1, T + 7 * DAY_US + 1));
    let mut anonymous = of_user(conversion("c1", 1, T + MINUTE_US), "");
    anonymous.set_age_band(wire::events::AgeBand::Under13);
    check(anonymous);
}

#[test]
fn a_click_is_not_in_its_own_features_and_in_those_of_later_impressions() {
    let later = T + HOUR_US;
    let with_click = [
        served("i", "c1-a", T),
        viewed("i", T),
        click("i", T + SECOND_US),
        served("j", "c1-a", later),
        viewed("j", later),
    ];
    let mut without_click = with_click.to_vec();
    without_click.remove(2);
    let ctrs = |events: &[Event]| {
        let (processor, outputs) = run(events);
        let set = &processor.set;
        let ctr = outputs.rows.iter().map(|row| dense(set, row, "user_ctr"));
        ctr.collect::<Vec<_>>()
    };
    let (with, without) = (ctrs(&with_click), ctrs(&without_click));
    assert_eq!(with[0], without[0]);
    assert_eq!(without, [1.0 / 10.0, 1.0 / 11.0]);
    assert_eq!(with, [1.0 / 10.0, 2.0 / 11.0]);
}

#[test]
fn what_arrives_later_is_not_known_earlier() {
    // The first impression's view happened before the second impression, and arrived after it.
    let (processor, outputs) = run(&[
        served("i", "c1-a", T),
        served("j", "c1-a", T + MINUTE_US),
        viewed("i", T + SECOND_US),
        viewed("j", T + MINUTE_US),
    ]);
    for row in &outputs.rows {
        assert_eq!(dense(&processor.set, row, "category_views"), 0.0);
    }
}

#[test]
fn features_of_the_event_are_used_if_they_are_of_this_spec() {
    let (processor, outputs) = run(&[served("i", "c1-a", T), viewed("i", T)]);
    let snapshot = outputs.rows[0].impression.served.snapshot.clone().unwrap();
    let digest = processor.set.digest().to_owned();
    let check = |digest: &str, change: fn(&mut wire::events::FeatureSnapshot)| {
        let mut snapshot = snapshot.clone();
        digest.clone_into(&mut snapshot.spec_digest);
        snapshot.dense[1] = 77.0;
        change(&mut snapshot);
        let mut event = served("i", "c1-a", T);
        let Some(wire::events::event::Payload::ImpressionServed(it)) = &mut event.payload else {
            unreachable!("it was just made")
        };
        it.snapshot = Some(snapshot);
        let (processor, outputs) = run(&[event, viewed("i", T)]);
        let views = outputs.rows.iter();
        let views: Vec<f32> = views
            .map(|row| dense(&processor.set, row, "category_views"))
            .collect();
        (
            views,
            reasons(&outputs).join(" "),
            processor.counters().snapshots_used,
        )
    };
    assert_eq!(check(&digest, |_| {}), (vec![77.0], String::new(), 1));
    assert_eq!(check("other", |_| {}), (vec![0.0], String::new(), 0));
    let (rows, reasons, _) = check(&digest, |it| it.dense.truncate(2));
    assert_eq!(
        (rows.len(), reasons.as_str()),
        (0, "bad_snapshot unattributed")
    );
    // Two ids where one belongs, and none in the next column: the totals would still fit.
    let (rows, reasons, _) = check(&digest, |it| it.sparse_offsets[1] += 1);
    assert_eq!(
        (rows.len(), reasons.as_str()),
        (0, "bad_snapshot unattributed")
    );
    let (rows, reasons, _) = check(&digest, |it| it.dense[0] = f32::NAN);
    assert_eq!(
        (rows.len(), reasons.as_str()),
        (0, "not_finite unattributed")
    );
}

#[test]
fn removed_ads_leave_the_catalogue_and_keep_their_impressions() {
    let removed = |mut event: Event| {
        event.event_id.push_str("-removed");
        match &mut event.payload {
            Some(wire::events::event::Payload::CreativeChanged(it)) => it.removed = true,
            Some(wire::events::event::Payload::CampaignChanged(it)) => it.removed = true,
            other => unreachable!("{other:?} cannot be removed here"),
        }
        event
    };
    let (mut processor, outputs) = run(&[
        removed(creative("c1-a", "c1", T)),
        removed(campaign("c2", T)),
        served("i", "c1-a", T),
        viewed("i", T),
    ]);
    assert_eq!(outputs.rows.len(), 1);
    let live = processor.ads().live();
    assert_eq!(live.campaigns.keys().collect::<Vec<_>>(), ["c1"]);
    assert_eq!(live.creatives.keys().collect::<Vec<_>>(), ["c1-b"]);
}

#[test]
fn a_change_that_was_delayed_does_not_undo_a_newer_one() {
    let mut removal = campaign("c2", T);
    let Some(wire::events::event::Payload::CampaignChanged(it)) = &mut removal.payload else {
        unreachable!("it was just made")
    };
    it.removed = true;
    let (mut processor, outputs) = run(&[removal, campaign("c2", T - SECOND_US)]);
    assert_eq!(reasons(&outputs), [""; 0]);
    assert_eq!(processor.counters().catalogue_changes_stale, 1);
    let live = processor.ads().live();
    assert_eq!(live.campaigns.keys().collect::<Vec<_>>(), ["c1"]);
    // A change that is newer still counts.
    apply(&mut processor, &[campaign("c2", T + SECOND_US)]);
    assert_eq!(processor.ads().live().campaigns.len(), 2);
}

#[test]
fn an_impression_that_came_before_its_creative_may_be_sent_again() {
    let mut again = served("i", "c9-a", T);
    again.ingest_time_us += MINUTE_US;
    let (processor, outputs) = run(&[
        served("i", "c9-a", T),
        campaign("c9", T),
        creative("c9-a", "c9", T),
        again.clone(),
        again,
        viewed("i", T + SECOND_US),
    ]);
    assert_eq!(reasons(&outputs), ["unknown_creative"]);
    assert_eq!(outputs.rows.len(), 1);
    assert_eq!(processor.counters().duplicates, 1);
}

#[test]
fn a_conversion_within_its_window_counts_when_it_arrives_late() {
    let mut processor = processor();
    apply(&mut processor, &[served("i", "c1-a", T), viewed("i", T)]);
    // The watermark passes the end of the window, but not by more than the allowed lateness.
    apply(&mut processor, &[activity(5, T + 7 * DAY_US + HOUR_US)]);
    let converted = conversion("c1", 1, T + 7 * DAY_US - MINUTE_US);
    apply(&mut processor, &[converted, activity(5, T + 10 * DAY_US)]);
    assert_eq!(processor.counters().conversions, 1);
    let matured = processor.take_outputs().matured;
    let of_day: Vec<_> = matured.values().flatten().collect();
    assert_eq!(of_day[0].1.conversion_credit, 1.0);
}

#[test]
fn people_who_are_not_known_are_remembered_by_no_pair() {
    let anonymous = |event| of_user(event, "");
    let mut processor = processor();
    apply(
        &mut processor,
        &[
            anonymous(served("i", "c1-a", T)),
            anonymous(viewed("i", T)),
            served("j", "c1-a", T),
            viewed("j", T),
        ],
    );
    assert_eq!(processor.touches.len(), 1);
    assert_eq!(processor.book.touches().len(), 1);
    processor.close();
    assert_eq!(processor.take_outputs().rows.len(), 2);
}

#[test]
fn a_late_impression_does_not_see_what_came_after_it() {
    let (processor, outputs) = run(&[
        served("early", "c1-a", T - SECOND_US),
        viewed("early", T - SECOND_US),
        served("after", "c1-a", T + 30 * MINUTE_US),
        viewed("after", T + 30 * MINUTE_US),
        activity(5, T + 2 * HOUR_US),
        // Of the same hour as both, and behind the watermark by now.
        served("late", "c1-a", T),
        viewed("late", T + SECOND_US),
        // Now nobody can tell any more what was known of the category before the second view.
        served("last", "c1-a", T + 2 * HOUR_US),
        viewed("last", T + 2 * HOUR_US),
        served("too late", "c1-a", T + SECOND_US),
        viewed("too late", T + SECOND_US),
    ]);
    let views = |id: &str| {
        let of = |row: &&Row| row.impression.served.impression_id == id;
        let row = outputs.rows.iter().find(of).unwrap();
        dense(&processor.set, row, "category_views")
    };
    assert_eq!(views("after"), 1.0);
    assert_eq!(views("late"), 1.0);
    assert_eq!(views("too late"), 0.0);
    assert!(processor.counters().features_too_late > 0);
}
