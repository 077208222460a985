//! How long conversions let one wait, and so how much is known of a row's conversions.

use models::ctr::ConversionDelay;
use serde::{Deserialize, Serialize};

use super::{step::StepBatch, train::TrainError};
use crate::{
    collective::{ProcessGroup, segment},
    table::{Examples, Outcome, Projection, Slice},
};

const HOUR_US: f64 = 3.6e9;

/// Rates that are looked at, per hour: means of a second to a century.
const RATES: [f64; 2] = [1e-6, 3600.0];

/// Halvings of the interval of the rate's logarithm: enough for an f64.
const HALVINGS: usize = 60;

/// [`ConversionDelay`] as a checkpoint keeps it, to the bit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// One over the mean delay, per hour.
    #[serde(with = "crate::checkpoint::bits")]
    rate: f64,
    /// Conversions after so many hours do not count; infinite if no row is so old.
    #[serde(with = "crate::checkpoint::bits")]
    window: f64,
}

/// A conversion's delay, and for how long one would have seen it; hours.
type Delayed = (f64, f64);

impl Delay {
    /// The rate under which the delays of the conversions that are there are most likely. That a
    /// conversion is there says that its delay is shorter than its row was watched, so that a delay `d`
    /// of one watched for `e` has the density `λ e^−λd / (1 − e^−λe)`; the mean of delays alone would
    /// have conversions come too soon. Source: Kalbfleisch and Lawless, "Inference Based on Retrospective
    /// Ascertainment", JASA 1989.
    ///
    /// Every rank reads its share of the row groups, and all have the same bits, whatever their number.
    ///
    /// # Errors
    /// [`TrainError`] if rows cannot be read or have no conversions after a click, or a rank was lost.
    pub fn fit(rows: &Slice, group: &mut impl ProcessGroup) -> Result<Self, TrainError> {
        let parts: Vec<Slice> = rows.row_groups().collect();
        let mut mine: Vec<Vec<Delayed>> = Vec::new();
        let mut known = Vec::new();
        for part in &parts[segment(parts.len(), group.world_size(), group.rank())] {
            let outcomes = part.read(Projection::Outcomes)?.outcomes;
            let delays: Vec<Delayed> = outcomes.iter().filter_map(delayed).collect();
            let windows = outcomes.iter().filter(|it| it.is_final);
            let windows = windows.filter_map(|it| Some(watched(it, it.click_us?)));
            known.push([delays.len() as f64, windows.fold(0.0, f64::max)]);
            mine.push(delays);
        }
        let known = group.all_gather_v(&known)?.concat();
        let conversions: f64 = known.iter().map(|[count, _]| count).sum();
        if conversions == 0.0 {
            return Err(TrainError::NoConversions { rows: rows.len() });
        }
        let window = known.iter().map(|[_, window]| *window).fold(0.0, f64::max);
        let [mut low, mut high] = RATES.map(f64::ln);
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            let scores: Vec<f64> = mine.iter().map(|part| score(middle.exp(), part)).collect();
            let score: f64 = group.all_gather_v(&scores)?.concat().iter().sum();
            // It falls with the rate, and the likelihood is greatest where it is 0.
            match score > 0.0 {
                true => low = middle,
                false => high = middle,
            }
        }
        Ok(Self {
            rate: low.exp(),
            window: if window > 0.0 { window } else { f64::INFINITY },
        })
    }

    /// Mean delay in hours, had conversions no window.
    pub fn mean_hours(&self) -> f64 {
        1.0 / self.rate
    }

    /// The probability that a conversion of a row would be known. Rows without a click wait from the
    /// view on: had they none to wait for, a conversion would be known more often of them than of
    /// clicked ones, and conversions would seem rarer than they are.
    pub fn observed(&self, outcome: &Outcome) -> f32 {
        if outcome.is_final {
            return 1.0;
        }
        let since_us = outcome.click_us.unwrap_or(outcome.view_us);
        let known = ConversionDelay::from(*self);
        known.arrived(watched(outcome, since_us)) as f32
    }

    /// Labels of rows, `[rows, 2]`: whether clicked, and the credit for a conversion after the click;
    /// and [`Self::observed`] of each.
    pub fn labels(&self, rows: &Examples) -> (Vec<f32>, Vec<f32>) {
        let conversions = rows.conversions.iter().zip(&rows.outcomes);
        let labels = rows.clicks.iter().zip(conversions);
        let labels = labels.flat_map(|(click, (credit, outcome))| {
            let after_click = outcome.converted_after_click();
            [*click, if after_click { *credit } else { 0.0 }]
        });
        let observed = rows.outcomes.iter().map(|it| self.observed(it));
        (labels.collect(), observed.collect())
    }
}

