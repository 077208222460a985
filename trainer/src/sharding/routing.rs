//! Which rank is asked for which rows of a batch, and what becomes of them.
//!
//! Routing needs no weights: it can run ahead of the step that uses it. For every shard a rank
//! either asks for the distinct rows of its batch and pools them itself, or, where bags are long
//! and their rows are many, has its bags pooled by the owner; it takes the way of fewer bytes.

use std::{
    borrow::Cow,
    sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use features::Jagged;
use models::ctr::Pooling;
use rayon::prelude::*;

use super::{
    plan::{Place, Plan, ShardSpec, bags_of},
    shard::Touched,
    vocabulary::{Seen, TableUse, Vocabulary},
};
use crate::{
    checkpoint::Piece,
    collective::{CollectiveError, ProcessGroup},
};

/// Words before the rows of a request: way, vectors, rows.
const HEADER: usize = 3;
const WAY_ROWS: u32 = 0;
const WAY_BAGS: u32 = 1;
const WAY_WEIGHTED_BAGS: u32 = 2;

/// Ids of all features of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Bags<'a> {
    /// One per feature.
    pub ids: &'a [Jagged],
    /// Weights of the ids, one list per feature; `None`: all 1. Means take no weights.
    pub weights: Option<&'a [Vec<f32>]>,
    /// Number of bags of each feature.
    pub rows: usize,
}

/// Finds the way of every id; the same on all ranks.
#[derive(Debug, Clone)]
pub struct Router {
    plan: Arc<Plan>,
    shards: Arc<Vec<ShardSpec>>,
    /// Where the features of each table stand.
    places: Arc<Vec<Vec<Place>>>,
    /// Of the pooled block.
    width: usize,
    rank: usize,
    /// Rows of the ids of dynamic tables, if there are any.
    vocabulary: Option<Arc<RwLock<Vocabulary>>>,
}

/// A batch whose rows are known to their owners.
#[derive(Debug, Clone)]
pub struct Routed {
    /// Number of bags of each feature.
    pub(super) rows: usize,
    pub(super) tables: Vec<TableBatch>,
    /// What this rank asks of each rank.
    pub(super) requests: Vec<Vec<Request>>,
    /// What each rank asks of this one.
    pub(super) orders: Vec<Vec<Order>>,
    /// For each shard of this rank.
    pub(super) touched: Vec<Touched>,
    /// Ids of dynamic tables that this rank was asked for.
    pub(super) seen: Seen,
}

/// One table's ids as rows. Its bags are those of its features, one feature's after the other's, so
/// that a row which several look up is asked for once and moved once.
#[derive(Debug, Clone)]
pub(super) struct TableBatch {
    /// `[bags + 1]`.
    pub offsets: Vec<u32>,
    /// Row of each entry.
    pub rows: Vec<u32>,
    /// The bag of each entry.
    pub bags: Vec<u32>,
    /// What each entry's row is multiplied with; empty: 1.
    pub scale: Vec<f32>,
    /// Whether all entries of a bag have the same scale, as in a mean.
    pub scaled_by_bag: bool,
    /// `row << 32 | entry`, rising.
    pub by_row: Vec<u64>,
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
impl TableBatch {
    /// Those of all its features.
    pub fn num_bags(&self) -> usize {
        self.offsets.len() - 1
    }
}

/// What this rank wants of one shard.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// Index in the plan's shards.
    pub shard: usize,
    /// How many vectors come, and gradients go.
    pub num_vectors: usize,
    /// What is added to which bag, by rising bag.
    pub terms: Vec<Term>,
}

impl Request {
    /// Those of one of the table's features, of so many bags each.
    pub fn terms_of(&self, at: usize, rows: usize) -> &[Term] {
        let before = |bag: usize| self.terms.partition_point(|term| (term.bag as usize) < bag);
        &self.terms[before(at * rows)..before((at + 1) * rows)]
    }
}

/// `bag += scale × vector`, and backward `gradient of vector += scale × gradient of bag`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Term {
    pub bag: u32,
    pub vector: u32,
    pub scale: f32,
}

