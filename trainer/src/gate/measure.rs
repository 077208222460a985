//! How good a model is, with intervals.

use models::metrics::{
    aucs_by_group, by_rising_score, expected_calibration_error, log_loss, weighted_auc,
    weighted_reliability,
};
use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    GateConfig, Verdict,
    resample::{drawn, interval},
    revenue::{Estimates, Totals},
    slices::{Slices, people},
};
use crate::table::Examples;

/// Bins of the expected calibration error.
const BINS: usize = 20;

/// A model's scores of all rows.
#[derive(Debug)]
pub struct Candidate {
    /// Probabilities of a click.
    pub scores: Vec<f32>,
}

/// A value and where it lies when other people had come.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// On all rows; no number, and null in JSON, where it cannot be measured.
    #[serde(deserialize_with = "null_is_no_number")]
    pub value: f64,
    /// Where the interval begins; absent where it cannot be measured.
    pub low: Option<f64>,
    /// Where it ends.
    pub high: Option<f64>,
}

/// A model's measures, or the differences of two models'.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Area under the ROC curve.
    pub auc: Interval,
    /// The mean of each person's, by their rows; of those with both labels. Source: Zhou et al.,
    /// "Deep Interest Network", KDD 2018, equation 5.
    pub grouped_auc: Interval,
    /// Log loss, nats.
    pub log_loss: Interval,
    /// Log loss over that of the base rate.
    pub normalised_entropy: Interval,
    /// Predicted clicks over observed ones (PCOC).
    pub calibration_ratio: Interval,
    /// Expected calibration error.
    pub ece: Interval,
}

/// A slice's measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceMeasures {
    /// What is the same.
    pub by: String,
    /// How it is.
    pub value: String,
    /// Rows.
    pub rows: usize,
    /// Clicks among them.
    pub clicks: usize,
    /// The model's.
    pub measures: Measures,
    /// Those of the model it is compared with.
    pub against_measures: Option<Measures>,
}

/// Measures a model and what it is compared with, on the same draws.
pub fn measure(
    config: &GateConfig,
    rows: &Examples,
    slices: &Slices,
    model: &Candidate,
    other: Option<&Candidate>,
) -> Verdict {
    let (person_of, num_people) = people(&rows.user_ids);
    let scores: Vec<&[f32]> = std::iter::once(model)
        .chain(other)
        .map(|model| &*model.scores)
        .collect();
    let all: Vec<u32> = (0..rows.len() as u32).collect();
    let parts = std::iter::once(&all).chain(slices.slices.iter().map(|slice| &slice.rows));
    // [part][model].
    let mut scored: Vec<Vec<Scored<'_>>> = Vec::new();
    for part in parts {
        let of = scores
            .iter()
            .map(|it| Scored::new(it, rows, &person_of, part));
        scored.push(of.collect());
    }
    let estimates = Estimates::of(rows, &scores, config.reserve_cpc_micros);
    let measured = |weights: &[f64]| -> (Vec<Vec<Point>>, Option<Totals>) {
        let points = |part: &Vec<Scored<'_>>| part.iter().map(|it| it.point(weights)).collect();
        let earned = estimates.as_ref().map(|it| it.totals(weights));
        (scored.iter().map(points).collect(), earned)
    };
    let weights: Vec<f64> = rows
        .weights
        .iter()
        .map(|weight| f64::from(*weight))
        .collect();
    let (points, _) = measured(&weights);
    let replicates = (0..config.replicates).into_par_iter().map(|replicate| {
        let draws = drawn(config.seed, replicate, num_people);
        let drawn = |(person, weight): (&u32, &f64)| draws[*person as usize] * weight;
        measured(
            &person_of
                .iter()
                .zip(&weights)
                .map(drawn)
                .collect::<Vec<_>>(),
        )
    });
    let (replicates, earned): (Vec<_>, Vec<_>) = replicates.unzip();
    let earned: Vec<Totals> = earned.into_iter().flatten().collect();

    // Of a part, of what `of` makes of its models' points.
    let measures = |part: usize, of: &dyn Fn(&[Point]) -> Point| {
        let replicates: Vec<Point> = replicates.iter().map(|points| of(&points[part])).collect();
        of(&points[part]).with_intervals(&replicates, config.confidence)
    };
    let ours = |part| measures(part, &|models| models[0]);
    let others = |part| other.map(|_| measures(part, &|models| models[1]));
    let clicks = |rows_of: &[u32]| {
        let clicked = |row: &&u32| rows.clicks[**row as usize] > 0.5;
        rows_of.iter().filter(clicked).count()
    };
    let of_slices = slices
        .slices
        .iter()
        .zip(1..)
        .map(|(slice, part)| SliceMeasures {
            by: slice.by.to_owned(),
            value: slice.value.clone(),
            rows: slice.rows.len(),
            clicks: clicks(&slice.rows),
            measures: ours(part),
            against_measures: others(part),
        });
    Verdict {
        model: String::new(),
        against: None,
        table_version: 0,
        rows: rows.len(),
        left_out: 0,
        clicks: clicks(&all),
        users: num_people,
        measures: ours(0),
        against_measures: others(0),
        differences: other.map(|_| measures(0, &|models| models[0].less(&models[1]))),
        revenue: estimates
            .as_ref()
            .map(|it| it.revenue(&weights, &earned, config.confidence)),
        slices: of_slices.collect(),
        refused: Vec::new(),
    }
}

