//! Which rank holds which part of which table.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    ops::Range,
};

use comfy_table::{Table, presets};
use features::Jagged;
use models::ctr::{InputLayout, Pooling};
use serde::{Deserialize, Serialize};

use super::{optimizer::SparseOptimizerConfig, storage::Storage, vocabulary::DynamicConfig};

/// One table to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableConfig {
    /// Its name: that of its feature, or of what several share.
    pub name: String,
    /// The sparse features that read it.
    pub features: Vec<String>,
    /// Number of rows; an id's row is `id % rows`, if the table is not dynamic.
    pub rows: usize,
    /// Length of a row.
    pub dim: usize,
    /// What becomes of the rows of a bag.
    pub pooling: Pooling,
    /// Rows of their own for ids, instead of `id % rows`.
    #[serde(default)]
    pub dynamic: Option<DynamicConfig>,
}

impl TableConfig {
    /// The table of one feature, not dynamic.
    pub fn of_feature(feature: impl Into<String>, rows: usize, dim: usize) -> Self {
        let name = feature.into();
        Self {
            features: vec![name.clone()],
            name,
            rows,
            dim,
            pooling: Pooling::default(),
            dynamic: None,
        }
    }
}

/// A name in a configuration that is no table's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTable {
    /// Nothing is called so.
    #[error("{key} names `{name}`, which is not a table of embeddings: {known}")]
    Unknown {
        /// The key.
        key: &'static str,
        /// The name.
        name: String,
        /// What there is.
        known: String,
    },
    /// A feature that has no table to itself.
    #[error(
        "{key} names `{feature}`, which reads the shared table `{table}`: say it of `{table}`, for all its features"
    )]
    Shared {
        /// The key.
        key: &'static str,
        /// The feature.
        feature: String,
        /// Its table.
        table: String,
    },
}

impl NoTable {
    /// Whether all names that stand under a key are tables'.
    pub(crate) fn check<'a>(
        key: &'static str,
        names: impl IntoIterator<Item = &'a String>,
        tables: &[TableConfig],
    ) -> Result<(), Self> {
        let stray = |name: &&String| !tables.iter().any(|table| table.name == **name);
        let Some(name) = names.into_iter().find(stray) else {
            return Ok(());
        };
        let reads = |table: &&TableConfig| table.features.contains(name);
        if let Some(table) = tables.iter().find(reads) {
            return Err(Self::Shared {
                key,
                feature: name.clone(),
                table: table.name.clone(),
            });
        }
        let known: Vec<&str> = tables.iter().map(|table| &*table.name).collect();
        Err(Self::Unknown {
            key,
            name: name.clone(),
            known: known.join(", "),
        })
    }
}

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

/// What the planner may choose, by table, in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardingKind {
    /// [`Sharding::Replicated`].
    Replicated,
    /// [`Sharding::TableWise`].
    TableWise,
    /// [`Sharding::RowWise`].
    RowWise,
    /// [`Sharding::ColumnWise`].
    ColumnWise,
}

/// What the planner knows of the machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlannerConfig {
    /// Memory of a rank for tables and their optimizer state, GiB.
    pub memory_gib: f64,
    /// What a rank's memory gives for rows here and there, GB/s.
    pub memory_gb_per_second: f64,
    /// What a rank sends or receives, GB/s.
    pub wire_gb_per_second: f64,
    /// Ids of a bag, by feature, where it is not 1.
    pub pooling_factor_of: BTreeMap<String, f64>,
    /// Sharding of single tables that the planner must take.
    pub sharding_of: BTreeMap<String, ShardingKind>,
}

