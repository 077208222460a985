//! A feature's values as a column, on their way from the query to rows of a table.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, Int64Builder, ListBuilder, RecordBatch, StringArray, UInt32Array,
    },
    compute::{cast, concat_batches, take},
    datatypes::{DataType, Field, Int64Type, Schema},
    error::ArrowError,
};
use features::spec::{Feature, Kind};
use parquet::errors::ParquetError;

use super::{Values, ValuesError};
use crate::{process::table::id_field, sql};

/// A feature's column of what the query gave, with the types of the training table.
pub(super) fn values(rows: &RecordBatch, feature: &Feature) -> Result<RecordBatch, ArrowError> {
    let ids = cast(named(rows, "request_id")?, &DataType::Utf8)?;
    let found = named(rows, &sql::column(feature))?;
    let value = match (feature.kind, found.data_type()) {
        (Kind::Dense, _) => cast(found, &DataType::Float32)?,
        (Kind::Sparse, DataType::List(_)) => lists(found),
        (Kind::Sparse, _) => cast(found, &DataType::Int64)?,
    };
    let schema = Schema::new(vec![
        Field::new("request_id", DataType::Utf8, false),
        Field::new("value", value.data_type().clone(), false),
    ]);
    RecordBatch::try_new(Arc::new(schema), vec![ids, value])
}

pub(crate) fn named<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, ArrowError> {
    let missing = || ArrowError::SchemaError(format!("no column {name}"));
    rows.column_by_name(name).ok_or_else(missing)
}

/// A row's ids, of a column of ids or of lists of them.
pub(crate) fn ids_of(values: &ArrayRef, row: usize) -> Vec<u64> {
    let ids = match values.as_list_opt::<i32>() {
        Some(lists) => lists.value(row),
        None => values.slice(row, 1),
    };
    let ids = ids.as_primitive::<Int64Type>().values();
    ids.iter().map(|id| id.cast_unsigned()).collect()
}

/// No list is an empty one.
fn lists(found: &ArrayRef) -> ArrayRef {
    let found = found.as_list::<i32>();
    let mut lists = ListBuilder::new(Int64Builder::new()).with_field(id_field());
    for at in 0..found.len() {
        if found.is_valid(at) {
            let ids = found.value(at);
            lists
                .values()
                .append_slice(ids.as_primitive::<Int64Type>().values());
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
}

/// A feature's values of one day, by impression.
pub(crate) struct DayColumn {
    ids: StringArray,
    values: ArrayRef,
}

impl DayColumn {
    pub(crate) fn read(values: &Values, feature: &Feature, day: i32) -> Result<Self, ValuesError> {
        let batches: Result<Vec<_>, _> = values.read(feature, day)?.collect();
        let concat = |batches: Vec<RecordBatch>| match batches.first() {
            Some(first) => concat_batches(&first.schema(), &batches),
            None => Err(ArrowError::SchemaError("no rows".to_owned())),
        };
        let rows = batches.and_then(concat);
        let rows = rows.map_err(|source| ValuesError::Parquet {
            path: values.record_path(feature, day).with_extension("parquet"),
            source: ParquetError::from(source),
        })?;
        Ok(Self {
            ids: rows.column(0).as_string().clone(),
            values: Arc::clone(rows.column(1)),
        })
    }

    /// The values of all impressions.
    pub(crate) fn all(&self) -> &ArrayRef {
        &self.values
    }

    /// The values of some impressions in their order, or how many of these have none.
    pub(crate) fn take<'a>(
        &self,
        impressions: impl Iterator<Item = &'a str>,
    ) -> Result<ArrayRef, u64> {
        let known: HashMap<&str, u32> = self.ids.iter().flatten().zip(0..).collect();
        let places = impressions.map(|id| known.get(id).copied());
        let places: Vec<Option<u32>> = places.collect();
        let missing = places.iter().filter(|place| place.is_none()).count();
        if missing > 0 {
            return Err(missing as u64);
        }
        let places = UInt32Array::from_iter_values(places.into_iter().flatten());
        // The places were counted from the rows.
        Ok(take(&self.values, &places, None).expect("places of rows"))
    }
}
