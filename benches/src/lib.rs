//! Benchmarks against named peers.
//!
//! Each binary in `src/bin` measures one thing of ours and prints one JSON line; the script of the
//! same name in `peers/` measures the peer with the same flags. `benches/run NAME` builds, runs
//! both in turn and compares. `README.md` says what each of them is.

// The allocator of all programs.
use cli as _;
use serde::Serialize;

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
