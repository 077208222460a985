//! The clients of the world against a running server.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context;
use indicatif::ProgressBar;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tonic::transport::{Channel, Endpoint};
use wire::{
    ads::{GetAdsRequest, GetAdsResponse, Placement, ad_service_client::AdServiceClient},
    events::Event,
    log::{LogWriter, SegmentWriter},
};

use super::{
    generate::{DAY_US, play},
    truth::{Moment, World, stream},
};

/// Simulated time between two requests: 2,000 of them fill most of a day.
const REQUEST_INTERVAL_US: i64 = 30_000_000;

/// How long a client waits for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the clients saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Driven {
    /// Requests sent.
    pub requests: u64,
    /// Requests answered with at least one ad.
    pub filled: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// `filled / requests`.
    pub fill_rate: f64,
    /// Median time of an answer at the client.
    pub get_ads_p50_ms: f64,
    /// 99th percentile of the same.
    pub get_ads_p99_ms: f64,
    /// Requests per second over all clients.
    pub requests_per_second: f64,
    /// Revenue to expect of the prices and winners, under the true probabilities.
    pub revenue_micros: f64,
    /// The same of an auction that knows the truth about every eligible ad.
    pub revenue_best_micros: f64,
    /// `revenue_micros / revenue_best_micros`.
    pub revenue_ratio: f64,
    /// Expected value (bid × true probability) of the winners over that of the best ones.
    pub value_ratio: f64,
    /// Viewable impressions.
    pub views: u64,
    /// Clicks.
    pub clicks: u64,
    /// Conversions.
    pub conversions: u64,
    /// Upper ends of the latency buckets, ms, and how many answers fell into each.
    pub latency_histogram: Vec<(f64, u64)>,
    /// Median duration of each stage as the server tells it, µs.
    pub stage_p50_us: Vec<(String, f64)>,
    /// Answers that were degraded.
    pub degraded: u64,
    /// Winners that the world does not know, such as house ads: they make no events.
    pub unknown_winners: u64,
}

/// How to drive.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Address of the server, `http://host:port`.
    pub server: String,
    /// Requests to send.
    pub requests: u64,
    /// Clients that send at the same time.
    pub clients: u64,
    /// First request's number: another drive of the same world continues from there.
    pub first: u64,
}

#[derive(Default)]
struct Tally {
    driven: Driven,
    latencies_ms: Vec<f64>,
    stages_us: std::collections::BTreeMap<String, Vec<f64>>,
    value: f64,
    value_best: f64,
}

