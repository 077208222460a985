//! What came of a sweep.

use std::path::Path;

use comfy_table::{Table, presets};
use serde_json::json;

use super::{SweepConfig, space::Assignment, trials::Outcome};
use crate::plot::Lines;

type Trials = [(Assignment, Outcome)];

/// All trials in their order.
pub fn table(config: &SweepConfig, trials: &Trials) -> Table {
    let mut table = Table::new();
    let mut header = vec![config.metric.clone()];
    let longest = trials
        .iter()
        .map(|(trial, _)| trial)
        .max_by_key(|trial| trial.0.len());
    header.extend(
        longest
            .into_iter()
            .flat_map(|trial| trial.0.iter().map(|(key, _)| key.clone())),
    );
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_header(header);
    for (trial, outcome) in trials {
        let result = match outcome {
            Outcome::Done { value, .. } => format!("{value:.6}"),
            Outcome::Failed { why } => format!("failed: {why}"),
        };
        let values = trial.0.iter().map(|(_, value)| value.to_string());
        table.add_row(std::iter::once(result).chain(values));
    }
    table
}

/// Each trial's metric in the order of trials, and the best until then.
pub fn plot(config: &SweepConfig, trials: &Trials) -> String {
    let mut each = Vec::new();
    let mut best: Vec<(f64, f64)> = Vec::new();
    for (at, (_, outcome)) in trials.iter().enumerate() {
        if let Outcome::Done { value, .. } = outcome {
            let before = best.last().map_or(*value, |(_, value)| *value);
            let better = match config.maximise {
                true => value.max(before),
                false => value.min(before),
            };
            each.push((at as f64 + 1.0, *value));
            best.push((at as f64 + 1.0, better));
        }
    }
    let plot = Lines {
        title: &config.metric,
        x: "trial",
        lines: &[("of the trial", &each), ("best so far", &best)],
    };
    plot.to_svg()
}

/// For programs.
pub fn as_json(
    dir: &Path,
    trials: &Trials,
    best: Option<&(Assignment, Outcome)>,
) -> serde_json::Value {
    let one = |(trial, outcome): &(Assignment, Outcome)| {
        let values = trial
            .0
            .iter()
            .map(|(key, value)| (key.clone(), json!(value)));
        json!({"parameters": serde_json::Map::from_iter(values), "outcome": outcome})
    };
    json!({
        "dir": dir,
        "best": best.map(one),
        "trials": trials.iter().map(one).collect::<Vec<_>>(),
    })
}
