//! What was made, from what, how good it is, and what is live.
//!
//! An [`Artifact`] is a set of files that never changes once published: a model, an index, a
//! catalogue, a bundle of those. Its [`Digest`] is computed from the digests of its files, so
//! the same content has the same name everywhere, and a damaged file is found when it is
//! fetched. Its `parents` are its lineage.
//!
//! A [`Channel`] says which bundles serve and with which share of the traffic. It moves by
//! compare-and-set from one generation to the next, and every generation stays on record.
//!
//! A [`Stage`] says how far an artifact has come on its way to traffic. Click models take a step
//! towards it only as long as the last [`Judgement`] of the gate let them pass.
//!
//! Everything lies on an object store, and every change is one create-if-absent write, so that
//! two writers never overwrite each other on any store. This crate knows no model and no index:
//! it moves bytes.
//!
//! Read in this order: [`Artifact`], [`Registry`], [`Channel`].

mod artifact;
mod channel;
mod collect;
mod error;
mod stage;
mod store;

pub use artifact::{Artifact, Digest, Draft, FEATURE_DIGEST, FileEntry, Kind};
pub use channel::{Channel, Target};
pub use collect::{Collected, Keep, Reason};
pub use error::RegistryError;
pub use stage::{Judgement, Stage};
pub use store::{Registry, block_on, now_us};
