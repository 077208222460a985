//! The networks, written once and compiled into trainer, embedder and server alike.
//!
//! [`ctr`] predicts clicks from dense numbers and pooled embeddings; [`prescorer`] is the tree
//! model that thins out candidates; [`visual`] turns pictures into vectors. Each has a folder
//! format of plain files (JSON and safetensors, or LightGBM's text), which is how models travel
//! through the registry. [`metrics`] says how good predictions are. Everything runs on any burn
//! backend; [`Cpu`] is the default one, and [`ops`] is what it does faster than burn's own.
//!
//! This crate trains nothing and reads no table: it knows features only by their schema.

pub mod ctr;
mod files;
pub mod metrics;
pub mod ops;
pub mod prescorer;
pub mod visual;

pub use files::ModelFileError;

/// The backend of programs without a GPU: burn's pure-Rust one.
pub type Cpu = burn::backend::Flex;
