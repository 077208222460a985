//! Configuration of a click model's training.

use std::collections::BTreeMap;

use features::Schema;
use models::ctr::{NetworkConfig, Pooling};
use serde::{Deserialize, Serialize};

use super::calibrate::CalibrationMethod;
use crate::{
    checkpoint::CheckpointConfig,
    collective::CollectiveConfig,
    dense::{DenseOptimizerConfig, Precision},
    schedule::ScheduleConfig,
    sharding::{
        DynamicConfig, NoTable, PlannerConfig, SparseOptimizerConfig, Storage, TableConfig,
    },
    split::SplitConfig,
    table::ReaderConfig,
    tracking::TrackingConfig,
};

/// `configs/ctr.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CtrConfig {
    /// Which trainer reads this file: `ctr`.
    pub kind: String,
    /// Seed of weights, shuffling and dropout.
    pub seed: u64,
    /// Name of the training table.
    pub table: String,
    /// What is held out.
    pub split: SplitConfig,
    /// How rows are read.
    pub reader: ReaderConfig,
    /// The network.
    pub model: NetworkConfig,
    /// The embedding tables.
    pub tables: TablesConfig,
    /// The loop.
    pub training: TrainingConfig,
    /// How often it is saved.
    pub checkpoint: CheckpointConfig,
    /// How ranks find and wait for each other.
    pub collective: CollectiveConfig,
    /// Who else hears of the run.
    pub tracking: TrackingConfig,
}

impl Default for CtrConfig {
    fn default() -> Self {
        Self {
            kind: "ctr".to_owned(),
            seed: 1,
            table: "impressions".to_owned(),
            split: SplitConfig::default(),
            reader: ReaderConfig::default(),
            model: NetworkConfig::default(),
            tables: TablesConfig::default(),
            training: TrainingConfig::default(),
            checkpoint: CheckpointConfig::default(),
            collective: CollectiveConfig::default(),
            tracking: TrackingConfig::default(),
        }
    }
}

/// Why there cannot be such tables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TablesError {
    /// Something for a table that is not there.
    #[error(transparent)]
    NoTable(#[from] NoTable),
    /// A table of a feature that is not there.
    #[error(
        "tables.shared_by.{table} names `{feature}`, which is not a sparse feature of the rows: {known}"
    )]
    UnknownFeature {
        /// The table.
        table: String,
        /// The name.
        feature: String,
        /// What there is.
        known: String,
    },
    /// Nobody to share with.
    #[error(
        "tables.shared_by.{table} names {count} features, wanted at least two: without the key each has a table of its own"
    )]
    NotShared {
        /// The table.
        table: String,
        /// How many.
        count: usize,
    },
    /// A feature cannot read two tables.
    #[error(
        "tables.shared_by names `{feature}` for `{one}` and again for `{other}`: a feature reads one table, name it once"
    )]
    Twice {
        /// The feature.
        feature: String,
        /// The one table.
        one: String,
        /// The other, or the same.
        other: String,
    },
    /// Two tables of one name.
    #[error(
        "tables.shared_by.{table} has the name of a feature that is not among its own: choose another, or add the feature"
    )]
    NameTaken {
        /// The table.
        table: String,
    },
    /// A dynamic table without room.
    #[error("the dynamic table `{table}` has {rows} rows, wanted at least {least}")]
    TooSmall {
        /// The table.
        table: String,
        /// Its rows.
        rows: usize,
        /// How many it takes.
        least: usize,
    },
}

/// Rows of a dynamic table: less would not be spread evenly over its parts.
const LEAST_DYNAMIC_ROWS: usize = 1024;

