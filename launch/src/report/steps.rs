//! What the steps left in `reports/`.
//!
//! Each struct names the keys that the report shows; a step may write more.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// `world.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct World {
    /// Records in the log.
    pub records: u64,
    /// Impressions served.
    pub impressions: u64,
    /// Clicks.
    pub clicks: u64,
    /// Records written a second time.
    pub duplicates: u64,
    /// Records that arrive hours late.
    pub late: u64,
    /// Broken records by what is wrong with them.
    pub broken: BTreeMap<String, u64>,
    /// AUC to expect of the true probabilities over all viewed impressions.
    pub auc_best: f64,
    /// Mean true probability of a click.
    pub click_rate: f64,
}

/// `events.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Events {
    /// Records read.
    pub events_in: u64,
    /// Records refused.
    pub events_dead: u64,
    /// Refused records by reason.
    pub dead_by_reason: BTreeMap<String, u64>,
    /// Events seen before.
    pub duplicates: u64,
    /// Events behind the watermark.
    pub late: u64,
    /// Impressions served.
    pub impressions_served: u64,
    /// Impressions viewed.
    pub impressions_viewed: u64,
    /// Clicks attributed.
    pub clicks: u64,
    /// Conversions attributed.
    pub conversions: u64,
    /// Rows in the training table.
    pub rows_written: u64,
    /// Impressions whose features came with the event.
    pub snapshots_used: u64,
    /// Personal feature values withheld.
    pub features_withheld: u64,
    /// Time spent, seconds.
    pub seconds: f64,
}

/// One bin of the reliability diagram.
#[derive(Debug, Clone, Deserialize)]
pub struct ReliabilityBin {
    /// Predictions in the bin.
    pub count: u64,
    /// Their mean.
    pub mean_predicted: f64,
    /// Share that was clicked.
    pub mean_observed: f64,
}

/// One point of the training curve.
#[derive(Debug, Clone, Deserialize)]
pub struct CurvePoint {
    /// Optimiser steps so far.
    pub step: u64,
    /// Mean training loss since the last point, nats.
    pub loss: f64,
}

/// `ctr.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Ctr {
    /// Test rows.
    pub rows: u64,
    /// AUC on them.
    pub auc: Option<f64>,
    /// Log loss on them, nats.
    pub log_loss: f64,
    /// Expected calibration error.
    pub ece: f64,
    /// The reliability diagram.
    pub reliability: Vec<ReliabilityBin>,
    /// Log loss on the valid rows.
    pub valid_log_loss: Option<f64>,
    /// Training speed.
    pub samples_per_second: f64,
    /// Rows trained on.
    pub train_rows: u64,
    /// Version of the training table.
    pub table_version: u64,
    /// The training curve.
    pub curve: Vec<CurvePoint>,
}

/// `prescorer.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Prescorer {
    /// AUC on the test rows.
    pub auc: Option<f64>,
    /// Trees.
    pub trees: u64,
}

/// `visual.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Visual {
    /// Pairs trained on.
    pub pairs: u64,
    /// Recall of the clicked creative among the ten nearest.
    pub recall_at_10: f64,
    /// The same of a random order.
    pub recall_at_10_random: f64,
    /// The same of the nearest average colours.
    pub recall_at_10_pixel_average: f64,
}

/// `embed.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Embed {
    /// Creatives with a vector.
    pub creatives: u64,
    /// Scenes with a vector.
    pub scenes: u64,
    /// Speed.
    pub pictures_per_second: f64,
}

/// `index.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Index {
    /// Share of the 100 nearest that is found.
    pub recall_at_100: f64,
    /// Median search, one thread.
    pub p50_ms: f64,
    /// 99th percentile of the same.
    pub p99_ms: f64,
    /// Vectors.
    pub count: u64,
    /// Size of the file.
    pub bytes: u64,
}

/// `judge.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Judge {
    /// Rows judged.
    pub rows: u64,
    /// AUC of the model.
    pub auc: f64,
    /// AUC of the true probabilities on the same labels.
    pub auc_best: f64,
    /// How far the model has come from chance to the best possible.
    pub way: f64,
    /// Sum of predictions over clicks.
    pub calibration_ratio: f64,
    /// The same of the true probabilities.
    pub calibration_best: f64,
    /// Sum of predictions over sum of true probabilities.
    pub calibration_true: f64,
    /// Parts of the rows.
    pub slices: Vec<JudgedSlice>,
    /// Log loss of the model, nats.
    pub log_loss: f64,
    /// Log loss of the true probabilities.
    pub log_loss_best: f64,
}

/// A part of the rows of `judge.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct JudgedSlice {
    /// What they have in common.
    pub slice: String,
    /// Sum of predictions over sum of true probabilities.
    pub calibration_true: f64,
}

