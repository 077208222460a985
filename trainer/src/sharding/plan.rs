//! Which rank holds which part of which table.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    ops::Range,
};

use features::Jagged;
use models::ctr::InputLayout;
use serde::{Deserialize, Serialize};

use super::table::TableConfig;

/// How a table is spread over the ranks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Sharding {
    /// Every rank holds all of it, and looks up without asking; for small tables.
    Replicated {},
    /// One rank holds all of it.
    TableWise {
        /// The rank.
        rank: usize,
    },
    /// Row `r` is held by rank `r % world_size`.
    RowWise {},
    /// The columns are cut evenly among some ranks.
    ColumnWise {
        /// The ranks, each once.
        ranks: Vec<usize>,
    },
}

impl std::fmt::Display for Sharding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Replicated {} => write!(f, "replicated"),
            Self::TableWise { rank } => write!(f, "table-wise on {rank}"),
            Self::RowWise {} => write!(f, "row-wise"),
            Self::ColumnWise { ranks } => write!(f, "column-wise on {ranks:?}"),
        }
    }
}

/// A part of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardSpec {
    /// Index of the table.
    pub table: usize,
    /// Who holds it; `None`: all do.
    pub owner: Option<usize>,
    /// Which rows.
    pub rows: RowSlice,
    /// Which columns.
    pub columns: Range<usize>,
}

impl ShardSpec {
    /// Whether both have columns of the same table.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (mine, theirs) = (&self.columns, &other.columns);
        self.table == other.table && mine.start < theirs.end && theirs.start < mine.end
    }
}

/// Every `stride`-th row from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSlice {
    /// The first.
    pub first: usize,
    /// The distance between two.
    pub stride: usize,
}

impl RowSlice {
    const ALL: Self = Self {
        first: 0,
        stride: 1,
    };

    /// How many of a table's rows it has.
    pub fn count(self, rows: usize) -> usize {
        rows.saturating_sub(self.first).div_ceil(self.stride)
    }

    /// Whether a row is among them.
    pub fn has(self, row: usize) -> bool {
        row % self.stride == self.first
    }

    /// Where a row lies among them.
    pub fn local(self, row: usize) -> usize {
        row / self.stride
    }

    /// Which row lies at a place.
    pub fn global(self, local: usize) -> usize {
        local * self.stride + self.first
    }
}

/// The tables of a run and who holds their parts; equal on all ranks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Number of ranks.
    pub world_size: usize,
    /// The dense features: each has a column of the pooled block before those of the tables, so that the
    /// block is a network's whole input.
    pub dense: Vec<String>,
    /// The sparse features, in the order of their columns.
    pub features: Vec<String>,
    /// One per table.
    pub tables: Vec<(TableConfig, Sharding)>,
}

/// Where a feature of a table stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Among the features of a batch.
    pub feature: usize,
    /// Its first column in the pooled block.
    pub column: usize,
}

/// The bags of a table: those of its features, one feature's after the other's.
pub(super) fn bags_of<'a>(places: &[Place], ids: &'a [Jagged]) -> Cow<'a, Jagged> {
    match places {
        [alone] => Cow::Borrowed(&ids[alone.feature]),
        several => Cow::Owned(Jagged::concat(
            several.iter().map(|place| &ids[place.feature]),
        )),
    }
}

impl Plan {
    /// A plan as given; the features' columns lie table by table.
    pub fn new(world_size: usize, tables: Vec<(TableConfig, Sharding)>) -> Self {
        for (table, sharding) in &tables {
            match sharding {
                Sharding::TableWise { rank } => assert!(*rank < world_size, "a rank of the run"),
                Sharding::ColumnWise { ranks } => {
                    let mut sorted = ranks.clone();
                    sorted.sort_unstable();
                    sorted.dedup();
                    assert!(
                        sorted.len() == ranks.len() && sorted.iter().all(|rank| *rank < world_size),
                        "ranks of the run, each once"
                    );
                    assert!(ranks.len() <= table.dim, "at least a column for each");
                }
                Sharding::Replicated {} | Sharding::RowWise {} => {}
            }
        }
        let features = tables.iter().flat_map(|(table, _)| table.features.clone());
        Self {
            world_size,
            dense: Vec::new(),
            features: features.collect(),
            tables,
        }
    }

    /// With the features' columns in another order.
    ///
    /// # Panics
    /// If they are others.
    pub fn with_features(self, features: impl IntoIterator<Item = String>) -> Self {
        let features: Vec<String> = features.into_iter().collect();
        let same = |mut one: Vec<String>, mut other: Vec<String>| {
            one.sort_unstable();
            other.sort_unstable();
            one == other
        };
        assert!(
            same(features.clone(), self.features),
            "the features of the tables, each once"
        );
        Self { features, ..self }
    }

    /// With room for dense features before the tables' columns.
    pub fn with_dense(self, dense: impl IntoIterator<Item = String>) -> Self {
        Self {
            dense: dense.into_iter().collect(),
            ..self
        }
    }

