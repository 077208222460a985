//! Benchmarks against named peers
