//! Times online lookups: 60 windowed features for one person and 500 ads, from the online store to a
//! block of values.
//!
//! Each of the entities has seen something in every hour of the last week. On Redis the store is
//! published twice, the second time with every entity changed, so that each key holds two versions, as
//! in a store that is kept up to date. Timed are the lookup of everything (person and ads), and that of
//! a server, which keeps what depends on ads alone. The last line on stdout is one JSON object.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::ensure;
use clap::Parser;
use features::{
    AdFacts, Aggregates, Counted, EntityKey, EntityState, Fact, FeatureBatch, FeatureSet,
    FeatureSpec, HourSums, Known, RequestFacts, SourceEvent, StateSource, WindowSums,
    facts::request_facts,
    online::{Online, OnlineConfig, OnlineStore, RedisConfig},
};
use marquee_benches::print;
use rand::{Rng, SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use wire::{
    events::{self, AgeBand},
    gate::Subject,
};

const HOUR_US: i64 = 3_600_000_000;
const NOW_US: i64 = 500_000 * HOUR_US;
const HOURS: i64 = 168;
const SOURCES: [SourceEvent; 4] = SourceEvent::ALL;

#[derive(Parser)]
#[command(about = "Times online lookups of 60 features for one person and 500 ads")]
struct Args {
    /// Folder of the store, made anew
    #[arg(long)]
    dir: PathBuf,
    /// Nodes of a Redis Cluster as URLs; without, the embedded store
    #[arg(long, value_delimiter = ',')]
    redis: Vec<String>,
    /// People in the store
    #[arg(long, default_value_t = 2_000)]
    users: usize,
    /// Ads in the store
    #[arg(long, default_value_t = 5_000)]
    ads: usize,
    /// Ads of one lookup
    #[arg(long, default_value_t = 500)]
    candidates: usize,
    /// Lookups that are timed
    #[arg(long, default_value_t = 2_000)]
    lookups: usize,
    /// Seed of the lookups
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// 20 features of the person and 40 of the ad: counts, sums and rates over four windows.
fn spec() -> String {
    let mut text = String::new();
    let mut add = |name: String, entity: &str, rest: String| {
        let (key, child_safe) = match entity {
            "user" => ("user_id", false),
            _ => ("creative_id", true),
        };
        text += &format!(
            "[[feature]]\nname = \"{name}\"\nkind = \"dense\"\nentity = \"{entity}\"\nkey = [\"{key}\"]\n\
             freshness = \"nearline\"\nchild_safe = {child_safe}\nowner = \"bench\"\nversion = 1\n{rest}\n\n"
        );
    };
    for window in ["1h", "6h", "24h", "7d"] {
        for entity in ["user", "ad"] {
            for source in SOURCES.map(SourceEvent::name) {
                let of = format!("source = \"{source}\"\nwindow = \"{window}\"");
                let count = format!("aggregation = \"count\"\n{of}");
                add(format!("{entity}_{source}_{window}"), entity, count);
                if entity == "ad" {
                    let sum = format!("aggregation = \"sum\"\n{of}");
                    add(format!("ad_{source}_value_{window}"), entity, sum);
                }
            }
            let rate = |source| {
                format!(
                    "aggregation = \"rate\"\nsource = \"{source}\"\nover = \"impression\"\nprior = [1.0, 20.0]\nwindow = \"{window}\""
                )
            };
            add(
                format!("{entity}_click_rate_{window}"),
                entity,
                rate("click"),
            );
            if entity == "ad" {
                add(
                    format!("ad_conversion_rate_{window}"),
                    entity,
                    rate("conversion"),
                );
            }
        }
    }
    text
}

struct World {
    set: FeatureSet,
    users: Vec<RequestFacts>,
    ads: Vec<AdFacts>,
}

impl World {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let set = FeatureSet::compile(FeatureSpec::parse(&spec(), "bench")?);
        ensure!(
            set.schema().dense.len() == 60,
            "the spec has not 60 features"
        );
        let text = |name: &str, value: String| (name.to_owned(), Fact::Text(value));
        let user = |user: usize| {
            let age_band = AgeBand::AgeBand13plus;
            let subject = Subject::admit(format!("u{user}"), age_band, true);
            let nowhere = events::Context::default();
            set.bind_request(&request_facts(&subject, age_band, &nowhere, None, NOW_US))
        };
        let ad = |ad: usize| set.bind_ad(&[text("creative_id", format!("k{ad}"))].into());
        Ok(Self {
            users: (0..args.users).map(user).collect(),
            ads: (0..args.ads).map(ad).collect(),
            set,
        })
    }

    /// Something in every hour of the week for everybody, and `more` in the last one.
    fn history(&self, more: usize) -> Aggregates {
        let mut aggregates = Aggregates::default();
        for at in 0..self.users.len().max(self.ads.len()) {
            let user = &self.users[at % self.users.len()];
            let ad = &self.ads[at % self.ads.len()];
            for hour in 0..HOURS {
                for event in 0..2 + (hour == HOURS - 1) as usize * more {
                    // Mostly impressions, and now and then something that comes of one.
                    let source = match (event, (at as i64 + hour) % 7) {
                        (1, 0) => SourceEvent::Click,
                        (1, 1) => SourceEvent::Conversion,
                        (1, 2) => SourceEvent::Activity,
                        _ => SourceEvent::Impression,
                    };
                    let value = if source == SourceEvent::Impression {
                        0.0
                    } else {
                        1.5
                    };
                    let time_us = NOW_US - (HOURS - hour) * HOUR_US + at as i64;
                    let event = Counted::at_once(source, value, time_us);
                    aggregates.apply(&self.set, user, Some(ad), event);
                }
            }
        }
        aggregates
    }
}

/// What is kept of ads, as a server does: states, and the sums of the hour.
#[derive(Default)]
struct Kept {
    states: Known,
    sums: HourSums,
}

/// What a lookup knows: what is kept, and what it read.
struct States<'a>(&'a Kept, Known);

