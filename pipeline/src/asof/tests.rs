//! The join against a search through all values.

use std::{fs::File, path::Path, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::Int64Type,
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    file::properties::WriterProperties,
};
use proptest::prelude::*;

use super::*;

/// User, place, time.
type Row = (Option<i64>, Option<&'static str>, i64);
/// User, place, event time, known time.
type Value = (Option<i64>, Option<&'static str>, i64, i64);

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let rows = RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )
    .unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(7))
        .build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties)).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
}

fn write_rows(path: &Path, rows: &[Row]) {
    let users: Int64Array = rows.iter().map(|row| row.0).collect();
    let places: StringArray = rows.iter().map(|row| row.1).collect();
    let times: Int64Array = rows.iter().map(|row| Some(row.2)).collect();
    let numbers: Int64Array = (0..rows.len() as i64).map(Some).collect();
    write(
        path,
        vec![
            ("user", Arc::new(users)),
            ("place", Arc::new(places)),
            ("time_us", Arc::new(times)),
            ("row", Arc::new(numbers)),
        ],
    );
}

fn write_values(path: &Path, values: &[Value]) {
    let users: Int64Array = values.iter().map(|value| value.0).collect();
    let places: StringArray = values.iter().map(|value| value.1).collect();
    let events: Int64Array = values.iter().map(|value| Some(value.2)).collect();
    let known: Int64Array = values.iter().map(|value| Some(value.3)).collect();
    let numbers: Int64Array = (0..values.len() as i64).map(Some).collect();
    write(
        path,
        vec![
            ("place", Arc::new(places)),
            ("user", Arc::new(users)),
            ("event_us", Arc::new(events)),
            ("known_us", Arc::new(known)),
            ("value", Arc::new(numbers)),
        ],
    );
}

/// The value of each row, by its number.
fn join(rows: &[Row], values: &[Value], memory_bytes: usize) -> (Vec<Option<i64>>, AsOfReport) {
    let dir = tempfile::tempdir().unwrap();
    let [rows_path, values_path] =
        ["rows.parquet", "values.parquet"].map(|name| dir.path().join(name));
    write_rows(&rows_path, rows);
    write_values(&values_path, values);
    let by = ["user".to_owned(), "place".to_owned()];
    let join = AsOfJoin {
        rows: Side {
            path: &rows_path,
            time: "time_us",
        },
        values: Side {
            path: &values_path,
            time: "event_us",
        },
        known: Some("known_us"),
        by: &by,
        memory_bytes,
        threads: 2,
        scratch: &dir.path().join("scratch"),
    };
    let to = dir.path().join("joined");
    let report = join.run(&to).unwrap();
    let mut found = vec![None; rows.len()];
    let mut seen = 0;
    for file in fs::read_dir(&to).unwrap() {
        let file = File::open(file.unwrap().path()).unwrap();
        for rows in ParquetRecordBatchReaderBuilder::try_new(file)
            .unwrap()
            .build()
            .unwrap()
        {
            let rows = rows.unwrap();
            let column = |name| {
                rows.column_by_name(name)
                    .unwrap()
                    .as_primitive::<Int64Type>()
            };
            let (number, value) = (column("row"), column("value"));
            for at in 0..rows.num_rows() {
                found[number.value(at) as usize] = value.is_valid(at).then(|| value.value(at));
                seen += 1;
            }
        }
    }
    assert_eq!(seen, rows.len());
    (found, report)
}

fn search(row: &Row, values: &[Value]) -> Option<i64> {
    let numbered = values.iter().zip(0i64..);
    let fits = |(value, _): &(&Value, i64)| {
        (value.0, value.1) == (row.0, row.1) && value.2 <= row.2 && value.3 < row.2
    };
    let best = numbered
        .filter(fits)
        .max_by_key(|(value, number)| (value.2, value.3, *number));
    best.map(|(_, number)| number)
}

fn users() -> impl Strategy<Value = Option<i64>> {
    prop_oneof![Just(None), (0i64..3).prop_map(Some)]
}

