//! Columns of the training table, and rows as Arrow arrays.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, Float32Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray,
        new_null_array,
    },
    buffer::OffsetBuffer,
    datatypes::{DataType as ArrowType, Field, Schema as ArrowSchema, SchemaRef},
    error::ArrowError,
};
use deltalake_core::kernel::{ArrayType, DataType, StructField};
use features::{FeatureBatch, Schema};
use wire::{
    events::{AgeBand, ImpressionServed},
    gate::UserId,
};

use super::super::{book::Pending, processor::Row};

/// The partition column: the day of the impression as `YYYY-MM-DD`.
pub const DAY: &str = "day";

/// `label_state` of a row whose labels may still change.
pub const PENDING: &str = "pending";
/// `label_state` of a row whose labels are final.
pub const MATURED: &str = "matured";

type Text = fn(&Pending) -> &str;

/// Column that says where a row's features come from: [`SERVING`] or [`PIPELINE`].
pub(crate) const FEATURES_FROM: &str = "features_from";
/// The server logged them.
pub(crate) const SERVING: &str = "serving";
/// They were computed when the impression arrived.
const PIPELINE: &str = "pipeline";

const TEXTS: [(&str, Text); 13] = [
    ("impression_id", |it| &it.served.impression_id),
    ("request_id", |it| &it.served.request_id),
    ("user_id", |it| {
        it.subject.person().map_or("", UserId::as_str)
    }),
    ("creative_id", |it| &it.served.creative_id),
    ("campaign_id", |it| &it.served.campaign_id),
    ("category", |it| &it.category),
    ("experience_id", |it| it.context(|c| &c.experience_id)),
    ("scene_id", |it| it.context(|c| &c.scene_id)),
    ("genre", |it| it.context(|c| &c.genre)),
    ("format", |it| it.context(|c| &c.format)),
    ("device", |it| it.context(|c| &c.device)),
    ("view_rule", |it| it.view_rule.name()),
    (
        FEATURES_FROM,
        |it| if it.logged { SERVING } else { PIPELINE },
    ),
];

type Time = fn(&Row) -> Option<i64>;

/// When a row was seen (by a click if that was earlier), clicked and first converted, and until when its
/// labels know of conversions; microseconds since the Unix epoch. Rows that no events made have none.
const TIMES: [(&str, Time); 4] = [
    (VIEW, |row| row.impression.viewed_us()),
    (CLICK, |row| row.impression.click_us),
    (CONVERSION, |row| row.impression.conversion_us),
    (LABELS_AS_OF, |row| Some(row.labels_as_of_us)),
];
pub(super) const VIEW: &str = "view_us";
pub(super) const CLICK: &str = "click_us";
pub(super) const CONVERSION: &str = "conversion_us";
pub(super) const LABELS_AS_OF: &str = "labels_as_of_us";

type Amount = fn(&ImpressionServed) -> i64;

/// The winner's bid for a click and what a click costs, in millionths of the account's currency; null where
/// the log has no bid.
const AMOUNTS: [(&str, Amount); 2] = [
    ("bid_micros", |it| it.bid_micros),
    ("price_micros", |it| it.price_micros),
];

/// The click probability that the auction ranked the ad by; null without a bid, and where the log has none.
const SERVED_PCTR: &str = "served_pctr";

impl Pending {
    /// The impression as it was sold; none where the log has no bid.
    fn sold(&self) -> Option<&ImpressionServed> {
        Some(&self.served).filter(|served| served.bid_micros > 0)
    }

    fn context(&self, field: fn(&wire::events::Context) -> &String) -> &str {
        self.served.context.as_ref().map_or("", |it| field(it))
    }
}

