//! Embedding tables outside automatic differentiation, split over the ranks of a run.
//!
//! A [`Plan`] says who holds which part of which table ([`Planner`] makes one). A step goes: ids to
//! the ranks that own their rows, distinct ones only ([`Router::route`], which may run ahead) →
//! lookup there, vectors back, pooled ([`ShardedTables::lookup`]) → dense forward and backward with
//! the pooled block as one leaf tensor → its gradient to the owners → fused optimizer on the
//! touched rows only ([`ShardedTables::update`]). With one rank every row is local and the
//! exchanges fall away. What is learnt does not depend on the plan. A table that several features
//! read has the bags of all of them, one feature's after the other's, from routing on; only where
//! bags meet the pooled block are features told apart. The ids of dynamic tables become
//! rows before all this, and are admitted and evicted between two steps
//! ([`ShardedTables::observe`]).

mod block;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod device;
mod optimizer;
mod persist;
mod plan;
mod planner;
mod routing;
mod shard;
mod storage;
mod table;
mod tables;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use block::{PlacementError, Tables, WriteDense};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub use device::DeviceTables;
pub use optimizer::{SparseOptimizer, SparseOptimizerConfig};
pub use plan::{Plan, RowSlice, ShardSpec, Sharding};
pub use planner::{PlanError, Planned, Planner, PlannerConfig, ShardingKind};
pub use routing::{Bags, Routed, Router};
pub use storage::Storage;
pub use table::{NoTable, TableConfig};
pub use tables::{Received, ShardedTables};
pub use vocabulary::{Counts, DynamicConfig, TableUse};
