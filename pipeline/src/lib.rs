//! From the event log to training tables and online features.
//!
//! [`world`] is the synthetic world with known truth: it makes events and plays the clients.

pub mod world;
