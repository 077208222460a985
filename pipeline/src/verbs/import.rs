//! `marquee import`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cli::{CommonArgs, Layout, out};

use crate::import::movielens::{self, MovielensConfig};

const MOVIELENS_CONFIG: &str = "configs/movielens/import.toml";

/// `marquee import`
#[derive(Debug, Subcommand)]
pub enum ImportVerb {
    /// MovieLens-100K as events with its real timestamps
    Movielens(MovielensArgs),
}

/// `marquee import movielens`
#[derive(Debug, Args)]
pub struct MovielensArgs {
    /// Folder with the ml-100k files; overrides the configuration's `from`
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

impl ImportVerb {
    /// Flags that every verb has.
    pub fn common(&self) -> &CommonArgs {
        match self {
            Self::Movielens(args) => &args.common,
        }
    }

    /// Runs the verb.
    ///
    /// # Errors
    /// Whatever stopped it.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Movielens(args) => import_movielens(args),
        }
    }
}

fn import_movielens(args: MovielensArgs) -> anyhow::Result<()> {
    let mut common = args.common;
    let from = args.from.map(|from| format!("from={}", from.display()));
    common.overrides.extend(from);
    let loaded = cli::load_config::<MovielensConfig>(&common, Some(MOVIELENS_CONFIG))?;
    if common.print(&loaded) {
        return Ok(());
    }
    let layout = Layout::new(&common);
    let done = movielens::import(&loaded.config, &layout.log())?;
    if common.json {
        out!("{}", serde_json::to_string(&done)?);
        return Ok(());
    }
    out!(
        "{} ratings of {} people and {} movies: {} events ({} new), {} clicks",
        done.impressions,
        done.users,
        done.movies,
        done.events,
        done.written,
        done.clicks
    );
    Ok(())
}