/// `drive.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Drive {
    /// Requests sent.
    pub requests: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Share answered with an ad.
    pub fill_rate: f64,
    /// Median answer at the client.
    pub get_ads_p50_ms: f64,
    /// 99th percentile of the same.
    pub get_ads_p99_ms: f64,
    /// Rate over all clients.
    pub requests_per_second: f64,
    /// Expected revenue, millionths.
    pub revenue_micros: f64,
    /// The same of an auction that knows the truth.
    pub revenue_best_micros: f64,
    /// The one over the other.
    pub revenue_ratio: f64,
    /// Expected value of the winners over that of the best ones.
    pub value_ratio: f64,
    /// Views.
    pub views: u64,
    /// Clicks.
    pub clicks: u64,
    /// Conversions.
    pub conversions: u64,
    /// Upper end of each latency bucket, ms, and the answers in it.
    pub latency_histogram: Vec<(f64, u64)>,
    /// Median of each stage, µs.
    pub stage_p50_us: Vec<(String, f64)>,
    /// Answers that were degraded.
    pub degraded: u64,
    /// Winners that the world does not know.
    pub unknown_winners: u64,
}

/// One step of the quickstart.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Timing {
    /// Name of the step.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

/// `quickstart.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Quickstart {
    /// The loop, compile time left out.
    pub seconds: f64,
    /// Setup and compile time before it.
    pub compile_seconds: f64,
    /// Cores of the machine.
    pub cores: u64,
    /// When it began, microseconds since the Unix epoch.
    pub started_us: i64,
    /// Configuration of the world.
    pub world: String,
    /// Revision of the code.
    pub revision: String,
    /// Its steps.
    pub steps: Vec<Timing>,
}

/// The figures of all steps.
#[derive(Debug, Clone, Default)]
pub struct Steps {
    /// The synthetic world.
    pub world: Option<World>,
    /// The pipeline.
    pub events: Option<Events>,
    /// The click model.
    pub ctr: Option<Ctr>,
    /// The pre-scorer.
    pub prescorer: Option<Prescorer>,
    /// The visual tower.
    pub visual: Option<Visual>,
    /// The vectors.
    pub embed: Option<Embed>,
    /// The index.
    pub index: Option<Index>,
    /// The click model against the truth.
    pub judge: Option<Judge>,
    /// The clients against the server.
    pub drive: Option<Drive>,
    /// The run as a whole.
    pub quickstart: Option<Quickstart>,
    /// Files that are not there or cannot be read, with the command that writes them.
    pub missing: Vec<String>,
}

impl Steps {
    /// Reads what is there; what is not is noted in `missing`.
    pub fn read(folder: &Path) -> Self {
        let mut missing = Vec::new();
        let mut steps = Self {
            world: read(folder, "world", "marquee world generate", &mut missing),
            events: read(folder, "events", "marquee events process", &mut missing),
            ctr: read(
                folder,
                "ctr",
                "marquee train configs/ctr.toml",
                &mut missing,
            ),
            prescorer: read(
                folder,
                "prescorer",
                "marquee train configs/prescorer.toml",
                &mut missing,
            ),
            visual: read(
                folder,
                "visual",
                "marquee train configs/visual.toml",
                &mut missing,
            ),
            embed: read(folder, "embed", "marquee embed", &mut missing),
            index: read(folder, "index", "marquee index build", &mut missing),
            drive: read(folder, "drive", "marquee world drive", &mut missing),
            judge: read(folder, "judge", "marquee world judge", &mut missing),
            quickstart: read(folder, "quickstart", "launch/quickstart", &mut missing),
            missing: Vec::new(),
        };
        steps.missing = missing;
        steps
    }

    /// Whether no step has left anything that can be read.
    pub fn is_empty(&self) -> bool {
        self.missing.len() == 10
    }
}

fn read<T: DeserializeOwned>(
    folder: &Path,
    name: &str,
    command: &str,
    missing: &mut Vec<String>,
) -> Option<T> {
    let file = format!("{name}.json");
    let text = match fs::read_to_string(folder.join(&file)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            missing.push(format!("{file} is not there; `{command}` writes it"));
            return None;
        }
        Err(error) => {
            missing.push(format!("{file} cannot be read: {error}"));
            return None;
        }
    };
    match serde_json::from_str(&text) {
        Ok(step) => Some(step),
        Err(error) => {
            missing.push(format!(
                "{file} is damaged ({error}); `{command}` writes it anew"
            ));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_damaged_files_are_told_with_their_command_and_the_rest_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write(
            "index.json",
            r#"{"recall_at_100": 0.99, "count": 7, "further": "keys"}"#,
        );
        write("judge.json", r#"{"auc": "#);
        let steps = Steps::read(folder.path());
        assert_eq!(steps.index.as_ref().unwrap().count, 7);
        assert!(steps.judge.is_none());
        assert_eq!(steps.missing.len(), 9);
        let told = |part: &str| steps.missing.iter().any(|line| line.contains(part));
        assert!(told(
            "drive.json is not there; `marquee world drive` writes it"
        ));
        assert!(told("judge.json is damaged"));
        assert!(!steps.is_empty());
    }

    #[test]
    fn an_empty_folder_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Steps::read(folder.path()).is_empty());
    }
}
