//! Rows of the table and of computed values as columns to compare.

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    compute::{concat_batches, filter_record_batch, kernels::cmp},
    datatypes::{Float32Type, SchemaRef},
    error::ArrowError,
};
use features::{
    Jagged,
    skew::Column,
    spec::{Feature, Kind},
};

use crate::{
    backfill::{ids_of, named},
    process::table::{FEATURES_FROM, SERVING},
};

/// The rows whose features a server logged.
pub(super) fn logged(rows: &[RecordBatch], schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let rows = concat_batches(schema, rows)?;
    let from = named(&rows, FEATURES_FROM)?;
    let served = cmp::eq(from, &StringArray::new_scalar(SERVING))?;
    filter_record_batch(&rows, &served)
}

pub(super) fn impressions(rows: &RecordBatch) -> Result<Vec<String>, ArrowError> {
    let ids: &StringArray = named(rows, "impression_id")?.as_string();
    Ok(ids.iter().flatten().map(str::to_owned).collect())
}

/// No rows of a feature.
pub(super) fn empty(feature: &Feature) -> Column {
    match feature.kind {
        Kind::Dense => Column::Dense(Vec::new()),
        Kind::Sparse => Column::Sparse(Jagged::default()),
    }
}

/// Appends values as tables hold them: floats, ids, or lists of ids.
pub(super) fn append(column: &mut Column, values: &ArrayRef) {
    match column {
        Column::Dense(numbers) => {
            numbers.extend_from_slice(values.as_primitive::<Float32Type>().values());
        }
        Column::Sparse(ids) => {
            for row in 0..values.len() {
                ids.push_row(&ids_of(values, row));
            }
        }
    }
}
