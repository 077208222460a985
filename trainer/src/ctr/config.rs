//! Configuration of a click model's training.

use std::collections::BTreeMap;

use features::Schema;
use models::ctr::DcnV2Config;
use serde::{Deserialize, Serialize};

use crate::{
    sharding::{SparseOptimizerConfig, TableConfig},
    split::SplitConfig,
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
    /// The network.
    pub model: DcnV2Config,
    /// The embedding tables.
    pub tables: TablesConfig,
    /// The loop.
    pub training: TrainingConfig,
}

impl Default for CtrConfig {
    fn default() -> Self {
        Self {
            kind: "ctr".to_owned(),
            seed: 1,
            table: "impressions".to_owned(),
            split: SplitConfig::default(),
            model: DcnV2Config::default(),
            tables: TablesConfig::default(),
            training: TrainingConfig::default(),
        }
    }
}

/// Sizes and optimizer of the embedding tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TablesConfig {
    /// Length of a row.
    pub embedding_dim: usize,
    /// Rows of a table; more means fewer ids that share one.
    pub rows: usize,
    /// Rows of single features that need more or fewer.
    pub rows_of: BTreeMap<String, usize>,
    /// How rows are moved.
    pub optimizer: SparseOptimizerConfig,
}

impl Default for TablesConfig {
    fn default() -> Self {
        Self {
            embedding_dim: 16,
            rows: 65_536,
            rows_of: BTreeMap::new(),
            optimizer: SparseOptimizerConfig::default(),
        }
    }
}

impl TablesConfig {
    /// One table per sparse feature.
    ///
    /// # Errors
    /// The name in `rows_of` that is no feature.
    pub fn tables(&self, schema: &Schema) -> Result<Vec<TableConfig>, String> {
        if let Some(stray) = self
            .rows_of
            .keys()
            .find(|name| !schema.sparse.iter().any(|field| field.name == **name))
        {
            return Err(stray.clone());
        }
        let table = |name: &String| TableConfig {
            feature: name.clone(),
            rows: self.rows_of.get(name).copied().unwrap_or(self.rows).max(1),
            dim: self.embedding_dim,
        };
        Ok(schema
            .sparse
            .iter()
            .map(|field| table(&field.name))
            .collect())
    }
}

/// The loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Rows of a step.
    pub batch_size: usize,
    /// Passes over the training rows; the best by validation log loss is kept.
    pub epochs: usize,
    /// Step size of the dense weights (Adam).
    pub learning_rate: f64,
    /// Pull of the dense weights towards zero.
    pub weight_decay: f32,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            batch_size: 1024,
            epochs: 2,
            learning_rate: 1e-3,
            weight_decay: 0.0,
        }
    }
}
