//! A part of the table that is not read yet: which row groups of which files, and what of them.

use std::{
    collections::BTreeSet,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::error::ArrowError;
use features::Schema;
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{
            ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
            ParquetRecordBatchReaderBuilder, RowSelection,
        },
    },
    errors::ParquetError,
    file::statistics::Statistics,
};

use super::{
    TableError,
    rows::{Columns, Examples, Projection},
};

/// Column of the time by which rows are split.
const EVENT_TIME: &str = "event_time_us";

/// Rows that are decoded at once.
const DECODED_ROWS: usize = 4096;

pub(crate) const DAY_US: i64 = 86_400_000_000;

/// Rows of the training table, by file and row group; cheap to copy and to cut.
#[derive(Debug, Clone)]
pub struct Slice {
    schema: Arc<Schema>,
    files: Arc<[DataFile]>,
    groups: Vec<Group>,
    rows: usize,
}

#[derive(Debug)]
struct DataFile {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
}

/// What of a row group belongs to a slice.
#[derive(Debug, Clone)]
struct Group {
    file: usize,
    row_group: usize,
    /// Rows in the slice: runs of the group's rows, rising.
    runs: Vec<Range<usize>>,
}

impl Group {
    fn len(&self) -> usize {
        self.runs.iter().map(Range::len).sum()
    }

    /// A range of the rows in the slice, as runs of the group's rows.
    fn cut(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let mut before = 0;
        let mut cut = Vec::new();
        for run in &self.runs {
            let from = range.start.clamp(before, before + run.len()) - before;
            let to = range.end.clamp(before, before + run.len()) - before;
            if from < to {
                cut.push(run.start + from..run.start + to);
            }
            before += run.len();
        }
        cut
    }
}

impl DataFile {
    fn open(path: PathBuf) -> Result<Self, TableError> {
        let file = open(&path)?;
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())
            .map_err(|source| parquet_error(&path, source))?;
        Ok(Self { path, metadata })
    }

    /// Reads runs of a row group's rows.
    fn read(
        &self,
        row_group: usize,
        runs: Vec<Range<usize>>,
        columns: &[String],
    ) -> Result<ParquetRecordBatchReader, TableError> {
        let parquet = self.metadata.metadata();
        let schema = parquet.file_metadata().schema_descr();
        let fields = schema.root_schema().get_fields().iter().enumerate();
        // A column that is missing here is missed, by name, where it is looked for.
        let wanted = fields.filter(|(_, field)| columns.iter().any(|name| name == field.name()));
        let mask = ProjectionMask::roots(schema, wanted.map(|(at, _)| at));
        let total = parquet.row_group(row_group).num_rows() as usize;
        let whole = runs.len() == 1 && runs[0] == (0..total);
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(
            open(&self.path)?,
            self.metadata.clone(),
        )
        .with_projection(mask)
        .with_row_groups(vec![row_group])
        .with_batch_size(DECODED_ROWS);
        if !whole {
            let selection = RowSelection::from_consecutive_ranges(runs.into_iter(), total);
            builder = builder.with_row_selection(selection);
        }
        builder
            .build()
            .map_err(|source| parquet_error(&self.path, source))
    }

    /// Earliest and latest time of a row group, if the file's statistics know them.
    fn times(&self, row_group: usize) -> Option<(i64, i64)> {
        let group = self.metadata.metadata().row_group(row_group);
        let column = group
            .columns()
            .iter()
            .find(|column| column.column_path().string() == EVENT_TIME)?;
        match column.statistics()? {
            Statistics::Int64(times) => Some((*times.min_opt()?, *times.max_opt()?)),
            _ => None,
        }
    }
}

fn open(path: &Path) -> Result<File, TableError> {
    File::open(path).map_err(|source| TableError::Io {
        path: path.to_owned(),
        source,
    })
}

fn parquet_error(path: &Path, source: ParquetError) -> TableError {
    TableError::Parquet {
        path: path.to_owned(),
        source,
    }
}

fn arrow_error(path: &Path, source: ArrowError) -> TableError {
    TableError::Arrow {
        path: path.to_owned(),
        source,
    }
}

