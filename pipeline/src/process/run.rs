//! From the log to the table, one durable batch after the other.
//!
//! A batch happens when the table's commit names it. Everything else of it (dead letters,
//! pictures, data files, state) is written and synced before, under names that carry the batch's
//! number; a start deletes what carries a number above the committed one. So a crash anywhere
//! leaves the last committed batch and nothing else.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cli::Layout;
use features::{FeatureSet, SpecError};
use wire::{
    catalogue::{CatalogueError, Pictures},
    log::LogError,
};

use super::{
    archive::{Archive, Incoming},
    audit::{self, AuditError},
    config::{PipelineConfig, SettingError},
    counters::EventsReport,
    dead_letter::DeadLetterWriter,
    fault::Fault,
    processor::Processor,
    progress::Progress,
    source::{MergedLog, ReadAhead},
    state::{self, StateError, StateHeader},
    table::{TableError, TrainingTable},
};
use crate::{
    facts::FactFiles,
    files::{FilesError, batch_of, entries},
};

/// States of this many batches are kept.
const KEPT_STATES: u64 = 2;

/// Why processing stopped. What was committed stays committed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A setting that makes no sense.
    #[error("in the pipeline's configuration")]
    Setting(#[from] SettingError),
    /// The feature spec.
    #[error("loading the feature spec")]
    Spec(#[from] SpecError),
    /// The event log.
    #[error("reading the event log")]
    Log(#[from] LogError),
    /// The state.
    #[error("in the pipeline's state")]
    State(#[from] StateError),
    /// The training table.
    #[error("in the training table")]
    Table(#[from] TableError),
    /// Facts and archive beside the table.
    #[error("keeping what came")]
    Files(#[from] FilesError),
    /// The audit log.
    #[error("in the audit log")]
    Audit(#[from] AuditError),
    /// Pictures of the catalogue.
    #[error("writing new pictures")]
    Pictures(#[from] CatalogueError),
    /// The state was made with other features.
    #[error(
        "the state in {} has features of spec {found}, the configuration names spec {wanted}: give the new spec another `table` or another --root", path.display()
    )]
    OtherFeatures {
        /// The state's folder.
        path: PathBuf,
        /// Digest in the state.
        found: String,
        /// Digest in use.
        wanted: String,
    },
    /// Two processors on one state.
    #[error("another process works on {}: wait for it, or stop it", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The disk refused.
    #[error("accessing {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ProcessError {
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            path: path.clone(),
            source,
        }
    }
}

/// What to do when the log has been read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtEnd {
    /// Keep what waits for its windows: more events will come.
    Wait,
    /// Close all windows but those of conversions, and write what waited.
    Flush,
}

/// Processes what the log holds beyond the last commit.
///
/// # Errors
/// [`ProcessError`]; what was committed stays, and a later call goes on from there.
pub fn run(
    config: &PipelineConfig,
    layout: &Layout,
    at_end: AtEnd,
    fault: &Fault,
    progress: &Progress,
) -> Result<EventsReport, ProcessError> {
    config.check()?;
    let mut run = Run::open(config, layout, fault)?;
    let log = config.log.open(&layout.log())?;
    let mut records = ReadAhead::of(MergedLog::open(&*log, &run.header.position)?);
    loop {
        let read = run.read_batch(&mut records, progress)?;
        let at_the_end = read == Read::ToTheEnd;
        let closed = match at_end {
            AtEnd::Flush if at_the_end => run.processor.close(),
            AtEnd::Flush | AtEnd::Wait => 0,
        };
        if run.uncommitted > 0 || closed > 0 {
            run.commit()?;
            log.tell_committed(&run.header.position);
        }
        if at_the_end {
            break;
        }
    }
    progress.finish(run.events);
    Ok(run.report())
}

#[derive(Debug, PartialEq, Eq)]
enum Read {
    ABatch,
    ToTheEnd,
}

struct Run<'a> {
    config: &'a PipelineConfig,
    layout: &'a Layout,
    fault: &'a Fault,
    _lock: File,
    table: TrainingTable,
    processor: Processor,
    /// Of the batch that is being made, or of the last one.
    header: StateHeader,
    dead_letters: DeadLetterWriter,
    /// What goes into the archive, if one is kept.
    incoming: Option<Incoming>,
    /// Events since the last commit.
    uncommitted: u64,
    /// Events since the start.
    events: u64,
    started: Instant,
    /// How much of the time is in the header already.
    accounted: Duration,
}

impl<'a> Run<'a> {
    fn open(
        config: &'a PipelineConfig,
        layout: &'a Layout,
        fault: &'a Fault,
    ) -> Result<Self, ProcessError> {
        let started = Instant::now();
        let set = FeatureSet::load(&config.features)?;
        let lock = lock(&layout.state(&config.table))?;
        let table = TrainingTable::open(&layout.table(&config.table), &set)?;
        let committed = table.committed_batch()?;
        table.remove_leftovers(committed)?;
        remove_leftovers(layout, &config.table, committed)?;
        FactFiles::at(&layout.facts(&config.table)).remove_leftovers(committed)?;
        Archive::at(&layout.archive(&config.table)).remove_leftovers(committed)?;
        let (header, processor) = if committed == 0 {
            let header = StateHeader {
                feature_digest: set.digest().to_owned(),
                ..StateHeader::default()
            };
            (header, Processor::new(config, set))
        } else {
            let wanted = set.digest().to_owned();
            let (header, processor) =
                state::load(&layout.state(&config.table), committed, config, set)?;
            if header.feature_digest != wanted {
                return Err(ProcessError::OtherFeatures {
                    path: layout.state(&config.table),
                    found: header.feature_digest,
                    wanted,
                });
            }
            (header, processor)
        };
        Ok(Self {
            dead_letters: DeadLetterWriter::new(&layout.dead_letters(&config.table), committed + 1),
            incoming: config
                .archive
                .enabled
                .then(|| Incoming::after(header.as_of_us)),
            config,
            layout,
            fault,
            _lock: lock,
            table,
            processor,
            header,
            uncommitted: 0,
            events: 0,
            started,
            accounted: Duration::ZERO,
        })
    }

    fn read_batch(
        &mut self,
        records: &mut ReadAhead,
        progress: &Progress,
    ) -> Result<Read, ProcessError> {
        let most_bytes = self.config.batch_mib << 20;
        let mut bytes = 0;
        for _ in 0..self.config.batch_events {
            if bytes >= most_bytes {
                break;
            }
            let Some(record) = records.next_record()? else {
                return Ok(Read::ToTheEnd);
            };
            bytes += record.payload.len();
            progress.read(record.payload.len());
            let partition = &*record.partition;
            match self.header.position.get_mut(partition) {
                Some(next) => *next = record.offset + 1,
                None => {
                    let next = record.offset + 1;
                    self.header.position.insert(partition.to_owned(), next);
                }
            }
            if let Some(incoming) = &mut self.incoming {
                incoming.add(&record);
            }
            self.processor.apply(record);
            self.uncommitted += 1;
            self.events += 1;
        }
        Ok(Read::ABatch)
    }

    fn commit(&mut self) -> Result<(), ProcessError> {
        let batch = self.header.batch + 1;
        let outputs = self.processor.take_outputs();
        self.fault.point("read");

        let folder = self.layout.dead_letters(&self.config.table);
        for letter in &outputs.dead_letters {
            let written = self.dead_letters.write(letter);
            written.map_err(ProcessError::io(&folder))?;
        }
        let finished = self.dead_letters.finish();
        finished.map_err(ProcessError::io(&folder))?;
        self.fault.point("dead-letters");

        let pictures = self.processor.ads().take_new_pictures();
        write_pictures(&self.layout.state(&self.config.table), batch, &pictures)?;
        self.fault.point("pictures");

        let (rows, matured) = (&outputs.rows, &outputs.matured);
        let staged = self.table.stage(batch, rows, matured, self.config)?;
        self.fault.point("rows");

        let facts = FactFiles::at(&self.layout.facts(&self.config.table));
        facts.write(batch, outputs.facts)?;
        self.fault.point("facts");

        let as_of_us = self.processor.as_of_us();
        let archive = Archive::at(&self.layout.archive(&self.config.table));
        if let Some(incoming) = &mut self.incoming {
            let incoming = std::mem::replace(incoming, Incoming::after(as_of_us));
            archive.write(batch, incoming)?;
        }
        self.fault.point("archive");

        let folder_of_audit = self.layout.audit(&self.config.table);
        audit::write(&folder_of_audit, batch, as_of_us, outputs.audit)?;
        self.fault.point("audit");

        self.header.batch = batch;
        self.header.as_of_us = as_of_us;
        let spent = self.started.elapsed();
        self.header.seconds += (spent - self.accounted).as_secs_f64();
        self.accounted = spent;
        let bytes = state::encode(&self.header, &self.processor);
        state::write_partial(&self.layout.state(&self.config.table), batch, &bytes)?;
        self.fault.point("state-partial");
        state::publish(&self.layout.state(&self.config.table), batch)?;
        self.fault.point("state");

        self.table.commit(batch, staged)?;
        self.fault.point("committed");

        self.dead_letters = DeadLetterWriter::new(&folder, batch + 1);
        self.uncommitted = 0;
        archive.expire(&self.config.archive, as_of_us)?;
        if let Some(old) = batch.checked_sub(KEPT_STATES) {
            remove(&state::file_of_batch(
                &self.layout.state(&self.config.table),
                old,
            ))?;
        }
        self.fault.point("cleaned");
        Ok(())
    }

    fn report(&self) -> EventsReport {
        let spent = self.started.elapsed();
        EventsReport {
            counters: self.processor.counters().clone(),
            impressions_pending: self.processor.impressions_pending() as u64,
            batches: self.header.batch,
            seconds: self.header.seconds + (spent - self.accounted).as_secs_f64(),
            events_per_second: self.events as f64 / spent.as_secs_f64().max(1e-9),
        }
    }
}

/// Folder of the pictures that came with a batch.
pub(crate) fn pictures_of_batch(state: &Path, batch: u64) -> PathBuf {
    pictures_folder(state).join(format!("{batch:06}"))
}

pub(crate) fn pictures_folder(state: &Path) -> PathBuf {
    state.join("pictures")
}

fn write_pictures(state: &Path, batch: u64, pictures: &Pictures) -> Result<(), ProcessError> {
    if pictures.is_empty() {
        return Ok(());
    }
    let folder = pictures_of_batch(state, batch);
    fs::create_dir_all(&folder).map_err(ProcessError::io(&folder))?;
    pictures.save(&folder)?;
    let entries = fs::read_dir(&folder).map_err(ProcessError::io(&folder))?;
    for entry in entries {
        let path = entry.map_err(ProcessError::io(&folder))?.path();
        let synced = File::open(&path).and_then(|file| file.sync_all());
        synced.map_err(ProcessError::io(&path))?;
    }
    for folder in [folder.clone(), pictures_folder(state), state.to_owned()] {
        let synced = File::open(&folder).and_then(|folder| folder.sync_all());
        synced.map_err(ProcessError::io(&folder))?;
    }
    Ok(())
}

/// Lets one process alone work on a state.
pub(crate) fn lock(folder: &Path) -> Result<File, ProcessError> {
    fs::create_dir_all(folder).map_err(ProcessError::io(folder))?;
    let path = folder.join("processor.lock");
    let file = File::create(&path).map_err(ProcessError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ProcessError::Locked { path }),
        Err(TryLockError::Error(source)) => Err(ProcessError::Io { path, source }),
    }
}

/// Deletes what batches that were never committed left behind, and states too old to go back to.
fn remove_leftovers(layout: &Layout, table: &str, committed: u64) -> Result<(), ProcessError> {
    let state = layout.state(table);
    for path in entries(&state)? {
        let Some(batch) = batch_of(&path) else {
            continue;
        };
        if batch > committed || batch + KEPT_STATES <= committed {
            remove(&path)?;
        }
    }
    for folder in [layout.dead_letters(table), layout.audit(table)] {
        for path in entries(&folder)? {
            if batch_of(&path).is_some_and(|batch| batch > committed) {
                remove(&path)?;
            }
        }
    }
    for path in entries(&pictures_folder(&state))? {
        if batch_of(&path).is_some_and(|batch| batch > committed) {
            fs::remove_dir_all(&path).map_err(ProcessError::io(&path))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), ProcessError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ProcessError::io(path)(error)),
        _ => Ok(()),
    }
}
