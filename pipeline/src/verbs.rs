//! The verbs of `marquee events`, `marquee features` and `marquee import`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context;
use clap::{Args, Subcommand, error::ErrorKind};
use cli::{CommonArgs, GateRefused, Layout, Usage, out};
use features::{
    FeatureSet, FeatureSpec,
    diff::{self, Change, Difference},
};

use crate::{
    asof::{AsOfJoin, Side},
    feature_verbs,
    import::movielens::{self, MovielensConfig},
    process::{self, AtEnd, EventsReport, PipelineConfig, ProcessError, Progress, fault, show},
    sql::{self, Engine},
};

const PIPELINE_CONFIG: &str = "configs/pipeline.toml";
const MOVIELENS_CONFIG: &str = "configs/movielens/import.toml";
const FEATURES: &str = "configs/features.toml";

/// `marquee events`
#[derive(Debug, Subcommand)]
pub enum EventsVerb {
    /// Turn new events into rows of the training table, aggregates and a catalogue
    Process(ProcessArgs),
    /// Print events of the log
    Show(ShowArgs),
}

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
    /// Publish the processed state: online store, feature spec and catalogue
    Materialize(CommonArgs),
}

/// `marquee import`
#[derive(Debug, Subcommand)]
pub enum ImportVerb {
    /// MovieLens-100K as events with its real timestamps
    Movielens(MovielensArgs),
}

/// `marquee events process`
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// Close all click windows at the end of the log: nothing more will come
    #[arg(long)]
    flush: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// `marquee events show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// One partition; all of them by default
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
    /// First offset
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    from: u64,
    /// At most this many of each partition
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    common: CommonArgs,
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

/// `marquee import movielens`
#[derive(Debug, Args)]
pub struct MovielensArgs {
    /// Folder with the ml-100k files; overrides the configuration's `from`
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

impl EventsVerb {
    /// Flags that every verb has.
    pub fn common(&self) -> &CommonArgs {
        match self {
            Self::Process(args) => &args.common,
            Self::Show(args) => &args.common,
        }
    }

    /// Runs the verb.
    ///
    /// # Errors
    /// Whatever stopped it.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Process(args) => process(&args),
            Self::Show(args) => show(args),
        }
    }
}

impl FeaturesVerb {
    /// Flags that every verb has.
    pub fn common(&self) -> &CommonArgs {
        match self {
            Self::Lint(common) | Self::Materialize(common) => common,
            Self::Show(args) => &args.common,
            Self::Diff(args) => &args.common,
            Self::Sql(args) => &args.common,
            Self::Compute(args) => &args.common,
            Self::Join(args) => &args.common,
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
            Self::Materialize(common) => materialize(&common),
        }
    }
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

fn process(args: &ProcessArgs) -> anyhow::Result<()> {
    let common = &args.common;
    let loaded = cli::load_config::<PipelineConfig>(common, Some(PIPELINE_CONFIG))?;
    if common.print(&loaded) {
        return Ok(());
    }
    let layout = Layout::new(common);
    let log = layout.log();
    let progress = if common.json {
        Progress::hidden()
    } else {
        Progress::over(&log, cli::progress(0, "events"))
    };
    let fault = fault_of_environment()?;
    let at_end = if args.flush {
        AtEnd::Flush
    } else {
        AtEnd::Wait
    };
    let report = process::run(&loaded.config, &layout, at_end, &fault, &progress);
    let report = report.map_err(as_usage)?;
    let path = layout.reports().join("events.json");
    cli::write_json(&path, &report).with_context(|| format!("writing {}", path.display()))?;
    print_report(common, &report)
}

/// Tests of crash safety say in the environment where to stop.
fn fault_of_environment() -> anyhow::Result<fault::Fault> {
    match std::env::var(fault::VARIABLE) {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(fault::Fault::default()),
    }
}

/// A setting that makes no sense ends the program as a wrong flag does.
fn as_usage(error: ProcessError) -> anyhow::Error {
    match error {
        ProcessError::Setting(setting) => {
            let usage = clap::Error::raw(ErrorKind::ValueValidation, setting);
            anyhow::Error::from(usage).context("in the pipeline's configuration")
        }
        other => other.into(),
    }
}

fn print_report(common: &CommonArgs, report: &EventsReport) -> anyhow::Result<()> {
    if common.json {
        out!("{}", serde_json::to_string(report)?);
    } else {
        out!("{}", report.table());
        out!("{}", report.line());
    }
    Ok(())
}

fn show(args: ShowArgs) -> anyhow::Result<()> {
    let layout = Layout::new(&args.common);
    let selection = show::Selection {
        partition: args.partition,
        from: args.from,
        limit: args.limit,
    };
    let records = show::select(&layout.log(), &selection)?;
    if args.common.json {
        for record in records {
            out!("{record}");
        }
    } else {
        out!("{}", show::table(&records));
    }
    Ok(())
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
    let script = sql::script(&FeatureSet::compile(spec), args.engine);
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
        events: &args.events,
        requests: &args.requests,
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

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn materialize(common: &CommonArgs) -> anyhow::Result<()> {
    let loaded = cli::load_config::<PipelineConfig>(common, Some(PIPELINE_CONFIG))?;
    if common.print(&loaded) {
        return Ok(());
    }
    let done = feature_verbs::materialize(&loaded.config, &Layout::new(common))?;
    if common.json {
        out!("{}", serde_json::to_string(&done)?);
        return Ok(());
    }
    out!("features   {}", done.features);
    out!("catalogue  {}", done.catalogue);
    out!(
        "batch {} as of {}: online store of generation {} with {} entities; catalogue of {} campaigns, {} creatives, {} scenes",
        done.batch,
        show::time_text(done.as_of_us),
        done.online_generation,
        done.entities,
        done.campaigns,
        done.creatives,
        done.scenes,
    );
    Ok(())
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