/// Sends requests of the day after the world's history, plays each winner's client, and writes
/// its events to partition `clients` of the log.
///
/// # Errors
/// When the server cannot be reached or the log cannot be written. A request that fails is
/// counted and does not end the drive.
pub async fn drive(
    world: Arc<World>,
    plan: &Plan,
    log: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<Driven> {
    let endpoint = Endpoint::from_shared(plan.server.clone()).with_context(|| {
        format!(
            "`{}` is not an address such as http://127.0.0.1:7700",
            plan.server
        )
    })?;
    let endpoint = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE);
    let channel = endpoint.connect().await.with_context(|| {
        format!(
            "connecting to {}: start `marquee serve configs/serving.toml` first",
            plan.server
        )
    })?;
    let mut writer = SegmentWriter::open(log, "clients")?;
    let sent: Arc<Mutex<Vec<Event>>> = Arc::default();
    let tally = Arc::new(Mutex::new(Tally::default()));
    let started = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..plan.clients.max(1) {
        let (world, sent, tally, bar) = (world.clone(), sent.clone(), tally.clone(), bar.clone());
        let numbers =
            (plan.first + client..plan.first + plan.requests).step_by(plan.clients.max(1) as usize);
        let service = AdServiceClient::new(channel.clone());
        clients.spawn(async move {
            for number in numbers {
                one(&world, service.clone(), number, &sent, &tally).await;
                bar.inc(1);
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.context("a client panicked")?;
    }
    // In the order of arrival, as the log of a real door would have them.
    let mut events = std::mem::take(&mut *lock(&sent));
    events.sort_by(|a, b| (a.ingest_time_us, &a.event_id).cmp(&(b.ingest_time_us, &b.event_id)));
    for event in &events {
        writer.append_event(event)?;
    }
    writer.sync()?;
    let tally = std::mem::take(&mut *lock(&tally));
    Ok(finish(tally, started.elapsed().as_secs_f64()))
}

/// The data stay whole when a client panics: counters and a log writer.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The request of a number, the same for every drive of this world.
fn request(world: &World, number: u64) -> (Moment, GetAdsRequest, ChaCha8Rng) {
    let mut random = stream(world.config.seed, &format!("request {number}"));
    let day = world.config.first_day + world.config.days as i64;
    let mut moment = world.moment(day, &mut random);
    // Time rises with the number, so that clients and server tell one story.
    moment.time_us = day * DAY_US + number as i64 * REQUEST_INTERVAL_US;
    let user = &world.users[moment.user];
    let request = GetAdsRequest {
        request_id: format!("d{number:08}"),
        user_id: user.user_id.clone(),
        age_band: user.age_band.into(),
        personalisation_consent: true,
        context: Some(world.context(&moment)),
        placement: Some(Placement {
            width_px: 512,
            height_px: 256,
            slots: 1,
            floor_ecpm_micros: 0,
        }),
        deadline_ms: 0,
        request_time_us: moment.time_us,
    };
    (moment, request, random)
}

async fn one(
    world: &World,
    mut service: AdServiceClient<Channel>,
    number: u64,
    sent: &Mutex<Vec<Event>>,
    tally: &Mutex<Tally>,
) {
    let (moment, request, mut random) = request(world, number);
    let started = Instant::now();
    let answer = service.get_ads(request).await;
    let latency_ms = started.elapsed().as_secs_f64() * 1e3;
    let best = best_auction(world, &moment);
    let mut tally = lock(tally);
    tally.driven.requests += 1;
    tally.driven.revenue_best_micros += best.revenue_micros;
    tally.value_best += best.value_micros;
    let answer = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            tracing::warn!(%status, number, "request failed");
            tally.driven.errors += 1;
            return;
        }
    };
    tally.latencies_ms.push(latency_ms);
    note_stages(&mut tally, &answer);
    tally.driven.filled += u64::from(!answer.winners.is_empty());
    for winner in &answer.winners {
        let Some(creative) = world
            .creatives
            .iter()
            .position(|creative| creative.creative_id == winner.creative_id)
        else {
            tally.driven.unknown_winners += 1;
            continue;
        };
        let p_click = world.click_probability(&moment, creative);
        let bid = world.campaigns[world.creatives[creative].campaign].bid_micros as f64;
        tally.driven.revenue_micros += winner.price_micros as f64 * p_click;
        tally.value += bid * p_click;
        let outcome = play(world, &moment, creative, &winner.impression_id, &mut random);
        tally.driven.views += u64::from(outcome.viewed);
        tally.driven.clicks += u64::from(outcome.clicked);
        tally.driven.conversions += u64::from(outcome.converted);
        lock(sent).extend(outcome.events);
    }
}

fn note_stages(tally: &mut Tally, answer: &GetAdsResponse) {
    if let Some(explain) = &answer.explain {
        tally.driven.degraded += u64::from(explain.degradation != 0);
        for stage in &explain.stages {
            let durations = tally.stages_us.entry(stage.stage.clone()).or_default();
            durations.push(stage.duration_us as f64);
        }
    }
}

struct Best {
    revenue_micros: f64,
    value_micros: f64,
}

/// A second-price auction over every eligible ad with its true probability; each campaign has
/// its best ad in it, as in the server's auction.
fn best_auction(world: &World, moment: &Moment) -> Best {
    let mut by_campaign = vec![0.0f64; world.campaigns.len()];
    for &creative in world.creatives_for(moment.scene) {
        if world.eligible(moment, creative) {
            let campaign = world.creatives[creative].campaign;
            let value = world.click_probability(moment, creative)
                * world.campaigns[campaign].bid_micros as f64;
            by_campaign[campaign] = by_campaign[campaign].max(value);
        }
    }
    by_campaign.sort_by(|a, b| b.total_cmp(a));
    // The winner pays per click what makes its expected cost the runner-up's expected value.
    Best {
        revenue_micros: by_campaign.get(1).copied().unwrap_or(0.0),
        value_micros: by_campaign[0],
    }
}

fn finish(tally: Tally, seconds: f64) -> Driven {
    let Tally {
        mut driven,
        mut latencies_ms,
        stages_us,
        value,
        value_best,
    } = tally;
    latencies_ms.sort_by(f64::total_cmp);
    driven.fill_rate = driven.filled as f64 / driven.requests.max(1) as f64;
    driven.get_ads_p50_ms = percentile(&latencies_ms, 0.5);
    driven.get_ads_p99_ms = percentile(&latencies_ms, 0.99);
    driven.requests_per_second = driven.requests as f64 / seconds.max(1e-9);
    driven.revenue_ratio = driven.revenue_micros / driven.revenue_best_micros.max(1e-9);
    driven.value_ratio = value / value_best.max(1e-9);
    let ends = (0..24).map(|at| 0.25 * 1.4f64.powi(at));
    let mut low = 0.0;
    driven.latency_histogram = ends
        .map(|end| {
            let count = latencies_ms
                .iter()
                .filter(|latency| (low..end).contains(*latency))
                .count();
            low = end;
            (end, count as u64)
        })
        .collect();
    driven.stage_p50_us = stages_us
        .into_iter()
        .map(|(stage, mut durations)| {
            durations.sort_by(f64::total_cmp);
            (stage, percentile(&durations, 0.5))
        })
        .collect();
    driven
}

/// The value below which a share of the sorted values lies (nearest rank).
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}
