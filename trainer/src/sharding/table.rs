//! Tables of embeddings as a configuration names them.

use models::ctr::Pooling;
use serde::{Deserialize, Serialize};

use super::vocabulary::DynamicConfig;

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
