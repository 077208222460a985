//! Foreign data as events of the log.

pub mod movielens;
