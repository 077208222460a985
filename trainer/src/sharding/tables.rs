//! This rank's part of all tables: pooled lookup, and update of the rows that a batch touched.

use std::{borrow::Cow, ops::Range, sync::Arc};

use models::ctr::{EmbeddingTable, KnownIds};
use rayon::prelude::*;

use super::{
    optimizer::{SparseOptimizerConfig, Update},
    plan::{Plan, ShardSpec, Sharding},
    routing::{Order, Request, Routed, Router, TableBatch, Term},
    shard::{Shard, Touched},
    storage::Storage,
};
use crate::collective::{CollectiveError, ProcessGroup};

/// Rows of a batch that one task pools; small enough to balance two cores.
const ROWS_PER_TASK: usize = 256;

/// How far ahead rows are fetched into the cache.
const PREFETCH: usize = 16;

/// The tables of all sparse features, in the order of the plan.
#[derive(Debug, Clone)]
pub struct ShardedTables {
    pub(super) router: Router,
    pub(super) rank: usize,
    pub(super) optimizer: SparseOptimizerConfig,
    pub(super) shards: Vec<Shard>,
    /// Updates so far.
    pub(super) step: u64,
}

/// Gradients that have reached the owners of their rows.
#[derive(Debug)]
pub struct Received<'a> {
    routed: &'a Routed,
    gradient: Vec<f32>,
}

impl ShardedTables {
    /// Makes this rank's part of fresh tables, with weights uniform in ±0.01 that depend on the
    /// seed and the table's name, and not on the plan.
    pub fn new(
        plan: Arc<Plan>,
        rank: usize,
        optimizer: SparseOptimizerConfig,
        storage: Storage,
        seed: u64,
    ) -> Self {
        let router = Router::new(Arc::clone(&plan), rank);
        let make = |(_, spec): (usize, &ShardSpec)| {
            let table = &plan.tables[spec.table].0;
            Shard::new(spec.clone(), table, storage, &optimizer, seed)
        };
        let shards = router.held_by(rank).map(make).collect();
        Self {
            router,
            rank,
            optimizer,
            shards,
            step: 0,
        }
    }

    /// Forgets what the rows have learnt, but not which ids have rows.
    pub fn reinitialise(&mut self) {
        self.shards.iter_mut().for_each(Shard::reinitialise);
    }

    /// As [`Router::width`].
    pub fn width(&self) -> usize {
        self.router.width()
    }

