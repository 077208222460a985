//! Times all-reduce and all-to-all between processes on this machine.
//!
//! Starts itself once for every rank. The peer is `benches/peers/collectives_gloo.py`, which has
//! the same flags. The last line on stdout is one JSON object: medians by operation and size.

use std::{collections::BTreeMap, time::Instant};

use clap::Parser;
use marquee_benches::{median, print, ranks};
use serde::Serialize;
use trainer::collective::{CollectiveError, ProcessGroup, TcpGroup};

#[derive(Parser)]
#[command(about = "Times collective operations between processes")]
struct Args {
    /// Processes
    #[arg(long, default_value_t = 2)]
    world_size: usize,
    /// Bytes of a rank's values, for each a measurement
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1024,16384,262144,1048576,4194304,16777216,67108864"
    )]
    bytes: Vec<usize>,
    /// Longest measurement of one size, seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

/// The result line.
#[derive(Debug, Serialize)]
struct Timings {
    /// Median milliseconds by operation and bytes.
    ms: BTreeMap<String, f64>,
    /// Bytes that a rank sent for one all-reduce of the largest size.
    all_reduce_sent_bytes: u64,
    world_size: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let Some(met) = ranks::meet(args.world_size)? else {
        return Ok(());
    };
    let mut group = TcpGroup::connect(&met, "bench")?;
    let timings = measure(&args, &mut group)?;
    if group.rank() == 0 {
        print(&timings)?;
    }
    Ok(())
}

fn measure(args: &Args, group: &mut TcpGroup) -> anyhow::Result<Timings> {
    let mut ms = BTreeMap::new();
    let mut all_reduce_sent_bytes = 0;
    for bytes in &args.bytes {
        let mut values = vec![1.0f32; bytes / 4];
        let before = group.traffic().sent_bytes;
        group.all_reduce(&mut values)?;
        all_reduce_sent_bytes = group.traffic().sent_bytes - before;
        let found = median_ms(args, group, |group| group.all_reduce(&mut values))?;
        ms.insert(format!("all_reduce/{bytes}"), found);

        let parts = vec![&values[..values.len() / args.world_size]; args.world_size];
        let found = median_ms(args, group, |group| group.all_to_all_v(&parts).map(drop))?;
        ms.insert(format!("all_to_all/{bytes}"), found);
    }
    Ok(Timings {
        ms,
        all_reduce_sent_bytes,
        world_size: args.world_size,
    })
}

/// Milliseconds of one operation; all ranks make the same number of turns, which rank 0 chooses.
fn median_ms(
    args: &Args,
    group: &mut TcpGroup,
    mut operation: impl FnMut(&mut TcpGroup) -> Result<(), CollectiveError>,
) -> anyhow::Result<f64> {
    let started = Instant::now();
    for _ in 0..3 {
        operation(group)?;
    }
    let turns = args.seconds / started.elapsed().as_secs_f64() * 3.0;
    let mut turns = vec![turns.clamp(5.0, 500.0) as u64];
    group.broadcast(0, &mut turns)?;
    let mut times = Vec::new();
    for _ in 0..turns[0] {
        group.barrier()?;
        let started = Instant::now();
        operation(group)?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(times))
}
