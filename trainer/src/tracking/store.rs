//! The runs of a data folder.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use anyhow::{Context, bail};

use super::{REPORT, RunInfo, run};

/// A run as its folder tells of it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its name: that of its folder.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Its circumstances; none of old runs.
    pub info: Option<RunInfo>,
    /// Its configuration, `a.b.c` to the value as TOML has it.
    pub config: BTreeMap<String, String>,
    /// What its report says in numbers.
    pub results: BTreeMap<String, f64>,
    /// Digest of what it published.
    pub artifact: Option<String>,
    /// When it ended, microseconds since the Unix epoch.
    pub ended_us: Option<i64>,
}

/// How far a run got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// To its report.
    Done,
    /// Not so far: it is running, was stopped or failed.
    Unfinished,
}

impl Status {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unfinished => "unfinished",
        }
    }
}

impl Recorded {
    /// All runs, in the order in which they began.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn all(runs: &Path) -> anyhow::Result<Vec<Self>> {
        if !runs.exists() {
            return Ok(Vec::new());
        }
        let read = || format!("reading {}", runs.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(runs).with_context(read)? {
            let dir = entry.with_context(read)?.path();
            if dir.join(run::CONFIG).exists() {
                found.push(Self::read(&dir)?);
            }
        }
        found.sort_by(|one, other| {
            let key = |run: &Self| {
                (
                    run.info.as_ref().map(|info| info.started_us),
                    run.name.clone(),
                )
            };
            key(one).cmp(&key(other))
        });
        Ok(found)
    }

    /// One run by its name.
    ///
    /// # Errors
    /// When there is none, with those that there are.
    pub fn find(runs: &Path, name: &str) -> anyhow::Result<Self> {
        let dir = runs.join(name);
        if dir.join(run::CONFIG).exists() {
            return Self::read(&dir);
        }
        let known: Vec<String> = Self::all(runs)?.into_iter().map(|run| run.name).collect();
        let known = match &known[..] {
            [] => "there is none: `marquee train CONFIG` makes one".to_owned(),
            known => format!("there are {}", known.join(", ")),
        };
        bail!("no run `{name}` in {}; {known}", runs.display())
    }

    fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(run::CONFIG);
        let reading = || format!("reading {}", path.display());
        let text = fs::read_to_string(&path).with_context(reading)?;
        let config: toml::Table = toml::from_str(&text).with_context(reading)?;
        let report = dir.join(REPORT);
        let (mut results, mut artifact, mut ended_us) = (BTreeMap::new(), None, None);
        if report.exists() {
            let reading = || format!("reading {}", report.display());
            let text = fs::read_to_string(&report).with_context(reading)?;
            let value: serde_json::Value = serde_json::from_str(&text).with_context(reading)?;
            let mut found = Vec::new();
            collect_numbers("", &value, &mut found);
            results.extend(found);
            artifact = value["artifact"].as_str().map(str::to_owned);
            let written = fs::metadata(&report).and_then(|file| file.modified());
            let since = written
                .ok()
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            ended_us = since.and_then(|since| i64::try_from(since.as_micros()).ok());
        }
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let mut flat = BTreeMap::new();
        flatten(&toml::Value::Table(config), "", &mut flat);
        Ok(Self {
            name: name.into_owned(),
            dir: dir.to_owned(),
            info: RunInfo::read(dir)?,
            config: flat,
            results,
            artifact,
            ended_us,
        })
    }

    /// How far it got.
    pub fn status(&self) -> Status {
        match self.dir.join(REPORT).exists() {
            true => Status::Done,
            false => Status::Unfinished,
        }
    }

    /// What is trained.
    pub fn kind(&self) -> &str {
        let of_name = self.name.rsplit_once('-').map_or("", |(kind, _)| kind);
        self.info.as_ref().map_or(of_name, |info| &info.kind)
    }

    /// Points (step, value) of a metric over time, by its tag: `train/loss`, `valid/auc` and the like.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn series(&self) -> anyhow::Result<BTreeMap<String, Vec<(f64, f64)>>> {
        let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for line in run::read_metrics(&self.dir)? {
            let Some(step) = line["step"].as_f64() else {
                continue;
            };
            for (tag, value) in numbers_of(&line) {
                series.entry(tag).or_default().push((step, value));
            }
        }
        Ok(series)
    }
}

/// What says where in a run a line is, and is nothing to draw.
const PLACES: [&str; 7] = [
    "step", "epoch", "batch", "samples", "rows", "queries", "items",
];

/// A line's numbers: of the steps, and of a measure on held-out rows.
fn numbers_of(line: &serde_json::Value) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    for (key, value) in line.as_object().into_iter().flatten() {
        match key.as_str() {
            "valid" => collect_numbers("valid", value, &mut found),
            _ => collect_numbers(&format!("train/{key}"), value, &mut found),
        }
    }
    found.retain(|(name, _)| {
        !PLACES
            .iter()
            .any(|place| name.ends_with(&format!("/{place}")))
    });
    found
}

/// `name/a/b` to the numbers of a tree.
fn collect_numbers(name: &str, value: &serde_json::Value, found: &mut Vec<(String, f64)>) {
    match (value, value.as_f64()) {
        (_, Some(value)) => found.push((name.to_owned(), value)),
        (serde_json::Value::Object(values), _) => {
            for (key, value) in values {
                let name = match name {
                    "" => key.clone(),
                    name => format!("{name}/{key}"),
                };
                collect_numbers(&name, value, found);
            }
        }
        _ => {}
    }
}

/// `a.b.c` to the values of a tree.
pub(super) fn flatten(value: &toml::Value, name: &str, out: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let name = match name {
                    "" => key.clone(),
                    name => format!("{name}.{key}"),
                };
                flatten(value, &name, out);
            }
        }
        value => {
            out.insert(name.to_owned(), value.to_string());
        }
    }
}