    /// The first column of the tables.
    pub fn first_column(&self) -> usize {
        self.dense.len()
    }

    /// What stands in which column of the pooled block.
    pub fn layout(&self) -> InputLayout {
        let tables = self.tables.iter();
        let dims = tables.flat_map(|(table, _)| table.features.iter().map(|it| (it, table.dim)));
        let dims: BTreeMap<&String, usize> = dims.collect();
        let fields = self.features.iter().map(|it| (it.clone(), dims[it]));
        InputLayout::new(self.dense.iter().cloned(), fields)
    }

    /// All tables in this process.
    pub fn alone(tables: &[TableConfig]) -> Self {
        let whole = |table: &TableConfig| (table.clone(), Sharding::TableWise { rank: 0 });
        Self::new(1, tables.iter().map(whole).collect())
    }

    /// The parts of all tables, in an order that all ranks share.
    pub fn shards(&self) -> Vec<ShardSpec> {
        let mut shards = Vec::new();
        for (table, (config, sharding)) in self.tables.iter().enumerate() {
            let mut push = |owner, rows, columns: Range<usize>| {
                if !columns.is_empty() {
                    shards.push(ShardSpec {
                        table,
                        owner,
                        rows,
                        columns,
                    });
                }
            };
            match sharding {
                Sharding::Replicated {} => push(None, RowSlice::ALL, 0..config.dim),
                Sharding::TableWise { rank } => push(Some(*rank), RowSlice::ALL, 0..config.dim),
                Sharding::RowWise {} => {
                    for rank in 0..self.world_size {
                        let rows = RowSlice {
                            first: rank,
                            stride: self.world_size,
                        };
                        push(Some(rank), rows, 0..config.dim);
                    }
                }
                Sharding::ColumnWise { ranks } => {
                    let at = |part| config.dim * part / ranks.len();
                    for (part, rank) in ranks.iter().enumerate() {
                        push(Some(*rank), RowSlice::ALL, at(part)..at(part + 1));
                    }
                }
            }
        }
        shards
    }

    /// The least bytes that a step can send for what a rank asks of the others: for every shard
    /// elsewhere the ids, and vectors there and gradients back, of distinct rows or of bags,
    /// whichever is less. Of a table that all ranks hold, its gradients to each of the others.
    /// Tables are taken to be hashed.
    pub fn least_bytes(&self, rank: usize, ids: &[Jagged]) -> usize {
        let shards = self.shards();
        let foreign = shards.iter().filter(|shard| shard.owner != Some(rank));
        let places = self.places();
        foreign
            .map(|shard| {
                let bags = bags_of(&places[shard.table], ids);
                let rows = self.tables[shard.table].0.rows as u64;
                let row = |id: &u64| (id % rows) as usize;
                let here = |id: &&u64| shard.rows.has(row(id));
                let distinct: HashSet<usize> = bags.ids.iter().filter(here).map(row).collect();
                let vector = 4 * shard.columns.len();
                if shard.owner.is_none() {
                    return distinct.len() * (4 + vector) * (self.world_size - 1);
                }
                let entries = bags.ids.iter().filter(here).count();
                let asking = |bag: &usize| bags.row(*bag).iter().any(|id| here(&id));
                let bags = (0..bags.offsets.len() - 1).filter(asking).count();
                (distinct.len() * (4 + 2 * vector)).min(entries * 4 + bags * 2 * vector)
            })
            .sum()
    }

    /// Where the features of each table stand, by rising column.
    pub(super) fn places(&self) -> Vec<Vec<Place>> {
        let mut places = vec![Vec::new(); self.tables.len()];
        let mut column = self.first_column();
        for (feature, field) in self.layout().fields.iter().enumerate() {
            let mut tables = self.tables.iter();
            let table = tables.position(|(table, _)| table.features.contains(&field.feature));
            // The features are those of the tables.
            places[table.expect("a table")].push(Place { feature, column });
            column += field.dim;
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_cell_of_a_table_is_held_once_or_by_all(
            rows in 1usize..40, dim in 1usize..20, world_size in 1usize..6, kind in 0..4, slices in 1usize..6,
        ) {
            let sharding = match kind {
                0 => Sharding::Replicated {},
                1 => Sharding::TableWise { rank: rows % world_size },
                2 => Sharding::RowWise {},
                _ => Sharding::ColumnWise { ranks: (0..slices.min(world_size).min(dim)).collect() },
            };
            let table = TableConfig::of_feature("t", rows, dim);
            let plan = Plan::new(world_size, vec![(table, sharding)]);
            let mut held = vec![0; rows * dim];
            for shard in plan.shards() {
                prop_assert_eq!((0..rows).filter(|row| shard.rows.has(*row)).count(), shard.rows.count(rows));
                for row in (0..rows).filter(|row| shard.rows.has(*row)) {
                    prop_assert_eq!(shard.rows.global(shard.rows.local(row)), row);
                    shard.columns.clone().for_each(|column| held[row * dim + column] += 1);
                }
            }
            prop_assert!(held.iter().all(|times| *times == 1));
        }
    }
}
