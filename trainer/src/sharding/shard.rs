//! A part of a table in this rank's memory.

use std::borrow::Cow;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{
    optimizer::{Row, SparseOptimizerConfig, Update},
    plan::ShardSpec,
    storage::{Storage, Values, mix, prefetch, zeros},
    table::TableConfig,
};

/// Fresh weights lie within this of zero.
const INITIAL_WEIGHT: f32 = 0.01;

/// How far ahead rows are fetched into the cache; a random row of a large table is not there.
const PREFETCH: usize = 8;

/// Weights and optimizer state of some rows and columns of a table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shard {
    pub spec: ShardSpec,
    /// Held rows.
    pub rows: usize,
    /// Held columns.
    pub dim: usize,
    /// Numbers of state of a row.
    pub state_len: usize,
    /// `[rows, dim]`.
    pub values: Values,
    /// `[rows, state_len]`.
    pub state: Vec<f32>,
    fresh: Fresh,
}

/// Where fresh weights come from.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Fresh {
    seed: u64,
    /// Of the table's name.
    salt: u64,
    /// Columns of a whole row.
    table_dim: usize,
}

impl Fresh {
    /// Weights of one row, for the columns of a part.
    fn row<'a>(
        &self,
        random: &'a mut ChaCha8Rng,
        spec: &ShardSpec,
        local: usize,
    ) -> impl Iterator<Item = f32> + use<'a> {
        // One word a weight, at the weight's own place in the table's stream.
        let at = spec.rows.global(local) * self.table_dim + spec.columns.start;
        random.set_word_pos(at as u128);
        spec.columns.clone().map(|_| {
            let unit = (random.next_u32() >> 8) as f32 / (1 << 24) as f32;
            INITIAL_WEIGHT * (2.0 * unit - 1.0)
        })
    }

    fn random(&self) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(self.salt);
        random
    }
}

/// Which gradients move which rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Touched {
    /// `local row << 32 | entry`, rising.
    pub by_row: Vec<u64>,
    /// Where each entry's gradient begins.
    pub gradient_at: Vec<u32>,
    /// What each entry's gradient is multiplied with; empty: 1.
    pub scale: Vec<f32>,
}

impl Touched {
    /// The local row of a packed entry.
    pub fn row(packed: u64) -> usize {
        (packed >> 32) as usize
    }

    /// The entry of a packed one.
    pub fn entry(packed: u64) -> usize {
        (packed & u64::from(u32::MAX)) as usize
    }

    /// Those of several batches, whose gradients, of so many numbers each, lie one after the other.
    pub fn joined<'a>(batches: impl IntoIterator<Item = (&'a Self, usize)>) -> Cow<'a, Self> {
        let mut joined: Option<Cow<'a, Self>> = None;
        let mut before = 0;
        for (batch, len) in batches {
            match &mut joined {
                None => joined = Some(Cow::Borrowed(batch)),
                Some(joined) => joined.to_mut().append(batch, before),
            }
            before += len;
        }
        let mut joined = joined.unwrap_or_default();
        if let Cow::Owned(joined) = &mut joined {
            joined.sort();
        }
        joined
    }

    /// Adds the entries of another batch, whose gradients lie `before` further on; to be sorted.
    fn append(&mut self, more: &Self, before: usize) {
        let first = self.gradient_at.len();
        if !self.scale.is_empty() || !more.scale.is_empty() {
            self.scale.resize(first, 1.0);
            self.scale.extend(&more.scale);
            self.scale.resize(first + more.gradient_at.len(), 1.0);
        }
        self.by_row
            .extend(more.by_row.iter().map(|packed| packed + first as u64));
        self.gradient_at
            .extend(more.gradient_at.iter().map(|at| at + before as u32));
    }

    /// Brings the entries of a row together, in the order in which they came.
    pub fn sort(&mut self) {
        self.by_row.sort_unstable();
    }

    /// Runs of entries of the same row.
    pub fn runs(&self) -> impl Iterator<Item = &[u64]> {
        self.by_row.chunk_by(|a, b| a >> 32 == b >> 32)
    }
}

