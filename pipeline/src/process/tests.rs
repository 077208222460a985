//! The processor on small histories.

mod attribution;
mod auctions;
mod conversion_times;
mod guards;
mod properties;
mod refusals;

use std::{path::Path, sync::Arc};

use features::FeatureSet;
use prost::Message;
use wire::events::Event;

use super::{
    PipelineConfig, SourceRecord,
    fixture::{START_US, campaign, creative, experience},
    processor::{Outputs, Processor, Row},
};

fn feature_set() -> FeatureSet {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/features.toml");
    FeatureSet::load(&path).unwrap()
}

/// A processor that knows campaign `c1` with creatives `c1-a` and `c1-b`, campaign `c2` with
/// `c2-a`, and experience `e1`.
fn processor() -> Processor {
    let mut processor = Processor::new(&PipelineConfig::default(), feature_set());
    let catalogue = [
        campaign("c1", START_US),
        campaign("c2", START_US),
        creative("c1-a", "c1", START_US),
        creative("c1-b", "c1", START_US),
        creative("c2-a", "c2", START_US),
        experience("e1", START_US),
    ];
    apply(&mut processor, &catalogue);
    assert_eq!(processor.counters().events_dead, 0);
    processor
}

fn record(event: &Event) -> SourceRecord {
    payload_record(event.encode_to_vec())
}

fn payload_record(payload: Vec<u8>) -> SourceRecord {
    SourceRecord {
        partition: Arc::from("test"),
        offset: 0,
        event: Event::decode(payload.as_slice()),
        payload,
    }
}

fn apply(processor: &mut Processor, events: &[Event]) {
    for event in events {
        processor.apply(record(event));
    }
}

/// Applies events, ends the input, and gives everything that came out.
fn run(events: &[Event]) -> (Processor, Outputs) {
    let mut processor = processor();
    apply(&mut processor, events);
    processor.close();
    let outputs = processor.take_outputs();
    (processor, outputs)
}

/// Reason codes of the dead letters.
fn reasons(outputs: &Outputs) -> Vec<&str> {
    let letters = outputs.dead_letters.iter();
    letters.map(|letter| letter.reason.as_str()).collect()
}

/// Impression, whether clicked, number of conversions, whether final.
fn labels(row: &Row) -> (&str, bool, u32, bool) {
    let it = &row.impression;
    (
        &it.served.impression_id,
        it.click_us.is_some(),
        it.conversion_credit as u32,
        row.matured,
    )
}

/// A dense feature of a row by name.
fn dense(set: &FeatureSet, row: &Row, name: &str) -> f32 {
    let at = set.schema().dense.iter().position(|it| it.name == name);
    row.impression.served.snapshot.as_ref().unwrap().dense[at.unwrap()]
}
