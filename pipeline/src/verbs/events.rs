//! `marquee events`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use cli::{CommonArgs, GateRefused, Layout, out};

use super::{PIPELINE_CONFIG, as_usage, bar, schema::SchemaVerb};
use crate::{
    feature_verbs,
    process::{
        self, AtEnd, EventsReport, PipelineConfig, Progress,
        archive::{self, Archive},
        audit, fault, show,
    },
    quality::{Finding, QualityRules},
};

/// `marquee events`
#[derive(Debug, Subcommand)]
pub enum EventsVerb {
    /// Turn new events into rows of the training table, aggregates and a catalogue
    Process(ProcessArgs),
    /// Print events of the log
    Show(ShowArgs),
    /// Check the training table against its quality rules; a version that fails (exit code 3) is not
    /// trained on, the last good one is
    Check(CommonArgs),
    /// Write the events of an archive into an empty log, in the order in which they came
    Restore(RestoreArgs),
    /// The event schema's versions, and what may change
    #[command(subcommand)]
    Schema(SchemaVerb),
    /// Prove what was done with events of children and others of whom nothing may be kept
    Audit(CommonArgs),
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

/// `marquee events restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Folder of the archive, as archive/impressions of another data folder
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    #[command(flatten)]
    common: CommonArgs,
}

impl EventsVerb {
    /// Flags that every verb has.
    pub fn common(&self) -> &CommonArgs {
        match self {
            Self::Process(args) => &args.common,
            Self::Show(args) => &args.common,
            Self::Restore(args) => &args.common,
            Self::Schema(verb) => verb.common(),
            Self::Check(common) | Self::Audit(common) => common,
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
            Self::Restore(args) => restore(&args),
            Self::Schema(verb) => verb.run(),
            Self::Check(common) => check(&common),
            Self::Audit(common) => audit(&common),
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
    let loaded = cli::load_config::<PipelineConfig>(&args.common, Some(PIPELINE_CONFIG))?;
    if args.common.print(&loaded) {
        return Ok(());
    }
    let layout = Layout::new(&args.common);
    let log = loaded.config.log.open(&layout.log())?;
    let selection = show::Selection {
        partition: args.partition,
        from: args.from,
        limit: args.limit,
    };
    let records = show::select(&*log, &selection)?;
    if args.common.json {
        for record in records {
            out!("{record}");
        }
    } else {
        out!("{}", show::table(&records));
    }
    Ok(())
}

fn check(common: &CommonArgs) -> anyhow::Result<()> {
    let loaded = cli::load_config::<PipelineConfig>(common, Some(PIPELINE_CONFIG))?;
    if common.print(&loaded) {
        return Ok(());
    }
    let layout = Layout::new(common);
    let table = layout.table(&loaded.config.table);
    let rules = QualityRules::load(&loaded.config.quality)?;
    let report = rules.check(&table, registry::now_us())?;
    let path = layout.reports().join("quality.json");
    cli::write_json(&path, &report).with_context(|| format!("writing {}", path.display()))?;
    if common.json {
        out!("{}", serde_json::to_string(&report)?);
    } else {
        out!("{}", feature_verbs::quality_table(&report));
    }
    let broken: Vec<String> = report.broken().map(Finding::told).collect();
    if broken.is_empty() {
        return Ok(());
    }
    let instead = match report.good {
        Some(good) => format!("version {good} stays the one to train on"),
        None => "no version has passed, and none is trained on".to_owned(),
    };
    let reason = format!(
        "version {} of {}: {}; {instead}",
        report.version,
        table.display(),
        broken.join("; ")
    );
    Err(GateRefused { reason }.into())
}

fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let common = &args.common;
    let loaded = cli::load_config::<PipelineConfig>(common, Some(PIPELINE_CONFIG))?;
    if common.print(&loaded) {
        return Ok(());
    }
    let layout = Layout::new(common);
    let log = loaded.config.log.open(&layout.log())?;
    let bar = bar(common, 0, "events");
    let events = archive::restore(&Archive::at(&args.from), &*log, |events| {
        bar.set_length(events);
        bar.set_position(events);
    })?;
    bar.finish_and_clear();
    if common.json {
        out!("{}", serde_json::json!({ "events": events }));
    } else {
        out!("{events} events restored from {}", args.from.display());
    }
    Ok(())
}

fn audit(common: &CommonArgs) -> anyhow::Result<()> {
    let loaded = cli::load_config::<PipelineConfig>(common, Some(PIPELINE_CONFIG))?;
    if common.print(&loaded) {
        return Ok(());
    }
    let (layout, table) = (Layout::new(common), &loaded.config.table);
    let committed = feature_verbs::committed_batch(&layout.table(table))?;
    let verified = audit::verify(&layout.audit(table), committed)?;
    if common.json {
        out!("{}", serde_json::to_string(&verified)?);
    } else {
        out!("{verified}");
    }
    Ok(())
}
