//! What an impression's auction was about, from events to files.

use arrow::{
    array::AsArray,
    compute::concat_batches,
    datatypes::{Float32Type, Int64Type},
};
use wire::events::event::Payload;

use super::*;
use crate::{
    calendar::day_of,
    process::{fixture::*, table::TrainingTable},
};

const T: i64 = START_US + 10 * SECOND_US;

/// Bid, price and served pCTR of a row.
type Auction = (Option<i64>, Option<i64>, Option<f32>);

fn sold(impression_id: &str, bid_micros: i64, price_micros: i64, pctr: f32) -> Event {
    let mut event = served(impression_id, "c1-a", T);
    let Some(Payload::ImpressionServed(served)) = &mut event.payload else {
        unreachable!("made as one");
    };
    served.bid_micros = bid_micros;
    served.price_micros = price_micros;
    served.pctr = pctr;
    event
}

#[test]
fn rows_say_what_was_bid_paid_and_predicted_and_nothing_where_the_log_has_no_bid() {
    let folder = tempfile::tempdir().unwrap();
    let mut table = TrainingTable::open(folder.path(), &feature_set()).unwrap();
    let mut processor = processor();
    let mut rows = |batch: u64, events: &[Event]| -> Vec<Auction> {
        apply(&mut processor, events);
        let Outputs { rows, matured, .. } = processor.take_outputs();
        let staged = table.stage(batch, &rows, &matured, &PipelineConfig::default());
        table.commit(batch, staged.unwrap()).unwrap();
        let rows = table.rows(day_of(T)).unwrap();
        let rows = concat_batches(table.file_schema(), &rows).unwrap();
        let amounts = |name: &str| rows[name].as_primitive::<Int64Type>().iter();
        let pctrs = rows["served_pctr"].as_primitive::<Float32Type>().iter();
        let amounts = amounts("bid_micros").zip(amounts("price_micros"));
        amounts
            .zip(pctrs)
            .map(|((bid, price), pctr)| (bid, price, pctr))
            .collect()
    };
    let mut events = vec![
        sold("a", 900_000, 400_000, 0.25),
        // Nobody else bid.
        sold("b", 900_000, 0, 0.5),
        // The log of another ad server: no pCTR, and nothing at all.
        sold("c", 900_000, 300_000, 0.0),
        sold("d", 0, 0, 0.0),
        sold("e", 0, 7, 0.5),
    ];
    events.extend(["a", "b", "c", "d", "e"].map(|id| viewed(id, T + SECOND_US)));
    events.push(activity(5, T + 2 * HOUR_US));
    let wanted = [
        (Some(900_000), Some(400_000), Some(0.25)),
        (Some(900_000), Some(0), Some(0.5)),
        (Some(900_000), Some(300_000), None),
        (None, None, None),
        (None, None, None),
    ];
    assert_eq!(rows(1, &events), wanted);
    // The day is written again when it matures.
    assert_eq!(rows(2, &[activity(6, T + 12 * 24 * HOUR_US)]), wanted);
}
