//! Small tables for tests.

use std::{fs::File, sync::Arc};

use arrow::{
    array::{ArrayRef, Float32Array, Int64Array, ListArray, RecordBatch, StringArray},
    datatypes::Int64Type,
};
use features::Schema;
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use tempfile::TempDir;

use super::{Examples, Outcome, Slice};

/// One dense feature `x`, one id a row in `id`, several in `several`.
pub(crate) fn schema() -> Schema {
    serde_json::from_value(serde_json::json!({
        "digest": "d",
        "dense": [{"name": "x"}],
        "sparse": [{"name": "id", "multi": false}, {"name": "several", "multi": true}],
    }))
    .unwrap()
}

/// Rows of some times, each with the number of its place as feature and id.
pub(crate) fn rows(times: &[i64]) -> Examples {
    let mut rows = Examples::empty(&schema());
    for (at, time) in times.iter().enumerate() {
        push(&mut rows, at as f32, at as u64, &[], (0.0, 1.0));
        rows.event_time_us[at] = *time;
    }
    rows
}

/// Appends a row of a feature, ids, and click and weight.
pub(crate) fn push(rows: &mut Examples, x: f32, id: u64, several: &[u64], label: (f32, f32)) {
    let at = rows.len();
    rows.features.dense.push(x);
    rows.features.sparse[0].push_row(&[id]);
    rows.features.sparse[1].push_row(several);
    rows.features.num_rows += 1;
    rows.clicks.push(label.0);
    rows.weights.push(label.1);
    rows.conversions.push(0.0);
    rows.outcomes.push(Outcome {
        view_us: at as i64,
        click_us: (label.0 > 0.0).then_some(at as i64),
        conversion_us: None,
        labels_as_of_us: at as i64,
        is_final: true,
    });
    rows.event_time_us.push(at as i64);
    rows.impression_ids.push(format!("{at:06}"));
    for texts in [
        &mut rows.creative_ids,
        &mut rows.scene_ids,
        &mut rows.categories,
        &mut rows.user_ids,
        &mut rows.genres,
        &mut rows.devices,
        &mut rows.formats,
    ] {
        texts.push(String::new());
    }
}

/// Writes rows of [`schema`] into two files with row groups of so many rows.
pub(crate) fn table(rows: &Examples, group_rows: usize) -> (TempDir, Slice) {
    let dir = tempfile::tempdir().unwrap();
    let batch = record_batch(rows);
    let half = rows.len() / 2;
    let parts = [batch.slice(0, half), batch.slice(half, rows.len() - half)];
    let paths = parts.iter().enumerate().map(|(at, part)| {
        let path = dir.path().join(format!("part-{at}.parquet"));
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(group_rows))
            .build();
        let file = File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, part.schema(), Some(properties)).unwrap();
        writer.write(part).unwrap();
        writer.close().unwrap();
        path
    });
    let paths: Vec<_> = paths.collect();
    let slice = Slice::of_files(Arc::new(schema()), paths).unwrap();
    (dir, slice)
}

fn record_batch(rows: &Examples) -> RecordBatch {
    let floats = |values: &[f32]| Arc::new(Float32Array::from(values.to_vec())) as ArrayRef;
    let texts = |values: &[String]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let integers = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let times = |of: fn(&Outcome) -> Option<i64>| {
        Arc::new(Int64Array::from_iter(rows.outcomes.iter().map(of))) as ArrayRef
    };
    let states = rows.outcomes.iter().map(|outcome| match outcome.is_final {
        true => "matured",
        false => "pending",
    });
    let states = StringArray::from_iter_values(states);
    let [id, several] = &rows.features.sparse[..] else {
        unreachable!("rows of the schema");
    };
    let lists = (0..rows.len()).map(|row| {
        let ids = several.row(row).iter().map(|id| Some(*id as i64));
        Some(ids.collect::<Vec<_>>())
    });
    let columns = [
        ("click", floats(&rows.clicks)),
        ("conversion", floats(&rows.conversions)),
        ("weight", floats(&rows.weights)),
        ("event_time_us", integers(rows.event_time_us.clone())),
        ("impression_id", texts(&rows.impression_ids)),
        ("creative_id", texts(&rows.creative_ids)),
        ("scene_id", texts(&rows.scene_ids)),
        ("category", texts(&rows.categories)),
        ("user_id", texts(&rows.user_ids)),
        ("genre", texts(&rows.genres)),
        ("device", texts(&rows.devices)),
        ("format", texts(&rows.formats)),
        ("view_us", times(|it| Some(it.view_us))),
        ("click_us", times(|it| it.click_us)),
        ("conversion_us", times(|it| it.conversion_us)),
        ("labels_as_of_us", times(|it| Some(it.labels_as_of_us))),
        ("label_state", Arc::new(states)),
        ("d_x", floats(&rows.features.dense)),
        (
            "s_id",
            integers(id.ids.iter().map(|id| *id as i64).collect()),
        ),
        (
            "s_several",
            Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists)) as ArrayRef,
        ),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}