impl Shard {
    /// Fresh weights, which do not depend on how the table is cut.
    pub fn new(
        spec: ShardSpec,
        table: &TableConfig,
        storage: Storage,
        optimizer: &SparseOptimizerConfig,
        seed: u64,
    ) -> Self {
        let (rows, dim) = (spec.rows.count(table.rows), spec.columns.len());
        let state_len = optimizer.state_len(dim);
        let mut shard = Self {
            rows,
            dim,
            state_len,
            values: Values::zeros(storage, rows * dim),
            state: zeros(rows * state_len),
            fresh: Fresh {
                seed,
                salt: features::hash::hash_text(&table.name),
                table_dim: table.dim,
            },
            spec,
        };
        shard.initialise();
        shard
    }

    fn initialise(&mut self) {
        const ROWS: usize = 4096;
        let (spec, source) = (&self.spec, self.fresh);
        let fill = |first: usize, count: usize| -> Vec<f32> {
            let mut random = source.random();
            let mut fresh = Vec::with_capacity(count * spec.columns.len());
            for local in first..first + count {
                fresh.extend(source.row(&mut random, spec, local));
            }
            fresh
        };
        // In portions, so that little stands in memory twice.
        let firsts: Vec<usize> = (0..self.rows).step_by(ROWS).collect();
        for portion in firsts.chunks(64) {
            let fresh: Vec<Vec<f32>> = portion
                .par_iter()
                .map(|first| fill(*first, ROWS.min(self.rows - first)))
                .collect();
            for (first, fresh) in portion.iter().zip(fresh) {
                self.values.set(first * self.dim, &fresh);
            }
        }
    }

    /// Makes all rows as new.
    pub fn reinitialise(&mut self) {
        self.state = zeros(self.rows * self.state_len);
        self.initialise();
    }

    /// Makes rows as new, those of `(table, row)` that are here.
    pub fn reset(&mut self, lost: &[(usize, u32)]) {
        let (rows, fresh) = self.fresh(lost);
        for (local, fresh) in rows.into_iter().zip(fresh.chunks_exact(self.dim)) {
            let local = local as usize;
            self.values.set(local * self.dim, fresh);
            self.state[local * self.state_len..(local + 1) * self.state_len].fill(0.0);
        }
    }

    /// Local rows of those of `(table, row)` that are here, and their weights when they are new.
    ///
    /// # Shapes
    /// - returns `[rows]` and `[rows, dim]`
    pub fn fresh(&self, lost: &[(usize, u32)]) -> (Vec<u32>, Vec<f32>) {
        let mut random = self.fresh.random();
        let of_table = lost.iter().filter(|(table, _)| *table == self.spec.table);
        let rows = of_table.map(|(_, row)| *row as usize);
        let here = rows.filter(|row| self.spec.rows.has(*row));
        let (mut rows, mut weights) = (Vec::new(), Vec::new());
        for row in here {
            let local = self.spec.rows.local(row);
            rows.push(local as u32);
            weights.extend(self.fresh.row(&mut random, &self.spec, local));
        }
        (rows, weights)
    }

    /// Bytes of weights and state.
    pub fn bytes(&self) -> usize {
        self.values.bytes() + size_of_val(self.state.as_slice())
    }

    /// Columns of a row.
    pub fn read(&self, row: usize, to: &mut [f32]) {
        self.values.read(row * self.dim, to);
    }

    /// Adds a row times `scale`.
    pub fn add_to(&self, row: usize, scale: f32, to: &mut [f32]) {
        self.values.add_to(row * self.dim, scale, to);
    }

    /// The row is wanted soon.
    pub fn prefetch(&self, row: usize) {
        self.values.prefetch(row * self.dim, self.dim);
    }

