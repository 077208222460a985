//! Rows in memory, and how they are read from record batches.

use std::path::Path;

use arrow::{
    array::{Array, AsArray, PrimitiveArray, RecordBatch},
    datatypes::{ArrowPrimitiveType, Float32Type, Int64Type},
};
use features::{FeatureBatch, Schema};

use super::TableError;

/// Which columns are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projection {
    /// All that [`Examples`] has, but for outcomes and auctions.
    Full,
    /// The same with outcomes.
    FullWithOutcomes,
    /// The same with auctions instead.
    FullWithAuctions,
    /// What a step learns clicks from, and the impressions' ids.
    Training,
    /// The same with conversions and outcomes.
    TrainingWithOutcomes,
    /// Outcomes alone.
    Outcomes,
    /// The dense features alone.
    Dense,
    /// The sparse features alone.
    Sparse,
    /// The creatives' ids alone.
    Creatives,
}

/// What became of an impression, and until when that is known. Times are microseconds since the Unix
/// epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// When it was seen.
    pub view_us: i64,
    /// When it was clicked first.
    pub click_us: Option<i64>,
    /// When the first conversion came that is credited to it.
    pub conversion_us: Option<i64>,
    /// Conversions until then are known.
    pub labels_as_of_us: i64,
    /// Whether no more can come.
    pub is_final: bool,
}

impl Outcome {
    /// Whether a conversion followed a click: one before it, or without it, follows from the view.
    pub fn converted_after_click(&self) -> bool {
        let times = self.click_us.zip(self.conversion_us);
        times.is_some_and(|(click, conversion)| conversion >= click)
    }
}

/// The auction that an impression was won in, as the log has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Auction {
    /// What the ad bid for a click, in millionths of the account's currency.
    pub bid_micros: i64,
    /// What a click costs, in millionths of the account's currency.
    pub price_micros: i64,
    /// The click probability that the ad was ranked by.
    pub pctr: f32,
}

/// Columns of [`Auction`].
const AUCTION: [&str; 3] = ["bid_micros", "price_micros", "served_pctr"];

/// Columns of [`Outcome`].
const OUTCOME: [&str; 5] = [
    "view_us",
    "click_us",
    "conversion_us",
    "labels_as_of_us",
    "label_state",
];

/// `label_state` of rows whose labels are final.
const MATURED: &str = "matured";

/// Rows of the training table in memory. Columns that were not read are empty.
#[derive(Debug, Clone)]
pub struct Examples {
    /// Features.
    pub features: FeatureBatch,
    /// 1 for a click, else 0.
    pub clicks: Vec<f32>,
    /// 1 for a conversion, else 0; a part of it where others share the credit.
    pub conversions: Vec<f32>,
    /// When it was clicked and converted.
    pub outcomes: Vec<Outcome>,
    /// What it was sold by; none where that is not known.
    pub auctions: Vec<Option<Auction>>,
    /// How many rows each stands for (inverse of its sampling rate).
    pub weights: Vec<f32>,
    /// When it was served, microseconds since the Unix epoch.
    pub event_time_us: Vec<i64>,
    /// Ids of the impressions.
    pub impression_ids: Vec<String>,
    /// Ids of the creatives.
    pub creative_ids: Vec<String>,
    /// Ids of the scenes.
    pub scene_ids: Vec<String>,
    /// Categories of the creatives.
    pub categories: Vec<String>,
    /// Whom they were shown to; empty for those who are not known.
    pub user_ids: Vec<String>,
    /// Genres of the experiences.
    pub genres: Vec<String>,
    /// Kinds of devices.
    pub devices: Vec<String>,
    /// Formats of the placements.
    pub formats: Vec<String>,
    /// Places in the order in which batches take rows; empty where no batch was taken.
    pub places: Vec<u64>,
}

impl Projection {
    /// Names of the columns.
    pub(super) fn columns(self, schema: &Schema) -> Vec<String> {
        let labels: &[&str] = match self {
            Self::Full | Self::FullWithOutcomes | Self::FullWithAuctions => &[
                "click",
                "weight",
                "impression_id",
                "conversion",
                "event_time_us",
                "creative_id",
                "scene_id",
                "category",
                "user_id",
                "genre",
                "device",
                "format",
            ],
            Self::Training => &["click", "weight", "impression_id"],
            Self::TrainingWithOutcomes => &["click", "weight", "impression_id", "conversion"],
            Self::Dense | Self::Sparse => &[],
            Self::Outcomes => return OUTCOME.map(str::to_owned).to_vec(),
            Self::Creatives => return vec!["creative_id".to_owned()],
        };
        let outcome: &[&str] = if self.has_outcomes() { &OUTCOME } else { &[] };
        let auction: &[&str] = match self {
            Self::FullWithAuctions => &AUCTION,
            _ => &[],
        };
        let labels = labels.iter().chain(outcome).chain(auction);
        let mut names: Vec<String> = labels.map(|name| (*name).to_owned()).collect();
        if self != Self::Sparse {
            names.extend(schema.dense.iter().map(|field| format!("d_{}", field.name)));
        }
        if self != Self::Dense {
            names.extend(
                schema
                    .sparse
                    .iter()
                    .map(|field| format!("s_{}", field.name)),
            );
        }
        names
    }

