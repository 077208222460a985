//! From the event log to training tables and online features.
//!
//! Events come from the synthetic world with known truth ([`world`]), which also plays the
//! clients of a running server; from foreign data ([`import`]); or from Marquee's own servers.
//! [`process`] turns them, incrementally and exactly once, into the training table, the
//! aggregates and the catalogue; [`feature_verbs`] publishes those to the online store and the
//! registry. [`verbs`] is the command line.
//!
//! The heavy data libraries (Delta Lake, Parquet) live in this crate and the trainer's reader;
//! nothing here knows a model.

pub mod asof;
pub mod backfill;
mod calendar;
mod catalogue_page;
pub mod facts;
pub mod feature_verbs;
pub mod files;
pub mod import;
pub mod process;
pub mod quality;
pub mod schema;
pub mod skew;
pub mod sql;
pub mod verbs;
pub mod world;
