//! One side of a join in partitions by key, in memory and on the disk.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arrow::{
    array::{AsArray, Int64Array, RecordBatch, UInt32Array},
    compute::take_record_batch,
    datatypes::{DataType, Int64Type, SchemaRef},
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use features::hash::{chain_integer, chain_text};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder},
};

use super::{AsOfError, Side, arrow_error, io_error, on_threads, parquet_error, wanted};

/// Rows that are read, and cut, at once.
const BATCH_ROWS: usize = 65_536;

/// Two hashes of a key, which stand for it: with a billion keys, that any two have both in common has
/// a chance of one in 10^21.
pub(super) type Key = u128;

/// A side that is not read yet.
pub(super) struct Partitioner<'a> {
    side: Side<'a>,
    files: Vec<(PathBuf, ArrowReaderMetadata)>,
    columns: Columns,
    bytes: usize,
}

/// Where a side has what the join looks at.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    pub schema: SchemaRef,
    pub keys: Vec<usize>,
    pub time: usize,
    pub known: Option<usize>,
}

impl<'a> Partitioner<'a> {
    /// Opens all files and checks their columns.
    pub fn open(side: Side<'a>, by: &[String], known: Option<&str>) -> Result<Self, AsOfError> {
        let path = side.path;
        let mut files = Vec::new();
        let mut bytes = 0;
        for path in parquet_files(path)? {
            let file = fs::File::open(&path).map_err(io_error(&path))?;
            let metadata = ArrowReaderMetadata::load(&file, Default::default());
            let metadata = metadata.map_err(parquet_error(&path))?;
            let groups = metadata.metadata().row_groups().iter();
            bytes += groups
                .map(|group| group.total_byte_size() as usize)
                .sum::<usize>();
            files.push((path, metadata));
        }
        let Some((first, metadata)) = files.first() else {
            return Err(AsOfError::Nothing {
                path: path.to_owned(),
            });
        };
        let schema = Arc::clone(metadata.schema());
        let is_key = |kind: &DataType| matches!(kind, DataType::Int64 | DataType::Utf8);
        let is_time = |kind: &DataType| *kind == DataType::Int64;
        let time = |column| wanted(&schema, first, column, "an Int64 of microseconds", is_time);
        let key = |column: &String| wanted(&schema, first, column, "a text or an Int64", is_key);
        let columns = Columns {
            keys: by.iter().map(key).collect::<Result<_, _>>()?,
            time: time(side.time)?,
            known: known.map(time).transpose()?,
            schema: Arc::clone(&schema),
        };
        for (path, metadata) in &files {
            if metadata.schema().fields() != schema.fields() {
                return Err(AsOfError::Column {
                    path: path.clone(),
                    column: "*".to_owned(),
                    found: "not what the first file has".to_owned(),
                    wanted: "the same columns in all files",
                });
            }
        }
        Ok(Self {
            side,
            files,
            columns,
            bytes,
        })
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.columns.schema
    }

    /// Columns that are not of the key.
    pub fn value_columns(&self) -> impl Iterator<Item = usize> {
        self.columns.value_columns()
    }

    /// Bytes of all rows, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reads all rows into partitions. With more than `memory_bytes` of them in memory, these go to files
    /// in `scratch`.
    pub fn partition(
        self,
        count: usize,
        memory_bytes: usize,
        threads: usize,
        scratch: &Path,
    ) -> Result<Partitions, AsOfError> {
        let groups: Vec<(usize, usize)> = self
            .files
            .iter()
            .enumerate()
            .flat_map(|(file, (_, metadata))| {
                (0..metadata.metadata().num_row_groups()).map(move |group| (file, group))
            })
            .collect();
        let partitions = Partitions {
            path: self.side.path.to_owned(),
            scratch: scratch.to_owned(),
            columns: self.columns.clone(),
            parts: (0..count).map(|_| Mutex::default()).collect(),
            memory_bytes,
            held_bytes: AtomicUsize::new(0),
            spilled_bytes: AtomicU64::new(0),
        };
        let next = AtomicUsize::new(0);
        let work = |_| -> Result<(), AsOfError> {
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some((file, group)) = groups.get(place) else {
                    return Ok(());
                };
                let (path, metadata) = &self.files[*file];
                let file = fs::File::open(path).map_err(io_error(path))?;
                let reader =
                    ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
                        .with_row_groups(vec![*group])
                        .with_batch_size(BATCH_ROWS)
                        .with_projection(ProjectionMask::all())
                        .build()
                        .map_err(parquet_error(path))?;
                for (at, batch) in reader.enumerate() {
                    partitions.add((place, at), &batch.map_err(arrow_error(path))?)?;
                }
            }
        };
        on_threads(threads, work)?;
        partitions.finish()?;
        Ok(partitions)
    }
}

