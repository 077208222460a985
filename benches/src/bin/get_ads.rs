//! Latency and throughput of a running ad server, seen from its clients.
//!
//! Each connection sends its next request when the last one is answered. Requests walk through
//! the scenes of the newest catalogue in the data folder, and through `--users` users. The last
//! line is a JSON object; the first tenth of the requests warms up and is not counted.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use registry::{Kind, Registry, block_on};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use wire::{
    ads::{GetAdsRequest, Placement, ad_service_client::AdServiceClient},
    catalogue::{Catalogue, Scene},
    events::{AgeBand, Context},
};

#[derive(Parser, Clone)]
#[command(about = "Drives a running ad server and prints its latency as JSON")]
struct Args {
    /// Requests over all connections
    #[arg(long, default_value_t = 20_000)]
    requests: usize,
    /// Connections that send at the same time
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Users that the requests walk through
    #[arg(long, default_value_t = 1_500)]
    users: usize,
    /// Data folder of the server
    #[arg(long, default_value = "data")]
    root: PathBuf,
    /// Address of the server [default: as `serving.addr` in the data folder says]
    #[arg(long)]
    server: Option<String>,
}

#[derive(Default)]
struct Tally {
    latencies: Vec<Duration>,
    /// Time outside the stages, as the server tells it, µs.
    overheads_us: Vec<u64>,
    filled: usize,
    degraded: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let scenes = scenes(&args)?;
    let server = server(&args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (tally, seconds) = runtime.block_on(drive(&args, &server, &scenes))?;
    print(&report(&args, tally, seconds));
    Ok(())
}

fn scenes(args: &Args) -> anyhow::Result<Vec<Scene>> {
    let registry = Registry::open(&args.root.join("registry"))?;
    let newest = block_on(registry.newest(Kind::Catalogue))?;
    let catalogue = Catalogue::load(&block_on(registry.fetch(&newest.digest))?)?;
    let scenes: Vec<Scene> = catalogue.scenes.into_values().collect();
    anyhow::ensure!(!scenes.is_empty(), "the newest catalogue has no scene");
    Ok(scenes)
}

fn server(args: &Args) -> anyhow::Result<String> {
    if let Some(server) = &args.server {
        return Ok(server.clone());
    }
    let path = args.root.join("serving.addr");
    let text = std::fs::read_to_string(&path).with_context(|| {
        let path = path.display();
        format!("reading {path}: start `marquee serve`, or name a --server")
    })?;
    let addresses: Value = serde_json::from_str(&text)?;
    let grpc = addresses["grpc"].as_str().context("no `grpc` address")?;
    Ok(format!("http://{grpc}"))
}

async fn drive(args: &Args, server: &str, scenes: &[Scene]) -> anyhow::Result<(Tally, f64)> {
    let warm = args.requests / 10;
    ask_all(args, server, scenes, 0..warm).await?;
    let started = Instant::now();
    let tally = ask_all(args, server, scenes, warm..warm + args.requests).await?;
    Ok((tally, started.elapsed().as_secs_f64()))
}

async fn ask_all(
    args: &Args,
    server: &str,
    scenes: &[Scene],
    numbers: std::ops::Range<usize>,
) -> anyhow::Result<Tally> {
    let mut connections = JoinSet::new();
    for first in 0..args.connections.max(1) {
        let mut client = AdServiceClient::connect(server.to_owned()).await?;
        let mine = (numbers.start + first..numbers.end).step_by(args.connections.max(1));
        let requests: Vec<_> = mine.map(|number| request(args, scenes, number)).collect();
        connections.spawn(async move {
            let mut tally = Tally::default();
            for request in requests {
                let sent = Instant::now();
                let answer = client.get_ads(request).await?.into_inner();
                tally.latencies.push(sent.elapsed());
                tally.filled += usize::from(!answer.winners.is_empty());
                let explain = answer.explain.unwrap_or_default();
                tally.degraded += usize::from(explain.degradation != 0);
                let stages: u64 = explain.stages.iter().map(|stage| stage.duration_us).sum();
                tally
                    .overheads_us
                    .push(explain.total_us.saturating_sub(stages));
            }
            anyhow::Ok(tally)
        });
    }
    let mut total = Tally::default();
    while let Some(tally) = connections.join_next().await {
        let tally = tally??;
        total.latencies.extend(tally.latencies);
        total.overheads_us.extend(tally.overheads_us);
        total.filled += tally.filled;
        total.degraded += tally.degraded;
    }
    Ok(total)
}

fn request(args: &Args, scenes: &[Scene], number: usize) -> GetAdsRequest {
    // Primes, so that users, scenes and formats meet in every combination.
    let scene = &scenes[number * 7 % scenes.len()];
    GetAdsRequest {
        request_id: format!("bench-{number}"),
        user_id: format!("u{:05}", number * 31 % args.users.max(1)),
        age_band: AgeBand::AgeBand13plus.into(),
        personalisation_consent: true,
        context: Some(Context {
            experience_id: scene.experience_id.clone(),
            genre: scene.genre.clone(),
            scene_id: scene.scene_id.clone(),
            format: ["billboard", "portal", "sponsored_item"][number % 3].to_owned(),
            device: ["phone", "desktop", "console", "headset"][number % 4].to_owned(),
            country: "DE".to_owned(),
            ..Context::default()
        }),
        placement: Some(Placement {
            slots: 1,
            ..Placement::default()
        }),
        ..GetAdsRequest::default()
    }
}

fn report(args: &Args, mut tally: Tally, seconds: f64) -> Value {
    tally.latencies.sort_unstable();
    tally.overheads_us.sort_unstable();
    let count = tally.latencies.len();
    let place = |share: f64| ((share * count as f64).ceil() as usize).clamp(1, count.max(1)) - 1;
    let milliseconds = |share| {
        let found = tally.latencies.get(place(share));
        found.map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    };
    json!({
        "p50_ms": milliseconds(0.5),
        "p99_ms": milliseconds(0.99),
        "p999_ms": milliseconds(0.999),
        "overhead_p50_us": tally.overheads_us.get(place(0.5)),
        "requests_per_second": count as f64 / seconds.max(1e-9),
        "filled": tally.filled,
        "degraded": tally.degraded,
        "connections": args.connections,
        "n": count,
    })
}

#[expect(clippy::print_stdout, reason = "the result of the program")]
fn print(report: &Value) {
    println!("{report}");
}
