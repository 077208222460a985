//! What the steps wrote.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Map, Value, json};

/// Steps that write a file, in data-flow order.
pub const STEPS: [&str; 10] = [
    "world",
    "events",
    "ctr",
    "prescorer",
    "visual",
    "embed",
    "index",
    "drive",
    "judge",
    "quickstart",
];

/// The figures of each step that has run.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    steps: BTreeMap<&'static str, Value>,
    /// Steps without figures, and why.
    pub missing: Vec<(&'static str, String)>,
}

impl Figures {
    /// Reads `<step>.json` of every step.
    pub fn read(folder: &Path) -> Self {
        let mut figures = Self::default();
        for step in STEPS {
            let path = folder.join(format!("{step}.json"));
            let read = fs::read(&path).map_err(|error| error.to_string());
            match read
                .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()))
            {
                Ok(value) => {
                    figures.steps.insert(step, value);
                }
                Err(error) => figures
                    .missing
                    .push((step, format!("{}: {error}", path.display()))),
            }
        }
        figures
    }

    /// A value of a step, by path such as `broken.no_payload`.
    pub fn get(&self, step: &str, path: &str) -> Option<&Value> {
        path.split('.')
            .try_fold(self.steps.get(step)?, |value, key| value.get(key))
    }

    /// A number of a step.
    pub fn number(&self, step: &str, path: &str) -> Option<f64> {
        self.get(step, path)?.as_f64()
    }

    /// The numbers of a step's list of objects or pairs: `x` and `y` are keys, or indices.
    pub fn points(&self, step: &str, list: &str, x: &str, y: &str) -> Vec<(f64, f64)> {
        let number = |item: &Value, key: &str| match key.parse::<usize>() {
            Ok(index) => item.get(index)?.as_f64(),
            Err(_) => item.get(key)?.as_f64(),
        };
        let items = self
            .get(step, list)
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        items
            .iter()
            .filter_map(|item| Some((number(item, x)?, number(item, y)?)))
            .collect()
    }

    /// Broken records that the world is known to have written.
    pub fn broken(&self) -> Option<f64> {
        let broken = self.get("world", "broken")?.as_object()?;
        Some(broken.values().filter_map(Value::as_f64).sum())
    }

    /// `report.json`: the headline figures, then all steps.
    pub fn summary(&self) -> Value {
        let headlines = [
            ("auc", "judge", "auc"),
            ("auc_best", "judge", "auc_best"),
            ("calibration_ratio", "judge", "calibration_ratio"),
            ("recall_at_100", "index", "recall_at_100"),
            ("get_ads_p50_ms", "drive", "get_ads_p50_ms"),
            ("get_ads_p99_ms", "drive", "get_ads_p99_ms"),
            ("fill_rate", "drive", "fill_rate"),
            ("revenue_ratio", "drive", "revenue_ratio"),
            ("events_in", "events", "events_in"),
            ("events_dead", "events", "events_dead"),
            ("seconds", "quickstart", "seconds"),
        ];
        let mut summary = Map::new();
        for (name, step, path) in headlines {
            summary.insert(
                name.to_owned(),
                self.get(step, path).cloned().unwrap_or(Value::Null),
            );
        }
        summary.insert("way".to_owned(), json!(self.number("judge", "way")));
        summary.insert(
            "value_ratio".to_owned(),
            json!(self.number("drive", "value_ratio")),
        );
        summary.insert(
            "missing_steps".to_owned(),
            json!(
                self.missing
                    .iter()
                    .map(|(step, _)| step)
                    .collect::<Vec<_>>()
            ),
        );
        Value::Object(summary)
    }

    /// The short table for the terminal.
    pub fn table(&self) -> String {
        let shown = |step: &str, path: &str, digits: usize| match self.number(step, path) {
            Some(number) => format!("{number:.digits$}"),
            None => "not measured".to_owned(),
        };
        let way = self.number("judge", "way").map_or(String::new(), |way| {
            format!(" ({:.1} % of the way)", 100.0 * way)
        });
        let rows = [
            (
                "AUC",
                format!(
                    "{} of the best possible {}{way}",
                    shown("judge", "auc", 4),
                    shown("judge", "auc_best", 4)
                ),
            ),
            ("calibration ratio", shown("judge", "calibration_ratio", 3)),
            ("recall@100", shown("index", "recall_at_100", 4)),
            (
                "GetAds p50 / p99",
                format!(
                    "{} / {} ms",
                    shown("drive", "get_ads_p50_ms", 2),
                    shown("drive", "get_ads_p99_ms", 2)
                ),
            ),
            ("fill rate", shown("drive", "fill_rate", 3)),
            (
                "revenue",
                format!(
                    "{} of the best possible (value {})",
                    shown("drive", "revenue_ratio", 3),
                    shown("drive", "value_ratio", 3)
                ),
            ),
            (
                "events",
                format!(
                    "{} in, {} dead",
                    shown("events", "events_in", 0),
                    shown("events", "events_dead", 0)
                ),
            ),
        ];
        let lines = rows
            .iter()
            .map(|(name, value)| format!("  {name:<20}{value}"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_did_not_run_are_named_and_null() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("judge.json"),
            r#"{"auc": 0.75, "auc_best": 0.8, "way": 0.8}"#,
        )
        .unwrap();
        fs::write(folder.path().join("drive.json"), "{ broken").unwrap();
        let figures = Figures::read(folder.path());
        let summary = figures.summary();
        assert_eq!(summary["auc"], 0.75);
        assert_eq!(summary["fill_rate"], Value::Null);
        assert!(
            figures
                .missing
                .iter()
                .any(|(step, why)| *step == "drive" && why.contains("drive.json"))
        );
        assert!(
            figures
                .table()
                .contains("0.7500 of the best possible 0.8000 (80.0 % of the way)")
        );
        assert!(figures.table().contains("not measured"));
    }
}
