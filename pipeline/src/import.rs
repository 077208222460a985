//! Foreign data as events of the log.

pub mod movielens;
pub mod rows;