    /// Who finds the way of ids.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Admits and evicts ids of dynamic tables by what a step's batches have seen. It comes before
    /// the step's lookup and before the next batch is routed: else what an id's row is would
    /// depend on which thread is faster.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn observe<'a>(
        &mut self,
        routed: impl IntoIterator<Item = &'a Routed>,
        group: &mut impl ProcessGroup,
    ) -> Result<(), CollectiveError> {
        let lost = self.router.observe(routed, group)?;
        self.shards
            .par_iter_mut()
            .for_each(|shard| shard.reset(&lost));
        Ok(())
    }

    /// Bytes of this rank's weights and optimizer state.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(Shard::bytes).sum()
    }

    /// Pools the bags of a batch by feature, an empty bag to zeros.
    ///
    /// # Shapes
    /// - returns `[rows, width]`; the columns before the first feature's are zeros
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn lookup(
        &self,
        routed: &Routed,
        group: &mut impl ProcessGroup,
    ) -> Result<Vec<f32>, CollectiveError> {
        let mut pooled = vec![0.0; routed.rows * self.width()];
        self.pool_locally(routed, &mut pooled);
        if self.router.plan().world_size == 1 {
            return Ok(pooled);
        }
        let answers: Vec<Vec<f32>> = (0..routed.orders.len())
            .into_par_iter()
            .map(|rank| self.answer(routed, rank))
            .collect();
        let parts: Vec<&[f32]> = answers.iter().map(Vec::as_slice).collect();
        let received = group.all_to_all_v(&parts)?;
        let wanted = routed.requests.iter().enumerate().map(|(rank, requests)| {
            let held = self.router.held_by(rank).zip(requests);
            let sent = held.filter(|((_, spec), _)| spec.owner.is_some());
            let vectors = sent.map(|((_, spec), asked)| asked.num_vectors * spec.columns.len());
            vectors.sum()
        });
        check_lengths(&received, wanted, "rows")?;
        self.pool_received(routed, &received, &mut pooled);
        Ok(pooled)
    }

    /// Brings the gradients of looked-up rows to their owners; [`Self::apply`] takes them.
    ///
    /// # Shapes
    /// - `gradient`: `[rows, width]`, of the pooled block
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn exchange<'a>(
        &self,
        routed: &'a Routed,
        gradient: Vec<f32>,
        group: &mut impl ProcessGroup,
    ) -> Result<Received<'a>, CollectiveError> {
        if self.router.plan().world_size == 1 {
            return Ok(Received { routed, gradient });
        }
        let sent: Vec<Vec<f32>> = routed
            .requests
            .par_iter()
            .map(|requests| self.gradients(requests, routed.rows, &gradient))
            .collect();
        let parts: Vec<&[f32]> = sent.iter().map(Vec::as_slice).collect();
        let received = group.all_to_all_v(&parts)?;
        let wanted = routed.orders.iter().map(|orders| {
            let dim = |order: &Order| self.shards[order.shard].dim;
            orders
                .iter()
                .map(|order| order.num_vectors * dim(order))
                .sum()
        });
        check_lengths(&received, wanted, "gradients")?;
        Ok(Received {
            routed,
            gradient: received.concat(),
        })
    }

    /// Pools tables that are wholly here.
    fn pool_locally(&self, routed: &Routed, pooled: &mut [f32]) {
        let alone = self.router.plan().world_size == 1;
        let local = |shard: &&Shard| alone || shard.spec.owner.is_none();
        let local: Vec<&Shard> = self.shards.iter().filter(local).collect();
        if local.is_empty() {
            return;
        }
        let width = self.width();
        let tasks = pooled.par_chunks_mut(ROWS_PER_TASK * width);
        tasks.enumerate().for_each(|(task, out)| {
            for shard in &local {
                let batch = &routed.tables[shard.spec.table];
                let places = self.router.places(shard.spec.table);
                for (at, place) in places.iter().enumerate() {
                    let first = at * routed.rows + task * ROWS_PER_TASK;
                    let bags = &batch.offsets[first..=first + out.len() / width];
                    let rows = out.chunks_exact_mut(width);
                    let columns = place.column..place.column + shard.dim;
                    let targets = rows.map(|row| &mut row[columns.clone()]);
                    for (target, ends) in targets.zip(bags.windows(2)) {
                        pool_bag(shard, batch, ends[0] as usize..ends[1] as usize, target);
                    }
                }
            }
        });
    }

    /// The vectors that a rank has ordered.
    fn answer(&self, routed: &Routed, rank: usize) -> Vec<f32> {
        let mut vectors = Vec::new();
        for order in &routed.orders[rank] {
            let shard = &self.shards[order.shard];
            if shard.spec.owner.is_none() {
                continue;
            }
            let first = vectors.len();
            vectors.resize(first + order.num_vectors * shard.dim, 0.0);
            let targets = vectors[first..].chunks_exact_mut(shard.dim);
            let mut entry = 0;
            for (vector, target) in targets.enumerate() {
                match order.lengths.get(vector) {
                    None => {
                        if let Some(ahead) = order.rows.get(vector + PREFETCH) {
                            shard.prefetch(*ahead as usize);
                        }
                        shard.read(order.rows[vector] as usize, target);
                    }
                    Some(length) => {
                        for at in entry..entry + *length as usize {
                            let weight = order.weights.get(at).copied().unwrap_or(1.0);
                            shard.add_to(order.rows[at] as usize, weight, target);
                        }
                        entry += *length as usize;
                    }
                }
            }
        }
        vectors
    }

    /// Adds what the owners sent to the bags.
    fn pool_received(&self, routed: &Routed, received: &[Vec<f32>], pooled: &mut [f32]) {
        struct Given<'a> {
            terms: &'a [Term],
            /// Of the feature.
            first_bag: usize,
            vectors: &'a [f32],
            dim: usize,
            column: usize,
        }
        let width = self.width();
        let mut given = Vec::new();
        for (rank, vectors) in received.iter().enumerate() {
            let mut at = 0;
            let held = self.router.held_by(rank);
            for (request, (_, spec)) in routed.requests[rank].iter().zip(held) {
                if spec.owner.is_none() {
                    continue;
                }
                let dim = spec.columns.len();
                let end = at + request.num_vectors * dim;
                let places = self.router.places(spec.table).iter().enumerate();
                given.extend(places.map(|(feature, place)| Given {
                    terms: request.terms_of(feature, routed.rows),
                    first_bag: feature * routed.rows,
                    vectors: &vectors[at..end],
                    dim,
                    column: place.column + spec.columns.start,
                }));
                at = end;
            }
        }
        let tasks = pooled.par_chunks_mut(ROWS_PER_TASK * width.max(1));
        tasks.enumerate().for_each(|(task, out)| {
            for given in &given {
                let first = (given.first_bag + task * ROWS_PER_TASK) as u32;
                let end = first + (out.len() / width) as u32;
                let from = given.terms.partition_point(|term| term.bag < first);
                let terms = given.terms[from..].iter();
                for term in terms.take_while(|term| term.bag < end) {
                    let at = (term.bag - first) as usize * width + given.column;
                    let vector = term.vector as usize * given.dim;
                    let vector = &given.vectors[vector..vector + given.dim];
                    for (sum, value) in out[at..at + given.dim].iter_mut().zip(vector) {
                        *sum += term.scale * value;
                    }
                }
            }
        });
    }

    /// The gradients of what was asked of one rank.
    fn gradients(&self, requests: &[Request], rows: usize, gradient: &[f32]) -> Vec<f32> {
        let shards = self.router.specs();
        let dim = |request: &Request| shards[request.shard].columns.len();
        let total = requests
            .iter()
            .map(|request| request.num_vectors * dim(request));
        let mut gradients = vec![0.0; total.sum()];
        let mut first = 0;
        for request in requests {
            let (spec, dim) = (&shards[request.shard], dim(request));
            for (at, place) in self.router.places(spec.table).iter().enumerate() {
                let column = place.column + spec.columns.start;
                for term in request.terms_of(at, rows) {
                    let from = (term.bag as usize - at * rows) * self.width() + column;
                    let to = first + term.vector as usize * dim;
                    let source = &gradient[from..from + dim];
                    for (sum, g) in gradients[to..to + dim].iter_mut().zip(source) {
                        *sum += term.scale * g;
                    }
                }
            }
            first += request.num_vectors * dim;
        }
        gradients
    }

    /// Moves the rows that some batches touched, each once, by the sum of its gradients over all
    /// batches and ranks. The result does not depend on the number of threads.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn apply(
        &mut self,
        received: &[Received<'_>],
        rate_scale: f32,
        group: &mut impl ProcessGroup,
    ) -> Result<(), CollectiveError> {
        let gradient = match received {
            [one] => Cow::Borrowed(&one.gradient),
            several => {
                let gradients: Vec<&[f32]> = several.iter().map(|one| &*one.gradient).collect();
                Cow::Owned(gradients.concat())
            }
        };
        let touched = (0..self.shards.len()).into_par_iter().map(|shard| {
            let batches = received.iter();
            Touched::joined(batches.map(|one| (&one.routed.touched[shard], one.gradient.len())))
        });
        let touched: Vec<Cow<'_, Touched>> = touched.collect();
        self.apply_all(&touched, &gradient, rate_scale, group)
    }

    fn apply_all(
        &mut self,
        touched: &[Cow<'_, Touched>],
        gradient: &[f32],
        rate_scale: f32,
        group: &mut impl ProcessGroup,
    ) -> Result<(), CollectiveError> {
        self.step += 1;
        let step = self.step;
        let (optimizer, plan) = (&self.optimizer, self.router.plan());
        let update_of = |shard: &Shard| Update {
            step,
            rate_scale,
            dim: plan.tables[shard.spec.table].0.dim,
        };
        // Rows whose columns lie on several ranks, where the step is that of the whole row.
        let cut = |table: usize| {
            optimizer.needs_square_sum()
                && matches!(plan.tables[table].1, Sharding::ColumnWise { .. })
        };
        self.shards
            .par_iter_mut()
            .zip(touched)
            .filter(|(shard, _)| !cut(shard.spec.table))
            .for_each(|(shard, touched)| {
                let update = update_of(shard);
                shard.update(touched, gradient, optimizer, update);
            });
        if !(0..plan.tables.len()).any(cut) {
            return Ok(());
        }
        let mut sums: Vec<(Vec<f32>, Vec<f32>)> = self
            .shards
            .par_iter()
            .zip(touched)
            .map(|(shard, touched)| match cut(shard.spec.table) {
                true => shard.sums(touched, gradient, optimizer),
                false => (Vec::new(), Vec::new()),
            })
            .collect();
        Self::exchange_squares(&self.shards, plan, &mut sums, group)?;
        self.shards
            .par_iter_mut()
            .zip(touched)
            .zip(sums)
            .filter(|((shard, _), _)| cut(shard.spec.table))
            .for_each(|((shard, touched), (mut sums, squares))| {
                let update = update_of(shard);
                shard.update_by_sums(touched, &mut sums, &squares, optimizer, update);
            });
        Ok(())
    }

    /// Replaces the squares of this rank's columns by those of all columns. All owners of a table
    /// were asked for the same rows, so that their lists agree.
    fn exchange_squares(
        shards: &[Shard],
        plan: &Plan,
        sums: &mut [(Vec<f32>, Vec<f32>)],
        group: &mut impl ProcessGroup,
    ) -> Result<(), CollectiveError> {
        let sharers = |table: usize| match &plan.tables[table].1 {
            Sharding::ColumnWise { ranks } => ranks.as_slice(),
            _ => &[],
        };
        let mut parts = vec![Vec::new(); group.world_size()];
        for (shard, (_, squares)) in shards.iter().zip(sums.iter()) {
            for rank in sharers(shard.spec.table) {
                parts[*rank].extend_from_slice(squares);
            }
        }
        let parts: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
        let received = group.all_to_all_v(&parts)?;
        let mut taken = vec![0; received.len()];
        for (shard, (_, squares)) in shards.iter().zip(sums.iter_mut()) {
            let ranks = sharers(shard.spec.table);
            if ranks.is_empty() {
                continue;
            }
            let count = squares.len();
            squares.fill(0.0);
            for rank in ranks {
                let theirs = &received[*rank][taken[*rank]..taken[*rank] + count];
                for (sum, square) in squares.iter_mut().zip(theirs) {
                    *sum += square;
                }
                taken[*rank] += count;
            }
        }
        Ok(())
    }

    /// All tables, whole, on every rank: for small models, and to publish them.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn gather(
        &self,
        group: &mut impl ProcessGroup,
    ) -> Result<Vec<EmbeddingTable>, CollectiveError> {
        let plan = self.router.plan();
        let mut tables: Vec<EmbeddingTable> = plan
            .tables
            .iter()
            .map(|(table, _)| EmbeddingTable {
                name: table.name.clone(),
                features: table.features.clone(),
                rows: table.rows,
                dim: table.dim,
                pooling: table.pooling,
                known: None,
                weights: vec![0.0; table.rows * table.dim],
            })
            .collect();
        // One table at a time, so that little is held twice.
        for (at, table) in tables.iter_mut().enumerate() {
            let mut mine = Vec::new();
            for shard in self.shards.iter().filter(|shard| shard.spec.table == at) {
                if shard.spec.owner.is_some() || self.rank == 0 {
                    let first = mine.len();
                    mine.resize(first + shard.rows * shard.dim, 0.0);
                    shard.values.read(0, &mut mine[first..]);
                }
            }
            let all = group.all_gather_v(&mine)?;
            let mut taken = vec![0; all.len()];
            for spec in self.router.specs().iter().filter(|spec| spec.table == at) {
                let rank = spec.owner.unwrap_or(0);
                let (rows, dim) = (spec.rows.count(table.rows), spec.columns.len());
                let values = &all[rank][taken[rank]..taken[rank] + rows * dim];
                for (local, values) in values.chunks_exact(dim).enumerate() {
                    let to = spec.rows.global(local) * table.dim + spec.columns.start;
                    table.weights[to..to + dim].copy_from_slice(values);
                }
                taken[rank] += rows * dim;
            }
            if let Some(vocabulary) = self.router.vocabulary()
                && let Some(known) = vocabulary.known(at, group)?
            {
                keep_known(table, &known);
            }
        }
        Ok(tables)
    }
}

