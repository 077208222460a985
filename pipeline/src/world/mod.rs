//! A synthetic world with known truth.
//!
//! [`truth::World`] holds people, scenes and ads, and the probability of every click.
//! [`generate`] writes its history as events, with the delays, duplicates and broken records of
//! real traffic; [`drive`] plays its clients against a running server; [`judge`] compares a
//! model's predictions with the truth. Because the truth is known, reports can say how far from
//! the best possible a platform is.

pub mod cli;
pub mod config;
pub mod drive;
pub mod generate;
pub mod judge;
pub mod measure;
pub mod pictures;
pub mod truth;
