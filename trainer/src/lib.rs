//! Trains every model of the platform and says how good it is.
//!
//! A training verb reads the Delta table ([`table`]), splits it in time ([`split`]), trains one
//! kind of model ([`ctr`], [`prescorer`], [`visual`]), measures it on rows that lie later in
//! time, and publishes it with its lineage; every run keeps a folder ([`run`]). What the kinds
//! share around their models is a [`job`]. Embedding tables
//! live outside automatic differentiation in [`sharding`], where they are split over ranks; with
//! one rank every shard is local.
//!
//! This crate serves nothing and knows no query engine: it reads Delta and Parquet itself.

pub mod backend;
pub mod checkpoint;
pub mod collective;
pub mod ctr;
pub mod dense;
pub mod gate;
pub mod job;
mod page;
pub mod plot;
pub mod prescorer;
pub mod schedule;
pub mod sharding;
pub mod split;
pub mod sweep;
pub mod table;
pub mod tracking;
pub mod visual;
