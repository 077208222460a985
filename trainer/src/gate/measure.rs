//! How good a model is, with intervals.

use models::metrics::{
    auc, aucs_by_group, by_rising_score, calibration_ratio, expected_calibration_error, log_loss,
    normalised_entropy, weighted_auc, weighted_reliability,
};
use serde::{Deserialize, Serialize};

use super::{
    GateConfig, Verdict,
    resample::{drawn, interval},
    revenue::{Estimates, Totals},
    slices::{Slice, Slices, people},
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
    /// On all rows.
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
    /// The mean of each person's, by their rows; absent where none has both labels. Source: Zhou et
    /// al., "Deep Interest Network", KDD 2018, equation 5.
    pub grouped_auc: Option<Interval>,
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
    /// Area under the ROC curve; absent where labels are all equal.
    pub auc: Option<f64>,
    /// Log loss over that of the slice's base rate.
    pub normalised_entropy: f64,
    /// Predicted clicks over observed ones (PCOC).
    pub calibration_ratio: Interval,
    /// That of the model it is compared with.
    pub against_calibration_ratio: Option<f64>,
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
    let models: Vec<Scored<'_>> = std::iter::once(model)
        .chain(other)
        .map(|model| Scored::new(&model.scores, rows, &person_of))
        .collect();
    let scores: Vec<&[f32]> = models.iter().map(|model| model.scores).collect();
    let estimates = Estimates::of(rows, &scores, config.reserve_cpc_micros);
    let mut earned: Vec<Totals> = Vec::new();
    // [replicate][model] and [slice][replicate].
    let mut overall: Vec<Vec<Point>> = Vec::with_capacity(config.replicates);
    let mut ratios: Vec<Vec<f64>> = vec![Vec::new(); slices.slices.len()];
    for replicate in 0..config.replicates {
        let draws = drawn(config.seed, replicate, num_people);
        let weights = person_of.iter().zip(&rows.weights);
        let weights: Vec<f64> = weights
            .map(|(person, weight)| draws[*person as usize] * f64::from(*weight))
            .collect();
        overall.push(models.iter().map(|scored| scored.point(&weights)).collect());
        earned.extend(estimates.as_ref().map(|it| it.totals(&weights)));
        for (slice, ratios) in slices.slices.iter().zip(&mut ratios) {
            ratios.push(models[0].ratio(&slice.rows, &weights));
        }
    }
    let weights: Vec<f64> = rows
        .weights
        .iter()
        .map(|weight| f64::from(*weight))
        .collect();
    let points: Vec<Point> = models.iter().map(|scored| scored.point(&weights)).collect();
    let all = |at: usize| -> Measures {
        let replicates: Vec<Point> = overall.iter().map(|points| points[at]).collect();
        points[at].with_intervals(&replicates, config.confidence)
    };
    let measures = all(0);
    let against_measures = other.map(|_| all(1));
    let differences = other.map(|_| {
        let less = |points: &Vec<Point>| points[0].less(&points[1]);
        let replicates: Vec<Point> = overall.iter().map(less).collect();
        less(&points).with_intervals(&replicates, config.confidence)
    });
    let of_slice = |(slice, ratios): (&Slice, Vec<f64>)| {
        let part = |values: &[f32]| -> Vec<f32> {
            slice.rows.iter().map(|row| values[*row as usize]).collect()
        };
        let (scores, clicks) = (part(models[0].scores), part(&rows.clicks));
        let weights = part(&rows.weights);
        SliceMeasures {
            by: slice.by.to_owned(),
            value: slice.value.clone(),
            rows: slice.rows.len(),
            clicks: clicks.iter().filter(|click| **click > 0.5).count(),
            auc: auc(&scores, &clicks, &weights),
            normalised_entropy: normalised_entropy(&scores, &clicks, &weights),
            calibration_ratio: Interval::new(
                calibration_ratio(&scores, &clicks, &weights),
                ratios,
                config.confidence,
            ),
            against_calibration_ratio: models
                .get(1)
                .map(|other| calibration_ratio(&part(other.scores), &clicks, &weights)),
        }
    };
    Verdict {
        model: String::new(),
        against: None,
        table_version: 0,
        rows: rows.len(),
        clicks: rows.clicks.iter().filter(|click| **click > 0.5).count(),
        users: num_people,
        measures,
        against_measures,
        differences,
        revenue: estimates.map(|it| it.revenue(&weights, &earned, config.confidence)),
        slices: slices.slices.iter().zip(ratios).map(of_slice).collect(),
        refused: Vec::new(),
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
            grouped_auc: Some(interval(|point| point.grouped_auc))
                .filter(|it| it.value.is_finite()),
            log_loss: interval(|point| point.log_loss),
            normalised_entropy: interval(|point| point.normalised_entropy),
            calibration_ratio: interval(|point| point.calibration_ratio),
            ece: interval(|point| point.ece),
        }
    }
}

/// Scores, sorted once, to be measured with many weights.
struct Scored<'a> {
    scores: &'a [f32],
    clicks: &'a [f32],
    /// Rows by rising score.
    order: Vec<usize>,
    /// `[rows]`, nats.
    losses: Vec<f64>,
    /// `[rows]`: of the person that a row is of.
    aucs_by_person: Vec<Option<f64>>,
}

impl<'a> Scored<'a> {
    fn new(scores: &'a [f32], rows: &'a Examples, person_of: &[u32]) -> Self {
        let loss = |(score, click): (&f32, &f32)| log_loss(&[*score], &[*click], &[1.0]);
        Self {
            scores,
            clicks: &rows.clicks,
            order: by_rising_score(scores),
            losses: scores.iter().zip(&rows.clicks).map(loss).collect(),
            aucs_by_person: aucs_by_group(scores, &rows.clicks, &rows.weights, person_of),
        }
    }

    fn point(&self, weights: &[f64]) -> Point {
        let (mut total, mut clicks, mut predicted, mut loss) = (0.0, 0.0, 0.0, 0.0);
        let (mut of_people, mut aucs) = (0.0, 0.0);
        for (row, weight) in weights.iter().enumerate() {
            total += weight;
            clicks += weight * f64::from(self.clicks[row]);
            predicted += weight * f64::from(self.scores[row]);
            loss += weight * self.losses[row];
            if let Some(auc) = self.aucs_by_person[row] {
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

    fn ratio(&self, rows: &[u32], weights: &[f64]) -> f64 {
        let (mut predicted, mut clicks) = (0.0, 0.0);
        for row in rows {
            let row = *row as usize;
            predicted += weights[row] * f64::from(self.scores[row]);
            clicks += weights[row] * f64::from(self.clicks[row]);
        }
        predicted / clicks
    }
}
