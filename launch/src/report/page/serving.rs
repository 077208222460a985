//! The server seen by its clients.

use super::{
    bars::{Bar, bars},
    panel,
    plot::{Axis, Plot},
};
use crate::{
    report::{Steps, steps::Drive},
    text::grouped,
};

/// Stages in the order a request passes them, with their budgets in ms.
const STAGES: [(&str, f64); 5] = [
    ("assemble", 10.0),
    ("retrieve", 8.0),
    ("prescore", 5.0),
    ("rank", 25.0),
    ("auction", 2.0),
];

pub(super) fn section(steps: &Steps) -> String {
    let Some(drive) = &steps.drive else {
        return String::new();
    };
    let body = latency(drive) + &stages(drive);
    super::section("Serving", &body)
}

fn milliseconds(value: f64) -> String {
    format!("{value}")
}

fn latency(drive: &Drive) -> String {
    let counted: Vec<(f64, f64, u64)> = buckets(&drive.latency_histogram);
    let lead = format!(
        "{} requests, each from a client that waits for its answer before the next; {:.0} a second. {} failed, {} were answered in a degraded way.",
        grouped(drive.requests),
        drive.requests_per_second,
        grouped(drive.errors),
        grouped(drive.degraded)
    );
    let (Some(first), Some(last)) = (counted.first(), counted.last()) else {
        return panel(7, "Time of an answer", &lead, "");
    };
    let highest = counted.iter().map(|bucket| bucket.2).max().unwrap_or(1) as f64;
    let mut plot = Plot::new(
        Axis::logarithmic(
            "milliseconds at the client, logarithmic",
            first.0,
            last.1,
            milliseconds,
        ),
        Axis::linear("answers", 0.0, 1.12 * highest, |value| {
            grouped(value.round() as u64)
        }),
        "Histogram of the time of an answer",
    );
    for &(from, to, count) in &counted {
        let told = format!("{from:.2} to {to:.2} ms: {} answers", grouped(count));
        plot.bar(from, to, count as f64, "fill", &told);
    }
    let (p50, p99) = (drive.get_ads_p50_ms, drive.get_ads_p99_ms);
    plot.mark(p50, "mark-line", &format!("median {p50:.2} ms"), 0);
    plot.mark(p99, "mark-line", &format!("99 % {p99:.2} ms"), 1);
    panel(7, "Time of an answer", &lead, &plot.finish())
}

/// Buckets as (from, to, count), without the empty ones at both ends.
fn buckets(histogram: &[(f64, u64)]) -> Vec<(f64, f64, u64)> {
    let ratio = match histogram {
        [(a, _), (b, _), ..] if *a > 0.0 => b / a,
        _ => 2.0,
    };
    let all = histogram.iter().map(|&(to, count)| (to / ratio, to, count));
    let mut all: Vec<_> = all.skip_while(|bucket| bucket.2 == 0).collect();
    while all.last().is_some_and(|bucket| bucket.2 == 0) {
        all.pop();
    }
    all
}

fn stages(drive: &Drive) -> String {
    let median = |name: &str| {
        drive
            .stage_p50_us
            .iter()
            .find(|stage| stage.0 == name)
            .map(|stage| stage.1)
    };
    let mut rows = Vec::new();
    let mut sum_us = 0.0;
    for (name, budget_ms) in STAGES {
        let Some(us) = median(name) else {
            continue;
        };
        sum_us += us;
        rows.push(Bar {
            name: name.to_owned(),
            value: us,
            text: format!("{:.2} of {budget_ms:.0} ms", us / 1e3),
            class: "model",
        });
    }
    let rest_us = (1e3 * drive.get_ads_p50_ms - sum_us).max(0.0);
    rows.push(Bar {
        name: "transport, rest".to_owned(),
        value: rest_us,
        text: format!("{:.2} ms", rest_us / 1e3),
        class: "base",
    });
    let most = rows.iter().map(|row| row.value).fold(0.0, f64::max);
    let lead = "Median of each stage beside its budget. A stage over its budget is cut off and replaced, and the answer says so.";
    panel(5, "Where a request spends it", lead, &bars(&rows, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_ends_of_the_histogram_are_cut_and_gaps_kept() {
        let found = buckets(&[(1.0, 0), (2.0, 3), (4.0, 0), (8.0, 1), (16.0, 0)]);
        assert_eq!(found, [(1.0, 2.0, 3), (2.0, 4.0, 0), (4.0, 8.0, 1)]);
    }

    #[test]
    fn a_drive_without_answers_is_shown_without_a_plot() {
        let steps = Steps {
            drive: Some(Drive::default()),
            ..Steps::default()
        };
        let html = section(&steps);
        assert!(html.contains("Time of an answer") && !html.contains("<svg"));
    }
}