/// Adds the rows of a bag to zeros.
fn pool_bag(shard: &Shard, batch: &TableBatch, entries: Range<usize>, target: &mut [f32]) {
    let alone = entries.len() == 1;
    for entry in entries {
        if let Some(ahead) = batch.rows.get(entry + PREFETCH) {
            shard.prefetch(*ahead as usize);
        }
        let row = batch.rows[entry] as usize;
        match batch.scale.get(entry) {
            None if alone => shard.read(row, target),
            scale => shard.add_to(row, scale.copied().unwrap_or(1.0), target),
        }
    }
}

/// Whether every rank has sent as many numbers as it was asked for.
fn check_lengths(
    received: &[Vec<f32>],
    wanted: impl Iterator<Item = usize>,
    what: &'static str,
) -> Result<(), CollectiveError> {
    let mut pairs = received.iter().zip(wanted);
    match pairs.position(|(received, wanted)| received.len() != wanted) {
        Some(rank) => Err(CollectiveError::Malformed { rank, what }),
        None => Ok(()),
    }
}

/// Leaves the shared row, and the rows that ids have, in the order of the ids.
fn keep_known(table: &mut EmbeddingTable, known: &[(u64, u32)]) {
    let rows = std::iter::once(0).chain(known.iter().map(|(_, row)| *row as usize));
    let row = |row: usize| &table.weights[row * table.dim..(row + 1) * table.dim];
    table.weights = rows.flat_map(row).copied().collect();
    table.rows = known.len() + 1;
    let ids = known.iter().map(|(id, _)| *id).collect();
    table.known = Some(KnownIds::new(ids));
}
