//! Chooses which rank holds which part of which table.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use super::{
    optimizer::SparseOptimizerConfig,
    plan::{Plan, Sharding},
    storage::Storage,
    table::{NoTable, TableConfig},
};

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
}
