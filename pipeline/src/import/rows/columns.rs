//! From the texts of a row to the columns of the training table.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{
        ArrayRef, Float32Builder, Int32Array, Int64Array, Int64Builder, ListBuilder, RecordBatch,
        StringArray, StringBuilder, new_empty_array, new_null_array,
    },
    datatypes::{DataType, SchemaRef},
};
use features::hash::{SEED, chain_integer, hash_text};

use super::{
    At, Buckets, DenseColumn, RowsConfig, RowsError, SparseColumn, Transform, source::Cells,
};
use crate::{
    calendar::DAY_US,
    process::table::{MATURED, dense_name, id_field, sparse_name},
};

/// The values that have ids, by the name of a vocabulary.
#[derive(Debug, Default)]
struct Vocabulary {
    /// How often, and where first.
    counts: HashMap<String, (u64, u64)>,
    /// From 1 on; 0 is the id of all others.
    ids: HashMap<String, u64>,
    min_count: u64,
}

impl Vocabulary {
    fn take_in(&mut self, value: &str) {
        let next = self.counts.len() as u64;
        match self.counts.get_mut(value) {
            Some((count, _)) => *count += 1,
            None => {
                self.counts.insert(value.to_owned(), (1, next));
            }
        }
    }

    /// Gives ids to those that come often enough, in the order in which they came.
    fn finish(&mut self) {
        let counts = std::mem::take(&mut self.counts).into_iter();
        let mut kept: Vec<(u64, String)> = counts
            .filter(|(_, (count, _))| *count >= self.min_count)
            .map(|(value, (_, first))| (first, value))
            .collect();
        kept.sort_unstable();
        let values = kept.into_iter().map(|(_, value)| value);
        self.ids = values.zip(1..).collect();
    }

    fn id(&self, value: &str) -> u64 {
        self.ids.get(value).copied().unwrap_or(0)
    }
}

/// What the training rows say of the columns.
pub struct Fitted<'a> {
    config: &'a RowsConfig,
    label: usize,
    weight: Option<usize>,
    user: Option<usize>,
    dense: Vec<Dense<'a>>,
    sparse: Vec<Sparse<'a>>,
    vocabularies: Vec<Vocabulary>,
}

struct Dense<'a> {
    at: usize,
    column: &'a DenseColumn,
    least: f32,
    greatest: f32,
}

struct Sparse<'a> {
    at: usize,
    column: &'a SparseColumn,
    vocabulary: usize,
}

impl<'a> Fitted<'a> {
    /// Of no rows yet.
    pub fn new(config: &'a RowsConfig, columns: &[String]) -> Result<Self, RowsError> {
        let find = |name: &str| {
            let at = columns.iter().position(|column| column == name);
            at.ok_or_else(|| RowsError::NoColumn {
                column: name.to_owned(),
                known: columns.join(", "),
            })
        };
        let dense = config.dense.iter().map(|column| {
            Ok(Dense {
                at: find(&column.column)?,
                column,
                least: f32::INFINITY,
                greatest: f32::NEG_INFINITY,
            })
        });
        let dense = dense.collect::<Result<_, RowsError>>()?;
        let mut names: Vec<&str> = Vec::new();
        let mut vocabularies: Vec<Vocabulary> = Vec::new();
        let sparse = config.sparse.iter().map(|column| {
            let name = column.vocabulary.as_deref().unwrap_or(column.feature());
            let min_count = column.min_count.unwrap_or(config.min_count);
            let known = names.iter().position(|known| *known == name);
            let vocabulary = known.unwrap_or_else(|| {
                names.push(name);
                vocabularies.push(Vocabulary::default());
                names.len() - 1
            });
            let own = &mut vocabularies[vocabulary].min_count;
            *own = (*own).max(min_count);
            Ok(Sparse {
                at: find(&column.column)?,
                column,
                vocabulary,
            })
        });
        let sparse = sparse.collect::<Result<_, RowsError>>()?;
        Ok(Self {
            label: find(&config.label)?,
            weight: config.weight.as_deref().map(find).transpose()?,
            user: config.user.as_deref().map(find).transpose()?,
            config,
            dense,
            sparse,
            vocabularies,
        })
    }

    /// Takes in a training row.
    pub fn take_in(&mut self, at: At<'_>, cells: &Cells) -> Result<(), RowsError> {
        for dense in &mut self.dense {
            let value = dense.number(at, cells)?;
            dense.least = dense.least.min(value);
            dense.greatest = dense.greatest.max(value);
        }
        for sparse in &self.sparse {
            let vocabulary = &mut self.vocabularies[sparse.vocabulary];
            sparse.each(at, cells, |value| vocabulary.take_in(value))?;
        }
        Ok(())
    }

