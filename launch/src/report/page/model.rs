//! The models: ranking against the truth, calibration, training, and the visual tower.

use super::{
    bars::{Bar, bars},
    panel,
    plot::{Axis, Plot},
};
use crate::{
    report::{
        Steps,
        steps::{Ctr, Visual},
    },
    text::grouped,
};

pub(super) fn section(steps: &Steps) -> String {
    let parts = [
        ranking(steps),
        steps.visual.as_ref().map(visual),
        steps.ctr.as_ref().and_then(reliability),
        steps.ctr.as_ref().and_then(|ctr| curve(ctr, steps)),
    ];
    let body: String = parts.into_iter().flatten().collect();
    if body.is_empty() {
        return body;
    }
    super::section("Models", &body)
}

fn ranking(steps: &Steps) -> Option<String> {
    let judge = steps.judge.as_ref()?;
    let above = |auc: f64| (auc - 0.5).max(0.0);
    let bar = |name: &str, auc: f64, class| Bar {
        name: name.to_owned(),
        value: above(auc),
        text: format!("{auc:.4}"),
        class,
    };
    let mut rows = Vec::new();
    let prescorer = steps.prescorer.as_ref();
    if let Some(auc) = prescorer.and_then(|prescorer| prescorer.auc) {
        rows.push(bar("pre-scorer (trees)", auc, "base"));
    }
    rows.push(bar("click model", judge.auc, "model"));
    rows.push(bar("true probabilities", judge.auc_best, "best"));
    let most = above(judge.auc.max(judge.auc_best));
    let lead = format!(
        "AUC on {} test impressions of the last day; bars begin at chance, 0.5. The pre-scorer thins 500 ads out to 50, the click model ranks those.",
        grouped(judge.rows)
    );
    Some(panel(
        6,
        "Ranking against the truth",
        &lead,
        &bars(&rows, most),
    ))
}

fn visual(visual: &Visual) -> String {
    let bar = |name: &str, value: f64, class| Bar {
        name: name.to_owned(),
        value,
        text: format!("{value:.4}"),
        class,
    };
    let rows = [
        bar("random order", visual.recall_at_10_random, "base"),
        bar("average colours", visual.recall_at_10_pixel_average, "base"),
        bar("visual tower (ViT)", visual.recall_at_10, "model"),
    ];
    let most = rows.iter().map(|row| row.value).fold(0.0, f64::max);
    let lead = format!(
        "Share of clicks whose picture is among the ten nearest to the scene. Trained on {} pairs of scene and clicked picture.",
        grouped(visual.pairs)
    );
    panel(
        6,
        "Pictures that belong together",
        &lead,
        &bars(&rows, most),
    )
}

fn percent(value: f64) -> String {
    let digits = usize::from((100.0 * value).fract().abs() > 1e-6);
    format!("{:.digits$} %", 100.0 * value)
}

fn reliability(ctr: &Ctr) -> Option<String> {
    let bins: Vec<_> = ctr.reliability.iter().filter(|bin| bin.count > 0).collect();
    let last = bins.last()?;
    let most = bins
        .iter()
        .map(|bin| bin.mean_observed)
        .fold(last.mean_predicted, f64::max)
        * 1.08;
    let axis = |label| Axis::linear(label, 0.0, most, percent);
    let mut plot = Plot::new(
        axis("predicted click rate"),
        axis("observed click rate"),
        "Observed against predicted click rate; on the diagonal they agree",
    );
    plot.line(&[(0.0, 0.0), (most, most)], "ideal");
    let largest = bins.iter().map(|bin| bin.count).max().unwrap_or(1) as f64;
    for bin in &bins {
        let (x, y, n) = (bin.mean_predicted, bin.mean_observed, bin.count as f64);
        // Two standard errors of a share, with one click and one other added (Agresti and Coull).
        let centre = (y * n + 1.0) / (n + 2.0);
        let spread = 2.0 * (centre * (1.0 - centre) / (n + 2.0)).sqrt();
        plot.line(
            &[(x, (y - spread).max(0.0)), (x, (y + spread).min(most))],
            "error",
        );
    }
    for bin in &bins {
        let radius = 3.0 + 3.0 * (bin.count as f64 / largest).sqrt();
        let (count, predicted, observed) = (
            grouped(bin.count),
            percent(bin.mean_predicted),
            percent(bin.mean_observed),
        );
        let told = format!("{count} impressions: {predicted} predicted, {observed} clicked");
        plot.dot(bin.mean_predicted, bin.mean_observed, radius, "dot", &told);
    }
    let lead = format!(
        "Test impressions in bins of their predicted click rate, with two standard errors. Expected calibration error {:.4}.",
        ctr.ece
    );
    Some(panel(6, "Does 5 % mean 5 %?", &lead, &plot.finish()))
}