impl Slice {
    /// All rows of some files; reads no more than their footers.
    pub(super) fn of_files(
        schema: Arc<Schema>,
        paths: impl IntoIterator<Item = PathBuf>,
    ) -> Result<Self, TableError> {
        let files = paths.into_iter().map(DataFile::open);
        let files: Arc<[DataFile]> = files.collect::<Result<_, _>>()?;
        let groups = files.iter().enumerate().flat_map(|(file, data)| {
            let row_groups = data.metadata.metadata().row_groups().iter().enumerate();
            row_groups.map(move |(row_group, group)| Group {
                file,
                row_group,
                runs: std::iter::once(0..group.num_rows() as usize).collect(),
            })
        });
        let groups = groups.collect();
        Ok(Self::new(schema, files, groups))
    }

    fn new(schema: Arc<Schema>, files: Arc<[DataFile]>, mut groups: Vec<Group>) -> Self {
        groups.retain(|group| group.len() > 0);
        Self {
            rows: groups.iter().map(Group::len).sum(),
            schema,
            files,
            groups,
        }
    }

    /// Columns of the features.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub(super) fn num_groups(&self) -> usize {
        self.groups.len()
    }

    /// Times of all rows, microseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`TableError`] that names the file.
    pub fn times(&self) -> Result<Vec<i64>, TableError> {
        let times = self.groups.iter().map(|group| self.times_of(group));
        Ok(times.collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Days (UTC, since the Unix epoch) that have rows. The files' statistics say most.
    ///
    /// # Errors
    /// [`TableError`] that names the file.
    pub fn days(&self) -> Result<BTreeSet<i64>, TableError> {
        let mut days = BTreeSet::new();
        for group in &self.groups {
            let known = self.files[group.file].times(group.row_group);
            match known.map(|(first, last)| (first.div_euclid(DAY_US), last.div_euclid(DAY_US))) {
                Some((first, last)) if first == last => {
                    days.insert(first);
                }
                _ => {
                    let times = self.times_of(group)?;
                    days.extend(times.into_iter().map(|time| time.div_euclid(DAY_US)));
                }
            }
        }
        Ok(days)
    }

    /// The rows of a range of times. Reads times of those row groups that lie on an end of it.
    ///
    /// # Errors
    /// [`TableError`] that names the file.
    pub fn between(&self, times: Range<i64>) -> Result<Self, TableError> {
        let mut groups = Vec::new();
        for group in &self.groups {
            let runs = match self.files[group.file].times(group.row_group) {
                Some((first, last)) if times.contains(&first) && times.contains(&last) => {
                    group.runs.clone()
                }
                Some((first, last)) if last < times.start || first >= times.end => Vec::new(),
                _ => {
                    let rows = group.runs.iter().cloned().flatten();
                    let found = rows.zip(self.times_of(group)?);
                    let within = found.filter(|(_, time)| times.contains(time));
                    runs(within.map(|(row, _)| row))
                }
            };
            groups.push(Group {
                runs,
                ..group.clone()
            });
        }
        Ok(Self::new(self.schema.clone(), self.files.clone(), groups))
    }

    /// Its row groups, each a slice of its own.
    pub fn row_groups(&self) -> impl Iterator<Item = Self> {
        let of = |group: &Group| vec![group.clone()];
        self.groups
            .iter()
            .map(move |group| Self::new(self.schema.clone(), self.files.clone(), of(group)))
    }

    /// Reads all rows, as they stand in the files.
    ///
    /// # Errors
    /// [`TableError`] that names the file and the column.
    pub fn read(&self, projection: Projection) -> Result<Examples, TableError> {
        let groups = (0..self.groups.len()).collect();
        let mut rows = Examples::empty(&self.schema);
        Reader::new(self, groups, 0..self.rows, projection).read(self.rows, &mut rows)?;
        Ok(rows)
    }

    /// Reads all rows, by rising (event time, impression id).
    ///
    /// # Errors
    /// [`TableError`] that names the file and the column.
    pub fn load(&self) -> Result<Examples, TableError> {
        self.sorted(Projection::Full)
    }

    /// The same with outcomes.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_outcomes(&self) -> Result<Examples, TableError> {
        self.sorted(Projection::FullWithOutcomes)
    }

    /// The same with auctions instead; rows that know of none have none.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_auctions(&self) -> Result<Examples, TableError> {
        self.sorted(Projection::FullWithAuctions)
    }

    fn sorted(&self, projection: Projection) -> Result<Examples, TableError> {
        let rows = self.read(projection)?;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|row| (rows.event_time_us[*row], &rows.impression_ids[*row]));
        Ok(rows.gather(&order))
    }

    fn times_of(&self, group: &Group) -> Result<Vec<i64>, TableError> {
        let file = &self.files[group.file];
        let columns = [EVENT_TIME.to_owned()];
        let mut times = Vec::with_capacity(group.len());
        for batch in file.read(group.row_group, group.runs.clone(), &columns)? {
            let batch = batch.map_err(|source| arrow_error(&file.path, source))?;
            let columns = Columns {
                path: &file.path,
                batch: &batch,
            };
            times.extend(columns.integers(EVENT_TIME)?);
        }
        Ok(times)
    }
}