impl Default for PlannerConfig {
    fn default() -> Self {
        Self {
            memory_gib: 16.0,
            memory_gb_per_second: 5.0,
            wire_gb_per_second: 1.0,
            pooling_factor_of: BTreeMap::new(),
            sharding_of: BTreeMap::new(),
        }
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A sharding of something else.
    #[error(transparent)]
    NoTable(#[from] NoTable),
    /// Bags of a feature that is not there.
    #[error(
        "tables.planner.pooling_factor_of names `{feature}`, which is not a sparse feature: {known}"
    )]
    UnknownFeature {
        /// The name.
        feature: String,
        /// What there is.
        known: String,
    },
    /// No rank has room.
    #[error(
        "table `{table}` of {mib} MiB fits on no rank within tables.planner.memory_gib = {memory_gib}: use more ranks, fewer rows, or a 16-bit tables.storage"
    )]
    NoRoom {
        /// The table.
        table: String,
        /// Its size with optimizer state, MiB.
        mib: u64,
        /// What a rank has.
        memory_gib: f64,
    },
    /// A sharding that the device's tables do not know.
    #[error(
        "tables.planner.sharding_of.{table} is column_wise, which tables in GPU memory cannot be: use row_wise or table_wise"
    )]
    ColumnWise {
        /// The table.
        table: String,
    },
    /// A number that cannot be.
    #[error("tables.planner.{key} is {value}, wanted a number above 0")]
    NotPositive {
        /// The key.
        key: &'static str,
        /// Its value.
        value: f64,
    },
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
    /// Columns of the pooled block before those of the tables: room for dense features, so that
    /// the block is a network's whole input.
    pub first_column: usize,
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
            first_column: 0,
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

    /// With room before the tables' columns.
    pub fn with_first_column(self, first_column: usize) -> Self {
        Self {
            first_column,
            ..self
        }
    }

    /// What stands in which column of the pooled block.
    pub fn layout(&self) -> InputLayout {
        let tables = self.tables.iter();
        let dims = tables.flat_map(|(table, _)| table.features.iter().map(|it| (it, table.dim)));
        let dims: BTreeMap<&String, usize> = dims.collect();
        let fields = self.features.iter().map(|it| (it.clone(), dims[it]));
        InputLayout::new(self.first_column, fields)
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
        let mut column = self.first_column;
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

/// Seconds and bytes of one rank's part in a step.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    seconds: f64,
    bytes: f64,
}

/// Chooses a sharding for every table: greedily, the costliest first, each so that the slowest
/// rank of the step is as fast as can be.
///
/// A step's cost for a rank is what it reads and writes in its tables, and what it sends and
/// receives, each over its bandwidth; memory is a limit.
#[derive(Debug)]
pub struct Planner<'a> {
    /// The machines.
    pub config: &'a PlannerConfig,
    /// What is kept for a row besides its weights.
    pub optimizer: &'a SparseOptimizerConfig,
    /// Type of the weights.
    pub storage: Storage,
    /// Number of ranks.
    pub world_size: usize,
    /// Rows of a rank's batch.
    pub batch_size: usize,
    /// Whether the columns of a row may lie on several ranks.
    pub column_wise: bool,
}