fn curve(ctr: &Ctr, steps: &Steps) -> Option<String> {
    let points: Vec<(f64, f64)> = ctr
        .curve
        .iter()
        .map(|point| (point.step as f64, point.loss))
        .collect();
    let last = points.last()?;
    let smooth = smoothed(&points);
    let best = steps.judge.as_ref().map(|judge| judge.log_loss_best);
    let levels = best.into_iter().chain([ctr.log_loss]);
    let lowest = smooth
        .iter()
        .map(|point| point.1)
        .chain(levels)
        .fold(f64::INFINITY, f64::min);
    let highest = smooth.iter().map(|point| point.1).fold(lowest, f64::max);
    let room = 0.15 * (highest - lowest).max(1e-4);
    let thousands: fn(f64) -> String = |value| grouped(value.max(0.0).round() as u64);
    let mut plot = Plot::new(
        Axis::linear("step", 0.0, last.0, thousands),
        Axis::linear("log loss, nats", lowest - room, highest + room, |value| {
            format!("{value:.3}")
        }),
        "Training loss over steps",
    );
    plot.line(&points, "thin");
    plot.line(&smooth, "line");
    // The two levels are close: their names stand on different sides.
    plot.level(
        ctr.log_loss,
        "level",
        &format!("test {:.4}", ctr.log_loss),
        true,
    );
    if let Some(best) = best {
        plot.level(
            best,
            "level best",
            &format!("best possible on test {best:.4}"),
            false,
        );
    }
    let lead = format!(
        "{} rows at {} samples a second, with the log loss on the test day beside it.",
        grouped(ctr.train_rows),
        grouped(ctr.samples_per_second.round() as u64)
    );
    Some(panel(
        6,
        "Training of the click model",
        &lead,
        &plot.finish(),
    ))
}

/// A moving average over a fifteenth of the points, on both sides.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / 30;
    (0..points.len())
        .map(|at| {
            let near = &points[at.saturating_sub(reach)..(at + reach + 1).min(points.len())];
            let mean = near.iter().map(|point| point.1).sum::<f64>() / near.len() as f64;
            (points[at].0, mean)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::steps::{CurvePoint, ReliabilityBin};

    #[test]
    fn smoothing_keeps_a_constant_and_the_number_of_points() {
        let points: Vec<(f64, f64)> = (0..100).map(|at| (f64::from(at), 0.25)).collect();
        let smooth = smoothed(&points);
        assert_eq!(smooth.len(), 100);
        assert!(smooth.iter().all(|point| (point.1 - 0.25).abs() < 1e-12));
    }

    #[test]
    fn plots_of_few_points_are_drawn_without_gaps() {
        let ctr = Ctr {
            reliability: vec![ReliabilityBin {
                count: 1,
                mean_predicted: 0.0,
                mean_observed: 0.0,
            }],
            curve: vec![CurvePoint { step: 0, loss: 0.3 }],
            log_loss: 0.3,
            ..Ctr::default()
        };
        let steps = Steps {
            ctr: Some(ctr),
            ..Steps::default()
        };
        let html = section(&steps);
        assert!(
            html.contains("Does 5 % mean 5 %?") && html.contains("Training of the click model")
        );
        assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
    }
}