/// Sizes and optimizer of the embedding tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TablesConfig {
    /// Features that read the same rows, by the name of their table: an id has one row, whichever
    /// of them it comes by. All others have a table each, of their name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub shared_by: BTreeMap<String, Vec<String>>,
    /// Length of an id's vector.
    pub embedding_dim: usize,
    /// That of single tables that need longer or shorter ones, where the network allows it.
    pub dim_of: BTreeMap<String, usize>,
    /// Rows of a table, where it is not known how many ids there are; more means fewer ids that
    /// share one.
    pub rows: usize,
    /// Rows of single tables that need more or fewer.
    pub rows_of: BTreeMap<String, usize>,
    /// Tables whose ids have rows of their own; the number of rows is the most there can be.
    pub dynamic: BTreeMap<String, DynamicConfig>,
    /// What becomes of the rows of features with several ids.
    pub pooling: Pooling,
    /// Type of the weights in memory.
    pub storage: Storage,
    /// Rows of a table that GPU memory holds at a time, of tables with more, which then lie in host
    /// memory; best more than the distinct rows of a step. 0: whole tables lie in GPU memory.
    pub gpu_cache_rows: usize,
    /// Every epoch begins with fresh rows and the network of the one before: rows that have seen
    /// each click once cannot learn them by heart. Source: Liu et al., "Multi-Epoch Learning for
    /// Deep Click-Through Rate Prediction Models" (2023).
    pub reinitialise_each_epoch: bool,
    /// How rows are moved.
    pub optimizer: SparseOptimizerConfig,
    /// How tables are spread over the ranks.
    pub planner: PlannerConfig,
}

impl Default for TablesConfig {
    fn default() -> Self {
        Self {
            shared_by: BTreeMap::new(),
            embedding_dim: 16,
            dim_of: BTreeMap::new(),
            rows: 65_536,
            rows_of: BTreeMap::new(),
            dynamic: BTreeMap::new(),
            pooling: Pooling::default(),
            storage: Storage::default(),
            gpu_cache_rows: 0,
            reinitialise_each_epoch: false,
            optimizer: SparseOptimizerConfig::default(),
            planner: PlannerConfig::default(),
        }
    }
}

impl TablesConfig {
    /// The tables of all sparse features, with the rows that a network wants, in the order of their
    /// first features.
    ///
    /// # Errors
    /// [`TablesError`] that names the key.
    pub fn tables(
        &self,
        schema: &Schema,
        network: &NetworkConfig,
    ) -> Result<Vec<TableConfig>, TablesError> {
        self.check_shared(schema)?;
        let mut tables: Vec<TableConfig> = Vec::new();
        for field in &schema.sparse {
            let name = self.table_of(&field.name);
            let known = field.cardinality.and_then(|ids| usize::try_from(ids).ok());
            let rows = known.unwrap_or(self.rows);
            if let Some(table) = tables.iter_mut().find(|table| table.name == *name) {
                table.features.push(field.name.clone());
                table.rows = table.rows.max(rows);
                continue;
            }
            let dim = self.dim_of.get(name).copied().unwrap_or(self.embedding_dim);
            tables.push(TableConfig {
                name: name.clone(),
                features: vec![field.name.clone()],
                rows,
                dim: network.row_dim(dim),
                pooling: self.pooling,
                dynamic: self.dynamic.get(name).cloned(),
            });
        }
        NoTable::check("tables.rows_of", self.rows_of.keys(), &tables)?;
        NoTable::check("tables.dim_of", self.dim_of.keys(), &tables)?;
        NoTable::check("tables.dynamic", self.dynamic.keys(), &tables)?;
        for table in &mut tables {
            let rows = self.rows_of.get(&table.name).copied();
            table.rows = rows.unwrap_or(table.rows).max(1);
            if table.dynamic.is_some() && table.rows < LEAST_DYNAMIC_ROWS {
                return Err(TablesError::TooSmall {
                    table: table.name.clone(),
                    rows: table.rows,
                    least: LEAST_DYNAMIC_ROWS,
                });
            }
        }
        Ok(tables)
    }

    /// The name of the table that a feature reads.
    fn table_of<'a>(&'a self, feature: &'a String) -> &'a String {
        let mut shared = self.shared_by.iter();
        let table = shared.find(|(_, features)| features.contains(feature));
        table.map_or(feature, |(table, _)| table)
    }

