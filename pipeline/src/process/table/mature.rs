//! Final labels for the rows of a day whose windows have all passed.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, Float32Array, Int64Array, RecordBatch, StringArray},
    compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch},
    datatypes::{Float32Type, Int64Type, SchemaRef},
    error::ArrowError,
};
use features::hash::hash_text;

use super::{
    super::book::{Mend, earlier},
    columns::{CLICK, CONVERSION, LABELS_AS_OF, MATURED, VIEW},
};

/// All rows of a day in one batch: late labels mended, marked matured as of the end of each row's
/// conversion window, in the order of event time and impression id.
pub(super) fn mature(
    batches: &[RecordBatch],
    schema: &SchemaRef,
    mends: &BTreeMap<u64, Mend>,
    conversion_window_us: i64,
) -> Result<RecordBatch, ArrowError> {
    let all = concat_batches(schema, batches)?;
    let mended = mend(&all, mends, conversion_window_us)?;
    let by = |name: &str| {
        mended.column_by_name(name).map(|values| SortColumn {
            values: Arc::clone(values),
            options: None,
        })
    };
    let order: Vec<SortColumn> = ["event_time_us", "impression_id"]
        .into_iter()
        .filter_map(by)
        .collect();
    take_record_batch(&mended, &lexsort_to_indices(&order, None)?)
}

fn mend(
    rows: &RecordBatch,
    mends: &BTreeMap<u64, Mend>,
    conversion_window_us: i64,
) -> Result<RecordBatch, ArrowError> {
    let schema = rows.schema();
    let ids = rows
        .column(schema.index_of("impression_id")?)
        .as_string::<i32>();
    let found: Vec<Option<&Mend>> = ids
        .iter()
        .map(|id| mends.get(&hash_text(id.unwrap_or_default())))
        .collect();
    let mut columns = rows.columns().to_vec();
    let mut change = |name: &str, change: fn(f32, &Mend) -> f32| -> Result<(), ArrowError> {
        let at = schema.index_of(name)?;
        let values = columns[at].as_primitive::<Float32Type>().values();
        let changed = values
            .iter()
            .zip(&found)
            .map(|(value, mend)| mend.map_or(*value, |mend| change(*value, mend)));
        columns[at] = Arc::new(Float32Array::from_iter_values(changed));
        Ok(())
    };
    change("click", |value, mend| {
        value.max(f32::from(u8::from(mend.click_us.is_some())))
    })?;
    change("conversion", |value, mend| {
        (f64::from(value) + mend.conversion_credit).min(1.0) as f32
    })?;
    change("conversion_value", |value, mend| {
        (f64::from(value) + mend.conversion_micros as f64 / 1e6) as f32
    })?;
    let times = |name: &str, late: fn(&Mend) -> Option<i64>| -> Result<Int64Array, ArrowError> {
        let known = rows
            .column(schema.index_of(name)?)
            .as_primitive::<Int64Type>();
        let late = found.iter().map(|mend| mend.and_then(late));
        Ok(known
            .iter()
            .zip(late)
            .map(|(known, late)| earlier(known, late))
            .collect())
    };
    let clicks = times(CLICK, |mend| mend.click_us)?;
    let views = times(VIEW, |mend| mend.click_us)?;
    let conversions = times(CONVERSION, |mend| mend.conversion_us)?;
    let touched = clicks
        .iter()
        .zip(&views)
        .map(|(click, view)| click.or(view));
    let final_us = touched.map(|time| Some(time? + conversion_window_us));
    let labels_as_of: Int64Array = final_us.collect();
    let times = [
        (VIEW, views),
        (CLICK, clicks),
        (CONVERSION, conversions),
        (LABELS_AS_OF, labels_as_of),
    ];
    for (name, times) in times {
        columns[schema.index_of(name)?] = Arc::new(times);
    }
    let states = StringArray::from_iter_values(std::iter::repeat_n(MATURED, rows.num_rows()));
    columns[schema.index_of("label_state")?] = Arc::new(states) as ArrayRef;
    RecordBatch::try_new(schema, columns)
}
