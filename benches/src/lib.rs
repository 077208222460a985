//! Benchmarks against named peers.
//!
//! Each binary in `src/bin` measures one thing of ours and prints one JSON line; the script of the
//! same name in `peers/` measures the peer with the same flags. `benches/run NAME` builds, runs
//! both in turn and compares. `README.md` says what each of them is.

pub mod click;
pub mod ranks;

use clap::ValueEnum;
// The allocator of all programs.
use cli as _;
use serde::Serialize;

/// What computes the dense half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
pub enum Backend {
    /// burn's pure-Rust one, with our fused operations.
    #[value(name = "burn-flex")]
    #[serde(rename = "burn-flex")]
    Flex,
    /// libtorch through burn.
    #[cfg(feature = "tch")]
    #[value(name = "burn-tch")]
    #[serde(rename = "burn-tch")]
    Libtorch,
}

/// Sets the threads of everything that has some.
///
/// # Errors
/// If they are running already.
pub fn set_threads(threads: usize) -> anyhow::Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()?;
    #[cfg(feature = "tch")]
    tch::set_num_threads(i32::try_from(threads)?);
    Ok(())
}

/// Of values in any order; of an even number of them, the mean of the middle two.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        0.5 * (values[middle - 1] + values[middle])
    }
}

/// Prints the result: the last line on stdout, one JSON object.
///
/// # Errors
/// If the result cannot be said in JSON.
#[expect(clippy::print_stdout, reason = "the result line is the output")]
pub fn print(result: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}