/// What another rank wants of a shard of this one.
#[derive(Debug, Clone)]
pub(super) struct Order {
    /// Index among this rank's shards.
    pub shard: usize,
    pub num_vectors: usize,
    /// Local rows, in the order of the vectors they go into.
    pub rows: Vec<u32>,
    /// How many rows each vector is the sum of; empty: one.
    pub lengths: Vec<u32>,
    /// What the rows are multiplied with; empty: 1.
    pub weights: Vec<f32>,
}

impl Router {
    /// For one rank of a plan.
    pub fn new(plan: Arc<Plan>, rank: usize) -> Self {
        let shards = Arc::new(plan.shards());
        let vocabulary = Vocabulary::new(&plan, rank);
        Self {
            places: Arc::new(plan.places()),
            width: plan.layout().width(),
            plan,
            shards,
            rank,
            vocabulary: vocabulary.map(|vocabulary| Arc::new(RwLock::new(vocabulary))),
        }
    }

    /// The rows of ids.
    pub(super) fn vocabulary(&self) -> Option<RwLockReadGuard<'_, Vocabulary>> {
        let vocabulary = self.vocabulary.as_ref()?;
        // A thread that panics while it changes them ends the run.
        Some(vocabulary.read().expect("whole rows of ids"))
    }

    /// The rows of ids, to be changed; never held while ranks wait for each other, as routing
    /// ahead holds them too.
    pub(super) fn vocabulary_mut(&self) -> Option<RwLockWriteGuard<'_, Vocabulary>> {
        let vocabulary = self.vocabulary.as_ref()?;
        // As above.
        Some(vocabulary.write().expect("whole rows of ids"))
    }

    /// Admits and evicts ids of dynamic tables by what a step's batches have seen on all ranks.
    /// Returns `(table, row)` of the rows that are to be as new.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub(super) fn observe<'a>(
        &self,
        routed: impl IntoIterator<Item = &'a Routed>,
        group: &mut impl ProcessGroup,
    ) -> Result<Vec<(usize, u32)>, CollectiveError> {
        let seen: Vec<_> = routed.into_iter().map(|routed| &routed.seen).collect();
        let lost = match self.vocabulary_mut() {
            Some(mut vocabulary) => vocabulary.observe(&seen),
            None => return Ok(Vec::new()),
        };
        let pairs = lost.iter().flat_map(|(table, rows)| {
            let table = *table as u32;
            rows.iter().map(move |row| [table, *row])
        });
        let pairs: Vec<[u32; 2]> = pairs.collect();
        let all = group.all_gather_v(&pairs)?.concat();
        let pair = |[table, row]: [u32; 2]| (table as usize, row);
        Ok(all.into_iter().map(pair).collect())
    }

    /// How the dynamic tables are used, on all ranks.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn usage(&self, group: &mut impl ProcessGroup) -> Result<Vec<TableUse>, CollectiveError> {
        match self.vocabulary() {
            Some(vocabulary) => vocabulary.usage(group),
            None => Ok(Vec::new()),
        }
    }

    /// Copies the ids of dynamic tables that this rank keeps.
    pub fn save_ids(&self) -> Vec<Piece> {
        self.vocabulary()
            .map_or_else(Vec::new, |vocabulary| vocabulary.save())
    }

    /// Whether this rank holds cells of a saved part of a table.
    pub fn needs(&self, saved: &ShardSpec) -> bool {
        self.held_by(self.rank)
            .any(|(_, held)| held.overlaps(saved))
    }

    /// The plan's shards that a rank holds, with their index among all.
    pub(super) fn held_by(&self, rank: usize) -> impl Iterator<Item = (usize, &ShardSpec)> {
        self.shards
            .iter()
            .enumerate()
            .filter(move |(_, shard)| shard.owner.is_none_or(|owner| owner == rank))
    }

    /// The plan's shards.
    pub(super) fn specs(&self) -> &[ShardSpec] {
        &self.shards
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Where the features of a table stand, by rising column.
    pub(super) fn places(&self, table: usize) -> &[Place] {
        &self.places[table]
    }

    /// Width of the pooled block: room for dense features, and the dims of all sparse ones.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Tells the owners of a batch's rows what this rank wants, and hears what the others want.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn route(
        &self,
        bags: Bags<'_>,
        group: &mut impl ProcessGroup,
    ) -> Result<Routed, CollectiveError> {
        let of_tables = self.places.iter().map(|places| bags_of(places, bags.ids));
        let mut ids: Vec<Cow<'_, Jagged>> = of_tables.collect();
        let seen = match self.vocabulary() {
            Some(vocabulary) => vocabulary.translate(&mut ids, group)?,
            None => Seen::default(),
        };
        let tables = ids
            .par_iter()
            .enumerate()
            .map(|(table, ids)| self.table_batch(table, ids, bags));
        self.route_rows(tables.collect(), bags.rows, seen, group)
    }

    fn route_rows(
        &self,
        tables: Vec<TableBatch>,
        rows: usize,
        seen: Seen,
        group: &mut impl ProcessGroup,
    ) -> Result<Routed, CollectiveError> {
        if self.plan.world_size == 1 {
            let held: Vec<&ShardSpec> = self.held_by(0).map(|(_, shard)| shard).collect();
            let touched = held
                .into_par_iter()
                .map(|shard| self.touched_locally(shard, &tables[shard.table], rows));
            return Ok(Routed {
                rows,
                touched: touched.collect(),
                tables,
                requests: Vec::new(),
                orders: Vec::new(),
                seen,
            });
        }
        let mut requests = Vec::new();
        let mut messages = Vec::new();
        for rank in 0..self.plan.world_size {
            let held: Vec<_> = self.held_by(rank).collect();
            let (asked, words): (Vec<Request>, Vec<Vec<u32>>) = held
                .into_par_iter()
                .map(|(at, shard)| request(at, shard, &tables[shard.table]))
                .unzip();
            requests.push(asked);
            messages.push(words.concat());
        }
        let parts: Vec<&[u32]> = messages.iter().map(Vec::as_slice).collect();
        let received = group.all_to_all_v(&parts)?;
        let orders = received.iter().enumerate().map(|(rank, words)| {
            let orders = self.orders(words);
            orders.ok_or(CollectiveError::Malformed {
                rank,
                what: "orders of rows",
            })
        });
        let orders: Vec<Vec<Order>> = orders.collect::<Result<_, _>>()?;
        Ok(Routed {
            rows,
            touched: self.touched(&orders),
            tables,
            requests,
            orders,
            seen,
        })
    }

    fn table_batch(&self, table: usize, ids: &Jagged, bags: Bags<'_>) -> TableBatch {
        let (config, places) = (&self.plan.tables[table].0, self.places(table));
        debug_assert!(ids.fits(places.len() * bags.rows), "one bag a row");
        let rows: Vec<u32> = ids
            .ids
            .iter()
            .map(|id| (id % config.rows as u64) as u32)
            .collect();
        let mut of_entry = Vec::with_capacity(rows.len());
        let mut scale = match (config.pooling, bags.weights) {
            (Pooling::Sum, Some(weights)) => {
                let of_features = places.iter().map(|place| &*weights[place.feature]);
                of_features.collect::<Vec<_>>().concat()
            }
            _ => Vec::new(),
        };
        let single = ids.offsets.windows(2).all(|ends| ends[1] - ends[0] <= 1);
        for (bag, ends) in ids.offsets.windows(2).enumerate() {
            let length = (ends[1] - ends[0]) as usize;
            of_entry.extend(std::iter::repeat_n(bag as u32, length));
            if config.pooling == Pooling::Mean && !single {
                scale.extend(std::iter::repeat_n(1.0 / length as f32, length));
            }
        }
        let mut by_row: Vec<u64> = rows
            .iter()
            .enumerate()
            .map(|(entry, row)| u64::from(*row) << 32 | entry as u64)
            .collect();
        by_row.sort_unstable();
        TableBatch {
            offsets: ids.offsets.clone(),
            rows,
            bags: of_entry,
            scale,
            scaled_by_bag: config.pooling == Pooling::Mean,
            by_row,
        }
    }

    /// With one rank the gradients lie in the pooled block.
    fn touched_locally(&self, shard: &ShardSpec, table: &TableBatch, rows: usize) -> Touched {
        let width = self.width as u32;
        let mut gradient_at = Vec::with_capacity(table.bags.len());
        for (at, place) in self.places(shard.table).iter().enumerate() {
            let (first, end) = (at * rows, (at + 1) * rows);
            let entries = table.offsets[first] as usize..table.offsets[end] as usize;
            let rows = table.bags[entries].iter().map(|bag| bag - first as u32);
            gradient_at.extend(rows.map(|row| row * width + place.column as u32));
        }
        Touched {
            by_row: table.by_row.clone(),
            gradient_at,
            scale: table.scale.clone(),
        }
    }

    /// Takes a rank's message apart, which [`request`] made for the same plan; `None` if it did not.
    fn orders(&self, mut words: &[u32]) -> Option<Vec<Order>> {
        let mut orders = Vec::new();
        for (shard, (_, spec)) in self.held_by(self.rank).enumerate() {
            let (header, rest) = words.split_at_checked(HEADER)?;
            let (way, num_vectors, num_rows) = (header[0], header[1] as usize, header[2] as usize);
            let (num_lengths, num_weights) = match way {
                WAY_ROWS => (0, 0),
                WAY_BAGS => (num_vectors, 0),
                WAY_WEIGHTED_BAGS => (num_vectors, num_rows),
                _ => return None,
            };
            let (rows, rest) = rest.split_at_checked(num_rows)?;
            let (lengths, rest) = rest.split_at_checked(num_lengths)?;
            let (weights, rest) = rest.split_at_checked(num_weights)?;
            words = rest;
            let held = spec.rows.count(self.plan.tables[spec.table].0.rows);
            let there = rows.iter().all(|row| (*row as usize) < held);
            let rows_of_vectors = match way {
                WAY_ROWS => num_vectors as u64,
                _ => lengths.iter().map(|length| u64::from(*length)).sum(),
            };
            if !there || rows_of_vectors != num_rows as u64 {
                return None;
            }
            orders.push(Order {
                shard,
                num_vectors,
                rows: rows.to_vec(),
                lengths: lengths.to_vec(),
                weights: weights.iter().map(|bits| f32::from_bits(*bits)).collect(),
            });
        }
        words.is_empty().then_some(orders)
    }

    /// For each shard of this rank: where the gradients will lie that the ranks send, one rank's
    /// after the other's.
    fn touched(&self, orders: &[Vec<Order>]) -> Vec<Touched> {
        let held: Vec<&ShardSpec> = self.held_by(self.rank).map(|(_, shard)| shard).collect();
        let mut touched = vec![Touched::default(); held.len()];
        let mut at = 0;
        for order in orders.iter().flatten() {
            let dim = held[order.shard].columns.len();
            let of_shard = &mut touched[order.shard];
            let mut vector = 0;
            let mut left = order.lengths.first().copied().unwrap_or(1);
            for row in &order.rows {
                while left == 0 {
                    vector += 1;
                    left = order.lengths.get(vector).copied().unwrap_or(1);
                }
                left -= 1;
                let entry = of_shard.gradient_at.len() as u64;
                of_shard.by_row.push(u64::from(*row) << 32 | entry);
                of_shard.gradient_at.push((at + vector * dim) as u32);
            }
            if !order.weights.is_empty() {
                // Entries of other ranks had none so far.
                let before = of_shard.gradient_at.len() - order.rows.len();
                of_shard.scale.resize(before, 1.0);
                of_shard.scale.extend(&order.weights);
            }
            at += order.num_vectors * dim;
        }
        for of_shard in &mut touched {
            if !of_shard.scale.is_empty() {
                of_shard.scale.resize(of_shard.gradient_at.len(), 1.0);
            }
        }
        touched.par_iter_mut().for_each(Touched::sort);
        touched
    }
}