    /// The sum of the gradients of one row's entries.
    fn sum(&self, run: &[u64], touched: &Touched, gradient: &[f32], sum: &mut [f32]) {
        let of = |packed: &u64| -> (&[f32], f32) {
            let entry = Touched::entry(*packed);
            let at = touched.gradient_at[entry] as usize;
            let scale = touched.scale.get(entry).copied().unwrap_or(1.0);
            (&gradient[at..at + self.dim], scale)
        };
        let (first, scale) = of(&run[0]);
        for (sum, g) in sum.iter_mut().zip(first) {
            *sum = scale * g;
        }
        for packed in &run[1..] {
            let (g, scale) = of(packed);
            for (sum, g) in sum.iter_mut().zip(g) {
                *sum += scale * g;
            }
        }
    }

    /// Moves each touched row once, by the sum of its gradients.
    pub fn update(
        &mut self,
        touched: &Touched,
        gradient: &[f32],
        optimizer: &SparseOptimizerConfig,
        update: Update,
    ) {
        let mut sum = vec![0.0; self.dim];
        let mut end = 0;
        for run in touched.runs() {
            end += run.len();
            self.prefetch_entry(touched, gradient, end + PREFETCH);
            self.sum(run, touched, gradient, &mut sum);
            let row = Touched::row(run[0]);
            self.change(row, &mut sum, None, optimizer, update);
        }
    }

    /// What the update of an entry further on takes is wanted soon.
    fn prefetch_entry(&self, touched: &Touched, gradient: &[f32], ahead: usize) {
        if let Some(packed) = touched.by_row.get(ahead) {
            let row = Touched::row(*packed);
            self.prefetch(row);
            prefetch(&self.state, row * self.state_len, self.state_len);
            let at = touched.gradient_at[Touched::entry(*packed)] as usize;
            prefetch(gradient, at, self.dim);
        }
    }

    /// The summed gradients of all touched rows, decay included, and the sums of their squares.
    ///
    /// # Shapes
    /// - returns `[touched, dim]` and `[touched]`
    pub fn sums(
        &self,
        touched: &Touched,
        gradient: &[f32],
        optimizer: &SparseOptimizerConfig,
    ) -> (Vec<f32>, Vec<f32>) {
        let (mut sums, mut squares) = (Vec::new(), Vec::new());
        let mut weights = vec![0.0; self.dim];
        for run in touched.runs() {
            let at = sums.len();
            sums.resize(at + self.dim, 0.0);
            self.sum(run, touched, gradient, &mut sums[at..]);
            self.read(Touched::row(run[0]), &mut weights);
            squares.push(optimizer.square_sum(&weights, &mut sums[at..]));
        }
        (sums, squares)
    }

    /// As [`Self::update`], by what [`Self::sums`] gave, with the squares of all columns.
    pub fn update_by_sums(
        &mut self,
        touched: &Touched,
        sums: &mut [f32],
        squares: &[f32],
        optimizer: &SparseOptimizerConfig,
        update: Update,
    ) {
        let rows = touched.runs().map(|run| Touched::row(run[0]));
        for ((row, sum), squares) in rows.zip(sums.chunks_exact_mut(self.dim)).zip(squares) {
            self.change(row, sum, Some(*squares), optimizer, update);
        }
    }

    fn change(
        &mut self,
        row: usize,
        gradient: &mut [f32],
        square_sum: Option<f32>,
        optimizer: &SparseOptimizerConfig,
        update: Update,
    ) {
        let state = &mut self.state[row * self.state_len..(row + 1) * self.state_len];
        let global = self.spec.rows.global(row) as u64;
        let seed = || {
            mix(&[
                self.fresh.salt,
                update.step,
                global,
                self.spec.columns.start as u64,
            ])
        };
        let seed = match self.values {
            Values::F32(_) => 0,
            _ => seed(),
        };
        self.values
            .change(row * self.dim, self.dim, seed, |weights| {
                let square_sum =
                    square_sum.unwrap_or_else(|| optimizer.square_sum(weights, gradient));
                let row = Row {
                    weights,
                    state,
                    gradient,
                };
                optimizer.apply(row, square_sum, update);
            });
    }
}
