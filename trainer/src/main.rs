//! `marquee-trainer`: training and evaluation of every model.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use cli::{CommonArgs, load_config};
use serde::{Deserialize, Serialize};
use trainer::{
    ctr::{self, CtrConfig, EvalArgs},
    gate::{GateArgs, GateConfig, run_gate},
    job::TrainArgs,
    prescorer::{self, PreScorerConfig},
    sweep::run_sweep,
    tracking::{RunsVerb, run_runs},
    visual::{self, VisualTrainConfig},
};

#[derive(Parser)]
#[command(
    name = "marquee-trainer",
    version,
    about = "Trains and measures models"
)]
enum Verb {
    /// Train the model that a configuration describes
    Train {
        #[command(flatten)]
        common: CommonArgs,
        #[command(flatten)]
        args: TrainArgs,
        /// Try other values of some keys, as this file has them, instead of one configuration
        #[arg(long, value_name = "SWEEP", conflicts_with_all = ["config", "config_positional", "device", "resume"])]
        sweep: Option<PathBuf>,
    },
    /// Measure a registered click model
    Eval(EvalArgs),
    /// Refuse a click model that is worse than what serves, or wrong for some
    Gate(GateArgs),
    /// Runs of the data folder: list, show, compare
    #[command(subcommand)]
    Runs(RunsVerb),
}

/// The one key that says which trainer a file is for.
#[derive(Serialize, Deserialize)]
struct KindOnly {
    kind: String,
    #[serde(flatten)]
    _rest: toml::Table,
}

fn main() -> ExitCode {
    cli::main(run)
}

fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match Verb::parse() {
        Verb::Train {
            common,
            sweep: Some(path),
            ..
        } => {
            cli::init_logging(common.verbose);
            runtime.block_on(run_sweep(&common, &path))
        }
        Verb::Train { common, args, .. } => {
            cli::init_logging(common.verbose);
            let kind = load_config::<KindOnly>(&common, None)?.config.kind;
            match kind.as_str() {
                "ctr" => {
                    let loaded = load_config::<CtrConfig>(&common, None)?;
                    if common.print(&loaded) {
                        return Ok(());
                    }
                    runtime.block_on(ctr::run_train(&common, loaded, &args))
                }
                "prescorer" => {
                    args.check_for_trees()?;
                    let loaded = load_config::<PreScorerConfig>(&common, None)?;
                    if common.print(&loaded) {
                        return Ok(());
                    }
                    runtime.block_on(prescorer::run_train(&common, loaded))
                }
                "visual" => {
                    let loaded = load_config::<VisualTrainConfig>(&common, None)?;
                    if common.print(&loaded) {
                        return Ok(());
                    }
                    runtime.block_on(visual::run_train(&common, loaded, &args))
                }
                other => anyhow::bail!("kind `{other}` is none of ctr, prescorer, visual"),
            }
        }
        Verb::Runs(verb) => {
            cli::init_logging(0);
            run_runs(&verb)
        }
        Verb::Gate(args) => {
            cli::init_logging(args.common.verbose);
            let loaded = load_config::<GateConfig>(&args.common, Some("configs/gate.toml"))?;
            if args.common.print(&loaded) {
                return Ok(());
            }
            runtime.block_on(run_gate(&args, &loaded.config))
        }
        Verb::Eval(args) => {
            cli::init_logging(args.common.verbose);
            let loaded = load_config::<CtrConfig>(&args.common, Some("configs/ctr.toml"))?;
            if args.common.print(&loaded) {
                return Ok(());
            }
            runtime.block_on(ctr::run_eval(&args, &loaded.config))
        }
    }
}
