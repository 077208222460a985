//! What the gate refuses.

use serde::{Deserialize, Serialize};

use super::{Interval, Revenue, Verdict};

/// A bound is broken where the whole interval lies beyond it: what may be chance is not refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RulesConfig {
    /// Fewest rows; with fewer nothing can be said, and a model is refused.
    pub min_rows: usize,
    /// Share of the test rows that may be missing from `against_table`; with more missing the two models are
    /// not compared on the same window.
    pub most_left_out: f64,
    /// How much less AUC than the model it is compared with.
    pub max_auc_loss: f64,
    /// How much more normalised entropy than the model it is compared with.
    pub max_entropy_rise: f64,
    /// How far the calibration ratio may be from 1.
    pub calibration: f64,
    /// The same of a slice.
    pub slice_calibration: f64,
    /// Fewest rows of a slice that is looked at.
    pub slice_min_rows: usize,
    /// How much of the revenue of the model it is compared with it must bring at least; 0: no rule.
    /// `min_rows` holds of rows with an auction then, and a table without any cannot be judged.
    pub least_revenue_ratio: f64,
}

impl Default for RulesConfig {
    fn default() -> Self {
        Self {
            min_rows: 1000,
            most_left_out: 0.01,
            max_auc_loss: 0.002,
            max_entropy_rise: 0.002,
            calibration: 0.02,
            slice_calibration: 0.1,
            slice_min_rows: 1000,
            least_revenue_ratio: 0.0,
        }
    }
}

/// Why a model is refused; nothing: it is not.
pub fn judge(rules: &RulesConfig, verdict: &Verdict) -> Vec<String> {
    let mut refused = Vec::new();
    if verdict.rows < rules.min_rows {
        refused.push(format!(
            "{} rows, wanted at least {} (rules.min_rows)",
            verdict.rows, rules.min_rows
        ));
    }
    let left_out = verdict.left_out as f64 / (verdict.rows + verdict.left_out).max(1) as f64;
    if left_out > rules.most_left_out {
        refused.push(format!(
            "{} of {} test rows are not in against_table, wanted at most a share of {} (rules.most_left_out)",
            verdict.left_out,
            verdict.rows + verdict.left_out,
            rules.most_left_out
        ));
    }
    let calibration = &verdict.measures.calibration_ratio;
    if outside(calibration, rules.calibration) {
        refused.push(format!(
            "calibration ratio {}, wanted 1 ± {} (rules.calibration)",
            text(calibration),
            rules.calibration
        ));
    }
    for slice in &verdict.slices {
        let ratio = &slice.measures.calibration_ratio;
        if slice.rows >= rules.slice_min_rows && outside(ratio, rules.slice_calibration) {
            refused.push(format!(
                "calibration ratio {} of {} {} ({} rows), wanted 1 ± {} (rules.slice_calibration)",
                text(ratio),
                slice.by,
                slice.value,
                slice.rows,
                rules.slice_calibration
            ));
        }
    }
    if let Some(differences) = &verdict.differences {
        if high(&differences.auc) < -rules.max_auc_loss {
            refused.push(format!(
                "AUC differs by {}, wanted at least -{} (rules.max_auc_loss)",
                text(&differences.auc),
                rules.max_auc_loss
            ));
        }
        if low(&differences.normalised_entropy) > rules.max_entropy_rise {
            refused.push(format!(
                "normalised entropy differs by {}, wanted at most {} (rules.max_entropy_rise)",
                text(&differences.normalised_entropy),
                rules.max_entropy_rise
            ));
        }
    }
    if let Some(revenue) = &verdict.revenue {
        refused.extend(too_little(rules, revenue));
    }
    refused
}

/// Whether there is all that the rules speak of.
pub fn can_judge(rules: &RulesConfig, verdict: &Verdict) -> bool {
    let compares_revenue = rules.least_revenue_ratio > 0.0 && verdict.against_measures.is_some();
    !compares_revenue || verdict.revenue.is_some()
}

/// Whether a model earns less than it must.
fn too_little(rules: &RulesConfig, revenue: &Revenue) -> Option<String> {
    let least = rules.least_revenue_ratio;
    let ratio = revenue.ratio.filter(|_| least > 0.0)?;
    if revenue.rows < rules.min_rows {
        return Some(format!(
            "revenue is known of {} rows, wanted at least {} (rules.min_rows)",
            revenue.rows, rules.min_rows
        ));
    }
    (high(&ratio) < least).then(|| {
        format!(
            "revenue is {} of that of the other model, wanted at least {least} (rules.least_revenue_ratio)",
            text(&ratio)
        )
    })
}

fn low(interval: &Interval) -> f64 {
    interval.low.unwrap_or(interval.value)
}

fn high(interval: &Interval) -> f64 {
    interval.high.unwrap_or(interval.value)
}

/// Whether the whole interval is farther from 1 than it may be; no number is.
fn outside(ratio: &Interval, tolerance: f64) -> bool {
    let inside = low(ratio) <= 1.0 + tolerance && high(ratio) >= 1.0 - tolerance;
    !(inside && ratio.value.is_finite())
}

/// A value and its interval.
pub fn text(interval: &Interval) -> String {
    let value = interval.value;
    match (interval.low, interval.high) {
        _ if value.is_nan() => "not known".to_owned(),
        (Some(low), Some(high)) => format!("{value:.4} ({low:.4} to {high:.4})"),
        _ => format!("{value:.4}"),
    }
}

/// What was earned and would have been, in a line.
fn earned(verdict: &Verdict) -> String {
    let Some(revenue) = &verdict.revenue else {
        return "no bids in the table".to_owned();
    };
    let mut line = format!(
        "{}; {} rows brought {}, over that {}",
        text(&revenue.model.per_mille),
        revenue.rows,
        text(&revenue.observed),
        text(&revenue.model.over_observed)
    );
    let against = verdict.against.as_deref().zip(revenue.against.as_ref());
    if let (Some((digest, other)), Some(ratio)) = (against, &revenue.ratio) {
        let other = text(&other.per_mille);
        line += &format!("; {} {other}, over that {}", short(digest), text(ratio));
    }
    line
}

fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

/// A few lines for a terminal.
pub fn told(verdict: &Verdict) -> String {
    let mut lines = vec![format!(
        "ctr {} on {} rows of {} people, {} clicks",
        short(&verdict.model),
        verdict.rows,
        verdict.users,
        verdict.clicks
    )];
    if verdict.left_out > 0 {
        let left_out = verdict.left_out;
        lines.push(format!(
            "  {left_out} rows left out, which against_table has not"
        ));
    }
    let differences = verdict.differences.map(|it| it.named());
    for (at, (name, value)) in verdict.measures.named().iter().enumerate() {
        let mut line = format!("  {name:26} {}", text(value));
        if let (Some(differences), Some(against)) = (&differences, &verdict.against) {
            let less = text(&differences[at].1);
            line += &format!("; less that of {}: {less}", short(against));
        }
        lines.push(line);
    }
    lines.push(format!("  {:26} {}", "revenue per 1000", earned(verdict)));
    lines.push(match verdict.refused.is_empty() {
        true => "passed".to_owned(),
        false => format!("refused: {}", verdict.refused.join("; ")),
    });
    lines.join("\n")
}
