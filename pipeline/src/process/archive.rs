//! Events as they came, as Parquet by the hour of their arrival: what a log that forgets is made again from.
//!
//! ```text
//! archive/<table>/class=kept/date=2026-11-26/hour=13/00000012.parquet
//! archive/<table>/class=restricted/date=2026-11-26/hour=13/00000012.parquet
//! ```
//!
//! Columns: `arrival`, its number in the batch, `partition`, `offset`, `ingest_time_us`, `event_time_us`,
//! `event_id`, `kind` and `payload`, the Protobuf event without what names one who is restricted. Events of restricted people
//! lie apart, since they go sooner; so does what cannot be read, which might be one. A file belongs to a
//! batch, means nothing until that is committed, and then never changes.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{
        ArrayRef, AsArray, Int64Builder, LargeBinaryBuilder, RecordBatch, StringBuilder,
        StringDictionaryBuilder, UInt32Builder, UInt64Builder,
    },
    datatypes::{DataType, Field, Int32Type, Schema, UInt32Type, UInt64Type},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use prost::Message;
use wire::{
    events::Event,
    gate,
    log::{Log, LogError, Position},
};

use super::{config::ArchiveConfig, kind, source::SourceRecord};
use crate::{
    calendar::{DAY_US, HOUR_US, day_name, day_of, parse_day},
    files::{FilesError, batch_of, entries, failed, value_of, write},
};

/// How long events of a kind of people are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Kept,
    Restricted,
}

impl Class {
    const ALL: [Self; 2] = [Self::Kept, Self::Restricted];

    fn folder(self) -> &'static str {
        match self {
            Self::Kept => "class=kept",
            Self::Restricted => "class=restricted",
        }
    }
}

/// What a batch puts into the archive.
pub(super) struct Incoming {
    hours: BTreeMap<(Class, i64), Rows>,
    /// Of the last event that could be read.
    hour: i64,
    arrived: u32,
}

impl Incoming {
    /// Nothing yet, after an event that arrived at a time.
    pub(super) fn after(as_of_us: i64) -> Self {
        Self {
            hours: BTreeMap::new(),
            hour: as_of_us.div_euclid(HOUR_US),
            arrived: 0,
        }
    }

    pub(super) fn add(&mut self, record: &SourceRecord) {
        let event = record.event.as_ref().ok();
        if let Some(event) = event {
            self.hour = event.ingest_time_us.div_euclid(HOUR_US);
        }
        let class = match event.is_some_and(gate::may_keep) {
            true => Class::Kept,
            false => Class::Restricted,
        };
        let rows = self.hours.entry((class, self.hour)).or_default();
        rows.arrival.append_value(self.arrived);
        self.arrived += 1;
        rows.add(record);
    }
}

#[derive(Default)]
struct Rows {
    arrival: UInt32Builder,
    partition: StringDictionaryBuilder<Int32Type>,
    offset: UInt64Builder,
    ingest_time_us: Int64Builder,
    event_time_us: Int64Builder,
    event_id: StringBuilder,
    kind: StringDictionaryBuilder<Int32Type>,
    payload: LargeBinaryBuilder,
}

impl Rows {
    fn add(&mut self, record: &SourceRecord) {
        let event = record.event.as_ref().ok();
        self.partition.append_value(&record.partition);
        self.offset.append_value(record.offset);
        self.ingest_time_us
            .append_option(event.map(|event| event.ingest_time_us));
        self.event_time_us
            .append_option(event.map(|event| event.event_time_us));
        self.event_id
            .append_option(event.map(|event| event.event_id.as_str()));
        let kind = event.map_or("malformed", |event| kind(event.payload.as_ref()));
        self.kind.append_value(kind);
        match event.and_then(gate::stripped) {
            Some(stripped) => self.payload.append_value(stripped.encode_to_vec()),
            None => self.payload.append_value(&record.payload),
        }
    }