fn null_is_no_number<'de, D: Deserializer<'de>>(value: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or(f64::NAN))
}

impl Measures {
    /// What they are called.
    pub fn named(&self) -> [(&'static str, Interval); 6] {
        [
            ("AUC", self.auc),
            ("grouped AUC, by person", self.grouped_auc),
            ("log loss", self.log_loss),
            ("normalised entropy", self.normalised_entropy),
            ("calibration ratio", self.calibration_ratio),
            ("expected calibration error", self.ece),
        ]
    }
}

impl Interval {
    pub(super) fn new(value: f64, replicates: Vec<f64>, confidence: f64) -> Self {
        let found = interval(replicates, confidence);
        Self {
            value,
            low: found.map(|(low, _)| low),
            high: found.map(|(_, high)| high),
        }
    }
}

/// What is measured of every draw.
#[derive(Debug, Clone, Copy)]
struct Point {
    auc: f64,
    grouped_auc: f64,
    log_loss: f64,
    normalised_entropy: f64,
    calibration_ratio: f64,
    ece: f64,
}

impl Point {
    fn less(&self, other: &Self) -> Self {
        Self {
            auc: self.auc - other.auc,
            grouped_auc: self.grouped_auc - other.grouped_auc,
            log_loss: self.log_loss - other.log_loss,
            normalised_entropy: self.normalised_entropy - other.normalised_entropy,
            calibration_ratio: self.calibration_ratio - other.calibration_ratio,
            ece: self.ece - other.ece,
        }
    }

    fn with_intervals(&self, replicates: &[Self], confidence: f64) -> Measures {
        let interval = |of: fn(&Self) -> f64| {
            Interval::new(of(self), replicates.iter().map(of).collect(), confidence)
        };
        Measures {
            auc: interval(|point| point.auc),
            grouped_auc: interval(|point| point.grouped_auc),
            log_loss: interval(|point| point.log_loss),
            normalised_entropy: interval(|point| point.normalised_entropy),
            calibration_ratio: interval(|point| point.calibration_ratio),
            ece: interval(|point| point.ece),
        }
    }
}

/// Scores of some of the rows, sorted once, to be measured with many weights.
struct Scored<'a> {
    /// `[all rows]`.
    scores: &'a [f32],
    /// `[all rows]`.
    clicks: &'a [f32],
    /// The rows by rising score.
    order: Vec<usize>,
    /// `[order]`, nats.
    losses: Vec<f64>,
    /// `[order]`: of the person that a row is of.
    aucs_by_person: Vec<Option<f64>>,
}

impl<'a> Scored<'a> {
    fn new(scores: &'a [f32], all: &'a Examples, person_of: &[u32], rows: &[u32]) -> Self {
        let part =
            |values: &[f32]| -> Vec<f32> { rows.iter().map(|row| values[*row as usize]).collect() };
        let people: Vec<u32> = rows.iter().map(|row| person_of[*row as usize]).collect();
        let (found, clicks) = (part(scores), part(&all.clicks));
        let aucs = aucs_by_group(&found, &clicks, &part(&all.weights), &people);
        let order = by_rising_score(&found);
        let loss = |at: &usize| log_loss(&[found[*at]], &[clicks[*at]], &[1.0]);
        Self {
            scores,
            clicks: &all.clicks,
            losses: order.iter().map(loss).collect(),
            aucs_by_person: order.iter().map(|at| aucs[*at]).collect(),
            order: order.iter().map(|at| rows[*at] as usize).collect(),
        }
    }

    /// # Shapes
    /// - `weights`: `[all rows]`
    fn point(&self, weights: &[f64]) -> Point {
        let (mut total, mut clicks, mut predicted, mut loss) = (0.0, 0.0, 0.0, 0.0);
        let (mut of_people, mut aucs) = (0.0, 0.0);
        for (at, row) in self.order.iter().enumerate() {
            let weight = weights[*row];
            total += weight;
            clicks += weight * f64::from(self.clicks[*row]);
            predicted += weight * f64::from(self.scores[*row]);
            loss += weight * self.losses[at];
            if let Some(auc) = self.aucs_by_person[at] {
                of_people += weight;
                aucs += weight * auc;
            }
        }
        let weight = |row: usize| weights[row];
        let (order, scores, labels) = (&self.order, self.scores, self.clicks);
        let reliability = weighted_reliability(order, scores, labels, BINS, weight);
        let rate: f64 = clicks / total;
        let base = -(rate * rate.ln() + (1.0 - rate) * (1.0 - rate).ln());
        Point {
            auc: weighted_auc(order, scores, labels, weight).unwrap_or(f64::NAN),
            grouped_auc: aucs / of_people,
            log_loss: loss / total,
            normalised_entropy: loss / total / base,
            calibration_ratio: predicted / clicks,
            ece: expected_calibration_error(&reliability),
        }
    }
}