/// What a batch wants of a shard, and the words that say so.
fn request(at: usize, shard: &ShardSpec, table: &TableBatch) -> (Request, Vec<u32>) {
    let local = |row: u32| shard.rows.local(row as usize) as u32;
    let wanted = |row: u32| shard.rows.has(row as usize);
    let (mut rows, mut vector_of) = (Vec::new(), vec![0; table.rows.len()]);
    let mut num_entries = 0;
    for run in table.by_row.chunk_by(|a, b| a >> 32 == b >> 32) {
        let row = (run[0] >> 32) as u32;
        if wanted(row) {
            for packed in run {
                vector_of[(packed & u64::from(u32::MAX)) as usize] = rows.len() as u32;
            }
            num_entries += run.len();
            rows.push(local(row));
        }
    }
    let entries = || (0..table.rows.len()).filter(|entry| wanted(table.rows[*entry]));
    // Bags that have entries here, and the first of them.
    let mut bags: Vec<(u32, usize)> = entries().map(|entry| (table.bags[entry], entry)).collect();
    bags.dedup_by_key(|(bag, _)| *bag);
    // Words: ids once, vectors there and back, of a replicated table only back.
    let vectors = shard.columns.len() * if shard.owner.is_some() { 2 } else { 1 };
    let weighted = !table.scale.is_empty() && !table.scaled_by_bag;
    let by_rows = rows.len() * (1 + vectors);
    let by_bags = num_entries * (1 + usize::from(weighted)) + bags.len() * (1 + vectors);
    let scale_of = |entry: usize| table.scale.get(entry).copied().unwrap_or(1.0);
    if by_rows <= by_bags {
        let terms = entries().map(|entry| Term {
            bag: table.bags[entry],
            vector: vector_of[entry],
            scale: scale_of(entry),
        });
        let request = Request {
            shard: at,
            num_vectors: rows.len(),
            terms: terms.collect(),
        };
        let mut words = vec![WAY_ROWS, rows.len() as u32, rows.len() as u32];
        words.extend(rows);
        return (request, words);
    }
    let terms = bags.iter().enumerate().map(|(vector, (bag, first))| Term {
        bag: *bag,
        vector: vector as u32,
        scale: if weighted { 1.0 } else { scale_of(*first) },
    });
    let request = Request {
        shard: at,
        num_vectors: bags.len(),
        terms: terms.collect(),
    };
    let way = if weighted {
        WAY_WEIGHTED_BAGS
    } else {
        WAY_BAGS
    };
    let mut words = vec![way, bags.len() as u32, num_entries as u32];
    words.extend(entries().map(|entry| local(table.rows[entry])));
    let mut lengths = vec![0u32; bags.len()];
    let mut vector = 0;
    for entry in entries() {
        if bags[vector].0 != table.bags[entry] {
            vector += 1;
        }
        lengths[vector] += 1;
    }
    words.extend(lengths);
    if weighted {
        words.extend(entries().map(|entry| table.scale[entry].to_bits()));
    }
    (request, words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sharding::{Sharding, TableConfig};

    fn router() -> Router {
        let table = TableConfig::of_feature;
        let tables = vec![
            (table("a", 10, 4), Sharding::RowWise {}),
            (table("b", 7, 4), Sharding::TableWise { rank: 1 }),
        ];
        Router::new(Arc::new(Plan::new(2, tables)), 1)
    }

    #[test]
    fn orders_that_cannot_be_are_refused() {
        let whole = [
            &[WAY_ROWS, 2, 2, 0, 4][..],
            &[WAY_WEIGHTED_BAGS, 2, 3, 6, 0, 1, 1, 2, 0, 0, 0],
        ]
        .concat();
        assert!(router().orders(&whole).is_some());
        let changed = |at: usize, to: u32| {
            let mut words = whole.clone();
            words[at] = to;
            router().orders(&words)
        };
        // Another way, vectors without rows, a row beyond, a length too many.
        assert!(changed(0, 3).is_none() && changed(1, 3).is_none());
        assert!(changed(4, 5).is_none() && changed(11, 2).is_none());
        assert!(router().orders(&whole[..whole.len() - 1]).is_none());
        assert!(router().orders(&[&whole[..], &[0]].concat()).is_none());
    }

    proptest! {
        #[test]
        fn no_words_make_it_panic(words in prop::collection::vec(prop_oneof![0u32..12, any::<u32>()], 0..40)) {
            router().orders(&words);
        }
    }
}