impl StateSource for States<'_> {
    fn state(&self, key: EntityKey) -> Option<&EntityState> {
        self.0.states.state(key).or_else(|| self.1.state(key))
    }

    fn windows(&self, key: EntityKey, now_us: i64) -> Option<&[WindowSums]> {
        self.0.sums.windows(key, now_us)
    }
}

fn read(store: &OnlineStore, keys: &[EntityKey], known: &mut Known) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(10);
    Ok(store.read(keys, until, known)?)
}

struct Times {
    p50_ms: f64,
    p99_ms: f64,
}

fn times(mut ms: Vec<f64>) -> Times {
    ms.sort_by(f64::total_cmp);
    let at = |share: f64| ms[((ms.len() - 1) as f64 * share) as usize];
    Times {
        p50_ms: at(0.5),
        p99_ms: at(0.99),
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.dir.exists() {
        std::fs::remove_dir_all(&args.dir)?;
    }
    let config = match args.redis.as_slice() {
        [] => OnlineConfig::Embedded,
        nodes => OnlineConfig::Redis(RedisConfig {
            nodes: nodes.to_vec(),
            read_timeout_ms: 10_000,
            ..RedisConfig::default()
        }),
    };
    let world = World::new(&args)?;
    let online = Online::new(&config, &args.dir)?;
    let started = Instant::now();
    online.publish(&world.set, &world.history(0), NOW_US - 1)?;
    let history = world.history(1);
    let publishing = Instant::now();
    let published = online.publish(&world.set, &history, NOW_US)?;
    let publish_seconds = publishing.elapsed().as_secs_f64();
    ensure!(published.written == published.entities, "not all changed");
    eprintln!("published in {:.1} s", started.elapsed().as_secs_f64());
    let store = online.open(world.set.digest())?;

    let nobody = world.set.bind_request(&Default::default());
    let (mut of_ads, nothing) = (Kept::default(), Kept::default());
    let all: Vec<&AdFacts> = world.ads.iter().collect();
    for ads in all.chunks(1_024) {
        read(&store, &world.set.keys(&nobody, ads), &mut of_ads.states)?;
    }
    of_ads.sums = world.set.window_sums(&of_ads.states, NOW_US);
    let mut random = ChaCha8Rng::seed_from_u64(args.seed);
    let (mut whole_ms, mut cached_ms, mut bytes) = (Vec::new(), Vec::new(), 0);
    for lookup in 0..args.lookups {
        let user = &world.users[random.random_range(0..world.users.len())];
        let ads = sample(&mut random, world.ads.len(), args.candidates);
        let ads: Vec<&AdFacts> = ads.iter().map(|at| &world.ads[at]).collect();
        let run = |kept: &Kept| -> anyhow::Result<(f64, FeatureBatch, Known)> {
            let started = Instant::now();
            let mut keys = world.set.keys(user, &ads);
            keys.retain(|key| !kept.states.contains_key(key));
            let mut states = States(kept, Known::with_capacity(keys.len()));
            read(&store, &keys, &mut states.1)?;
            let mut values = FeatureBatch::new(world.set.schema());
            world.set.evaluate(user, &ads, &states, NOW_US, &mut values);
            Ok((started.elapsed().as_secs_f64() * 1e3, values, states.1))
        };
        let (ms, values, known) = run(&nothing)?;
        whole_ms.push(ms);
        let (ms, cached_values, _) = run(&of_ads)?;
        cached_ms.push(ms);
        if lookup < 20 {
            let mut expected = FeatureBatch::new(world.set.schema());
            world
                .set
                .evaluate(user, &ads, &history, NOW_US, &mut expected);
            ensure!(
                values == expected && cached_values == expected,
                "the values differ"
            );
            bytes += known
                .values()
                .flatten()
                .map(|it| it.to_bytes().len())
                .sum::<usize>();
            ensure!(known.len() == args.candidates + 1, "not all was read");
        }
    }
    let per_entity = bytes / (20.min(args.lookups) * (args.candidates + 1)).max(1);
    let (whole, cached) = (times(whole_ms), times(cached_ms));
    print(&json!({
        "engine": if args.redis.is_empty() { "embedded" } else { "redis" },
        "p50_ms": whole.p50_ms,
        "p99_ms": whole.p99_ms,
        "cached_p50_ms": cached.p50_ms,
        "cached_p99_ms": cached.p99_ms,
        "bytes_per_entity": per_entity,
        "entities": published.entities,
        "publish_seconds": publish_seconds,
        "features": 60,
        "candidates": args.candidates,
        "n": args.lookups,
    }))
}
