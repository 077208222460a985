//! When a row was seen, clicked and converted, and until when that is known, from events to files.

use std::fs;

use arrow::{
    array::{AsArray, RecordBatch},
    compute::concat_batches,
    datatypes::Int64Type,
};

use super::*;
use crate::{
    calendar::day_of,
    process::{
        fixture::*,
        table::{TableError, TrainingTable},
    },
};

const T: i64 = START_US + 10 * SECOND_US;
const DAY_US: i64 = 24 * HOUR_US;
const CLICK_WINDOW_US: i64 = 30 * MINUTE_US;
const CONVERSION_WINDOW_US: i64 = 7 * DAY_US;

/// A processor and its table.
struct Written {
    _folder: tempfile::TempDir,
    processor: Processor,
    table: TrainingTable,
    batch: u64,
}

/// A row's impression, label state, and times: of the view, the click, the first conversion, and what is
/// known of conversions.
type Times = (String, String, [Option<i64>; 4]);

impl Written {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            table: TrainingTable::open(folder.path(), &feature_set()).unwrap(),
            _folder: folder,
            processor: processor(),
            batch: 0,
        }
    }

    /// The rows after some events and a commit.
    fn after(&mut self, events: &[Event]) -> Vec<Times> {
        apply(&mut self.processor, events);
        self.commit()
    }

    fn commit(&mut self) -> Vec<Times> {
        self.batch += 1;
        let Outputs { rows, matured, .. } = self.processor.take_outputs();
        let config = PipelineConfig::default();
        let staged = self.table.stage(self.batch, &rows, &matured, &config);
        self.table.commit(self.batch, staged.unwrap()).unwrap();
        let batches = self.table.rows(day_of(T)).unwrap();
        times(&concat_batches(self.table.file_schema(), &batches).unwrap())
    }
}

fn times(rows: &RecordBatch) -> Vec<Times> {
    let text = |column: &str, row| rows[column].as_string::<i32>().value(row).to_owned();
    let columns = ["view_us", "click_us", "conversion_us", "labels_as_of_us"];
    let columns = columns.map(|name| rows[name].as_primitive::<Int64Type>());
    let row = |row| {
        let times = columns.map(|times| times.iter().nth(row).unwrap());
        (text("impression_id", row), text("label_state", row), times)
    };
    (0..rows.num_rows()).map(row).collect()
}

fn pending(id: &str, times: [i64; 2], click: Option<i64>, conversion: Option<i64>) -> Times {
    let [view, known] = times;
    let times = [Some(view), click, conversion, Some(known)];
    (id.to_owned(), "pending".to_owned(), times)
}

fn matured(id: &str, view: i64, click: Option<i64>, conversion: Option<i64>) -> Times {
    let known = click.unwrap_or(view) + CONVERSION_WINDOW_US;
    let times = [Some(view), click, conversion, Some(known)];
    (id.to_owned(), "matured".to_owned(), times)
}

#[test]
fn a_pending_row_knows_conversions_until_it_was_written_and_a_mended_one_all() {
    let mut written = Written::new();
    let [seen, clicked] = [T + SECOND_US, T + MINUTE_US];
    let found = written.after(&[
        served("a", "c1-a", T),
        viewed("a", seen),
        click("a", clicked),
        // Another campaign: seen, and clicked after its row was written.
        served("b", "c2-a", T),
        viewed("b", seen),
        activity(5, T + 2 * HOUR_US),
    ]);
    let known = seen + CLICK_WINDOW_US;
    let wanted = [
        pending("a", [seen, known], Some(clicked), None),
        pending("b", [seen, known], None, None),
    ];
    assert_eq!(found, wanted);

    // The earlier conversion counts, whichever comes first.
    let (first, second) = (T + 30 * HOUR_US, T + 31 * HOUR_US);
    let before_view = T;
    let found = written.after(&[
        conversion("c1", 2, second),
        activity(5, T + 40 * HOUR_US),
        conversion("c1", 1, first),
        click("b", before_view),
    ]);
    // What came late waits for the day to mature.
    assert_eq!(found, wanted);
    let found = written.after(&[activity(5, T + 12 * DAY_US)]);
    let wanted = [
        matured("a", seen, Some(clicked), Some(first)),
        matured("b", before_view, Some(before_view), None),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn a_row_written_after_its_windows_is_final_at_once() {
    let mut written = Written::new();
    let mut config = PipelineConfig::default();
    config.watermark.allowed_lateness_hours = 24 * 9;
    config.deduplication.window_hours = 24 * 9;
    written.processor = Processor::new(&config, feature_set());
    let catalogue = [
        campaign("c1", START_US),
        creative("c1-a", "c1", START_US),
        experience("e1", START_US),
    ];
    apply(&mut written.processor, &catalogue);
    apply(&mut written.processor, &[served("a", "c1-a", T)]);
    let found = written.after(&[
        activity(5, T + 8 * DAY_US),
        viewed("a", T + SECOND_US),
        activity(6, T + 8 * DAY_US + 1),
    ]);
    assert_eq!(found, [matured("a", T + SECOND_US, None, None)]);
}

#[test]
fn at_the_end_of_the_input_conversions_are_known_until_the_watermark() {
    let mut written = Written::new();
    let seen = T + SECOND_US;
    let last = seen + 12 * MINUTE_US;
    let events = [served("a", "c1-a", T), viewed("a", seen), activity(5, last)];
    apply(&mut written.processor, &events);
    written.processor.close();
    let known = last - 10 * MINUTE_US;
    assert_eq!(written.commit(), [pending("a", [seen, known], None, None)]);
}

#[test]
fn a_table_of_an_earlier_version_is_refused_for_writing_by_its_column() {
    let folder = tempfile::tempdir().unwrap();
    drop(TrainingTable::open(folder.path(), &feature_set()).unwrap());
    let log = folder.path().join("_delta_log/00000000000000000000.json");
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, text.replace("conversion_us", "another_us")).unwrap();
    let refused = TrainingTable::open(folder.path(), &feature_set()).err();
    let Some(TableError::OldColumns { column, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(column, "conversion_us");
}