    /// There are no more training rows.
    pub fn finish(&mut self) {
        self.vocabularies.iter_mut().for_each(Vocabulary::finish);
    }

    /// Ids of each sparse feature.
    pub fn sizes(&self) -> Vec<(String, u64)> {
        let size = |sparse: &Sparse<'_>| {
            let ids = self.vocabularies[sparse.vocabulary].ids.len() as u64 + 1;
            (sparse.column.feature().to_owned(), ids)
        };
        self.sparse.iter().map(size).collect()
    }

    /// Changes with all that decides what an id or a number means.
    pub fn digest(&self) -> String {
        let config = serde_json::to_string(&(&self.config.dense, &self.config.sparse));
        // Both are plain data.
        let mut hash = hash_text(&config.expect("columns are plain data"));
        for dense in &self.dense {
            for bound in [dense.least, dense.greatest] {
                hash = chain_integer(hash, i64::from(bound.to_bits()));
            }
        }
        for vocabulary in &self.vocabularies {
            // In no order, so that they are added up.
            let one = |(value, id): (&String, &u64)| chain_integer(hash_text(value), *id as i64);
            let all = vocabulary.ids.iter().map(one).fold(SEED, u64::wrapping_add);
            hash = chain_integer(hash, all as i64);
        }
        format!("rows-{hash:016x}")
    }
}

impl Dense<'_> {
    /// After its transform, but for the range.
    fn number(&self, at: At<'_>, cells: &Cells) -> Result<f32, RowsError> {
        let text = cells.number(self.at).trim();
        if text.is_empty() {
            return Ok(self.column.missing);
        }
        let value = number(at, &self.column.column, text)?;
        Ok(match self.column.transform {
            Transform::None | Transform::MinMax => value,
            Transform::Log => value.signum() * value.abs().ln_1p(),
        })
    }

    fn value(&self, at: At<'_>, cells: &Cells) -> Result<f32, RowsError> {
        let value = self.number(at, cells)?;
        let range = self.greatest - self.least;
        Ok(match self.column.transform {
            Transform::MinMax if range > 0.0 => ((value - self.least) / range).clamp(0.0, 1.0),
            Transform::MinMax => 0.0,
            Transform::None | Transform::Log => value,
        })
    }
}

impl Sparse<'_> {
    /// Calls something with each value of a row.
    fn each(
        &self,
        at: At<'_>,
        cells: &Cells,
        mut value: impl FnMut(&str),
    ) -> Result<(), RowsError> {
        let text = match self.column.bucketize {
            Some(_) => cells.number(self.at),
            None => cells.key(self.at),
        };
        let mut one = |text: &str| {
            match &self.column.bucketize {
                Some(buckets) if !text.is_empty() => {
                    let number = number(at, &self.column.column, text)?;
                    value(&bucket(buckets, number).to_string());
                }
                _ => value(text),
            }
            Ok(())
        };
        match self.column.separator {
            None => one(text.trim()),
            Some(separator) => {
                let values = text.split(separator).map(str::trim);
                values.filter(|text| !text.is_empty()).try_for_each(one)
            }
        }
    }
}

fn number(at: At<'_>, column: &str, text: &str) -> Result<f32, RowsError> {
    let value = text.parse().ok().filter(|value: &f32| value.is_finite());
    value.ok_or_else(|| at.value(column, text, "a finite number, or nothing"))
}

fn bucket(buckets: &Buckets, value: f32) -> i64 {
    match buckets {
        Buckets::LogSquare if value > 2.0 => value.ln().powi(2).floor() as i64,
        Buckets::LogSquare => value.floor() as i64,
        Buckets::Boundaries(bounds) => bounds.partition_point(|bound| *bound <= value) as i64,
    }
}

/// Rows on their way to a data file.
pub struct Chunk<'a> {
    fitted: &'a Fitted<'a>,
    schema: SchemaRef,
    ids: StringBuilder,
    users: StringBuilder,
    times: Int64Builder,
    labels: Float32Builder,
    weights: Float32Builder,
    dense: Vec<Float32Builder>,
    single: Vec<Int64Builder>,
    multi: Vec<ListBuilder<Int64Builder>>,
    len: usize,
}

impl<'a> Chunk<'a> {
    /// An empty one for a table with these columns.
    pub fn new(fitted: &'a Fitted<'a>, schema: &SchemaRef) -> Self {
        let is_multi = |sparse: &&Sparse<'_>| sparse.column.separator.is_some();
        let multi = fitted.sparse.iter().filter(is_multi).count();
        let list = || ListBuilder::new(Int64Builder::new()).with_field(id_field());
        Self {
            schema: Arc::clone(schema),
            ids: StringBuilder::new(),
            users: StringBuilder::new(),
            times: Int64Builder::new(),
            labels: Float32Builder::new(),
            weights: Float32Builder::new(),
            dense: fitted.dense.iter().map(|_| Float32Builder::new()).collect(),
            single: (multi..fitted.sparse.len())
                .map(|_| Int64Builder::new())
                .collect(),
            multi: (0..multi).map(|_| list()).collect(),
            len: 0,
            fitted,
        }
    }

