//! A table in host memory whose hot rows lie on the device.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::Range,
};

use cubecl::Runtime;

use crate::{
    device::{Device, Sums, Vectors, check, expect},
    error::KernelError,
    table::{GpuTable, RowwiseAdagrad, Touched},
};

/// What a cache has done since the start, in distinct rows of batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// Rows that were there.
    pub hits: u64,
    /// Rows that had to be brought.
    pub misses: u64,
    /// Rows that were brought back to make room.
    pub evictions: u64,
}

/// A table larger than the device's memory: all rows in host memory, and those used last on the
/// device too, where they are looked up and moved. Rows go back when others need their place, so
/// that what is learnt is that of a [`GpuTable`] bit for bit. Source: the software cache of
/// HugeCTR's HPS and of FBGEMM's managed caching, without their approximations.
pub struct CachedTable<R: Runtime> {
    weights: Vec<f32>,
    state: Vec<f32>,
    table: GpuTable<R>,
    /// Where a row lies on the device, and when it was used last.
    slots: HashMap<u32, Slot>,
    /// `(last use, row)` of all rows on the device.
    by_age: BTreeSet<(u64, u32)>,
    free: Vec<u32>,
    batches: u64,
    used: CacheUse,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    at: u32,
    last_use: u64,
}

impl<R: Runtime> CachedTable<R> {
    /// A table in host memory, and room for `slots` of its rows on the device.
    ///
    /// # Shapes
    /// - `weights`: `[rows, dim]`; `state`: `[rows]`
    ///
    /// # Errors
    /// [`KernelError::Length`].
    pub fn new(
        device: Device<R>,
        dim: usize,
        weights: Vec<f32>,
        state: Vec<f32>,
        slots: usize,
    ) -> Result<Self, KernelError> {
        expect("weights", weights.len(), state.len() * dim)?;
        Ok(Self {
            table: GpuTable::new(device, dim, &vec![0.0; slots * dim], &vec![0.0; slots])?,
            weights,
            state,
            slots: HashMap::new(),
            by_age: BTreeSet::new(),
            free: (0..slots as u32).rev().collect(),
            batches: 0,
            used: CacheUse::default(),
        })
    }

    /// How many rows the device holds at a time.
    fn slots(&self) -> usize {
        self.table.rows()
    }

    /// What the cache has done.
    pub fn used(&self) -> CacheUse {
        self.used
    }

