//! What holds for every history.

use std::path::Path;

use proptest::prelude::*;
use wire::events::event::Payload;

use super::*;
use crate::process::{
    fixture::*,
    state::{self, StateHeader},
};

const IMPRESSIONS: [&str; 4] = ["i1", "i2", "i3", "i4"];
const CREATIVES: [&str; 4] = ["c1-a", "c1-b", "c2-a", "c9-z"];
const USERS: [&str; 3] = ["u1", "u2", ""];

/// Events that often, but not always, belong together.
fn any_event() -> impl Strategy<Value = Event> {
    let minutes = 0i64..(60 * 24 * 10);
    (
        0usize..8,
        0usize..4,
        0usize..4,
        0usize..3,
        minutes,
        0u8..60,
        any::<f32>(),
    )
        .prop_map(
            |(kind, impression, creative_at, user, minutes, odd, share)| {
                let impression = IMPRESSIONS[impression];
                // Most of it within two hours, so that windows are hit.
                let minutes = if odd < 50 { minutes % 120 } else { minutes };
                let time_us = START_US + minutes * MINUTE_US;
                let mut event = match kind {
                    0 | 1 => served(impression, CREATIVES[creative_at], time_us),
                    2 => viewed(impression, time_us),
                    3 => evidence(impression, share, 0.0, 1_500, time_us),
                    4 => click(impression, time_us),
                    5 => conversion(&CREATIVES[creative_at][..2], 1_500_000, time_us),
                    6 => activity(minutes as u32, time_us),
                    _ => campaign("c2", time_us),
                };
                if kind < 7 && odd % 5 == 0 {
                    event.user_id = USERS[user].to_owned();
                }
                event.age_band = i32::from(odd % 11).min(4);
                match odd {
                    1 => event.event_time_us = i64::MIN,
                    2 => event.ingest_time_us = i64::MAX,
                    3 => event.schema_version = u32::MAX,
                    4 => event.payload = None,
                    _ => {}
                }
                event
            },
        )
}

/// Everything that came out, as text that can be compared.
fn described(outputs: &Outputs) -> Vec<String> {
    let rows = outputs.rows.iter().map(|row| format!("{row:?}"));
    let letters = outputs.dead_letters.iter().map(|it| format!("{it:?}"));
    let matured = outputs.matured.iter().map(|it| format!("{it:?}"));
    rows.chain(letters).chain(matured).collect()
}

fn stored_and_restored(processor: &Processor) -> Processor {
    let folder = tempfile::tempdir().unwrap();
    let header = StateHeader::default();
    let bytes = state::encode(&header, processor);
    state::write_partial(folder.path(), 1, &bytes).unwrap();
    state::publish(folder.path(), 1).unwrap();
    let config = PipelineConfig::default();
    let (_, restored) = state::load(folder.path(), 1, &config, feature_set()).unwrap();
    restored
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn storing_and_restoring_anywhere_changes_nothing(
        events in prop::collection::vec(any_event(), 1..60),
        cut in 0usize..60,
    ) {
        let cut = cut.min(events.len());
        let mut whole = processor();
        apply(&mut whole, &events);
        whole.close();

        let mut before = processor();
        apply(&mut before, &events[..cut]);
        let mut outputs = described(&before.take_outputs());
        let mut after = stored_and_restored(&before);
        apply(&mut after, &events[cut..]);
        after.close();
        outputs.extend(described(&after.take_outputs()));
        let mut expected = described(&whole.take_outputs());

        outputs.sort();
        expected.sort();
        prop_assert_eq!(outputs, expected);
        prop_assert_eq!(after.counters(), whole.counters());
        prop_assert_eq!(after.state().1, whole.state().1);
    }

    #[test]
    fn every_event_is_accounted_for(events in prop::collection::vec(any_event(), 1..80)) {
        let (processor, outputs) = run(&events);
        let c = processor.counters();
        let viewed = |event: &&Event| matches!(event.payload, Some(Payload::ImpressionViewed(_)));
        prop_assert_eq!(c.events_in, events.len() as u64 + 6);
        prop_assert_eq!(c.events_dead, outputs.dead_letters.len() as u64);
        prop_assert_eq!(c.events_dead, c.dead_by_reason.values().sum::<u64>());
        prop_assert_eq!(c.impressions_served, c.rows_written + c.impressions_unviewed);
        prop_assert_eq!(c.rows_written, outputs.rows.len() as u64);
        prop_assert_eq!(c.rows_written, c.impressions_viewed);
        let clicked = outputs.rows.iter().filter(|row| row.impression.click_us.is_some());
        prop_assert_eq!(c.clicks, clicked.count() as u64 + c.clicks_late);
        prop_assert!(c.views_not_viewable + c.views_repeated <= events.iter().filter(viewed).count() as u64);
        // Each event was refused, a duplicate, or one of these.
        let first_views = c.events_in - c.events_dead - c.duplicates - c.catalogue_changes
            - c.catalogue_changes_stale - c.activities - c.impressions_served - c.clicks - c.clicks_repeated
            - c.conversions - c.conversions_unattributed - c.views_not_viewable - c.views_repeated;
        let with_view = outputs.rows.iter().filter(|row| row.impression.view_us.is_some());
        prop_assert_eq!(first_views, with_view.count() as u64);
    }

    #[test]
    fn no_bytes_panic(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..10)) {
        let mut processor = processor();
        payloads.into_iter().for_each(|payload| processor.apply(payload_record(payload)));
        processor.close();
    }

    #[test]
    fn no_damaged_event_panics(event in any_event(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut payload = event.encode_to_vec();
        let at = at.index(payload.len());
        payload[at] = byte;
        let mut processor = processor();
        processor.apply(payload_record(payload));
        processor.close();
    }
}

#[test]
fn a_damaged_state_is_refused_with_its_section() {
    let mut processor = processor();
    apply(&mut processor, &[served("i", "c1-a", START_US)]);
    let bytes = state::encode(&StateHeader::default(), &processor);
    let folder = tempfile::tempdir().unwrap();
    let load = |bytes: &[u8]| {
        state::write_partial(folder.path(), 1, bytes).unwrap();
        state::publish(folder.path(), 1).unwrap();
        let config = PipelineConfig::default();
        let loaded = state::load(folder.path(), 1, &config, feature_set());
        loaded.map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(load(&bytes), Ok(()));
    for at in [0, 9, 30, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let message = load(&damaged).unwrap_err();
        assert!(message.contains("000001.bin"), "{message}");
    }
    for kept in [0, 11, 20, bytes.len() / 2, bytes.len() - 1] {
        assert!(load(&bytes[..kept]).is_err());
    }
    let missing = state::load(
        Path::new("/nowhere"),
        7,
        &PipelineConfig::default(),
        feature_set(),
    );
    let message = missing.unwrap_err().to_string();
    assert!(message.contains("the table is at batch 7"), "{message}");
}
