//! Final labels for the rows of a day whose windows have all passed.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, Float32Array, RecordBatch, StringArray},
    compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch},
    datatypes::{Float32Type, SchemaRef},
    error::ArrowError,
};
use features::hash::hash_text;

use super::{super::book::Mend, columns::MATURED};

/// All rows of a day in one batch: late labels mended, marked matured, in the order of event
/// time and impression id.
pub(super) fn mature(
    batches: &[RecordBatch],
    schema: &SchemaRef,
    mends: &BTreeMap<u64, Mend>,
) -> Result<RecordBatch, ArrowError> {
    let all = concat_batches(schema, batches)?;
    let mended = mend(&all, mends)?;
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

fn mend(rows: &RecordBatch, mends: &BTreeMap<u64, Mend>) -> Result<RecordBatch, ArrowError> {
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
        value.max(f32::from(u8::from(mend.clicked)))
    })?;
    change("conversion", |value, mend| {
        (f64::from(value) + mend.conversion_credit).min(1.0) as f32
    })?;
    change("conversion_value", |value, mend| {
        (f64::from(value) + mend.conversion_micros as f64 / 1e6) as f32
    })?;
    let states = StringArray::from_iter_values(std::iter::repeat_n(MATURED, rows.num_rows()));
    columns[schema.index_of("label_state")?] = Arc::new(states) as ArrayRef;
    RecordBatch::try_new(schema, columns)
}
