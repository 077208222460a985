//! Reads the training table: Delta Lake on disk, without a query engine.

use std::path::{Path, PathBuf};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{Float32Type, Int64Type},
};
use deltalake_core::{DeltaTable, DeltaTableError, open_table};
use features::{FeatureBatch, Schema};
use parquet::{arrow::arrow_reader::ParquetRecordBatchReaderBuilder, errors::ParquetError};
use url::Url;

/// Key of the table's configuration under which the feature schema stands as JSON.
const SCHEMA_KEY: &str = "marquee.schema";

/// Why the training table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// There is no table.
    #[error("no training table in {}; `marquee events process` makes one", path.display())]
    Missing {
        /// The table's folder.
        path: PathBuf,
    },
    /// The table's log cannot be read.
    #[error("reading Delta table {}", path.display())]
    Delta {
        /// The table's folder.
        path: PathBuf,
        /// What went wrong.
        source: Box<DeltaTableError>,
    },
    /// The table says nothing of its features.
    #[error("Delta table {} has no `{SCHEMA_KEY}` in its configuration; write it with `marquee events process`", path.display())]
    NoSchema {
        /// The table's folder.
        path: PathBuf,
    },
    /// The schema is not one.
    #[error("feature schema of Delta table {}", path.display())]
    Schema {
        /// The table's folder.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// A data file cannot be opened.
    #[error("opening table file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A data file is damaged.
    #[error("reading table file {}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: ParquetError,
    },
    /// A record batch is damaged.
    #[error("reading table file {}", path.display())]
    Arrow {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: arrow::error::ArrowError,
    },
    /// A column is missing or of another type.
    #[error("table file {} has no column `{column}` of type {wanted}", path.display())]
    Column {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The type.
        wanted: &'static str,
    },
    /// A number that no model can learn from.
    #[error("column `{column}` of table file {} holds {value} for impression {impression_id}; `marquee events process` refuses such values: write the table anew", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The row.
        impression_id: String,
        /// The value.
        value: f32,
    },
}

/// The training table at one version.
#[derive(Debug)]
pub struct TrainingTable {
    path: PathBuf,
    table: DeltaTable,
    schema: Schema,
}

/// Rows of the training table in memory, by rising (event time, impression id).
#[derive(Debug, Clone)]
pub struct Examples {
    /// Features.
    pub features: FeatureBatch,
    /// 1 for a click, else 0.
    pub clicks: Vec<f32>,
    /// 1 for a conversion, else 0.
    pub conversions: Vec<f32>,
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
}

impl TrainingTable {
    /// Opens the newest version.
    ///
    /// # Errors
    /// [`TableError`] that names the folder and the mend.
    pub async fn open(path: &Path) -> Result<Self, TableError> {
        let missing = || TableError::Missing {
            path: path.to_owned(),
        };
        let absolute = std::path::absolute(path).map_err(|_| missing())?;
        if !absolute.join("_delta_log").exists() {
            return Err(missing());
        }
        let url = Url::from_directory_path(&absolute).map_err(|()| missing())?;
        let delta = |source| TableError::Delta {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let table = open_table(url).await.map_err(delta)?;
        let configuration = table.snapshot().map_err(delta)?.metadata().configuration();
        let text = configuration
            .get(SCHEMA_KEY)
            .ok_or_else(|| TableError::NoSchema {
                path: path.to_owned(),
            })?;
        let schema = serde_json::from_str(text).map_err(|source| TableError::Schema {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            table,
            schema,
        })
    }

    /// The version that is open.
    pub fn version(&self) -> u64 {
        self.table.version().unwrap_or_default()
    }

    /// The features of its rows.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Reads all rows.
    ///
    /// # Errors
    /// [`TableError`] that names the file and the column.
    pub fn load(&self) -> Result<Examples, TableError> {
        let delta = |source| TableError::Delta {
            path: self.path.clone(),
            source: Box::new(source),
        };
        let uris = self.table.get_file_uris().map_err(delta)?;
        // Partition values such as `day=2026-09-01` are percent-encoded in a URI.
        let mut paths: Vec<PathBuf> = uris.map(|uri| local_path(&uri)).collect();
        paths.sort();
        let mut rows = Examples::empty(&self.schema);
        for path in paths {
            self.load_file(&path, &mut rows)?;
        }
        let mut order: Vec<usize> = (0..rows.clicks.len()).collect();
        order.sort_by_key(|row| (rows.event_time_us[*row], &rows.impression_ids[*row]));
        Ok(rows.gather(&order))
    }

    fn load_file(&self, path: &Path, rows: &mut Examples) -> Result<(), TableError> {
        let owned = || path.to_owned();
        let file = std::fs::File::open(path).map_err(|source| TableError::Io {
            path: owned(),
            source,
        })?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(|builder| builder.with_batch_size(8192).build())
            .map_err(|source| TableError::Parquet {
                path: owned(),
                source,
            })?;
        for batch in reader {
            let batch = batch.map_err(|source| TableError::Arrow {
                path: owned(),
                source,
            })?;
            rows.append(
                &Columns {
                    path,
                    batch: &batch,
                },
                &self.schema,
            )?;
        }
        Ok(())
    }
}

fn local_path(uri: &str) -> PathBuf {
    match Url::parse(uri).ok().and_then(|url| url.to_file_path().ok()) {
        Some(path) => path,
        None => PathBuf::from(uri),
    }
}

struct Columns<'a> {
    path: &'a Path,
    batch: &'a RecordBatch,
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

