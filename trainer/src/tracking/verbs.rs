//! `marquee runs list | show | compare`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use chrono::DateTime;
use clap::Subcommand;
use cli::{Layout, out};
use comfy_table::{Table, presets};
use serde_json::json;
use textplots::{Chart, LabelBuilder, LabelFormat, Plot, Shape};

use super::{Recorded, page};

/// `marquee runs`
#[derive(Debug, Subcommand)]
pub enum RunsVerb {
    /// All runs of the data folder
    List {
        /// Only those of a kind: ctr, prescorer, visual
        #[arg(long)]
        kind: Option<String>,
        /// Where they are, and how they are shown.
        #[command(flatten)]
        place: Place,
    },
    /// One run: its circumstances, results and metrics over time
    Show {
        /// Its name, as `marquee runs list` has it
        name: String,
        /// Where they are, and how they are shown.
        #[command(flatten)]
        place: Place,
    },
    /// Several runs beside each other: what differs in configuration and results
    Compare {
        /// Their names
        #[arg(required = true, num_args = 2..)]
        names: Vec<String>,
        /// Writes a page there as well
        #[arg(long, value_name = "PATH")]
        html: Option<PathBuf>,
        /// Where they are, and how they are shown.
        #[command(flatten)]
        place: Place,
    },
}

/// Where runs are, and how they are shown.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// Data folder
    #[arg(long, value_name = "DIR", env = "MARQUEE_ROOT", default_value = "data")]
    root: PathBuf,
    /// Print results as JSON
    #[arg(long)]
    json: bool,
}

impl RunsVerb {
    fn place(&self) -> &Place {
        match self {
            Self::List { place, .. } | Self::Show { place, .. } | Self::Compare { place, .. } => {
                place
            }
        }
    }
}

/// Results in the columns of the list, where a run has them.
const LISTED: [&str; 3] = ["auc", "log_loss", "calibration_ratio"];

/// Metrics that are drawn, the first that runs have.
const DRAWN: [&str; 3] = ["train/loss", "valid/log_loss", "valid/loss"];

/// Runs one of the verbs.
///
/// # Errors
/// Whatever keeps it from its end.
pub fn run_runs(verb: &RunsVerb) -> anyhow::Result<()> {
    let place = verb.place();
    let (runs, as_json) = (Layout::at(&place.root).runs(), place.json);
    match verb {
        RunsVerb::List { kind, .. } => {
            let mut all = Recorded::all(&runs)?;
            all.retain(|run| kind.as_ref().is_none_or(|kind| run.kind() == kind));
            match as_json {
                true => out!("{}", serde_json::Value::from_iter(all.iter().map(as_value))),
                false => out!("{}", list(&all)),
            }
        }
        RunsVerb::Show { name, .. } => {
            let run = Recorded::find(&runs, name)?;
            match as_json {
                true => out!("{}", as_value(&run)),
                false => out!("{}", show(&run)?),
            }
        }
        RunsVerb::Compare { names, html, .. } => {
            let found = names.iter().map(|name| Recorded::find(&runs, name));
            let found = found.collect::<anyhow::Result<Vec<_>>>()?;
            match as_json {
                true => out!(
                    "{}",
                    serde_json::Value::from_iter(found.iter().map(as_value))
                ),
                false => out!("{}", compare(&found)?),
            }
            if let Some(path) = html {
                let page = page::page(&found)?;
                std::fs::write(path, page)
                    .with_context(|| format!("writing {}", path.display()))?;
            }
        }
    }
    Ok(())
}

fn as_value(run: &Recorded) -> serde_json::Value {
    json!({
        "name": run.name,
        "dir": run.dir,
        "kind": run.kind(),
        "status": run.status().name(),
        "info": run.info,
        "config": run.config,
        "results": run.results,
        "artifact": run.artifact,
    })
}

fn table(header: impl IntoIterator<Item = String>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_header(header);
    table
}

fn list(runs: &[Recorded]) -> String {
    if runs.is_empty() {
        return "no runs: `marquee train CONFIG` makes one".to_owned();
    }
    let columns = ["run", "kind", "status", "started", "took"];
    let columns = columns.iter().chain(&LISTED).chain(&["artifact"]);
    let mut table = table(columns.map(|name| (*name).to_owned()));
    for run in runs {
        let mut row = vec![
            run.name.clone(),
            run.kind().to_owned(),
            run.status().name().to_owned(),
            started(run),
            took(run),
        ];
        row.extend(LISTED.iter().map(|key| number(run.results.get(*key))));
        row.push(
            run.artifact
                .as_deref()
                .unwrap_or("")
                .chars()
                .take(12)
                .collect(),
        );
        table.add_row(row);
    }
    table.to_string()
}

/// The time as UTC, to the second.
pub(super) fn started(run: &Recorded) -> String {
    let Some(info) = &run.info else {
        return String::new();
    };
    let time = DateTime::from_timestamp_micros(info.started_us);
    time.map_or(String::new(), |time| {
        time.format("%Y-%m-%d %H:%M:%S").to_string()
    })
}

pub(super) fn took(run: &Recorded) -> String {
    let span = run.info.as_ref().zip(run.ended_us);
    let micros = span.map(|(info, ended_us)| (ended_us - info.started_us).max(0).unsigned_abs());
    let seconds = micros.map(|micros| Duration::from_micros(micros).as_secs_f64());
    seconds.map_or(String::new(), |seconds| format!("{seconds:.1} s"))
}