impl From<Delay> for ConversionDelay {
    fn from(Delay { rate, window }: Delay) -> Self {
        Self {
            rate,
            window: window.is_finite().then_some(window),
        }
    }
}

impl From<ConversionDelay> for Delay {
    fn from(ConversionDelay { rate, window }: ConversionDelay) -> Self {
        Self {
            rate,
            window: window.unwrap_or(f64::INFINITY),
        }
    }
}

impl StepBatch {
    /// Rows to learn clicks from, or clicks and conversions, which are late.
    pub(super) fn of(rows: Examples, delay: Option<&Delay>) -> Self {
        let known = delay.map(|delay| delay.labels(&rows));
        let (labels, observed) = known.unwrap_or((rows.clicks, Vec::new()));
        Self {
            features: rows.features,
            labels,
            observed,
            weights: rows.weights,
            places: rows.places,
            shown: None,
        }
    }
}

/// Hours from a time of a row until conversions are known no more.
fn watched(outcome: &Outcome, since_us: i64) -> f64 {
    ((outcome.labels_as_of_us - since_us) as f64 / HOUR_US).max(0.0)
}

fn delayed(outcome: &Outcome) -> Option<Delayed> {
    let (click_us, conversion_us) = outcome.click_us.zip(outcome.conversion_us)?;
    let delay = (conversion_us - click_us) as f64 / HOUR_US;
    // At the end of a log some that come after the watermark are known.
    let counts = outcome.converted_after_click();
    counts.then(|| (delay, watched(outcome, click_us).max(delay)))
}