impl Planner<'_> {
    /// A plan for tables.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn plan(&self, tables: &[TableConfig]) -> Result<Planned, PlanError> {
        self.check(tables)?;
        let mut order: Vec<usize> = (0..tables.len()).collect();
        let cost = |table: &TableConfig| self.rows_asked(table) * self.row_bytes(table.dim);
        order.sort_by(|a, b| {
            cost(&tables[*b])
                .total_cmp(&cost(&tables[*a]))
                .then(a.cmp(b))
        });
        let mut loads = vec![Load::default(); self.world_size];
        let mut chosen: Vec<Option<Sharding>> = vec![None; tables.len()];
        for at in order {
            let table = &tables[at];
            let best = self
                .options(table, &loads)
                .into_iter()
                .map(|sharding| {
                    let after = self.with(&loads, table, &sharding);
                    (sharding, after)
                })
                .filter(|(_, after)| after.iter().all(|load| load.bytes <= self.memory_bytes()))
                .min_by(|(_, a), (_, b)| rating(a).total_cmp(&rating(b)));
            let Some((sharding, after)) = best else {
                let bytes = self.memory(table.rows, table.dim);
                return Err(PlanError::NoRoom {
                    table: table.name.clone(),
                    mib: (bytes / f64::from(1 << 20)).ceil() as u64,
                    memory_gib: self.config.memory_gib,
                });
            };
            loads = after;
            chosen[at] = Some(sharding);
        }
        // Every table was in the order.
        let chosen = chosen
            .into_iter()
            .map(|sharding| sharding.expect("a choice"));
        Ok(Planned {
            plan: Plan::new(
                self.world_size,
                tables.iter().cloned().zip(chosen).collect(),
            ),
            loads,
        })
    }

    fn check(&self, tables: &[TableConfig]) -> Result<(), PlanError> {
        let config = self.config;
        for (key, value) in [
            ("memory_gib", config.memory_gib),
            ("memory_gb_per_second", config.memory_gb_per_second),
            ("wire_gb_per_second", config.wire_gb_per_second),
        ] {
            if value.is_nan() || value <= 0.0 {
                return Err(PlanError::NotPositive { key, value });
            }
        }
        for (table, kind) in &config.sharding_of {
            if *kind == ShardingKind::ColumnWise && !self.column_wise {
                let table = table.clone();
                return Err(PlanError::ColumnWise { table });
            }
        }
        let named = config.sharding_of.keys();
        NoTable::check("tables.planner.sharding_of", named, tables)?;
        let known = || tables.iter().flat_map(|table| &table.features);
        let mut pooled = config.pooling_factor_of.keys();
        match pooled.find(|feature| !known().any(|name| name == *feature)) {
            None => Ok(()),
            Some(feature) => Err(PlanError::UnknownFeature {
                feature: feature.clone(),
                known: known().cloned().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    fn options(&self, table: &TableConfig, loads: &[Load]) -> Vec<Sharding> {
        let mut by_load: Vec<usize> = (0..self.world_size).collect();
        by_load.sort_by(|a, b| {
            loads[*a]
                .seconds
                .total_cmp(&loads[*b].seconds)
                .then(a.cmp(b))
        });
        let replicated = Sharding::Replicated {};
        let table_wise = Sharding::TableWise { rank: by_load[0] };
        let column_wise = |slices: usize| {
            let mut ranks = by_load[..slices].to_vec();
            ranks.sort_unstable();
            Sharding::ColumnWise { ranks }
        };
        // Rows of less than 16 bytes are not worth asking for.
        let most = self.world_size.min(table.dim / 4);
        let slices = (2..=most).filter(|_| self.column_wise);
        let column_wise: Vec<Sharding> = slices.map(column_wise).collect();
        match self.config.sharding_of.get(&table.name) {
            Some(ShardingKind::Replicated) => vec![replicated],
            Some(ShardingKind::TableWise) => vec![table_wise],
            Some(ShardingKind::RowWise) => vec![Sharding::RowWise {}],
            Some(ShardingKind::ColumnWise) if column_wise.is_empty() => vec![table_wise],
            Some(ShardingKind::ColumnWise) => column_wise,
            None => [replicated, table_wise, Sharding::RowWise {}]
                .into_iter()
                .chain(column_wise)
                .collect(),
        }
    }

    /// The loads with one more table.
    fn with(&self, loads: &[Load], table: &TableConfig, sharding: &Sharding) -> Vec<Load> {
        let plan = Plan::new(self.world_size, vec![(table.clone(), sharding.clone())]);
        let mut loads = loads.to_vec();
        let world_size = self.world_size as f64;
        for shard in plan.shards() {
            let held = shard.rows.count(table.rows);
            let asked = self.rows_asked(table) / shard.rows.stride as f64;
            let dim = shard.columns.len();
            let bytes = self.memory(held, dim);
            // Distinct rows of all ranks together, at most all there are.
            let touched = (asked * world_size).min(held as f64);
            let read = asked * world_size * self.row_bytes(dim);
            let updated = 2.0 * touched * self.row_bytes(dim);
            let memory_seconds = (read + updated) / self.config.memory_gb_per_second / 1e9;
            let wire = |vectors: f64| asked * (4.0 + vectors * 4.0 * dim as f64);
            let wire_seconds = |bytes: f64| bytes / self.config.wire_gb_per_second / 1e9;
            for (rank, load) in loads.iter_mut().enumerate() {
                match shard.owner {
                    // All send their gradients to all, and all update all rows.
                    None => {
                        let read = asked * self.row_bytes(dim);
                        load.seconds += (read + updated) / self.config.memory_gb_per_second / 1e9;
                        load.seconds += wire_seconds(wire(1.0) * (world_size - 1.0));
                        load.bytes += bytes;
                    }
                    Some(owner) if owner == rank => {
                        load.seconds += memory_seconds;
                        load.seconds += wire_seconds(wire(2.0) * (world_size - 1.0));
                        load.bytes += bytes;
                    }
                    Some(_) => load.seconds += wire_seconds(wire(2.0)),
                }
            }
        }
        loads
    }

    /// Distinct rows of a rank's batch, about.
    fn rows_asked(&self, table: &TableConfig) -> f64 {
        let factors = table.features.iter().map(|feature| {
            let factor = self.config.pooling_factor_of.get(feature);
            factor.copied().unwrap_or(1.0)
        });
        let ids = self.batch_size as f64 * factors.sum::<f64>();
        // Of uniform ids: rows (1 − (1 − 1/rows)^ids).
        let rows = table.rows as f64;
        rows * -f64::exp_m1(ids * f64::ln_1p(-1.0 / rows.max(1.000_001)))
    }

    /// Of weights and optimizer state.
    fn row_bytes(&self, dim: usize) -> f64 {
        (dim * self.storage.bytes() + 4 * self.optimizer.state_len(dim)) as f64
    }

    fn memory(&self, rows: usize, dim: usize) -> f64 {
        rows as f64 * self.row_bytes(dim)
    }

    fn memory_bytes(&self) -> f64 {
        self.config.memory_gib * f64::from(1 << 30)
    }
}

/// The slowest rank counts; of equals, less work in all.
fn rating(loads: &[Load]) -> f64 {
    let slowest = loads.iter().map(|load| load.seconds).fold(0.0, f64::max);
    let sum: f64 = loads.iter().map(|load| load.seconds).sum();
    slowest + 1e-3 * sum
}

/// A plan and what it is thought to cost.
#[derive(Debug)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    loads: Vec<Load>,
}

impl Planned {
    /// For people: the tables, and then the ranks.
    pub fn describe(&self) -> String {
        let mut tables = Table::new();
        tables.load_style(presets::UTF8_BORDERS_ONLY);
        tables.set_header(["table", "rows", "dim", "sharding"]);
        for (table, sharding) in &self.plan.tables {
            tables.add_row([
                table.name.clone(),
                table.rows.to_string(),
                table.dim.to_string(),
                sharding.to_string(),
            ]);
        }
        let mut ranks = Table::new();
        ranks.load_style(presets::UTF8_BORDERS_ONLY);
        ranks.set_header(["rank", "tables, MiB", "sparse step, ms (estimate)"]);
        for (rank, load) in self.loads.iter().enumerate() {
            ranks.add_row([
                rank.to_string(),
                format!("{:.1}", load.bytes / f64::from(1 << 20)),
                format!("{:.3}", load.seconds * 1e3),
            ]);
        }
        format!("{tables}\n{ranks}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(config: &PlannerConfig, tables: &[TableConfig]) -> Result<Planned, PlanError> {
        let planner = Planner {
            config,
            optimizer: &SparseOptimizerConfig::default(),
            storage: Storage::F32,
            world_size: 4,
            batch_size: 1024,
            column_wise: true,
        };
        planner.plan(tables)
    }

    #[test]
    fn a_table_that_fits_no_rank_is_cut_and_the_plan_is_told() {
        let config = PlannerConfig {
            memory_gib: 0.05,
            ..Default::default()
        };
        let tables = [
            TableConfig::of_feature("tiny", 10, 16),
            TableConfig::of_feature("huge", 2_000_000, 16),
        ];
        let planned = plan(&config, &tables).unwrap();
        assert_eq!(planned.plan.tables[1].1, Sharding::RowWise {});
        let text = planned.describe();
        assert!(
            text.contains("row-wise") && text.contains("huge") && text.contains("MiB"),
            "{text}"
        );
    }

    #[test]
    fn equal_tables_are_spread_over_the_ranks() {
        let tables: Vec<TableConfig> = (0..8)
            .map(|at| TableConfig::of_feature(at.to_string(), 100_000, 16))
            .collect();
        let config = PlannerConfig {
            sharding_of: tables
                .iter()
                .map(|table| (table.name.clone(), ShardingKind::TableWise))
                .collect(),
            ..Default::default()
        };
        let mut held = [0; 4];
        for (_, sharding) in &plan(&config, &tables).unwrap().plan.tables {
            let Sharding::TableWise { rank } = sharding else {
                panic!("as told: {sharding}")
            };
            held[*rank] += 1;
        }
        assert_eq!(held, [2; 4]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let mut tables = [TableConfig::of_feature("a", 1_000_000_000, 64)];
        let config = PlannerConfig::default();
        assert!(
            matches!(plan(&config, &tables), Err(PlanError::NoRoom { table, .. }) if table == "a")
        );
        let mut stray = config.clone();
        stray.sharding_of.insert("b".into(), ShardingKind::RowWise);
        let unknown = plan(&stray, &tables).unwrap_err();
        assert!(
            matches!(unknown, PlanError::NoTable(NoTable::Unknown { .. })),
            "{unknown}"
        );
        let mut pooled = config.clone();
        pooled.pooling_factor_of.insert("b".into(), 2.0);
        let unknown = plan(&pooled, &tables).unwrap_err();
        assert!(
            matches!(unknown, PlanError::UnknownFeature { .. }),
            "{unknown}"
        );
        tables[0].features.push("b".into());
        let shared = plan(&stray, &tables).unwrap_err().to_string();
        assert!(
            shared.contains("tables.planner.sharding_of names `b`")
                && shared.contains("say it of `a`"),
            "{shared}"
        );
        // It reads that table's rows all the same.
        assert!(matches!(
            plan(&pooled, &tables),
            Err(PlanError::NoRoom { .. })
        ));
        let slow = PlannerConfig {
            wire_gb_per_second: 0.0,
            ..config
        };
        assert!(matches!(
            plan(&slow, &tables),
            Err(PlanError::NotPositive {
                key: "wire_gb_per_second",
                ..
            })
        ));
    }

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