impl Columns {
    /// Columns that are not of the key.
    pub fn value_columns(&self) -> impl Iterator<Item = usize> {
        (0..self.schema.fields().len()).filter(|index| !self.keys.contains(index))
    }

    /// The key of each row. A missing part of it is a value as any other.
    pub fn row_keys(&self, rows: &RecordBatch) -> Vec<Key> {
        let mut hashes = vec![[42u64, 43]; rows.num_rows()];
        for column in &self.keys {
            let column = rows.column(*column);
            match column.as_primitive_opt::<Int64Type>() {
                Some(numbers) => chain(&mut hashes, numbers.iter(), chain_integer),
                None => chain(&mut hashes, column.as_string::<i32>().iter(), chain_text),
            }
        }
        hashes
            .into_iter()
            .map(|[high, low]| Key::from(high) << 64 | Key::from(low))
            .collect()
    }

    /// The time of each row; a null never comes.
    pub fn times<'a>(&self, rows: &'a RecordBatch, column: usize) -> &'a Int64Array {
        rows.column(column).as_primitive::<Int64Type>()
    }
}

fn chain<T: Copy>(
    hashes: &mut [[u64; 2]],
    values: impl Iterator<Item = Option<T>>,
    link: impl Fn(u64, T) -> u64,
) {
    for (hashes, value) in hashes.iter_mut().zip(values) {
        for hash in hashes {
            *hash = match value {
                Some(value) => link(*hash, value),
                // No value has a link of this seed.
                None => chain_integer(!*hash, 0),
            };
        }
    }
}

/// A side in partitions.
pub(super) struct Partitions {
    path: PathBuf,
    scratch: PathBuf,
    pub columns: Columns,
    parts: Vec<Mutex<Part>>,
    memory_bytes: usize,
    held_bytes: AtomicUsize,
    spilled_bytes: AtomicU64,
}

/// Where rows stand in their side: row group and batch. Threads bring them in any order.
type Place = (usize, usize);

#[derive(Default)]
struct Part {
    batches: Vec<(Place, RecordBatch)>,
    /// Rows that went to the disk.
    file: Option<StreamWriter<fs::File>>,
    /// The places and numbers of the rows there, in their order.
    spilled: Vec<(Place, usize)>,
}

impl Partitions {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that went to the disk.
    pub fn spilled_bytes(&self) -> u64 {
        self.spilled_bytes.load(Ordering::Relaxed)
    }

    fn part_path(&self, partition: usize) -> PathBuf {
        self.scratch.join(format!("{partition:06}.arrow"))
    }

