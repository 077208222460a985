//! `marquee features`.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::Instant,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use cli::{CommonArgs, GateRefused, Layout, Usage, out};
use features::{
    FeatureSet, FeatureSpec,
    diff::{self, Change, Difference},
};
use registry::Registry;

use super::{PIPELINE_CONFIG, as_usage, bar};
use crate::{
    asof::{AsOfJoin, Side},
    backfill::{Backfill, DayDone, Values, migrate::Migration},
    calendar::parse_day,
    catalogue_page,
    facts::FactFiles,
    feature_verbs,
    process::{PipelineConfig, ProcessError, show},
    skew::{self, Skew},
    sql::{self, Engine, Knowledge, Source},
};

const FEATURES: &str = "configs/features.toml";

/// `marquee features`
#[derive(Debug, Subcommand)]
pub enum FeaturesVerb {
    /// Check a feature spec
    Lint(CommonArgs),
    /// Print the features of a spec, or all of one
    #[command(visible_alias = "list")]
    Show(ShowFeaturesArgs),
    /// Say what changed between two specs, and what needs a new version (exit code 3)
    Diff(DiffArgs),
    /// Print a spec as SQL of an engine; with --json as engines' runners take it
    Sql(SqlArgs),
    /// Compute all features of tables of events and requests (docs/features.md), as of each request
    Compute(ComputeArgs),
    /// Join rows with the newest values that were known at their times
    Join(JoinArgs),
    /// Compute features for days past, and give them to a table of the new spec (docs/features.md)
    Backfill(BackfillArgs),
    /// Compare what servers logged with what is computed again, and today with other days; above a limit
    /// of the spec it ends with exit code 3. Writes reports/skew.html, .json and .prom
    Skew(SkewArgs),
    /// Write reports/features.html: every feature, what it is made of, and which models take it
    Catalogue(CommonArgs),
    /// Publish the processed state: online store, feature spec and catalogue
    Materialize(CommonArgs),
}

/// `marquee features show`
#[derive(Debug, Args)]
pub struct ShowFeaturesArgs {
    /// All that the spec says of one feature
    #[arg(long, value_name = "NAME")]
    feature: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

/// `marquee features diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The spec before
    #[arg(long, value_name = "SPEC")]
    from: PathBuf,
    #[command(flatten)]
    common: CommonArgs,
}

/// `marquee features sql`
#[derive(Debug, Args)]
pub struct SqlArgs {
    /// The engine
    #[arg(long, value_enum)]
    engine: Engine,
    /// For Flink, where the two tables are: filesystem:FOLDER, or kafka:HOST:PORT,…/PREFIX
    #[arg(long, value_name = "SOURCE", value_parser = Source::from_str)]
    source: Option<Source>,
    #[command(flatten)]
    common: CommonArgs,
}

/// `marquee features compute`
#[derive(Debug, Args)]
pub struct ComputeArgs {
    /// fact_events as Parquet: a file, or a folder of them
    #[arg(long, value_name = "PATH")]
    events: PathBuf,
    /// fact_requests likewise
    #[arg(long, value_name = "PATH")]
    requests: PathBuf,
    /// Where the features go: a Parquet file
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// What joins and groups may take; what is more goes to the disk
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory_mib: usize,
    #[command(flatten)]
    common: CommonArgs,
}

/// `marquee features join`
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The rows, as Parquet: a file, or a folder of them
    #[arg(long, value_name = "PATH")]
    rows: PathBuf,
    /// The values likewise
    #[arg(long, value_name = "PATH")]
    values: PathBuf,
    /// Columns of the key, joined by commas: texts or integers
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', required = true)]
    by: Vec<String>,
    /// Column of a row's time, microseconds
    #[arg(long, value_name = "COLUMN", default_value = "event_time_us")]
    time: String,
    /// Column of the time from which a value holds
    #[arg(long, value_name = "COLUMN")]
    value_time: String,
    /// Column of the time at which a value was learnt of; when it began to hold if there is none
    #[arg(long, value_name = "COLUMN")]
    known: Option<String>,
    /// Where the joined rows go: a new folder
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// What may lie in memory; what is more goes to the disk
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory_mib: usize,
    #[command(flatten)]
    common: CommonArgs,
}

/// `marquee features backfill`
#[derive(Debug, Args)]
pub struct BackfillArgs {
    /// A feature of the configured spec; may be given more than once
    #[arg(
        long = "feature",
        value_name = "NAME",
        required_unless_present = "into"
    )]
    features: Vec<String>,
    /// The first day, YYYY-MM-DD; that of the first impression by default
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<i32>,
    /// The last day; that of the last impression by default
    #[arg(long, value_name = "DAY", value_parser = day)]
    to: Option<i32>,
    /// Make this table of the configured spec: all its days, and the state to go on from
    #[arg(long, value_name = "TABLE", conflicts_with_all = ["features", "from", "to"])]
    into: Option<String>,
    /// What queries may take; what is more goes to the disk
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory_mib: usize,
    #[command(flatten)]
    common: CommonArgs,
}