    fn finish(mut self) -> RecordBatch {
        let text = || DataType::Dictionary(DataType::Int32.into(), DataType::Utf8.into());
        let columns: [(&str, DataType, bool, ArrayRef); 8] = [
            (
                "arrival",
                DataType::UInt32,
                false,
                Arc::new(self.arrival.finish()),
            ),
            (
                "partition",
                text(),
                false,
                Arc::new(self.partition.finish()),
            ),
            (
                "offset",
                DataType::UInt64,
                false,
                Arc::new(self.offset.finish()),
            ),
            (
                "ingest_time_us",
                DataType::Int64,
                true,
                Arc::new(self.ingest_time_us.finish()),
            ),
            (
                "event_time_us",
                DataType::Int64,
                true,
                Arc::new(self.event_time_us.finish()),
            ),
            (
                "event_id",
                DataType::Utf8,
                true,
                Arc::new(self.event_id.finish()),
            ),
            ("kind", text(), false, Arc::new(self.kind.finish())),
            (
                "payload",
                DataType::LargeBinary,
                false,
                Arc::new(self.payload.finish()),
            ),
        ];
        let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns
            .into_iter()
            .map(|(name, kind, null, array)| (Field::new(name, kind, null), array))
            .unzip();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
            // Every record gave each of the columns one value of its type.
            .expect("columns of one length")
    }
}

/// A file, by what its path says.
#[derive(Debug)]
struct ArchiveFile {
    class: Class,
    hour: i64,
    batch: u64,
    path: PathBuf,
}

/// One event of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// Partition of the log that it came from.
    pub partition: String,
    /// Its number there.
    pub offset: u64,
    /// The event.
    pub payload: Vec<u8>,
}

/// The archive of one table.
#[derive(Debug, Clone)]
pub struct Archive {
    folder: PathBuf,
}

impl Archive {
    /// The one in a folder.
    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    pub(super) fn write(&self, batch: u64, incoming: Incoming) -> Result<(), FilesError> {
        for ((class, hour), rows) in incoming.hours {
            let path = self.hour(class, hour).join(format!("{batch:08}.parquet"));
            write(&path, &rows.finish())?;
        }
        Ok(())
    }

    fn hour(&self, class: Class, hour: i64) -> PathBuf {
        let (day, of_day) = (day_of(hour * HOUR_US), hour.rem_euclid(24));
        let folder = self.folder.join(class.folder());
        folder
            .join(format!("date={}", day_name(day)))
            .join(format!("hour={of_day:02}"))
    }

    /// Removes what batches left that were never committed.
    pub(super) fn remove_leftovers(&self, committed: u64) -> Result<(), FilesError> {
        for file in self
            .files(|_, _| true)?
            .iter()
            .filter(|file| file.batch > committed)
        {
            fs::remove_file(&file.path).map_err(failed(&file.path))?;
        }
        Ok(())
    }

    /// Removes the hours that are too old at a time. After every batch, and so it looks into no day that
    /// is still kept whole.
    pub(super) fn expire(&self, config: &ArchiveConfig, now_us: i64) -> Result<(), FilesError> {
        let expired = |class: Class, hour: i64| {
            let keep_us = match class {
                Class::Kept if config.retention_days == 0 => return false,
                Class::Kept => i64::from(config.retention_days) * DAY_US,
                Class::Restricted => i64::from(config.restricted_hours) * HOUR_US,
            };
            (hour + 1) * HOUR_US + keep_us <= now_us
        };
        for file in self.files(|class, day| expired(class, i64::from(day) * 24))? {
            if expired(file.class, file.hour) {
                fs::remove_file(&file.path).map_err(failed(&file.path))?;
                // The folders go with their last file.
                let folders = file.path.ancestors().skip(1).take(2);
                let _gone = folders
                    .map(fs::remove_dir)
                    .take_while(Result::is_ok)
                    .count();
            }
        }
        Ok(())
    }

    /// The files of those days of a class that are wanted.
    fn files(&self, wanted: impl Fn(Class, i32) -> bool) -> Result<Vec<ArchiveFile>, FilesError> {
        let mut files = Vec::new();
        for class in Class::ALL {
            for date in entries(&self.folder.join(class.folder()))? {
                let day = value_of(&date, "date").and_then(parse_day);
                let Some(day) = day.filter(|day| wanted(class, *day)) else {
                    continue;
                };
                for hour in entries(&date)? {
                    let of_day = value_of(&hour, "hour").and_then(|it| it.parse::<i64>().ok());
                    let Some(of_day) = of_day else { continue };
                    for path in entries(&hour)? {
                        files.extend(batch_of(&path).map(|batch| ArchiveFile {
                            class,
                            hour: i64::from(day) * 24 + of_day,
                            batch,
                            path,
                        }));
                    }
                }
            }
        }
        Ok(files)
    }