    /// Its rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Appends a row, the `row`th of a day; its label.
    pub fn push(
        &mut self,
        day: i32,
        row: u64,
        at: At<'_>,
        cells: &Cells,
    ) -> Result<f32, RowsError> {
        let fitted = self.fitted;
        let text = cells.number(fitted.label).trim();
        let label = match text.parse::<f32>() {
            Ok(1.0) => 1.0,
            Ok(0.0 | -1.0) => 0.0,
            _ => return Err(at.value(&fitted.config.label, text, "0, -1 or 1")),
        };
        let weight = match fitted.weight {
            None => 1.0,
            Some(column) => {
                let text = cells.number(column).trim();
                let name = fitted.config.weight.as_deref().unwrap_or_default();
                let value = number(at, name, text)?;
                match value >= 0.0 {
                    true => value,
                    false => return Err(at.value(name, text, "at least 0")),
                }
            }
        };
        for (dense, out) in fitted.dense.iter().zip(&mut self.dense) {
            out.append_value(dense.value(at, cells)?);
        }
        let (mut single, mut multi) = (self.single.iter_mut(), self.multi.iter_mut());
        for sparse in &fitted.sparse {
            let vocabulary = &fitted.vocabularies[sparse.vocabulary];
            let id = |value: &str| vocabulary.id(value).cast_signed();
            match sparse.column.separator {
                None => {
                    let out = single.next().expect("one of each such column");
                    sparse.each(at, cells, |value| out.append_value(id(value)))?;
                }
                Some(_) => {
                    let out = multi.next().expect("one of each such column");
                    sparse.each(at, cells, |value| out.values().append_value(id(value)))?;
                    out.append(true);
                }
            }
        }
        let time = i64::from(day) * DAY_US + row.cast_signed();
        self.times.append_value(time);
        self.ids.append_value(format!("{day}-{row:012}"));
        self.users
            .append_value(fitted.user.map_or("", |column| cells.key(column)));
        self.labels.append_value(label);
        self.weights.append_value(weight);
        self.len += 1;
        Ok(label)
    }

    /// Its rows as columns of the table, if there are any; it is empty then.
    pub fn take(&mut self) -> Result<Option<RecordBatch>, RowsError> {
        let rows = std::mem::take(&mut self.len);
        if rows == 0 {
            return Ok(None);
        }
        let fitted = self.fitted;
        let mut known: HashMap<String, ArrayRef> = HashMap::new();
        let mut put = |name: &str, array: ArrayRef| known.insert(name.to_owned(), array);
        put("impression_id", Arc::new(self.ids.finish()));
        put("user_id", Arc::new(self.users.finish()));
        put("event_time_us", Arc::new(self.times.finish()));
        put("click", Arc::new(self.labels.finish()));
        put("weight", Arc::new(self.weights.finish()));
        put(
            "label_state",
            Arc::new(StringArray::from(vec![MATURED; rows])),
        );
        for (dense, out) in fitted.dense.iter().zip(&mut self.dense) {
            put(&dense_name(&dense.column.column), Arc::new(out.finish()));
        }
        let (mut single, mut multi) = (self.single.iter_mut(), self.multi.iter_mut());
        for sparse in &fitted.sparse {
            let array: ArrayRef = match sparse.column.separator {
                None => Arc::new(single.next().expect("one of each such column").finish()),
                Some(_) => Arc::new(multi.next().expect("one of each such column").finish()),
            };
            put(&sparse_name(sparse.column.feature()), array);
        }
        let columns = self.schema.fields().iter().map(|field| {
            let known = known.remove(field.name());
            known.unwrap_or_else(|| match field.is_nullable() {
                true => new_null_array(field.data_type(), rows),
                false => nothing(field.data_type(), rows),
            })
        });
        let columns = columns.collect();
        Ok(Some(RecordBatch::try_new(
            Arc::clone(&self.schema),
            columns,
        )?))
    }
}

/// A column of which such rows know nothing.
fn nothing(kind: &DataType, rows: usize) -> ArrayRef {
    match kind {
        DataType::Utf8 => Arc::new(StringArray::from(vec![""; rows])),
        DataType::Int64 => Arc::new(Int64Array::from(vec![0; rows])),
        DataType::Int32 => Arc::new(Int32Array::from(vec![0; rows])),
        DataType::Float32 => Arc::new(arrow::array::Float32Array::from(vec![0.0; rows])),
        // There are no other kinds; if there were, the table would refuse it.
        _ => new_empty_array(kind),
    }
}
