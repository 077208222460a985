//! One definition of every feature, compiled into every program that needs one.
//!
//! `configs/features.toml` says what each feature is ([`FeatureSpec`]). Compiled
//! ([`FeatureSet`]), it turns **facts** (what a request and an ad say of themselves, [`facts`])
//! and **aggregates** (windowed counts per user, ad or pair, [`Aggregates`]) into rows of
//! numbers and ids ([`FeatureBatch`]). The pipeline calls it with the aggregates as they were
//! known at each impression; the server calls the same code with those of the online store
//! ([`online`]). Training and serving can so not differ by construction.
//!
//! Light on purpose: no query engine, no tensor library, and no socket but the online store's.
//!
//! Read in this order: [`spec`], [`expression`], [`facts`], [`aggregates`], [`FeatureSet`],
//! [`FeatureBatch`], [`online`], [`skew`].

pub mod aggregates;
mod batch;
pub mod diff;
pub mod expression;
pub mod facts;
pub mod hash;
pub mod online;
mod set;
pub mod skew;
pub mod spec;
pub mod style;

pub use aggregates::{
    Aggregates, Counted, EntityKey, EntityState, HourSums, Known, NoState, SourceEvent,
    StateSource, WindowSums,
};
pub use batch::{FeatureBatch, Jagged, SnapshotError};
pub use facts::{Fact, Facts};
pub use set::{
    AdFacts, DenseField, EntityGroup, EvaluationCounts, FeatureSet, Keeping, Representatives,
    RequestFacts, Schema, SparseField,
};
pub use spec::{FeatureSpec, SpecError, UnknownFeature};
