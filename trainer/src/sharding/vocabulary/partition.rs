//! A part of a dynamic table's ids, with rows of its own.

use std::collections::{BTreeSet, HashMap};

/// The row of ids that have none of their own.
pub(super) const SHARED_ROW: u32 = 0;

/// A part of the rows in use, one of so many, that is freed when there is no room.
const ROOM: usize = 64;

/// Its ids, and which of its rows they have.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Partition {
    entries: HashMap<u64, Entry>,
    /// The first of its rows.
    first: u32,
    /// One after the last of its rows.
    end: u32,
    /// Rows from here on were never given to an id.
    next: u32,
    /// Rows that ids have lost.
    freed: BTreeSet<u32>,
    candidates: usize,
}

/// What is known of an id.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Entry {
    /// [`SHARED_ROW`] for a candidate.
    pub row: u32,
    /// How often it was seen.
    pub count: u32,
    /// The observation that saw it last.
    pub last_seen: u64,
}

impl Partition {
    pub fn new(first: u32, end: u32) -> Self {
        Self {
            entries: HashMap::new(),
            first,
            end,
            next: first,
            freed: BTreeSet::new(),
            candidates: 0,
        }
    }

    pub fn entries(&self) -> impl Iterator<Item = (&u64, &Entry)> {
        self.entries.iter()
    }

    pub fn row_of(&self, id: u64) -> u32 {
        self.entries.get(&id).map_or(SHARED_ROW, |entry| entry.row)
    }

    /// Ids that have no row.
    pub fn candidates(&self) -> usize {
        self.candidates
    }

    /// Rows that ids have.
    pub fn used(&self) -> usize {
        self.entries.len() - self.candidates
    }

    pub fn see(&mut self, id: u64, count: u32, now: u64) -> Entry {
        let candidates = &mut self.candidates;
        let entry = self.entries.entry(id).or_insert_with(|| {
            *candidates += 1;
            Entry {
                row: SHARED_ROW,
                count: 0,
                last_seen: now,
            }
        });
        entry.count = entry.count.saturating_add(count);
        entry.last_seen = now;
        *entry
    }

    pub fn is_full(&self) -> bool {
        self.freed.is_empty() && self.next == self.end
    }

    /// Gives the lowest free row to a candidate; false if there is none.
    pub fn admit(&mut self, id: u64) -> bool {
        if self.is_full() {
            return false;
        }
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        entry.row = self.freed.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.candidates -= 1;
        true
    }

    /// Frees a part of the rows, of the ids that were not seen for longest.
    pub fn make_room(&mut self, now: u64, lost: &mut Vec<u32>) {
        let entries = self.entries.values();
        let old = entries.filter(|entry| entry.row != SHARED_ROW && entry.last_seen < now);
        let mut old: Vec<(u64, u32)> = old.map(|entry| (entry.last_seen, entry.row)).collect();
        let count = (self.used() / ROOM).max(1).min(old.len());
        if count == 0 {
            return;
        }
        old.select_nth_unstable(count - 1);
        let last = old[count - 1];
        self.forget(
            |entry| entry.row != SHARED_ROW && (entry.last_seen, entry.row) <= last,
            lost,
        );
    }

    /// Candidates are at most as many as rows: else half of them, seen longest ago, are forgotten.
    pub fn bound_candidates(&mut self) {
        if self.candidates <= (self.end - self.first) as usize {
            return;
        }
        let candidates = self.entries.iter();
        let candidates = candidates.filter(|(_, entry)| entry.row == SHARED_ROW);
        let mut old: Vec<(u64, u64)> = candidates
            .map(|(id, entry)| (entry.last_seen, *id))
            .collect();
        let count = old.len() / 2;
        old.select_nth_unstable(count);
        for (_, id) in &old[..count] {
            self.entries.remove(id);
        }
        self.candidates -= count;
    }

    pub fn forget(&mut self, old: impl Fn(&Entry) -> bool, lost: &mut Vec<u32>) {
        let (freed, candidates) = (&mut self.freed, &mut self.candidates);
        let mut rows = Vec::new();
        self.entries.retain(|_, entry| {
            let old = old(entry);
            if old && entry.row == SHARED_ROW {
                *candidates -= 1;
            } else if old {
                rows.push(entry.row);
            }
            !old
        });
        rows.sort_unstable();
        freed.extend(&rows);
        lost.extend(rows);
    }

    pub fn clear(&mut self) {
        self.entries.clear();
        self.candidates = 0;
    }

    pub fn put_back(&mut self, id: u64, entry: Entry) {
        self.entries.insert(id, entry);
        self.candidates += usize::from(entry.row == SHARED_ROW);
    }

    /// The lowest free row is taken first, so that it does not matter which were ever in use.
    pub fn find_freed(&mut self) {
        let taken = self.entries.values().map(|entry| entry.row);
        let taken: BTreeSet<u32> = taken.filter(|row| *row != SHARED_ROW).collect();
        self.next = taken.last().map_or(self.first, |row| row + 1);
        let below = self.first..self.next;
        self.freed = below.filter(|row| !taken.contains(row)).collect();
    }
}