    fn is_full(self) -> bool {
        matches!(
            self,
            Self::Full | Self::FullWithOutcomes | Self::FullWithAuctions
        )
    }

    fn has_outcomes(self) -> bool {
        matches!(self, Self::FullWithOutcomes | Self::TrainingWithOutcomes)
    }
}

/// A record batch, and the file that it comes from.
pub(super) struct Columns<'a> {
    pub path: &'a Path,
    pub batch: &'a RecordBatch,
}

impl<'a> Columns<'a> {
    fn get<T: 'a>(
        &self,
        column: &str,
        wanted: &'static str,
        cast: impl Fn(&'a dyn Array) -> Option<T>,
    ) -> Result<T, TableError> {
        let found = self
            .batch
            .column_by_name(column)
            .filter(|array| array.null_count() == 0)
            .and_then(|array| cast(array.as_ref()));
        found.ok_or_else(|| TableError::Column {
            path: self.path.to_owned(),
            column: column.to_owned(),
            wanted,
        })
    }

    fn floats(&self, column: &str) -> Result<&'a [f32], TableError> {
        let values: &[f32] = self.get(column, "Float32 without nulls", |array| {
            array
                .as_primitive_opt::<Float32Type>()
                .map(|values| values.values().as_ref())
        })?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(row) => Err(TableError::NotFinite {
                path: self.path.to_owned(),
                column: column.to_owned(),
                impression_id: self.texts("impression_id")?.swap_remove(row),
                value: values[row],
            }),
        }
    }

    pub(super) fn integers(&self, column: &str) -> Result<&'a [i64], TableError> {
        self.get(column, "Int64 without nulls", |array| {
            array
                .as_primitive_opt::<Int64Type>()
                .map(|values| values.values().as_ref())
        })
    }

    fn outcomes(&self) -> Result<Vec<Outcome>, TableError> {
        let missing = |column: &str| TableError::NoOutcomes {
            path: self.path.to_owned(),
            column: column.to_owned(),
        };
        let times = |column: &str| {
            let found = self.batch.column_by_name(column);
            let found = found.and_then(|array| array.as_primitive_opt::<Int64Type>());
            found.ok_or_else(|| missing(column))
        };
        let every = |column: &str| match times(column)? {
            times if times.null_count() == 0 => Ok(times),
            _ => Err(missing(column)),
        };
        let (views, known) = (every("view_us")?, every("labels_as_of_us")?);
        let (clicks, conversions) = (times("click_us")?, times("conversion_us")?);
        let states = self.texts("label_state")?;
        let at =
            |times: &PrimitiveArray<Int64Type>, row| times.is_valid(row).then(|| times.value(row));
        let outcome = |(row, state): (usize, &String)| Outcome {
            view_us: views.value(row),
            click_us: at(clicks, row),
            conversion_us: at(conversions, row),
            labels_as_of_us: known.value(row),
            is_final: state == MATURED,
        };
        Ok(states.iter().enumerate().map(outcome).collect())
    }

    /// None in rows, or in files, that do not know.
    fn auctions(&self) -> Result<Vec<Option<Auction>>, TableError> {
        let [bid, price, pctr] = AUCTION;
        let bids = self.nullable::<Int64Type>(bid, "Int64")?;
        let prices = self.nullable::<Int64Type>(price, "Int64")?;
        let pctrs = self.nullable::<Float32Type>(pctr, "Float32")?;
        let (Some(bids), Some(prices), Some(pctrs)) = (bids, prices, pctrs) else {
            return Ok(vec![None; self.batch.num_rows()]);
        };
        let auction = |((bid, price), pctr): ((Option<i64>, Option<i64>), Option<f32>)| {
            Some(Auction {
                bid_micros: bid?,
                price_micros: price?,
                pctr: pctr?,
            })
        };
        Ok(bids.iter().zip(prices).zip(pctrs).map(auction).collect())
    }

    /// A column that tables of before have not.
    fn nullable<T: ArrowPrimitiveType>(
        &self,
        column: &str,
        wanted: &'static str,
    ) -> Result<Option<&'a PrimitiveArray<T>>, TableError> {
        let Some(array) = self.batch.column_by_name(column) else {
            return Ok(None);
        };
        match array.as_primitive_opt() {
            Some(values) => Ok(Some(values)),
            None => Err(TableError::Column {
                path: self.path.to_owned(),
                column: column.to_owned(),
                wanted,
            }),
        }
    }

    fn texts(&self, column: &str) -> Result<Vec<String>, TableError> {
        self.get(column, "Utf8 without nulls", |array| {
            // Nulls were refused.
            let owned = |value: Option<&str>| value.unwrap_or_default().to_owned();
            array
                .as_string_opt::<i32>()
                .map(|values| values.iter().map(owned).collect())
                .or_else(|| {
                    array
                        .as_string_view_opt()
                        .map(|values| values.iter().map(owned).collect())
                })
        })
    }
}