/// Rising row numbers as runs.
fn runs(rows: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for row in rows {
        match runs.last_mut() {
            Some(run) if run.end == row => run.end += 1,
            _ => runs.push(row..row + 1),
        }
    }
    runs
}

/// Reads a range of a slice's rows one after the other, row group by row group in a given order.
pub(super) struct Reader {
    slice: Slice,
    projection: Projection,
    columns: Vec<String>,
    /// What is still to be opened, the next one last.
    ahead: Vec<(usize, Vec<Range<usize>>)>,
    open: Option<(usize, ParquetRecordBatchReader)>,
    /// What was decoded and not yet given.
    left: Option<(usize, arrow::array::RecordBatch)>,
}

impl Reader {
    /// A reader of `range` of the rows that the groups have in the order given.
    pub fn new(
        slice: &Slice,
        order: Vec<usize>,
        range: Range<usize>,
        projection: Projection,
    ) -> Self {
        let mut before = 0;
        let mut ahead = Vec::new();
        for at in order {
            let group = &slice.groups[at];
            let within = |row: usize| row.clamp(before, before + group.len()) - before;
            let cut = group.cut(within(range.start)..within(range.end));
            if !cut.is_empty() {
                ahead.push((at, cut));
            }
            before += group.len();
        }
        ahead.reverse();
        Self {
            columns: projection.columns(&slice.schema),
            slice: slice.clone(),
            projection,
            ahead,
            open: None,
            left: None,
        }
    }

    /// Appends the next `count` rows.
    pub fn read(&mut self, mut count: usize, into: &mut Examples) -> Result<(), TableError> {
        while count > 0 {
            let Some((file, batch)) = self.next()? else {
                return Ok(());
            };
            let taken = count.min(batch.num_rows());
            let columns = Columns {
                path: &self.slice.files[file].path,
                batch: &batch.slice(0, taken),
            };
            into.append(&columns, &self.slice.schema, self.projection)?;
            count -= taken;
            let rest = batch.num_rows() - taken;
            self.left = (rest > 0).then(|| (file, batch.slice(taken, rest)));
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<(usize, arrow::array::RecordBatch)>, TableError> {
        if let Some(left) = self.left.take() {
            return Ok(Some(left));
        }
        loop {
            if let Some((file, reader)) = &mut self.open {
                let file = *file;
                if let Some(batch) = reader.next() {
                    let path = &self.slice.files[file].path;
                    let batch = batch.map_err(|source| arrow_error(path, source))?;
                    return Ok(Some((file, batch)));
                }
            }
            let Some((group, runs)) = self.ahead.pop() else {
                return Ok(None);
            };
            let Group {
                file, row_group, ..
            } = self.slice.groups[group];
            let reader = self.slice.files[file].read(row_group, runs, &self.columns)?;
            self.open = Some((file, reader));
        }
    }
}
