//! `marquee import`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cli::{CommonArgs, Layout, out};

use crate::import::{
    movielens::{self, MovielensConfig},
    rows::{self, Format, RowsConfig},
};

const MOVIELENS_CONFIG: &str = "configs/movielens/import.toml";

/// `marquee import`
#[derive(Debug, Subcommand)]
pub enum ImportVerb {
    /// MovieLens-100K as events with its real timestamps
    Movielens(MovielensArgs),
    /// Rows of CSV as a training table; the configuration is a schema file
    Csv(RowsArgs),
    /// Rows of libfm or libffm as a training table; the configuration is a schema file
    Libfm(RowsArgs),
}

/// `marquee import csv` and `marquee import libfm`
#[derive(Debug, Args)]
pub struct RowsArgs {
    #[command(flatten)]
    common: CommonArgs,
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
            Self::Csv(args) | Self::Libfm(args) => &args.common,
        }
    }

    /// Runs the verb.
    ///
    /// # Errors
    /// Whatever stopped it.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Movielens(args) => import_movielens(args),
            Self::Csv(args) => import_rows(&args.common, Format::Csv),
            Self::Libfm(args) => import_rows(&args.common, Format::Libfm),
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

fn import_rows(common: &CommonArgs, format: Format) -> anyhow::Result<()> {
    let mut loaded = cli::load_config::<RowsConfig>(common, None)?;
    if common.print(&loaded) {
        return Ok(());
    }
    if let Some(schema) = &loaded.source {
        loaded.config.beside(schema);
    }
    let config = &loaded.config;
    let table = Layout::new(common).table(&config.table);
    let bar = match common.json {
        true => indicatif::ProgressBar::hidden(),
        false => cli::progress(0, "rows"),
    };
    // Those for training are read twice; how many there are is only known then.
    bar.unset_length();
    let done = rows::import(config, format, &table, &|rows| bar.inc(rows))?;
    bar.finish_and_clear();
    if common.json {
        out!("{}", serde_json::to_string(&done)?);
        return Ok(());
    }
    let [train, valid, test] = done.rows;
    let clicks = done.clicks;
    out!(
        "{}: {train} training, {valid} validation and {test} test rows, {clicks} clicks",
        table.display()
    );
    for (feature, ids) in &done.ids {
        out!("  {feature}: {ids} ids");
    }
    Ok(())
}