    /// The events that batches up to `committed` put there, batch after batch, in the order of their arrival.
    ///
    /// # Errors
    /// [`FilesError`] for a file that cannot be read.
    pub fn read(
        &self,
        committed: u64,
    ) -> Result<impl Iterator<Item = Result<Vec<Archived>, FilesError>>, FilesError> {
        let mut batches: BTreeMap<u64, Vec<ArchiveFile>> = BTreeMap::new();
        for file in self.files(|_, _| true)? {
            if file.batch <= committed {
                batches.entry(file.batch).or_default().push(file);
            }
        }
        Ok(batches.into_values().map(|files| {
            let mut events = Vec::new();
            for file in &files {
                read(&file.path, &mut events)?;
            }
            events.sort_by_key(|(arrival, _)| *arrival);
            Ok(events.into_iter().map(|(_, event)| event).collect())
        }))
    }
}

/// Why an archive was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The archive.
    #[error("reading the archive")]
    Files(#[from] FilesError),
    /// The log.
    #[error("writing the log")]
    Log(#[from] LogError),
    /// Old events behind new ones would be refused as too old.
    #[error(
        "the log holds events already, from partition `{partition}` on: restore into an empty one"
    )]
    NotEmpty {
        /// The first partition that has some.
        partition: String,
    },
    /// A folder without archived events.
    #[error("{} holds no archived events: name the folder that `class=kept` lies in", path.display())]
    Nothing {
        /// The folder.
        path: PathBuf,
    },
}

/// Appends all events of an archive to an empty log, in the order in which they came; says after each batch
/// how many there are so far, and gives their number.
///
/// # Errors
/// [`RestoreError`]. What was written before an error stays: remove it and begin again.
pub fn restore(
    archive: &Archive,
    log: &dyn Log,
    mut told: impl FnMut(u64),
) -> Result<u64, RestoreError> {
    for (partition, mut records) in log.read(&Position::new())? {
        if let Some(first) = records.next() {
            first?;
            return Err(RestoreError::NotEmpty { partition });
        }
    }
    let mut writer = log.writer("restored")?;
    let mut events = 0;
    // What a crash left of a batch came again with the next one, and is known by its ids.
    for batch in archive.read(u64::MAX)? {
        for event in batch? {
            let person = Event::decode(event.payload.as_slice()).map(|event| event.user_id);
            writer.append_keyed(&person.unwrap_or_default(), &event.payload)?;
            events += 1;
        }
        told(events);
    }
    writer.sync()?;
    match events {
        0 => Err(RestoreError::Nothing {
            path: archive.folder.clone(),
        }),
        events => Ok(events),
    }
}

fn read(path: &Path, events: &mut Vec<(u32, Archived)>) -> Result<(), FilesError> {
    let damaged = |source| FilesError::Parquet {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed(path))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|it| it.build());
    for rows in reader.map_err(damaged)? {
        let rows = rows.map_err(|error| damaged(error.into()))?;
        let column = |name: &str| {
            let missing = || {
                damaged(parquet::errors::ParquetError::General(format!(
                    "it has no column `{name}`"
                )))
            };
            rows.column_by_name(name).ok_or_else(missing)
        };
        let partition = column("partition")?.as_dictionary::<Int32Type>();
        let names = partition.values().as_string::<i32>();
        let offset = column("offset")?.as_primitive::<UInt64Type>();
        let arrival = column("arrival")?.as_primitive::<UInt32Type>();
        let payload = column("payload")?.as_binary::<i64>();
        for row in 0..rows.num_rows() {
            let name = partition.keys().value(row);
            let event = Archived {
                partition: names.value(name as usize).to_owned(),
                offset: offset.value(row),
                payload: payload.value(row).to_owned(),
            };
            events.push((arrival.value(row), event));
        }
    }
    Ok(())
}