    fn part(&self, partition: usize) -> std::sync::MutexGuard<'_, Part> {
        // A thread that panics ends the join.
        self.parts[partition]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the rows of a partition together and gives each its own.
    fn add(&self, place: Place, rows: &RecordBatch) -> Result<(), AsOfError> {
        let count = self.parts.len();
        let of: Vec<usize> = self
            .columns
            .row_keys(rows)
            .into_iter()
            .map(|key| (key >> 64) as usize & (count - 1))
            .collect();
        let mut starts = vec![0u32; count + 1];
        for partition in &of {
            starts[partition + 1] += 1;
        }
        for partition in 0..count {
            starts[partition + 1] += starts[partition];
        }
        let mut at = starts.clone();
        let mut order = vec![0u32; of.len()];
        for (row, partition) in of.iter().enumerate() {
            order[at[*partition] as usize] = row as u32;
            at[*partition] += 1;
        }
        let sorted =
            take_record_batch(rows, &UInt32Array::from(order)).map_err(arrow_error(&self.path))?;
        for partition in 0..count {
            let (start, end) = (starts[partition] as usize, starts[partition + 1] as usize);
            if start < end {
                let rows = sorted.slice(start, end - start);
                self.part(partition).batches.push((place, rows));
            }
        }
        let bytes = sorted.get_array_memory_size();
        if self.held_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.memory_bytes {
            self.held_bytes.store(0, Ordering::Relaxed);
            (0..count).try_for_each(|partition| self.spill(partition))?;
        }
        Ok(())
    }

    /// Moves a partition's rows to the disk.
    fn spill(&self, partition: usize) -> Result<(), AsOfError> {
        let path = self.part_path(partition);
        let mut part = self.part(partition);
        if part.batches.is_empty() {
            return Ok(());
        }
        let batches = std::mem::take(&mut part.batches);
        let places = batches
            .iter()
            .map(|(place, rows)| (*place, rows.num_rows()));
        part.spilled.extend(places);
        let rows = self.concat(&batches)?;
        let file = match &mut part.file {
            Some(file) => file,
            None => {
                fs::create_dir_all(&self.scratch).map_err(io_error(&self.scratch))?;
                let file = fs::File::create(&path).map_err(io_error(&path))?;
                let writer = StreamWriter::try_new(file, &self.columns.schema);
                part.file.insert(writer.map_err(arrow_error(&path))?)
            }
        };
        file.write(&rows).map_err(arrow_error(&path))?;
        let bytes = rows.get_array_memory_size() as u64;
        self.spilled_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn finish(&self) -> Result<(), AsOfError> {
        for partition in 0..self.parts.len() {
            if let Some(file) = &mut self.part(partition).file {
                file.finish()
                    .map_err(arrow_error(&self.part_path(partition)))?;
            }
        }
        Ok(())
    }

    fn concat(&self, batches: &[(Place, RecordBatch)]) -> Result<RecordBatch, AsOfError> {
        let batches = batches.iter().map(|(_, rows)| rows);
        let rows = arrow::compute::concat_batches(&self.columns.schema, batches);
        rows.map_err(arrow_error(&self.path))
    }

    /// Takes all rows of a partition out, in the order in which they stand in their side; none if there
    /// are none.
    pub fn take(&self, partition: usize) -> Result<Option<RecordBatch>, AsOfError> {
        let Part {
            mut batches,
            file,
            spilled,
        } = std::mem::take(&mut *self.part(partition));
        if file.is_some() {
            drop(file);
            let path = self.part_path(partition);
            let file = fs::File::open(&path).map_err(io_error(&path))?;
            let reader = StreamReader::try_new_buffered(file, None).map_err(arrow_error(&path))?;
            let mut spilled = spilled.into_iter();
            for rows in reader {
                let (rows, mut start) = (rows.map_err(arrow_error(&path))?, 0);
                while start < rows.num_rows() {
                    // Their places were noted before they were written.
                    let (place, count) = spilled.next().expect("the place of spilled rows");
                    batches.push((place, rows.slice(start, count)));
                    start += count;
                }
            }
            fs::remove_file(&path).map_err(io_error(&path))?;
        }
        if batches.is_empty() {
            return Ok(None);
        }
        batches.sort_unstable_by_key(|(place, _)| *place);
        self.concat(&batches).map(Some)
    }
}

/// The file itself, or the files of a folder by name.
fn parquet_files(path: &Path) -> Result<Vec<PathBuf>, AsOfError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).map_err(io_error(path))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error(path))?.path();
        if entry
            .extension()
            .is_some_and(|extension| extension == "parquet")
        {
            files.push(entry);
        }
    }
    files.sort();
    Ok(files)
}
