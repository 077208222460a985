//! The headline figures: `reports/report.json`.

use serde::Serialize;

use super::{
    Steps,
    checks::Check,
    steps::{Drive, Events, Judge},
};

/// What `report.json` holds. A figure whose step has not run is null.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// AUC of the click model on the test rows.
    pub auc: Option<f64>,
    /// AUC of the true probabilities on the same rows.
    pub auc_best: Option<f64>,
    /// Sum of predictions over clicks.
    pub calibration_ratio: Option<f64>,
    /// Share of the 100 nearest ads that the index finds.
    pub recall_at_100: Option<f64>,
    /// Median answer at the client, ms.
    pub get_ads_p50_ms: Option<f64>,
    /// 99th percentile of the same.
    pub get_ads_p99_ms: Option<f64>,
    /// Share of requests answered with an ad.
    pub fill_rate: Option<f64>,
    /// Expected revenue over that of an auction that knows the truth.
    pub revenue_ratio: Option<f64>,
    /// Records that the pipeline read.
    pub events_in: Option<u64>,
    /// Records that it refused.
    pub events_dead: Option<u64>,
    /// Time of the whole loop, compile time left out.
    pub seconds: Option<f64>,
    /// How far the click model has come from chance to the best possible AUC.
    pub way: Option<f64>,
    /// Sum of predictions over sum of true probabilities.
    pub calibration_true: Option<f64>,
    /// AUC of the pre-scorer on the test rows.
    pub prescorer_auc: Option<f64>,
    /// Recall of the clicked creative among the ten nearest to its scene.
    pub visual_recall_at_10: Option<f64>,
    /// Expected value of the winners over that of the best ones.
    pub value_ratio: Option<f64>,
    /// Setup and compile time before the loop.
    pub compile_seconds: Option<f64>,
    /// Steps without figures, and the commands that make them.
    pub missing: Vec<String>,
    /// The figures against their bounds.
    pub checks: Vec<Check>,
}

impl Summary {
    /// Picks the headline figures.
    pub fn new(steps: &Steps, checks: Vec<Check>) -> Self {
        let judge = |pick: fn(&Judge) -> f64| steps.judge.as_ref().map(pick);
        let drive = |pick: fn(&Drive) -> f64| steps.drive.as_ref().map(pick);
        let events = |pick: fn(&Events) -> u64| steps.events.as_ref().map(pick);
        let run = steps.quickstart.as_ref();
        Self {
            auc: judge(|judge| judge.auc),
            auc_best: judge(|judge| judge.auc_best),
            calibration_ratio: judge(|judge| judge.calibration_ratio),
            recall_at_100: steps.index.as_ref().map(|index| index.recall_at_100),
            get_ads_p50_ms: drive(|drive| drive.get_ads_p50_ms),
            get_ads_p99_ms: drive(|drive| drive.get_ads_p99_ms),
            fill_rate: drive(|drive| drive.fill_rate),
            revenue_ratio: drive(|drive| drive.revenue_ratio),
            events_in: events(|events| events.events_in),
            events_dead: events(|events| events.events_dead),
            seconds: run.map(|run| run.seconds),
            calibration_true: judge(|judge| judge.calibration_true),
            way: judge(|judge| judge.way),
            prescorer_auc: steps.prescorer.as_ref().and_then(|prescorer| prescorer.auc),
            visual_recall_at_10: steps.visual.as_ref().map(|visual| visual.recall_at_10),
            value_ratio: drive(|drive| drive.value_ratio),
            compile_seconds: run.map(|run| run.compile_seconds),
            missing: steps.missing.clone(),
            checks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_that_others_rely_on_come_first_and_in_order() {
        let text = serde_json::to_string(&Summary::new(&Steps::default(), Vec::new())).unwrap();
        let keys = [
            "auc",
            "auc_best",
            "calibration_ratio",
            "recall_at_100",
            "get_ads_p50_ms",
            "get_ads_p99_ms",
            "fill_rate",
            "revenue_ratio",
            "events_in",
            "events_dead",
            "seconds",
        ];
        let wanted: Vec<String> = keys.iter().map(|key| format!("\"{key}\":null")).collect();
        assert!(
            text.starts_with(&format!("{{{},", wanted.join(","))),
            "{text}"
        );
    }
}