    /// As [`GpuTable::lookup`]; if there are more rows than the device has room for, in portions.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn lookup(&mut self, sums: Sums<'_>, target: Vectors<'_>) -> Result<(), KernelError> {
        let count = check(sums.offsets, sums.source_at.len(), sums.scale)?;
        expect("target_at", sums.target_at.len(), count)?;
        let mut first = 0;
        while first < count {
            let last = self.portion(&sums, first);
            let (offsets, entries) = cut(sums.offsets, first..last);
            let rows = self.bring(&sums.source_at[entries.clone()])?;
            let sums = self.table.device().sums(Sums {
                source_at: &rows,
                offsets: &offsets,
                scale: sums.scale.map(|scale| &scale[entries]),
                target_at: &sums.target_at[first..last],
            })?;
            self.table.lookup(&sums, target)?;
            first = last;
        }
        Ok(())
    }

    /// The end of the sums from `first` on whose rows have room at the same time; at least one.
    fn portion(&self, sums: &Sums<'_>, first: usize) -> usize {
        let mut distinct: HashSet<u32> = HashSet::new();
        for (sum, ends) in sums.offsets.windows(2).enumerate().skip(first) {
            distinct.extend(&sums.source_at[ends[0] as usize..ends[1] as usize]);
            if distinct.len() > self.slots() {
                return sum.max(first + 1);
            }
        }
        sums.target_at.len()
    }

    /// As [`GpuTable::update`].
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn update(
        &mut self,
        touched: Touched<'_>,
        gradients: Vectors<'_>,
        optimizer: RowwiseAdagrad,
    ) -> Result<(), KernelError> {
        let count = touched.check()?;
        let slots = self.slots().max(1);
        for first in (0..count).step_by(slots) {
            let last = count.min(first + slots);
            let (offsets, entries) = cut(touched.offsets, first..last);
            // Each row has its own slot.
            let portion = Touched {
                rows: &self.bring(&touched.rows[first..last])?,
                offsets: &offsets,
                gradient_at: &touched.gradient_at[entries.clone()],
                scale: touched.scale.map(|scale| &scale[entries]),
            };
            let portion = self.table.distinct(portion, last - first);
            self.table.update(&portion, gradients, optimizer)?;
        }
        Ok(())
    }

    /// As [`GpuTable::write_rows`].
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn write_rows(
        &mut self,
        rows: &[u32],
        weights: &[f32],
        state: &[f32],
    ) -> Result<(), KernelError> {
        let dim = self.table.dim();
        expect("rows to write", weights.len(), rows.len() * dim)?;
        expect("rows to write", state.len(), rows.len())?;
        let room = self.slots().max(1);
        let values = weights.chunks((room * dim).max(1)).zip(state.chunks(room));
        for (rows, (weights, state)) in rows.chunks(room).zip(values) {
            let slots = self.bring(rows)?;
            self.table.write_rows(&slots, weights, state)?;
        }
        Ok(())
    }

    /// Brings all rows back; weights (`[rows, dim]`) and state (`[rows]`).
    ///
    /// # Errors
    /// [`KernelError::Device`].
    pub fn read(&mut self) -> Result<(&[f32], &[f32]), KernelError> {
        let rows: Vec<u32> = self.by_age.iter().map(|(_, row)| *row).collect();
        self.bring_back(&rows)?;
        Ok((&self.weights, &self.state))
    }

    /// Sees to it that rows are on the device; returns where each is.
    fn bring(&mut self, rows: &[u32]) -> Result<Vec<u32>, KernelError> {
        let distinct: BTreeSet<u32> = rows.iter().copied().collect();
        if let Some(row) = distinct
            .last()
            .filter(|row| **row as usize >= self.state.len())
        {
            return Err(KernelError::Row {
                row: *row,
                rows: self.state.len(),
            });
        }
        if distinct.len() > self.table.rows() {
            return Err(KernelError::CacheTooSmall {
                wanted: distinct.len(),
                slots: self.table.rows(),
            });
        }
        self.batches += 1;
        let mut missing = Vec::new();
        for row in &distinct {
            match self.slots.get_mut(row) {
                None => missing.push(*row),
                Some(slot) => {
                    self.by_age.remove(&(slot.last_use, *row));
                    slot.last_use = self.batches;
                    self.by_age.insert((slot.last_use, *row));
                }
            }
        }
        self.used.hits += (distinct.len() - missing.len()) as u64;
        self.used.misses += missing.len() as u64;
        self.make_room(missing.len())?;
        self.put(&missing)?;
        // All of them are there now.
        Ok(rows.iter().map(|row| self.slots[row].at).collect())
    }

    /// Brings back the rows that were used longest ago; those of this batch are younger.
    fn make_room(&mut self, wanted: usize) -> Result<(), KernelError> {
        let count = wanted.saturating_sub(self.free.len());
        let old = self.by_age.iter().take(count).map(|(_, row)| *row);
        let old: Vec<u32> = old.collect();
        self.bring_back(&old)?;
        for row in &old {
            if let Some(slot) = self.slots.remove(row) {
                self.by_age.remove(&(slot.last_use, *row));
                self.free.push(slot.at);
            }
        }
        self.used.evictions += old.len() as u64;
        Ok(())
    }

    fn bring_back(&mut self, rows: &[u32]) -> Result<(), KernelError> {
        if rows.is_empty() {
            return Ok(());
        }
        let dim = self.table.dim();
        let slots: Vec<u32> = rows.iter().map(|row| self.slots[row].at).collect();
        let (weights, state) = self.table.read_rows(&slots)?;
        for (at, row) in rows.iter().enumerate() {
            let to = *row as usize;
            self.weights[to * dim..(to + 1) * dim]
                .copy_from_slice(&weights[at * dim..(at + 1) * dim]);
            self.state[to] = state[at];
        }
        Ok(())
    }

    fn put(&mut self, rows: &[u32]) -> Result<(), KernelError> {
        let dim = self.table.dim();
        let first = self.free.len() - rows.len();
        let slots = self.free.split_off(first);
        let (mut weights, mut state) = (Vec::new(), Vec::new());
        for (row, at) in rows.iter().zip(&slots) {
            let from = *row as usize;
            weights.extend_from_slice(&self.weights[from * dim..(from + 1) * dim]);
            state.push(self.state[from]);
            let last_use = self.batches;
            self.slots.insert(*row, Slot { at: *at, last_use });
            self.by_age.insert((last_use, *row));
        }
        self.table.write_rows(&slots, &weights, &state)
    }
}

/// The parts `range` of offsets, from 0 on, and their entries.
fn cut(offsets: &[u32], range: Range<usize>) -> (Vec<u32>, Range<usize>) {
    let (first, last) = (offsets[range.start], offsets[range.end]);
    let part = offsets[range.start..=range.end].iter();
    let offsets = part.map(|offset| offset - first).collect();
    (offsets, first as usize..last as usize)
}