impl Examples {
    /// No rows of a schema.
    pub fn empty(schema: &Schema) -> Self {
        Self::of_widths(schema.dense.len(), schema.sparse.len())
    }

    fn of_widths(num_dense: usize, num_sparse: usize) -> Self {
        Self {
            features: FeatureBatch::with_widths(num_dense, num_sparse),
            clicks: Vec::new(),
            conversions: Vec::new(),
            outcomes: Vec::new(),
            auctions: Vec::new(),
            weights: Vec::new(),
            event_time_us: Vec::new(),
            impression_ids: Vec::new(),
            creative_ids: Vec::new(),
            scene_ids: Vec::new(),
            categories: Vec::new(),
            user_ids: Vec::new(),
            genres: Vec::new(),
            devices: Vec::new(),
            formats: Vec::new(),
            places: Vec::new(),
        }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.features.num_rows
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The chosen rows, in the order given.
    pub fn gather(&self, rows: &[usize]) -> Self {
        let (dense, sparse) = (self.features.num_dense, self.features.sparse.len());
        let mut gathered = Self::of_widths(dense, sparse);
        gathered.push_from(self, rows);
        gathered
    }

    /// Leaves no rows, and keeps the memory.
    pub(super) fn clear(&mut self) {
        let features = &mut self.features;
        features.num_rows = 0;
        features.dense.clear();
        for bags in &mut features.sparse {
            bags.ids.clear();
            bags.offsets.truncate(1);
        }
        self.clicks.clear();
        self.conversions.clear();
        self.outcomes.clear();
        self.auctions.clear();
        self.weights.clear();
        self.event_time_us.clear();
        self.impression_ids.clear();
        self.creative_ids.clear();
        self.scene_ids.clear();
        self.categories.clear();
        self.user_ids.clear();
        self.genres.clear();
        self.devices.clear();
        self.formats.clear();
    }

    /// Appends rows of another part with the same columns, in the order given.
    pub(super) fn push_from(&mut self, other: &Self, rows: &[usize]) {
        fn extend<T: Clone>(values: &mut Vec<T>, other: &[T], rows: &[usize]) {
            if !other.is_empty() {
                values.extend(rows.iter().map(|row| other[*row].clone()));
            }
        }
        for &row in rows {
            self.features.push_from(&other.features, row);
        }
        extend(&mut self.clicks, &other.clicks, rows);
        extend(&mut self.conversions, &other.conversions, rows);
        extend(&mut self.outcomes, &other.outcomes, rows);
        extend(&mut self.auctions, &other.auctions, rows);
        extend(&mut self.weights, &other.weights, rows);
        extend(&mut self.event_time_us, &other.event_time_us, rows);
        extend(&mut self.impression_ids, &other.impression_ids, rows);
        extend(&mut self.creative_ids, &other.creative_ids, rows);
        extend(&mut self.scene_ids, &other.scene_ids, rows);
        extend(&mut self.categories, &other.categories, rows);
        extend(&mut self.user_ids, &other.user_ids, rows);
        extend(&mut self.genres, &other.genres, rows);
        extend(&mut self.devices, &other.devices, rows);
        extend(&mut self.formats, &other.formats, rows);
    }

    /// Appends the rows of a record batch.
    pub(super) fn append(
        &mut self,
        columns: &Columns<'_>,
        schema: &Schema,
        projection: Projection,
    ) -> Result<(), TableError> {
        if projection == Projection::Creatives {
            self.creative_ids.extend(columns.texts("creative_id")?);
            self.features.num_rows += columns.batch.num_rows();
            return Ok(());
        }
        if projection == Projection::Outcomes || projection.has_outcomes() {
            self.outcomes.extend(columns.outcomes()?);
        }
        if projection == Projection::Outcomes {
            self.features.num_rows += columns.batch.num_rows();
            return Ok(());
        }
        if !matches!(projection, Projection::Dense | Projection::Sparse) {
            self.clicks.extend(columns.floats("click")?);
            self.weights.extend(columns.floats("weight")?);
            self.impression_ids.extend(columns.texts("impression_id")?);
        }
        if projection == Projection::FullWithAuctions {
            self.auctions.extend(columns.auctions()?);
        }
        let full = projection.is_full();
        if full || projection == Projection::TrainingWithOutcomes {
            self.conversions.extend(columns.floats("conversion")?);
        }
        if full {
            self.event_time_us
                .extend(columns.integers("event_time_us")?);
            self.creative_ids.extend(columns.texts("creative_id")?);
            self.scene_ids.extend(columns.texts("scene_id")?);
            self.categories.extend(columns.texts("category")?);
            self.user_ids.extend(columns.texts("user_id")?);
            self.genres.extend(columns.texts("genre")?);
            self.devices.extend(columns.texts("device")?);
            self.formats.extend(columns.texts("format")?);
        }
        let rows = columns.batch.num_rows();
        let dense = match projection {
            Projection::Sparse => &[],
            _ => &schema.dense[..],
        };
        let dense = dense
            .iter()
            .map(|field| columns.floats(&format!("d_{}", field.name)));
        let dense: Vec<&[f32]> = dense.collect::<Result<_, _>>()?;
        for row in 0..rows {
            self.features
                .dense
                .extend(dense.iter().map(|column| column[row]));
        }
        self.features.num_rows += rows;
        if projection == Projection::Dense {
            return Ok(());
        }
        for (field, bags) in schema.sparse.iter().zip(&mut self.features.sparse) {
            let column = format!("s_{}", field.name);
            if field.multi {
                let (lists, ids) = columns.get(&column, "List<Int64> without nulls", |array| {
                    let lists = array.as_list_opt::<i32>()?;
                    let ids = lists.values().as_primitive_opt::<Int64Type>()?;
                    (ids.null_count() == 0).then_some((lists, ids.values()))
                })?;
                // The offsets of a valid list array lie within its values.
                for ends in lists.offsets().windows(2) {
                    let ids = &ids[ends[0] as usize..ends[1] as usize];
                    let ids: Vec<u64> = ids.iter().map(|id| *id as u64).collect();
                    bags.push_row(&ids);
                }
            } else {
                for id in columns.integers(&column)? {
                    bags.push_row(&[*id as u64]);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float32Array, Int64Array, ListArray, StringArray};

    use super::*;

    fn schema() -> Schema {
        serde_json::from_value(serde_json::json!({
            "digest": "d",
            "dense": [{"name": "a"}],
            "sparse": [{"name": "s", "multi": false}, {"name": "m", "multi": true}],
        }))
        .unwrap()
    }

    fn lists(values: [&[Option<i64>]; 3]) -> ArrayRef {
        let values = values.map(|list| Some(list.to_vec()));
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(values))
    }

    /// Three rows, with one column exchanged.
    fn append(column: &str, array: Option<ArrayRef>) -> Result<Examples, TableError> {
        append_as(Projection::Full, column, array)
    }

    fn append_as(
        projection: Projection,
        column: &str,
        array: Option<ArrayRef>,
    ) -> Result<Examples, TableError> {
        let floats = |values: [f32; 3]| Arc::new(Float32Array::from(values.to_vec())) as ArrayRef;
        let texts = || Arc::new(StringArray::from(vec!["x", "y", "z"])) as ArrayRef;
        let integers = |values: [i64; 3]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
        let times =
            |values: [Option<i64>; 3]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
        let states = StringArray::from(vec!["pending", "matured", "matured"]);
        let pctrs = Float32Array::from(vec![None, Some(0.25), Some(0.5)]);
        let mut columns = vec![
            ("click", floats([0.0, 1.0, 0.0])),
            ("conversion", floats([0.0; 3])),
            ("weight", floats([1.0; 3])),
            ("event_time_us", integers([1, 2, 3])),
            ("impression_id", texts()),
            ("creative_id", texts()),
            ("scene_id", texts()),
            ("category", texts()),
            ("user_id", texts()),
            ("genre", texts()),
            ("device", texts()),
            ("format", texts()),
            ("view_us", integers([10, 20, 30])),
            ("click_us", times([None, Some(21), Some(32)])),
            ("conversion_us", times([None, Some(22), Some(31)])),
            ("labels_as_of_us", integers([11, 121, 132])),
            ("label_state", Arc::new(states)),
            ("bid_micros", times([None, Some(700), Some(300)])),
            ("price_micros", times([None, Some(400), Some(0)])),
            ("served_pctr", Arc::new(pctrs)),
            ("d_a", floats([0.5, 0.25, 0.0])),
            ("s_s", integers([7, -1, 9])),
            ("s_m", lists([&[Some(1), Some(2)], &[], &[Some(3)]])),
        ];
        columns.retain(|(name, _)| *name != column);
        columns.extend(array.map(|array| (column, array)));
        let batch = RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().map(|(name, array)| (name, array, true)),
        )
        .unwrap();
        let mut rows = Examples::empty(&schema());
        let columns = Columns {
            path: Path::new("part.parquet"),
            batch: &batch,
        };
        rows.append(&columns, &schema(), projection)?;
        Ok(rows)
    }

    #[test]
    fn rows_become_a_batch() {
        let rows = append("none", None).unwrap();
        assert_eq!(rows.features.dense, [0.5, 0.25, 0.0]);
        assert_eq!(rows.features.sparse[0].ids, [7, u64::MAX, 9]);
        assert_eq!(rows.features.sparse[1].offsets, [0, 2, 2, 3]);
        assert_eq!(rows.features.sparse[1].ids, [1, 2, 3]);
        assert_eq!(rows.clicks, [0.0, 1.0, 0.0]);
    }

    #[test]
    fn outcomes_say_what_is_known_of_conversions_and_which_follow_a_click() {
        for projection in [Projection::Outcomes, Projection::TrainingWithOutcomes] {
            let rows = append_as(projection, "none", None).unwrap();
            assert_eq!(rows.len(), 3);
            let wanted = Outcome {
                view_us: 20,
                click_us: Some(21),
                conversion_us: Some(22),
                labels_as_of_us: 121,
                is_final: true,
            };
            assert_eq!(rows.outcomes[1], wanted);
            let converted = rows.outcomes.iter().map(Outcome::converted_after_click);
            assert!(converted.eq([false, true, false]));
            assert!(!rows.outcomes[0].is_final);
        }
        assert!(append("none", None).unwrap().outcomes.is_empty());
    }

    #[test]
    fn auctions_are_known_where_all_their_columns_are_and_no_table_is_refused_without() {
        let read = |column: &str, array| append_as(Projection::FullWithAuctions, column, array);
        let wanted = Auction {
            bid_micros: 700,
            price_micros: 400,
            pctr: 0.25,
        };
        let rows = read("none", None).unwrap();
        assert_eq!(rows.auctions[..2], [None, Some(wanted)]);
        assert_eq!(rows.auctions[2].unwrap().price_micros, 0);
        assert_eq!(rows.gather(&[1]).auctions, [Some(wanted)]);
        assert!(append("none", None).unwrap().auctions.is_empty());

        for column in AUCTION {
            assert_eq!(read(column, None).unwrap().auctions, [None; 3]);
            let texts: ArrayRef = Arc::new(StringArray::from(vec!["1", "2", "3"]));
            let error = read(column, Some(texts)).unwrap_err().to_string();
            assert!(error.contains(&format!("`{column}`")), "{error}");
        }
    }

    #[test]
    fn a_table_without_times_is_refused_only_where_they_are_wanted() {
        let null: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(2)]));
        for (column, array) in [
            ("view_us", None),
            ("click_us", None),
            ("labels_as_of_us", Some(null)),
        ] {
            append(column, array.clone()).unwrap();
            let refused = append_as(Projection::TrainingWithOutcomes, column, array);
            let error = refused.unwrap_err().to_string();
            assert!(
                error.contains("part.parquet") && error.contains(&format!("`{column}`")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_missing_mistyped_or_null_column_is_named_with_its_file() {
        let nothing: ArrayRef = Arc::new(Float32Array::from(vec![Some(1.0), None, None]));
        let cases = [
            ("click", None),
            ("category", Some(nothing.clone())),
            ("weight", Some(nothing)),
            ("s_m", Some(lists([&[Some(1)], &[None], &[]]))),
        ];
        for (column, array) in cases {
            let error = append(column, array).unwrap_err().to_string();
            assert!(
                error.contains("part.parquet") && error.contains(&format!("`{column}`")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_number_that_is_none_is_named_with_its_row() {
        let nan: ArrayRef = Arc::new(Float32Array::from(vec![0.0, f32::NAN, 0.0]));
        let error = append("d_a", Some(nan)).unwrap_err().to_string();
        assert!(
            error.contains("`d_a`") && error.contains("NaN for impression y"),
            "{error}"
        );
    }
}