/// Slope of the logarithm of the likelihood of delays.
fn score(rate: f64, delays: &[Delayed]) -> f64 {
    // 1/x − 1/(e^x − 1), of which small x leave 0 of 0.
    let mean = |x: f64| match x < 1e-4 {
        true => 0.5 - x / 12.0,
        false => 1.0 / x - 1.0 / x.exp_m1(),
    };
    let terms = delays.iter();
    terms.map(|(d, e)| e * mean(rate * e) - d).sum()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::{
        collective::{CollectiveConfig, TcpGroup, testing::meet},
        table::testing,
    };

    fn us(hours: f64) -> i64 {
        (hours * HOUR_US) as i64
    }

    fn outcome(click: Option<f64>, conversion: Option<f64>, known: f64) -> Outcome {
        Outcome {
            view_us: 0,
            click_us: click.map(us),
            conversion_us: conversion.map(us),
            labels_as_of_us: us(known),
            is_final: false,
        }
    }

    /// Clicks whose conversions come after 24 hours in the mean, watched for up to 60 hours or for all of
    /// 96, within which they count; and the mean delay of those that are known.
    fn late(count: usize) -> (Examples, f64) {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut rows = testing::rows(&vec![0; count]);
        let mut delays = Vec::new();
        for outcome_of in &mut rows.outcomes {
            let delay = -24.0 * random.random::<f64>().ln();
            let is_final = random.random_bool(0.2);
            let known = if is_final {
                96.0
            } else {
                random.random_range(0.0..60.0)
            };
            let arrived = (delay <= known).then_some(1.0 + delay);
            delays.extend(arrived.map(|at| at - 1.0));
            *outcome_of = outcome(Some(1.0), arrived, 1.0 + known);
            outcome_of.is_final = is_final;
        }
        let mean = delays.iter().sum::<f64>() / delays.len() as f64;
        (rows, mean)
    }

    #[test]
    fn the_mean_delay_is_found_although_only_early_conversions_are_known() {
        let (rows, known) = late(20_000);
        let (_dir, slice) = testing::table(&rows, 3000);
        let delay = Delay::fit(&slice, &mut TcpGroup::alone()).unwrap();
        let found = delay.mean_hours();
        assert!((found / 24.0 - 1.0).abs() < 0.05, "{found}");
        assert!(known < 18.0, "{known}");
        assert!((delay.window - 96.0).abs() < 1e-6);
    }

    #[test]
    fn any_number_of_ranks_finds_the_same() {
        let (_dir, slice) = testing::table(&late(500).0, 30);
        let alone = Delay::fit(&slice, &mut TcpGroup::alone()).unwrap();
        let found = meet(3, &CollectiveConfig::default(), |met| {
            Delay::fit(&slice, &mut TcpGroup::connect(&met, "rows").unwrap()).unwrap()
        });
        assert_eq!(found, vec![alone; 3]);
    }

    #[test]
    fn rows_without_conversions_are_refused() {
        let (_dir, slice) = testing::table(&testing::rows(&[1, 2, 3]), 2);
        let refused = Delay::fit(&slice, &mut TcpGroup::alone());
        assert!(
            matches!(refused, Err(TrainError::NoConversions { rows: 3 })),
            "{refused:?}"
        );
    }

    #[test]
    fn more_is_known_the_longer_a_row_is_watched_and_all_at_the_end_of_its_window() {
        let delay = Delay {
            rate: 1.0 / 24.0,
            window: 48.0,
        };
        let clicked = |known| delay.observed(&outcome(Some(1.0), None, 1.0 + known));
        assert_eq!(clicked(0.0), 0.0);
        let wanted = (1.0 - (-0.5f64).exp()) / (1.0 - (-2.0f64).exp());
        assert!((f64::from(clicked(12.0)) - wanted).abs() < 1e-6);
        assert_eq!([clicked(48.0), clicked(60.0)], [1.0, 1.0]);
        // Without a click the wait begins with the view.
        assert_eq!(delay.observed(&outcome(None, None, 12.0)), clicked(12.0));
        let final_at_once = Outcome {
            is_final: true,
            ..outcome(Some(1.0), None, 1.0)
        };
        assert_eq!(delay.observed(&final_at_once), 1.0);
        let endless = Delay {
            window: f64::INFINITY,
            ..delay
        };
        let wanted = 1.0 - (-0.5f64).exp();
        let found = endless.observed(&outcome(Some(1.0), None, 13.0));
        assert!((f64::from(found) - wanted).abs() < 1e-6);
    }

    #[test]
    fn a_conversion_is_a_label_if_it_came_after_a_click_and_as_far_as_it_is_credited() {
        let mut rows = testing::rows(&[0; 4]);
        rows.clicks = vec![0.0, 1.0, 1.0, 1.0];
        rows.conversions = vec![1.0, 1.0, 0.5, 0.0];
        rows.outcomes = vec![
            outcome(None, Some(2.0), 9.0),
            outcome(Some(3.0), Some(2.0), 9.0),
            outcome(Some(1.0), Some(2.0), 9.0),
            outcome(Some(1.0), None, 9.0),
        ];
        let delay = Delay {
            rate: 0.1,
            window: 100.0,
        };
        let (labels, observed) = delay.labels(&rows);
        assert_eq!(labels, [0.0, 0.0, 1.0, 0.0, 1.0, 0.5, 1.0, 0.0]);
        assert_eq!(observed.len(), 4);
        assert!(observed[2] == observed[3] && observed[1] < observed[2]);
    }
}
