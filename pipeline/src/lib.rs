//! From the event log to training tables and online features; the world with known truth
