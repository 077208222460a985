//! What was done with those of whom nothing may be kept, for whoever must prove it.
//!
//! Each batch leaves one record, `audit/<table>/<batch>.json`: how many events came of restricted
//! people and why, how many ids were dropped at the gate, how many feature values were withheld. It
//! is written before the batch is committed and never changes. A record carries the SHA-256 of the
//! one before, and its own, so that one cannot be changed, added or lost without [`verify`] seeing it.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wire::{events::event::Payload, gate::Restricted};

use super::{kind, picture::hex};

/// What restricted people's events led to since it was last taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Events by why their person is restricted, and then by what they are.
    pub restricted: BTreeMap<String, BTreeMap<String, u64>>,
    /// Events among them that still named somebody; the gate dropped the id.
    pub ids_dropped: u64,
    /// Feature values that took their default because they are not for children.
    pub values_withheld: u64,
}

impl Audit {
    /// Counts an event of somebody restricted.
    pub(super) fn restricted(
        &mut self,
        restricted: Restricted,
        payload: Option<&Payload>,
        named: bool,
    ) {
        let why = restricted.why().name().to_owned();
        let events = self.restricted.entry(why).or_default();
        *events.entry(kind(payload).to_owned()).or_default() += 1;
        self.ids_dropped += u64::from(named);
    }

    /// Events of restricted people.
    pub fn events(&self) -> u64 {
        let counts = self.restricted.values().flat_map(BTreeMap::values);
        counts.sum()
    }

    fn add(&mut self, other: &Self) {
        for (why, events) in &other.restricted {
            let sums = self.restricted.entry(why.clone()).or_default();
            for (kind, count) in events {
                *sums.entry(kind.clone()).or_default() += count;
            }
        }
        self.ids_dropped += other.ids_dropped;
        self.values_withheld += other.values_withheld;
    }
}

/// What one batch did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    batch: u64,
    /// When the batch's newest event arrived, microseconds since the Unix epoch.
    as_of_us: i64,
    #[serde(rename = "counts")]
    audit: Audit,
    /// The seal of the batch before; empty for the first.
    previous: String,
    /// SHA-256 of all of the above.
    seal: String,
}

impl Record {
    fn sealed(batch: u64, as_of_us: i64, audit: Audit, previous: String) -> Self {
        let mut record = Self {
            batch,
            as_of_us,
            audit,
            previous,
            seal: String::new(),
        };
        record.seal = record.hash();
        record
    }

    fn hash(&self) -> String {
        let told = (self.batch, self.as_of_us, &self.audit, &self.previous);
        // Maps with texts as keys and numbers are always JSON.
        let text = serde_json::to_vec(&told).unwrap_or_default();
        hex(&Sha256::digest(text))
    }
}

/// Why the audit log cannot be written or does not hold.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The disk refused.
    #[error("accessing {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A batch left no record.
    #[error("{} is missing: batch {batch} was committed, so it was removed since", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// The batch.
        batch: u64,
    },
    /// No record.
    #[error("{} is no audit record", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The record was changed, or another one put in its place.
    #[error("{} was changed after it was written: {what}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: &'static str,
    },
}

/// What a table's whole audit log says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Batches.
    pub batches: u64,
    /// All their counts.
    pub counts: Audit,
    /// The seal of the last batch: who has it can tell later whether anything before has changed.
    pub seal: String,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            batches,
            counts,
            seal,
        } = self;
        writeln!(f, "{batches} batches, every record as it was written")?;
        for (why, events) in &counts.restricted {
            let told = events.iter().map(|(kind, count)| format!("{count} {kind}"));
            writeln!(f, "{why}: {}", told.collect::<Vec<_>>().join(", "))?;
        }
        writeln!(
            f,
            "{} ids dropped, {} feature values withheld",
            counts.ids_dropped, counts.values_withheld
        )?;
        write!(f, "seal {seal}")
    }
}

/// Reads every record up to the committed batch and checks that none was changed or lost.
///
/// # Errors
/// [`AuditError`] names the first record that does not hold.
pub fn verify(folder: &Path, committed: u64) -> Result<Verified, AuditError> {
    let mut verified = Verified {
        batches: committed,
        counts: Audit::default(),
        seal: String::new(),
    };
    for batch in 1..=committed {
        let record = read(folder, batch)?;
        let changed = |what| AuditError::Changed {
            path: file(folder, batch),
            what,
        };
        if record.batch != batch {
            return Err(changed("it is another batch's"));
        }
        if record.previous != verified.seal {
            return Err(changed("it does not follow the record before it"));
        }
        if record.hash() != record.seal {
            return Err(changed("its seal is not that of what it says"));
        }
        verified.counts.add(&record.audit);
        verified.seal = record.seal;
    }
    Ok(verified)
}