    fn check_shared(&self, schema: &Schema) -> Result<(), TablesError> {
        let known = || schema.sparse.iter().map(|field| &field.name);
        let mut tables: BTreeMap<&String, &String> = BTreeMap::new();
        for (table, features) in &self.shared_by {
            if features.len() < 2 {
                return Err(TablesError::NotShared {
                    table: table.clone(),
                    count: features.len(),
                });
            }
            for feature in features {
                if !known().any(|name| name == feature) {
                    return Err(TablesError::UnknownFeature {
                        table: table.clone(),
                        feature: feature.clone(),
                        known: known().cloned().collect::<Vec<_>>().join(", "),
                    });
                }
                if let Some(before) = tables.insert(feature, table) {
                    return Err(TablesError::Twice {
                        feature: feature.clone(),
                        one: before.clone(),
                        other: table.clone(),
                    });
                }
            }
            if !features.contains(table) && known().any(|name| name == table) {
                let table = table.clone();
                return Err(TablesError::NameTaken { table });
            }
        }
        Ok(())
    }
}

/// What training makes small.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// The cross-entropy of every row's click, and of its conversion where that is learnt.
    #[default]
    CrossEntropy,
    /// Of two towers: that of finding a click's ad among the ads of the batch, which are those of all
    /// ranks, each corrected by how often it is shown. Source: Yi et al., "Sampling-Bias-Corrected Neural
    /// Modeling for Large Corpus Item Recommendations", RecSys 2019.
    BatchSoftmax,
}

/// The loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Rows of a step, of all ranks together.
    pub batch_size: usize,
    /// Parts into which a step is cut for memory's sake; their gradients are summed.
    pub micro_batches: usize,
    /// Passes over the training rows.
    pub epochs: usize,
    /// What is made small.
    pub objective: Objective,
    /// Steps between two measures on the validation rows, besides the end of each epoch. 0: none.
    /// The model that is best at a measure is kept: by log loss, that of clicks and, with two tasks, of
    /// conversions; or by the loss of retrieval, where `objective` is that.
    pub evaluate_every_steps: u64,
    /// Measures in a row without a better one that end the run. 0: none do.
    pub early_stopping: u64,
    /// How the logits of clicks are put right on the validation rows.
    pub calibration: CalibrationMethod,
    /// How much of each label of a click is taken towards one half.
    pub label_smoothing: f32,
    /// How the dense weights are moved.
    pub optimizer: DenseOptimizerConfig,
    /// Step size of the dense weights.
    pub learning_rate: f64,
    /// Share of the running mean of the dense weights that a step keeps; the mean is what scores.
    /// 0: the weights themselves do.
    pub ema_decay: f64,
    /// What the network computes in; its weights stay f32.
    pub precision: Precision,
    /// Pull of the dense weights towards zero.
    pub weight_decay: f32,
    /// Longest gradient of the dense weights; longer ones are scaled down to it. 0: no limit.
    pub max_gradient_norm: f32,
    /// How the learning rates go.
    pub schedule: ScheduleConfig,
    /// What is done about losses that cannot be.
    pub guard: GuardConfig,
}

/// Steps whose loss or gradient is no number move nothing; nor do spikes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardConfig {
    /// A loss of so many times the running mean is a spike. 0: none is.
    pub spike_factor: f64,
    /// Skipped steps in a row that end the run.
    pub stop_after: u64,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            spike_factor: 0.0,
            stop_after: 5,
        }
    }
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            batch_size: 1024,
            micro_batches: 1,
            epochs: 2,
            objective: Objective::default(),
            evaluate_every_steps: 0,
            early_stopping: 0,
            calibration: CalibrationMethod::default(),
            label_smoothing: 0.0,
            optimizer: DenseOptimizerConfig::default(),
            learning_rate: 1e-3,
            ema_decay: 0.0,
            precision: Precision::default(),
            weight_decay: 0.0,
            max_gradient_norm: 10.0,
            schedule: ScheduleConfig::default(),
            guard: GuardConfig::default(),
        }
    }
}
