//! The server over loopback, on bundles made by hand.

mod answers;
mod degradation;
mod fixture;
mod limits;
mod online;
mod swaps;
