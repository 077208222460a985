//! Joins a partition.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use arrow::{
    array::{Array, RecordBatch, UInt32Array, new_null_array},
    compute::take,
    datatypes::SchemaRef,
};

use super::{
    AsOfError, arrow_error,
    partition::{Key, Partitions},
};

/// Joins the partitions of two sides.
pub(super) struct Merger<'a> {
    pub rows: &'a Partitions,
    pub values: &'a Partitions,
    /// Of what comes out.
    pub schema: SchemaRef,
}

/// A partition that is joined.
pub(super) struct Joined {
    pub rows: RecordBatch,
    /// Rows that found a value.
    pub matched: u64,
}

/// A key's values in the order in which they become ready.
struct Timeline {
    by_key: HashMap<Key, (u32, u32), BuildHasherDefault<KeyHasher>>,
    /// From which time on each is ready.
    ready: Vec<i64>,
    /// The best value of the key by then.
    best: Vec<u32>,
}

impl Merger<'_> {
    /// Takes a partition's rows and values; none if it has no rows.
    pub fn join(&self, partition: usize) -> Result<Option<Joined>, AsOfError> {
        let values = self.values.take(partition)?;
        let Some(rows) = self.rows.take(partition)? else {
            return Ok(None);
        };
        let columns = &self.rows.columns;
        let found: UInt32Array = match &values {
            None => UInt32Array::new_null(rows.num_rows()),
            Some(values) => {
                let timeline = Timeline::new(self.values, values);
                let times = columns.times(&rows, columns.time);
                let keys = columns.row_keys(&rows).into_iter();
                keys.zip(times)
                    .map(|(key, time)| timeline.find(key, time?))
                    .collect()
            }
        };
        let mut joined = rows.columns().to_vec();
        for index in self.values.columns.value_columns() {
            joined.push(match &values {
                Some(values) => take(values.column(index), &found, None)
                    .map_err(arrow_error(self.values.path()))?,
                None => {
                    let kind = self.values.columns.schema.field(index).data_type();
                    new_null_array(kind, rows.num_rows())
                }
            });
        }
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), joined);
        Ok(Some(Joined {
            rows: rows.map_err(arrow_error(self.rows.path()))?,
            matched: (found.len() - found.null_count()) as u64,
        }))
    }
}

impl Timeline {
    fn new(side: &Partitions, values: &RecordBatch) -> Self {
        let columns = &side.columns;
        let event = columns.times(values, columns.time);
        let known = columns.known.map(|known| columns.times(values, known));
        let mut entries: Vec<Entry> = Vec::with_capacity(values.num_rows());
        for (index, key) in columns.row_keys(values).into_iter().enumerate() {
            let learnt = known.unwrap_or(event);
            // What has no time never holds.
            if event.is_null(index) || learnt.is_null(index) {
                continue;
            }
            let (event, known) = (event.value(index), learnt.value(index));
            entries.push(Entry {
                key,
                // A value is known to the rows after the moment at which it was learnt of.
                ready: event.max(known.saturating_add(1)),
                event,
                known,
                index: index as u32,
            });
        }
        entries.sort_unstable_by_key(|entry| (entry.key, entry.ready, entry.index));
        let mut timeline = Self {
            by_key: HashMap::default(),
            ready: Vec::with_capacity(entries.len()),
            best: Vec::with_capacity(entries.len()),
        };
        for of_key in entries.chunk_by(|a, b| a.key == b.key) {
            let start = timeline.ready.len() as u32;
            let mut best = &of_key[0];
            for entry in of_key {
                // The latest; of two of one time, what was learnt of last, and then what stands last.
                if entry.rank() >= best.rank() {
                    best = entry;
                }
                timeline.ready.push(entry.ready);
                timeline.best.push(best.index);
            }
            let end = timeline.ready.len() as u32;
            timeline.by_key.insert(of_key[0].key, (start, end));
        }
        timeline
    }

    /// The best value of a key at a time.
    fn find(&self, key: Key, time: i64) -> Option<u32> {
        let (start, end) = *self.by_key.get(&key)?;
        let of_key = start as usize..end as usize;
        let ready = self.ready[of_key].partition_point(|ready| *ready <= time);
        let last = ready.checked_sub(1)?;
        Some(self.best[start as usize + last])
    }
}

struct Entry {
    key: Key,
    ready: i64,
    event: i64,
    known: i64,
    index: u32,
}

impl Entry {
    fn rank(&self) -> (i64, i64, u32) {
        (self.event, self.known, self.index)
    }
}

/// Keys are hashes already.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // The lower half: by the upper one keys were cut into partitions.
        let half = bytes.first_chunk().map(|half| u64::from_le_bytes(*half));
        self.0 = half.unwrap_or_default();
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}