/// `marquee features skew`
#[derive(Debug, Args)]
pub struct SkewArgs {
    /// The first day of what was served, YYYY-MM-DD; all by default
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<i32>,
    /// The last day
    #[arg(long, value_name = "DAY", value_parser = day)]
    to: Option<i32>,
    /// Compare distributions with those of all impressions from this day on, not of the same rows
    #[arg(long, value_name = "DAY", value_parser = day)]
    baseline_from: Option<i32>,
    /// The last day to compare with
    #[arg(long, value_name = "DAY", value_parser = day)]
    baseline_to: Option<i32>,
    /// What queries may take; what is more goes to the disk
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory_mib: usize,
    #[command(flatten)]
    common: CommonArgs,
}

fn day(text: &str) -> Result<i32, String> {
    parse_day(text).ok_or_else(|| "wanted a day such as 2026-11-26".to_owned())
}

impl FeaturesVerb {
    /// Flags that every verb has.
    pub fn common(&self) -> &CommonArgs {
        match self {
            Self::Lint(common) | Self::Catalogue(common) | Self::Materialize(common) => common,
            Self::Show(args) => &args.common,
            Self::Diff(args) => &args.common,
            Self::Sql(args) => &args.common,
            Self::Compute(args) => &args.common,
            Self::Join(args) => &args.common,
            Self::Backfill(args) => &args.common,
            Self::Skew(args) => &args.common,
        }
    }

    /// Runs the verb.
    ///
    /// # Errors
    /// Whatever stopped it.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Lint(common) => lint(&common),
            Self::Show(args) => show_features(&args),
            Self::Diff(args) => diff_features(&args),
            Self::Sql(args) => print_sql(&args),
            Self::Compute(args) => compute(&args),
            Self::Join(args) => join(&args),
            Self::Backfill(args) => backfill(&args),
            Self::Skew(args) => compare_sides(&args),
            Self::Catalogue(common) => catalogue(&common),
            Self::Materialize(common) => materialize(&common),
        }
    }
}

fn spec(common: &CommonArgs) -> anyhow::Result<(PathBuf, FeatureSpec)> {
    let path = common
        .config_path()
        .map_or(PathBuf::from(FEATURES), PathBuf::from);
    let spec = FeatureSpec::load(&path)?;
    Ok((path, spec))
}

fn lint(common: &CommonArgs) -> anyhow::Result<()> {
    let (path, spec) = spec(common)?;
    let (features, digest) = (spec.features.len(), spec.digest());
    if common.json {
        let result = serde_json::json!({ "features": features, "digest": digest });
        out!("{result}");
    } else {
        out!("{}: {features} features, digest {digest}", path.display());
    }
    Ok(())
}

fn show_features(args: &ShowFeaturesArgs) -> anyhow::Result<()> {
    let (path, spec) = spec(&args.common)?;
    let Some(name) = &args.feature else {
        if args.common.json {
            out!("{}", serde_json::to_string(&spec.features)?);
        } else {
            out!("{}", feature_verbs::table(&spec));
        }
        return Ok(());
    };
    let found = spec.features.iter().find(|feature| feature.name == *name);
    let missing = || Usage(format!("{} has no feature `{name}`", path.display()));
    let feature = found.ok_or_else(missing)?;
    if args.common.json {
        out!("{}", serde_json::to_string(feature)?);
    } else {
        out!("{}", toml::to_string(feature)?.trim_end());
    }
    Ok(())
}

fn diff_features(args: &DiffArgs) -> anyhow::Result<()> {
    let (path, new) = spec(&args.common)?;
    let old = FeatureSpec::load(&args.from)?;
    let differences = diff::diff(&old, &new);
    if args.common.json {
        out!("{}", serde_json::to_string(&differences)?);
    } else {
        for Difference { feature, change } in &differences {
            out!("{feature}: {change}");
        }
        if differences.is_empty() {
            out!("no feature changed");
        }
    }
    let refused = |found: &&Difference| matches!(found.change, Change::NeedsNewVersion { .. });
    match differences.iter().filter(refused).count() {
        0 => Ok(()),
        count => {
            let path = path.display();
            let reason =
                format!("{path}: {count} features mean something else under an old version");
            Err(GateRefused { reason }.into())
        }
    }
}