    fn integers(&self, column: &str) -> Result<&'a [i64], TableError> {
        self.get(column, "Int64 without nulls", |array| {
            array
                .as_primitive_opt::<Int64Type>()
                .map(|values| values.values().as_ref())
        })
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
        Self {
            features: FeatureBatch::new(schema),
            clicks: Vec::new(),
            conversions: Vec::new(),
            weights: Vec::new(),
            event_time_us: Vec::new(),
            impression_ids: Vec::new(),
            creative_ids: Vec::new(),
            scene_ids: Vec::new(),
            categories: Vec::new(),
        }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.clicks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.clicks.is_empty()
    }

    /// The chosen rows, in the order given.
    pub fn gather(&self, rows: &[usize]) -> Self {
        fn take<T: Clone>(values: &[T], rows: &[usize]) -> Vec<T> {
            rows.iter().map(|row| values[*row].clone()).collect()
        }
        Self {
            features: self.features.gather(rows),
            clicks: take(&self.clicks, rows),
            conversions: take(&self.conversions, rows),
            weights: take(&self.weights, rows),
            event_time_us: take(&self.event_time_us, rows),
            impression_ids: take(&self.impression_ids, rows),
            creative_ids: take(&self.creative_ids, rows),
            scene_ids: take(&self.scene_ids, rows),
            categories: take(&self.categories, rows),
        }
    }

    fn append(&mut self, columns: &Columns<'_>, schema: &Schema) -> Result<(), TableError> {
        self.clicks.extend(columns.floats("click")?);
        self.conversions.extend(columns.floats("conversion")?);
        self.weights.extend(columns.floats("weight")?);
        self.event_time_us
            .extend(columns.integers("event_time_us")?);
        self.impression_ids.extend(columns.texts("impression_id")?);
        self.creative_ids.extend(columns.texts("creative_id")?);
        self.scene_ids.extend(columns.texts("scene_id")?);
        self.categories.extend(columns.texts("category")?);
        let rows = columns.batch.num_rows();
        let dense = schema
            .dense
            .iter()
            .map(|field| columns.floats(&format!("d_{}", field.name)));
        let dense: Vec<&[f32]> = dense.collect::<Result<_, _>>()?;
        for row in 0..rows {
            self.features
                .dense
                .extend(dense.iter().map(|column| column[row]));
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
        self.features.num_rows += rows;
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
        let floats = |values: [f32; 3]| Arc::new(Float32Array::from(values.to_vec())) as ArrayRef;
        let texts = || Arc::new(StringArray::from(vec!["x", "y", "z"])) as ArrayRef;
        let integers = |values: [i64; 3]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
        let mut columns = vec![
            ("click", floats([0.0, 1.0, 0.0])),
            ("conversion", floats([0.0; 3])),
            ("weight", floats([1.0; 3])),
            ("event_time_us", integers([1, 2, 3])),
            ("impression_id", texts()),
            ("creative_id", texts()),
            ("scene_id", texts()),
            ("category", texts()),
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
        rows.append(&columns, &schema())?;
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