/// All columns in order, the partition column last.
pub(super) fn delta_fields(schema: &Schema) -> Vec<StructField> {
    let column = |name: &str, kind: DataType| StructField::not_null(name, kind);
    let mut fields: Vec<StructField> = TEXTS
        .iter()
        .map(|(name, _)| column(name, DataType::STRING))
        .collect();
    fields.extend([
        column("age_band", DataType::STRING),
        column("event_time_us", DataType::LONG),
        column("slot", DataType::INTEGER),
        column("session_id", DataType::LONG),
        column("session_impression", DataType::INTEGER),
        column("click", DataType::FLOAT),
        column("conversion", DataType::FLOAT),
        column("conversion_value", DataType::FLOAT),
        column("label_state", DataType::STRING),
        column("weight", DataType::FLOAT),
    ]);
    let times = TIMES.iter();
    fields.extend(times.map(|(name, _)| StructField::nullable(*name, DataType::LONG)));
    let amounts = AMOUNTS.iter();
    fields.extend(amounts.map(|(name, _)| StructField::nullable(*name, DataType::LONG)));
    fields.push(StructField::nullable(SERVED_PCTR, DataType::FLOAT));
    for field in &schema.dense {
        fields.push(column(&dense_name(&field.name), DataType::FLOAT));
    }
    for field in &schema.sparse {
        let ids: DataType = ArrayType::new(DataType::LONG, false).into();
        let kind = if field.multi { ids } else { DataType::LONG };
        fields.push(column(&sparse_name(&field.name), kind));
    }
    fields.push(column(DAY, DataType::STRING));
    fields
}

/// The columns of a file: all but the partition column.
pub(super) fn file_schema(schema: &Schema) -> SchemaRef {
    let fields = delta_fields(schema);
    let of_file = fields.iter().filter(|field| field.name() != DAY);
    let arrow = of_file.map(|field| {
        let kind = match *field.data_type() {
            DataType::STRING => ArrowType::Utf8,
            DataType::LONG => ArrowType::Int64,
            DataType::INTEGER => ArrowType::Int32,
            DataType::FLOAT => ArrowType::Float32,
            _ => ArrowType::List(id_field()),
        };
        Field::new(field.name(), kind, field.is_nullable())
    });
    Arc::new(ArrowSchema::new(arrow.collect::<Vec<_>>()))
}

/// The ids of a list.
pub(crate) fn id_field() -> Arc<Field> {
    Arc::new(Field::new("element", ArrowType::Int64, false))
}

/// The column of a dense feature.
pub fn dense_name(feature: &str) -> String {
    format!("d_{feature}")
}

/// The column of a sparse feature.
pub fn sparse_name(feature: &str) -> String {
    format!("s_{feature}")
}

/// Rows of a file in the columns of [`file_schema`]; files of before know no times and no auctions.
pub(super) fn conform(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let column = |field: &Arc<Field>| match rows.column_by_name(field.name()) {
        None if field.is_nullable() => Ok(new_null_array(field.data_type(), rows.num_rows())),
        None => Err(ArrowError::SchemaError(format!(
            "no column {}",
            field.name()
        ))),
        Some(values) => Ok(Arc::clone(values)),
    };
    let columns = schema.fields().iter().map(column);
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_, _>>()?)
}

