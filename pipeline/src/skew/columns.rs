//! Rows of the table and of computed values as columns to compare.

use arrow::array::StringArray;
use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::{concat_batches, filter_record_batch, kernels::cmp},
    datatypes::{Float32Type, Int64Type, SchemaRef},
    error::ArrowError,
};
use features::{
    FeatureSpec, Jagged,
    skew::Column,
    spec::{Feature, Kind},
};

use crate::{
    process::table::{FEATURES_FROM, SERVING},
    sql,
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

/// A column for each feature of the spec.
pub(super) fn features(rows: &RecordBatch, spec: &FeatureSpec) -> Result<Vec<Column>, ArrowError> {
    let columns = spec.features.iter().map(|feature| {
        let mut column = empty(feature);
        append(&mut column, named(rows, &sql::column(feature))?);
        Ok(column)
    });
    columns.collect()
}

fn named<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, ArrowError> {
    let missing = || ArrowError::SchemaError(format!("no column {name}"));
    rows.column_by_name(name).ok_or_else(missing)
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
            let lists = values.as_list_opt::<i32>();
            for row in 0..values.len() {
                let of_row = match lists {
                    Some(lists) => lists.value(row),
                    None => values.slice(row, 1),
                };
                let of_row = of_row.as_primitive::<Int64Type>().values();
                let of_row: Vec<u64> = of_row.iter().map(|id| id.cast_unsigned()).collect();
                ids.push_row(&of_row);
            }
        }
    }
}

/// Appends the rows of another column of the same feature.
pub(super) fn extend(column: &mut Column, other: &Column) {
    match (column, other) {
        (Column::Dense(numbers), Column::Dense(more)) => numbers.extend_from_slice(more),
        (Column::Sparse(ids), Column::Sparse(more)) => {
            for row in 0..more.offsets.len() - 1 {
                ids.push_row(more.row(row));
            }
        }
        // One feature has one kind.
        _ => {}
    }
}