fn places() -> impl Strategy<Value = Option<&'static str>> {
    prop_oneof![
        Just(None),
        Just(Some("")),
        Just(Some("here")),
        Just(Some("\u{0}missing"))
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn each_row_has_the_newest_value_that_was_known_then(
        rows in prop::collection::vec((users(), places(), 0i64..60), 1..60),
        values in prop::collection::vec((users(), places(), 0i64..60, 0i64..60), 1..120),
        spills in any::<bool>(),
    ) {
        let (found, report) = join(&rows, &values, if spills { 64 } else { 1 << 30 });
        let wanted: Vec<Option<i64>> = rows.iter().map(|row| search(row, &values)).collect();
        prop_assert_eq!(&found, &wanted);
        prop_assert_eq!(report.rows, rows.len() as u64);
        prop_assert_eq!(report.matched, wanted.iter().flatten().count() as u64);
        prop_assert_eq!(report.spilled_bytes > 0, spills);
    }

    /// No future leak: whatever happens to values that are not ready yet, no row changes.
    #[test]
    fn values_that_are_moved_past_a_row_never_change_it(
        rows in prop::collection::vec((users(), places(), 0i64..60), 1..40),
        values in prop::collection::vec((users(), places(), 0i64..60, 0i64..60), 1..80),
        moves in prop::collection::vec((0i64..100, 0i64..100), 80),
        now in 0i64..60,
    ) {
        let rows: Vec<Row> = rows.into_iter().map(|(user, place, time)| (user, place, time.min(now))).collect();
        let moved: Vec<Value> = values
            .iter()
            .zip(moves)
            .map(|(&(user, place, event, known), (later, learnt))| match (event <= now, known < now) {
                (true, true) => (user, place, event, known),
                // What holds later may do so at any later time, and the same of what is learnt later.
                (true, false) => (user, place, event, now + learnt),
                (false, true) => (user, place, now + 1 + later, known),
                (false, false) => (user, place, now + 1 + later, now + learnt),
            })
            .collect();
        prop_assert_eq!(join(&rows, &values, 1 << 30).0, join(&rows, &moved, 1 << 30).0);
    }
}

/// Whichever thread has read it first, and whether it was on the disk meanwhile.
#[test]
fn of_values_of_one_time_the_one_that_stands_last_is_taken() {
    let rows: Vec<Row> = (0..20).map(|at| (Some(at % 2), Some("here"), 9)).collect();
    let values: Vec<Value> = (0..700)
        .map(|at| (Some(at % 2), Some("here"), 5, 5))
        .collect();
    let wanted: Vec<Option<i64>> = rows.iter().map(|row| search(row, &values)).collect();
    for memory_bytes in [64, 20_000, 1 << 30] {
        for _ in 0..20 {
            assert_eq!(
                join(&rows, &values, memory_bytes).0,
                wanted,
                "{memory_bytes}"
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let [rows, values] = ["rows.parquet", "values.parquet"].map(|name| dir.path().join(name));
    write_rows(&rows, &[(Some(1), None, 5)]);
    write_values(&values, &[(Some(1), None, 1, 2)]);
    let run = |by: &str, time: &'static str, values: &Path| {
        let join = AsOfJoin {
            rows: Side {
                path: &rows,
                time: "time_us",
            },
            values: Side { path: values, time },
            known: None,
            by: &[by.to_owned()],
            memory_bytes: 1 << 20,
            threads: 1,
            scratch: dir.path(),
        };
        join.run(&dir.path().join("to")).unwrap_err().to_string()
    };
    let message = run("city", "event_us", &values);
    assert!(
        message.contains("column `city`") && message.contains("rows.parquet is missing"),
        "{message}"
    );
    let message = run("user", "place", &values);
    assert!(
        message.contains("column `place`") && message.contains("is Utf8, wanted an Int64"),
        "{message}"
    );
    let message = run("user", "event_us", &values);
    assert!(
        message.contains("both sides have a column `place`"),
        "{message}"
    );
    fs::write(dir.path().join("broken.parquet"), "PAR1 not at all").unwrap();
    let message = run("user", "event_us", &dir.path().join("broken.parquet"));
    assert!(message.contains("broken.parquet"), "{message}");
}