/// Writes a batch's record, durably.
pub(crate) fn write(
    folder: &Path,
    batch: u64,
    as_of_us: i64,
    audit: Audit,
) -> Result<(), AuditError> {
    let previous = match batch {
        1 => String::new(),
        _ => read(folder, batch - 1)?.seal,
    };
    let record = Record::sealed(batch, as_of_us, audit, previous);
    let path = file(folder, batch);
    let written = || {
        fs::create_dir_all(folder)?;
        let mut file = File::create(&path)?;
        serde_json::to_writer_pretty(&file, &record)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        super::sync_folder_of(&path)
    };
    written().map_err(failed(&path))
}

/// Gives the records up to `committed` to another table, which goes on from there.
pub(crate) fn copy(from: &Path, to: &Path, committed: u64) -> Result<(), AuditError> {
    fs::create_dir_all(to).map_err(failed(to))?;
    for batch in 1..=committed {
        let (from, to) = (file(from, batch), file(to, batch));
        fs::copy(&from, &to).map_err(failed(&from))?;
        let synced = File::open(&to).and_then(|file| file.sync_all());
        synced.map_err(failed(&to))?;
    }
    super::sync_folder_of(&file(to, committed)).map_err(failed(to))
}

fn file(folder: &Path, batch: u64) -> PathBuf {
    folder.join(format!("{batch:06}.json"))
}

fn read(folder: &Path, batch: u64) -> Result<Record, AuditError> {
    let path = file(folder, batch);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(AuditError::Missing { path, batch });
        }
        Err(error) => return Err(failed(&path)(error)),
    };
    serde_json::from_slice(&bytes).map_err(|source| AuditError::Unreadable { path, source })
}

fn failed(path: &Path) -> impl Fn(io::Error) -> AuditError {
    let path = path.to_owned();
    move |source| AuditError::Io {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::{events::AgeBand, gate::Subject};

    use super::*;

    fn written(folder: &Path, batches: u64) {
        for batch in 1..=batches {
            let mut audit = Audit::default();
            let child = Subject::admit("c".to_owned(), AgeBand::Under13, true);
            let child = child.restricted().unwrap();
            audit.restricted(child, Some(&Payload::Click(<_>::default())), true);
            audit.values_withheld = batch;
            write(folder, batch, 10 * batch as i64, audit).unwrap();
        }
    }

    #[test]
    fn a_log_that_was_left_alone_holds_and_is_summed() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path(), 3);
        let verified = verify(folder.path(), 3).unwrap();
        assert_eq!(verified.counts.restricted["under13"]["click"], 3);
        assert_eq!(verified.counts.events(), 3);
        assert_eq!(verified.counts.ids_dropped, 3);
        assert_eq!(verified.counts.values_withheld, 6);
        // One that was not committed is no part of it.
        assert_eq!(verify(folder.path(), 2).unwrap().counts.events(), 2);
    }

    #[test]
    fn a_record_that_was_removed_or_put_elsewhere_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        written(path, 3);
        fs::copy(file(path, 3), file(path, 2)).unwrap();
        let error = verify(path, 3).unwrap_err();
        assert!(
            matches!(&error, AuditError::Changed { path, .. } if path.ends_with("000002.json"))
        );
        fs::remove_file(file(path, 2)).unwrap();
        let error = verify(path, 3).unwrap_err();
        assert!(matches!(error, AuditError::Missing { batch: 2, .. }));
    }

    proptest! {
        #[test]
        fn no_changed_number_goes_unseen(batch in 1u64..=3, at in any::<prop::sample::Index>(), to in 0u8..10) {
            let folder = tempfile::tempdir().unwrap();
            written(folder.path(), 3);
            let path = file(folder.path(), batch);
            let mut bytes = fs::read(&path).unwrap();
            let digits: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at].is_ascii_digit()).collect();
            let digit = digits[at.index(digits.len())];
            prop_assume!(bytes[digit] != b'0' + to);
            bytes[digit] = b'0' + to;
            fs::write(&path, bytes).unwrap();
            prop_assert!(verify(folder.path(), 3).is_err());
        }
    }
}