fn print_sql(args: &SqlArgs) -> anyhow::Result<()> {
    let (_, spec) = spec(&args.common)?;
    let set = FeatureSet::compile(spec);
    let script = sql::script(&set, args.engine, Knowledge::AtRequest);
    let script = match &args.source {
        Some(source) if args.engine == Engine::Flink => script.over(source),
        Some(_) => {
            let told = "--source is for --engine flink: others are given tables that they know";
            return Err(Usage(told.to_owned()).into());
        }
        None => script,
    };
    if args.common.json {
        out!("{}", serde_json::to_string(&script)?);
    } else {
        out!("{script}");
    }
    Ok(())
}

fn compute(args: &ComputeArgs) -> anyhow::Result<()> {
    let (_, spec) = spec(&args.common)?;
    let set = FeatureSet::compile(spec);
    let scratch = tempfile::tempdir_in(args.to.parent().unwrap_or(Path::new(".")))
        .with_context(|| format!("making a folder beside {}", args.to.display()))?;
    let batch = sql::Batch {
        events: std::slice::from_ref(&args.events),
        requests: std::slice::from_ref(&args.requests),
        knowledge: Knowledge::AtRequest,
        scratch: scratch.path(),
        memory_bytes: args.memory_mib << 20,
        threads: threads(),
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let rows = runtime.block_on(batch.write(&set, &args.to))?;
    if args.common.json {
        out!(
            "{}",
            serde_json::json!({ "rows": rows, "features": set.spec().features.len() })
        );
    } else {
        let features = set.spec().features.len();
        out!("{}: {rows} rows of {features} features", args.to.display());
    }
    Ok(())
}

fn join(args: &JoinArgs) -> anyhow::Result<()> {
    if args.to.exists() {
        let to = args.to.display();
        return Err(Usage(format!("--to {to} exists: name a new folder")).into());
    }
    let beside = args.to.parent().unwrap_or(Path::new("."));
    let scratch = tempfile::tempdir_in(beside)
        .with_context(|| format!("making a folder beside {}", args.to.display()))?;
    let join = AsOfJoin {
        rows: Side {
            path: &args.rows,
            time: &args.time,
        },
        values: Side {
            path: &args.values,
            time: &args.value_time,
        },
        known: args.known.as_deref(),
        by: &args.by,
        memory_bytes: args.memory_mib << 20,
        threads: threads(),
        scratch: scratch.path(),
    };
    let started = Instant::now();
    // Under its name it is whole.
    let made = scratch.path().join("joined");
    let report = join.run(&made)?;
    fs::rename(&made, &args.to).with_context(|| format!("renaming to {}", args.to.display()))?;
    let seconds = started.elapsed().as_secs_f64();
    if args.common.json {
        let mut json = serde_json::to_value(report)?;
        json["seconds"] = seconds.into();
        out!("{json}");
    } else {
        out!(
            "{}: {} rows, {} with a value, in {seconds:.2} s; {} MiB went to the disk on the way",
            args.to.display(),
            report.rows,
            report.matched,
            report.spilled_bytes >> 20
        );
    }
    Ok(())
}

fn backfill(args: &BackfillArgs) -> anyhow::Result<()> {
    let common = &args.common;
    let loaded = cli::load_config::<PipelineConfig>(common, Some(PIPELINE_CONFIG))?;
    if common.print(&loaded) {
        return Ok(());
    }
    let (layout, config) = (Layout::new(common), &loaded.config);
    match &args.into {
        Some(to) => migrate(args, &layout, config, to),
        None => backfill_days(args, &layout, config),
    }
}

fn backfill_days(
    args: &BackfillArgs,
    layout: &Layout,
    config: &PipelineConfig,
) -> anyhow::Result<()> {
    let spec = FeatureSpec::load(&config.features)?;
    let table = &config.table;
    let committed = feature_verbs::committed_batch(&layout.table(table))?;
    let scratch = layout.features(table);
    let backfill = Backfill {
        facts: &FactFiles::at(&layout.facts(table)),
        committed,
        values: &Values::at(&scratch),
        spec: &spec,
        features: &args.features,
        days: args.from.unwrap_or(i32::MIN)..=args.to.unwrap_or(i32::MAX),
        knowledge: Knowledge::AtRequest,
        scratch: &scratch,
        memory_bytes: args.memory_mib << 20,
        threads: threads(),
    };
    let days = backfill.days()?;
    if days.is_empty() {
        let table = layout.facts(table);
        let problem = format!(
            "{} has no impressions of these days: `marquee events process` keeps them",
            table.display()
        );
        return Err(Usage(problem).into());
    }
    let bar = bar(&args.common, days.len(), "days");
    let mut done = Vec::new();
    for day in days {
        done.push(backfill.day(day)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.common.json {
        out!("{}", serde_json::to_string(&done)?);
        return Ok(());
    }
    for DayDone {
        day,
        rows,
        computed,
        kept,
    } in &done
    {
        let of = |what: &str, names: &[String]| match names {
            [] => String::new(),
            names => format!("; {what} {}", names.join(", ")),
        };
        out!(
            "{day}: {rows} impressions{}{}",
            of("computed", computed),
            of("kept", kept)
        );
    }
    Ok(())
}

fn migrate(
    args: &BackfillArgs,
    layout: &Layout,
    config: &PipelineConfig,
    to: &str,
) -> anyhow::Result<()> {
    let renamed = PipelineConfig {
        table: to.to_owned(),
        ..config.clone()
    };
    renamed
        .check()
        .map_err(ProcessError::from)
        .map_err(as_usage)?;
    let migration = Migration {
        layout,
        config,
        to,
        memory_bytes: args.memory_mib << 20,
        threads: threads(),
    };
    let bar = bar(&args.common, 0, "days");
    let done = migration.run(|days, _| {
        bar.set_length(days as u64);
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    if args.common.json {
        out!("{}", serde_json::to_string(&done)?);
        return Ok(());
    }
    out!(
        "{}: {} rows and {} pending impressions; {} features copied, {} backfilled ({}), {} removed",
        layout.table(to).display(),
        done.rows,
        done.pending,
        done.copied.len(),
        done.backfilled.len(),
        done.backfilled.join(", "),
        done.removed.len()
    );
    Ok(())
}

fn compare_sides(args: &SkewArgs) -> anyhow::Result<()> {
    let common = &args.common;
    let loaded = cli::load_config::<PipelineConfig>(common, Some(PIPELINE_CONFIG))?;
    if common.print(&loaded) {
        return Ok(());
    }
    let layout = Layout::new(common);
    let range =
        |from: Option<i32>, to: Option<i32>| from.unwrap_or(i32::MIN)..=to.unwrap_or(i32::MAX);
    let drift = args.baseline_from.is_some() || args.baseline_to.is_some();
    let skew = Skew {
        layout: &layout,
        config: &loaded.config,
        days: range(args.from, args.to),
        baseline: drift.then(|| range(args.baseline_from, args.baseline_to)),
        memory_bytes: args.memory_mib << 20,
        threads: threads(),
    };
    let bar = bar(common, 0, "days");
    let report = skew.run(|days, _| {
        bar.set_length(days as u64);
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    let page = layout.reports().join("skew.html");
    let failed = || format!("writing {}", page.display());
    cli::write_text(&page, &skew::render(&report)).with_context(failed)?;
    cli::write_json(&page.with_extension("json"), &report).with_context(failed)?;
    cli::write_text(&page.with_extension("prom"), &report.gauges()).with_context(failed)?;
    if common.json {
        out!("{}", serde_json::to_string(&report)?);
    } else {
        out!("{}", feature_verbs::skew_table(&report));
        out!("{}", page.display());
    }
    let names: Vec<&str> = report.exceeded().map(|it| it.feature.as_str()).collect();
    match names.is_empty() {
        true => Ok(()),
        false => {
            let reason = format!("above the limits of the spec: {}", names.join(", "));
            Err(GateRefused { reason }.into())
        }
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn catalogue(common: &CommonArgs) -> anyhow::Result<()> {
    let (_, spec) = spec(common)?;
    let layout = Layout::new(common);
    let registry = Registry::open(&layout.registry())?;
    let models = catalogue_page::models(&registry, &spec)?;
    let path = layout.reports().join("features.html");
    cli::write_text(&path, &catalogue_page::render(&spec, &models))
        .with_context(|| format!("writing {}", path.display()))?;
    let (features, models) = (spec.features.len(), models.len());
    if common.json {
        let path = path.display().to_string();
        let result = serde_json::json!({ "page": path, "features": features, "models": models });
        out!("{result}");
    } else {
        out!("{}: {features} features, {models} models", path.display());
    }
    Ok(())
}

fn materialize(common: &CommonArgs) -> anyhow::Result<()> {
    let loaded = cli::load_config::<PipelineConfig>(common, Some(PIPELINE_CONFIG))?;
    if common.print(&loaded) {
        return Ok(());
    }
    let layout = Layout::new(common);
    let done = feature_verbs::materialize(&loaded.config, &layout)?;
    let path = layout.reports().join("materialize.json");
    cli::write_json(&path, &done).with_context(|| format!("writing {}", path.display()))?;
    if common.json {
        out!("{}", serde_json::to_string(&done)?);
        return Ok(());
    }
    out!("features   {}", done.features);
    out!("catalogue  {}", done.catalogue);
    out!(
        "batch {} as of {}, {:.0} s ago: online store of generation {} with {} entities, {} of them written; catalogue of {} campaigns, {} creatives, {} scenes",
        done.batch,
        show::time_text(done.as_of_us),
        done.lag_seconds,
        done.online_generation,
        done.entities,
        done.entities_written,
        done.campaigns,
        done.creatives,
        done.scenes,
    );
    Ok(())
}
