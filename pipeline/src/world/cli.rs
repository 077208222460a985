//! `marquee world generate | drive | judge`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ::cli::{CommonArgs, Layout, load_config, out, parse_config, progress, write_json};
use anyhow::Context;
use serde::Deserialize;

use super::{
    config::WorldConfig,
    drive,
    generate::generate,
    judge::{judge, judge_conversions},
    truth::World,
};

/// What to do with the world.
#[derive(Debug, clap::Subcommand)]
#[allow(
    missing_docs,
    reason = "a comment on the shared flags would become each verb's help"
)]
pub enum WorldArgs {
    /// Write a world's history to the event log
    Generate {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Play the world's clients against a running server
    Drive {
        #[command(flatten)]
        common: CommonArgs,
        /// Requests to send
        #[arg(long, default_value_t = 2_000)]
        requests: u64,
        /// Number of the first request
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Clients that send at the same time
        #[arg(long, default_value_t = 1)]
        clients: u64,
        /// Address of the server; by default the one that serves this data folder
        #[arg(long)]
        server: Option<String>,
    },
    /// Compare a model's predictions with the truth
    Judge {
        #[command(flatten)]
        common: CommonArgs,
        /// Predictions to judge; by default those of the last CTR training
        #[arg(long)]
        predictions: Option<PathBuf>,
        /// Judge pCVR instead: `conversions.csv` of a run's folder
        #[arg(long, conflicts_with = "predictions")]
        conversions: Option<PathBuf>,
    },
}

impl WorldArgs {
    /// The flags that all verbs share.
    pub fn common(&self) -> &CommonArgs {
        match self {
            Self::Generate { common } | Self::Drive { common, .. } | Self::Judge { common, .. } => {
                common
            }
        }
    }
}

/// Runs one of the verbs.
///
/// # Errors
/// Whatever keeps it from its end.
pub fn run(args: WorldArgs) -> anyhow::Result<()> {
    match args {
        WorldArgs::Generate { common } => run_generate(&common),
        WorldArgs::Drive {
            common,
            requests,
            first,
            clients,
            server,
        } => run_drive(&common, requests, first, clients, server),
        WorldArgs::Judge {
            common,
            predictions,
            conversions: None,
        } => run_judge(&common, predictions),
        WorldArgs::Judge {
            common,
            conversions: Some(conversions),
            ..
        } => run_judge_conversions(&common, &conversions),
    }
}

fn resolved_path(layout: &Layout) -> PathBuf {
    layout.world().join("config.resolved.toml")
}

fn run_generate(common: &CommonArgs) -> anyhow::Result<()> {
    let loaded = load_config::<WorldConfig>(common, Some("configs/world.toml"))?;
    if common.print(&loaded) {
        return Ok(());
    }
    let layout = Layout::new(common);
    let world = World::build(loaded.config)?;
    let total = world.config.days * world.config.impressions_per_day;
    let bar = progress(total as u64, "world");
    let generated = generate(&world, &layout.log(), &layout.world(), &bar)?;
    bar.finish_and_clear();
    ::cli::write_text(&resolved_path(&layout), &loaded.resolved)?;
    write_json(&layout.reports().join("world.json"), &generated)?;
    if common.json {
        out!("{}", serde_json::to_string(&generated)?);
    } else {
        out!(
            "{} records: {} impressions, {} viewable, {} clicks, {} conversions; {} duplicates, {} late, {} broken",
            generated.records,
            generated.impressions,
            generated.viewable,
            generated.clicks,
            generated.conversions,
            generated.duplicates,
            generated.late,
            generated.broken.values().sum::<u64>(),
        );
        out!(
            "click rate {:.4}, best possible AUC {:.4}",
            generated.click_rate,
            generated.auc_best
        );
    }
    Ok(())
}

/// The world that this data folder was made from.
fn rebuild(layout: &Layout) -> anyhow::Result<World> {
    let path = resolved_path(layout);
    let text = fs::read_to_string(&path).with_context(|| {
        format!(
            "reading {}: run `marquee world generate` first",
            path.display()
        )
    })?;
    let (config, _) = parse_config::<WorldConfig>(&text, &path.display().to_string(), &[])?;
    Ok(World::build(config)?)
}

#[derive(Deserialize)]
struct ServingAddress {
    grpc: String,
}

fn server_address(layout: &Layout) -> anyhow::Result<String> {
    let path = layout.serving_address();
    let text = fs::read_to_string(&path).with_context(|| {
        format!(
            "reading {}: start `marquee serve configs/serving.toml`, or name a --server",
            path.display()
        )
    })?;
    let address: ServingAddress =
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    Ok(format!("http://{}", address.grpc))
}

fn run_drive(
    common: &CommonArgs,
    requests: u64,
    first: u64,
    clients: u64,
    server: Option<String>,
) -> anyhow::Result<()> {
    let layout = Layout::new(common);
    let world = Arc::new(rebuild(&layout)?);
    let server = server.map_or_else(|| server_address(&layout), Ok)?;
    let plan = drive::Plan {
        server,
        requests,
        clients,
        first,
    };
    let bar = progress(requests, "drive");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let driven = runtime.block_on(drive::drive(world, &plan, &layout.log(), &bar))?;
    bar.finish_and_clear();
    write_json(&layout.reports().join("drive.json"), &driven)?;
    if common.json {
        out!("{}", serde_json::to_string(&driven)?);
    } else {
        out!(
            "{} requests, {} errors, fill rate {:.3}; p50 {:.2} ms, p99 {:.2} ms, {:.0} requests/s",
            driven.requests,
            driven.errors,
            driven.fill_rate,
            driven.get_ads_p50_ms,
            driven.get_ads_p99_ms,
            driven.requests_per_second,
        );
        out!(
            "{} views, {} clicks, {} conversions; revenue {:.3} of the best possible, value {:.3}",
            driven.views,
            driven.clicks,
            driven.conversions,
            driven.revenue_ratio,
            driven.value_ratio,
        );
    }
    Ok(())
}

#[derive(Deserialize)]
struct CtrReport {
    predictions: PathBuf,
}

fn run_judge(common: &CommonArgs, predictions: Option<PathBuf>) -> anyhow::Result<()> {
    let layout = Layout::new(common);
    let predictions =
        predictions.map_or_else(|| last_predictions(&layout.reports().join("ctr.json")), Ok)?;
    let judgement = judge(&predictions, &layout.world().join("truth.csv"))?;
    write_json(&layout.reports().join("judge.json"), &judgement)?;
    if common.json {
        out!("{}", serde_json::to_string(&judgement)?);
    } else {
        let worst = judgement.worst_slice().map(|worst| {
            format!(
                ", at worst {:.3} for {}",
                worst.calibration_true, worst.slice
            )
        });
        out!(
            "AUC {:.4}, best possible {:.4}: {:.1} % of the way; predicted over true clicks {:.3}, over those that came {:.3} (truth {:.3}){}; {} rows",
            judgement.auc,
            judgement.auc_best,
            100.0 * judgement.way,
            judgement.calibration_true,
            judgement.calibration_ratio,
            judgement.calibration_best,
            worst.unwrap_or_default(),
            judgement.rows,
        );
    }
    Ok(())
}

fn run_judge_conversions(common: &CommonArgs, conversions: &Path) -> anyhow::Result<()> {
    let truth = Layout::new(common).world().join("truth.csv");
    let judgement = judge_conversions(conversions, &truth)?;
    if common.json {
        out!("{}", serde_json::to_string(&judgement)?);
    } else {
        out!(
            "pCVR: {:.1} % of the way; predicted over true conversions {:.3}, where those that are known are {:.3} of them; {} clicks",
            100.0 * judgement.way,
            judgement.calibration_true,
            judgement.known,
            judgement.clicks,
        );
    }
    Ok(())
}

fn last_predictions(report: &Path) -> anyhow::Result<PathBuf> {
    let text = fs::read_to_string(report).with_context(|| {
        format!(
            "reading {}: run `marquee train configs/ctr.toml` first",
            report.display()
        )
    })?;
    let report: CtrReport =
        serde_json::from_str(&text).with_context(|| format!("reading {}", report.display()))?;
    Ok(report.predictions)
}