/// Rows of one day as one batch in the columns of [`file_schema`].
pub(super) fn to_batch(
    rows: &[&Row],
    schema: &Schema,
    file_schema: &SchemaRef,
) -> Result<RecordBatch, ArrowError> {
    let of = |it: &dyn Fn(&Row) -> f32| -> ArrayRef {
        Arc::new(Float32Array::from_iter_values(
            rows.iter().map(|row| it(row)),
        ))
    };
    let texts = |it: &dyn for<'a> Fn(&'a Row) -> &'a str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(
            rows.iter().map(|row| it(row)),
        ))
    };
    let mut columns: Vec<ArrayRef> = TEXTS
        .iter()
        .map(|(_, text)| texts(&|row| text(&row.impression)))
        .collect();
    let times = rows.iter().map(|row| row.impression.served_us);
    let slots = rows.iter().map(|row| slot(&row.impression));
    let sessions = rows.iter().map(|row| row.impression.session);
    let session_ids = sessions.clone().map(|session| session.id.cast_signed());
    let places = sessions.map(|session| i32::try_from(session.impression).unwrap_or(i32::MAX));
    columns.extend([
        texts(&|row| age_band(&row.impression)),
        Arc::new(Int64Array::from_iter_values(times)),
        Arc::new(Int32Array::from_iter_values(slots)),
        Arc::new(Int64Array::from_iter_values(session_ids)),
        Arc::new(Int32Array::from_iter_values(places)),
        of(&|row| f32::from(u8::from(row.impression.click_us.is_some()))),
        of(&|row| row.impression.conversion_credit.min(1.0) as f32),
        of(&|row| (row.impression.conversion_micros as f64 / 1e6) as f32),
        texts(&|row| if row.matured { MATURED } else { PENDING }),
        of(&|_| 1.0),
    ]);
    columns.extend(TIMES.iter().map(|(_, time)| -> ArrayRef {
        Arc::new(Int64Array::from_iter(rows.iter().map(|row| time(row))))
    }));
    let sold = rows.iter().map(|row| row.impression.sold());
    columns.extend(AMOUNTS.iter().map(|(_, amount)| -> ArrayRef {
        Arc::new(Int64Array::from_iter(sold.clone().map(|it| it.map(amount))))
    }));
    let pctrs = sold.map(|it| it.map(|it| it.pctr).filter(|pctr| *pctr != 0.0));
    columns.push(Arc::new(Float32Array::from_iter(pctrs)));
    columns.extend(feature_columns(rows, schema));
    RecordBatch::try_new(Arc::clone(file_schema), columns)
}

fn slot(impression: &Pending) -> i32 {
    i32::try_from(impression.served.slot).unwrap_or(i32::MAX)
}

fn age_band(impression: &Pending) -> &'static str {
    match AgeBand::try_from(impression.age_band) {
        Ok(AgeBand::Under13) => "under13",
        Ok(AgeBand::AgeBand13plus) => "13plus",
        Ok(AgeBand::Unknown | AgeBand::Unspecified) | Err(_) => "unknown",
    }
}

fn feature_columns(rows: &[&Row], schema: &Schema) -> Vec<ArrayRef> {
    let mut batch = FeatureBatch::new(schema);
    for row in rows {
        let snapshot = row.impression.served.snapshot.as_ref();
        let pushed = snapshot.map(|snapshot| batch.push_snapshot(snapshot));
        assert!(
            matches!(pushed, Some(Ok(()))),
            "an impression that was taken in has the features of the spec"
        );
    }
    let num_dense = schema.dense.len();
    let dense = (0..num_dense).map(|column| -> ArrayRef {
        let values = batch.dense.iter().skip(column).step_by(num_dense.max(1));
        Arc::new(Float32Array::from_iter_values(values.copied()))
    });
    let sparse = schema.sparse.iter().zip(&batch.sparse);
    let sparse = sparse.map(|(field, column)| -> ArrayRef {
        let ids = Int64Array::from_iter_values(column.ids.iter().map(|id| id.cast_signed()));
        if !field.multi {
            return Arc::new(ids);
        }
        let lengths = column
            .offsets
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) as usize);
        let offsets = OffsetBuffer::from_lengths(lengths);
        Arc::new(ListArray::new(id_field(), offsets, Arc::new(ids), None))
    });
    dense.chain(sparse).collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;

    use super::*;

    #[test]
    fn a_file_of_before_knows_no_times_or_auctions_and_has_all_other_columns() {
        let schema = serde_json::json!({"digest": "d", "dense": [], "sparse": []});
        let wanted = file_schema(&serde_json::from_value(schema).unwrap());
        let all = RecordBatch::new_empty(Arc::clone(&wanted));
        let without = |name: &str| {
            let kept = (0..all.num_columns()).filter(|at| wanted.field(*at).name() != name);
            all.project(&kept.collect::<Vec<_>>()).unwrap()
        };
        let times = TIMES.map(|(name, _)| name);
        let amounts = AMOUNTS.map(|(name, _)| name);
        for name in times.into_iter().chain(amounts).chain([SERVED_PCTR]) {
            let rows = conform(&without(name), &wanted).unwrap();
            assert_eq!(rows[name].null_count(), rows.num_rows());
        }
        let error = conform(&without("click"), &wanted).unwrap_err().to_string();
        assert!(error.contains("no column click"), "{error}");
    }
}
