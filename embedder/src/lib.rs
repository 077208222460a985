//! From pictures to a searchable index that serving may trust.
//!
//! [`embed`] turns the pictures of the newest catalogue into vectors, only those that are new;
//! [`index`] builds a nearest-neighbour index over the creatives, measures recall and latency,
//! and refuses what misses its target; [`publish`] joins the artifacts that belong together into
//! a bundle and moves a channel to it, so that query vectors and index never mix versions.
//! [`vectors`] is the format in between.
//!
//! This crate trains nothing and answers no request.

pub mod embed;
pub mod index;
pub mod publish;
pub mod vectors;
