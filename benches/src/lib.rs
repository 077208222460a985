//! Benchmarks against named peers.
//!
//! Each binary in `src/bin` measures one thing of ours and prints one JSON line; the script of the
//! same name in `peers/` measures the peer with the same flags. `benches/run NAME` builds, runs
//! both in turn and compares. `README.md` says what each of them is.
