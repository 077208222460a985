//! Embedding tables outside automatic differentiation.
//!
//! A step goes: ids to the rank that owns their rows → local lookup and pooling → pooled vectors
//! back → dense forward and backward with the pooled block as one leaf tensor → its gradient to
//! the owners → fused optimizer on the touched rows only. With one rank every row is local and
//! the exchanges fall away; [`ShardedTables::lookup`] and [`ShardedTables::update`] are the two
//! ends that stay the same when process groups join them.

mod optimizer;
mod tables;

pub use optimizer::{SparseOptimizer, SparseOptimizerConfig};
pub use tables::{ShardedTables, TableConfig};