pub(super) fn number(value: Option<&f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value.fract() == 0.0 && value.abs() < 1e15 => format!("{value:.0}"),
        Some(value) => format!("{value:.5}"),
    }
}

/// What is the same for any run: a line each.
pub(super) fn facts(run: &Recorded) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("kind", run.kind().to_owned()),
        ("status", run.status().name().to_owned()),
        ("started", started(run)),
        ("took", took(run)),
    ];
    if let Some(info) = &run.info {
        facts.extend([
            (
                "table",
                format!("{} version {}", info.table, info.table_version),
            ),
            ("features", info.spec.chars().take(12).collect()),
            ("seed", info.seed.to_string()),
            ("device", format!("{} × {}", info.device, info.world_size)),
            ("overrides", info.overrides.join(" ")),
            ("code", info.code_revision.clone().unwrap_or_default()),
        ]);
    }
    facts.push(("artifact", run.artifact.clone().unwrap_or_default()));
    facts
}

fn show(run: &Recorded) -> anyhow::Result<String> {
    let mut text = format!("{}\n", run.dir.display());
    for (name, value) in facts(run) {
        text += &format!("  {name:10} {value}\n");
    }
    for (name, value) in &run.results {
        text += &format!("  {name:24} {}\n", number(Some(value)));
    }
    text += &plots(&[run])?;
    Ok(text)
}

fn compare(runs: &[Recorded]) -> anyhow::Result<String> {
    let mut text = String::new();
    for (what, rows) in [
        ("configuration", config_rows(runs)),
        ("results", result_rows(runs)),
    ] {
        let names = runs.iter().map(|run| run.name.clone());
        let mut table = table(std::iter::once(what.to_owned()).chain(names));
        for (name, values) in rows {
            table.add_row(std::iter::once(name).chain(values));
        }
        text += &format!("{table}\n\n");
    }
    let all: Vec<&Recorded> = runs.iter().collect();
    text += &plots(&all)?;
    Ok(text)
}

/// Keys whose values differ, and circumstances that do.
pub(super) fn config_rows(runs: &[Recorded]) -> Vec<(String, Vec<String>)> {
    let of_facts = ["table", "features", "seed", "device", "code"];
    let facts: Vec<BTreeMap<_, _>> = runs
        .iter()
        .map(|run| facts(run).into_iter().collect())
        .collect();
    let row = |name: &str| {
        let value = |facts: &BTreeMap<&str, String>| facts.get(name).cloned().unwrap_or_default();
        (name.to_owned(), facts.iter().map(value).collect())
    };
    let mut rows: Vec<(String, Vec<String>)> = of_facts.iter().map(|name| row(name)).collect();
    let keys: BTreeSet<&String> = runs.iter().flat_map(|run| run.config.keys()).collect();
    rows.extend(keys.into_iter().map(|key| {
        let value = |run: &Recorded| run.config.get(key).cloned().unwrap_or_default();
        (key.clone(), runs.iter().map(value).collect())
    }));
    rows.retain(|(_, values)| values.iter().any(|value| *value != values[0]));
    rows
}

pub(super) fn result_rows(runs: &[Recorded]) -> Vec<(String, Vec<String>)> {
    let keys: BTreeSet<&String> = runs.iter().flat_map(|run| run.results.keys()).collect();
    let row = |key: &String| {
        let value = |run: &Recorded| number(run.results.get(key));
        (key.clone(), runs.iter().map(value).collect())
    };
    keys.into_iter().map(row).collect()
}

/// The metrics that all of them have, each run's curve in a chart of its own with the same axes.
fn plots(runs: &[&Recorded]) -> anyhow::Result<String> {
    let series = runs.iter().map(|run| run.series());
    let series = series.collect::<anyhow::Result<Vec<_>>>()?;
    let drawn = DRAWN.iter().find(|tag| {
        let enough = |series: &BTreeMap<String, Vec<(f64, f64)>>| {
            series.get(**tag).is_some_and(|points| points.len() > 1)
        };
        series.iter().all(enough)
    });
    let Some(tag) = drawn else {
        return Ok(String::new());
    };
    let points: Vec<&Vec<(f64, f64)>> = series.iter().map(|series| &series[*tag]).collect();
    let all = || points.iter().copied().flatten();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let values = || all().map(of).filter(|value| value.is_finite());
        let least = values().fold(f64::INFINITY, f64::min);
        let greatest = values().fold(f64::NEG_INFINITY, f64::max);
        (least as f32, greatest as f32)
    };
    let ((x_min, x_max), (y_min, y_max)) = (range(|point| point.0), range(|point| point.1));
    if !(x_max > x_min && y_max > y_min) {
        return Ok(String::new());
    }
    let mut text = String::new();
    for (run, points) in runs.iter().zip(points) {
        let points: Vec<(f32, f32)> = points.iter().map(|(x, y)| (*x as f32, *y as f32)).collect();
        let line = Shape::Lines(&points);
        let mut chart = Chart::new_with_y_range(120, 40, x_min, x_max, y_min, y_max);
        let chart = chart
            .x_label_format(LabelFormat::Custom(Box::new(|value| format!("{value:.0}"))))
            .y_label_format(LabelFormat::Custom(Box::new(|value| format!("{value:.4}"))))
            .lineplot(&line);
        chart.axis();
        chart.figures();
        text += &format!("{tag} of {} by step\n{chart}\n", run.name);
    }
    Ok(text)
}
