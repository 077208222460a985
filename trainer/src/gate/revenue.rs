//! What a model would have earned on the rows: a counterfactual estimate from the prices that were paid.
//!
//! The server sells by a second price (Edelman, Ostrovsky, Schwarz: "Internet Advertising and the
//! Generalized Second-Price Auction", AER 2007): ads stand in the order of bid × pCTR, and a click costs
//! the least bid that keeps the place. So the price of a row tells what the next-best ad was worth, and
//! with that the auction of the first two can be held again with another pCTR. That logged decisions can
//! be replayed under another rule: Bottou et al., "Counterfactual Reasoning and Learning Systems: The
//! Example of Computational Advertising", JMLR 14, 2013.
//!
//! Of a row with bid b, price p of a click, served pCTR s and click y, and a model's pCTR q:
//!
//! - The next-best ad was worth r = p·s an impression. Where the price is the reserve, r is only known to
//!   be *at most* that: nobody is taken to have asked for the place, r = 0, if the reserve is known.
//! - b·q ≥ r: the ad keeps its place. A click costs min(b, max(reserve, r / q)), and whether there was one
//!   is known: the row earns y times that.
//! - b·q < r: the next-best ad takes the place, and pays what it has to beat. Nobody knows whether it would
//!   have been clicked: the row earns b·q, by the model's own word.
//!
//! With q = s in all rows that is what the log earned.
//!
//! What it does not see, and so takes to be unchanged:
//!
//! - Ads that were not among the first two. A third one may be worth more by the model than both.
//! - The next-best ad's pCTR, which stays that of the model that served. A model that is too low by one
//!   factor in all rows changes no auction, and seems to raise prices: it is to be read beside the
//!   calibration ratio. A model that is too high seems to lower them.
//! - A floor of the placement. Where the price is one, r is at most p·s, as with a reserve that is not known.
//! - Further slots. An ad that loses its place is taken to be gone, not to stand in the next one.
//! - Bids, budgets and people, who may answer to other ads otherwise. Prices are not rounded up.
//!
//! In the simulated auctions of the tests the ratio of calibrated models is within 0.03 of the true one without
//! a reserve, and with one that is said from 0.07 too low to 0.02 too high.

use serde::{Deserialize, Serialize};

use super::measure::Interval;
use crate::table::{Auction, Examples};

/// Impressions that revenue is counted for.
const MILLE: f64 = 1000.0;

/// Millionths of the account's currency in one.
const MICROS: f64 = 1e6;

/// What models would have earned, in the account's currency for a thousand impressions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Revenue {
    /// Rows whose auction is known; all else here is of these.
    pub rows: usize,
    /// What was earned: prices of the clicks that there were.
    pub observed: Interval,
    /// The model's.
    pub model: Earned,
    /// That of the model it is compared with.
    pub against: Option<Earned>,
    /// The model's revenue over that of the other, on the same draws.
    pub ratio: Option<Interval>,
}

/// What one model would have earned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Earned {
    /// In the account's currency for a thousand impressions.
    pub per_mille: Interval,
    /// Over what was earned, on the same draws.
    pub over_observed: Interval,
    /// Share of the impressions whose ad keeps its place. The rest is by the model's own word.
    pub kept: f64,
}

/// Estimates of every row, made once, to be added up with many weights.
pub struct Estimates {
    /// Rows whose auction is known.
    rows: Vec<usize>,
    /// What each of them earned, in millionths.
    observed: Vec<f64>,
    models: Vec<Vec<Row>>,
}

/// What a model would have earned with an impression.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    /// In millionths of the account's currency.
    micros: f64,
    /// Whether the ad keeps its place.
    kept: bool,
}

/// Sums over rows with some weights, for a thousand impressions.
pub struct Totals {
    observed: f64,
    models: Vec<f64>,
}

impl Row {
    fn of(auction: &Auction, click: f64, pctr: f64, reserve: f64) -> Self {
        let (bid, price) = (auction.bid_micros as f64, auction.price_micros as f64);
        let next_best = match price <= reserve {
            true => 0.0,
            false => price * f64::from(auction.pctr),
        };
        let value = bid * pctr;
        if value < next_best {
            return Self {
                micros: value,
                kept: false,
            };
        }
        // No pCTR of 0 is worth more than something.
        let least = match next_best > 0.0 {
            true => next_best / pctr,
            false => 0.0,
        };
        Self {
            micros: click * least.max(reserve).min(bid),
            kept: true,
        }
    }
}

/// Whether a second-price auction can have ended like this.
fn is_sale(auction: &Auction) -> bool {
    auction.bid_micros > 0
        && (0..=auction.bid_micros).contains(&auction.price_micros)
        && auction.pctr > 0.0
        && auction.pctr <= 1.0
}

impl Estimates {
    /// Of the models' scores of all rows; none if no row's auction is known.
    pub fn of(rows: &Examples, scores: &[&[f32]], reserve_cpc_micros: u64) -> Option<Self> {
        let auctions = rows.auctions.iter().enumerate();
        let known = auctions.filter_map(|(row, auction)| Some((row, auction.filter(is_sale)?)));
        let known: Vec<(usize, Auction)> = known.collect();
        if known.is_empty() {
            return None;
        }
        let click = |row: usize| f64::from(rows.clicks[row]);
        let reserve = reserve_cpc_micros as f64;
        let of_model = |scores: &&[f32]| -> Vec<Row> {
            let of_row = |(row, auction): &(usize, Auction)| {
                Row::of(auction, click(*row), f64::from(scores[*row]), reserve)
            };
            known.iter().map(of_row).collect()
        };
        let paid = |(row, auction): &(usize, Auction)| click(*row) * auction.price_micros as f64;
        Some(Self {
            observed: known.iter().map(paid).collect(),
            models: scores.iter().map(of_model).collect(),
            rows: known.into_iter().map(|(row, _)| row).collect(),
        })
    }

    /// Revenue by weights of all rows.
    pub fn totals(&self, weights: &[f64]) -> Totals {
        let per_mille = |mean_micros: f64| mean_micros * MILLE / MICROS;
        let of_model = |rows: &Vec<Row>| {
            let micros = rows.iter().map(|row| row.micros);
            per_mille(self.mean(weights, micros))
        };
        Totals {
            observed: per_mille(self.mean(weights, self.observed.iter().copied())),
            models: self.models.iter().map(of_model).collect(),
        }
    }

    /// Revenue by the rows' own weights, with intervals by those of replicates.
    pub fn revenue(&self, weights: &[f64], replicates: &[Totals], confidence: f64) -> Revenue {
        let point = self.totals(weights);
        let interval = |of: &dyn Fn(&Totals) -> f64| {
            Interval::new(of(&point), replicates.iter().map(of).collect(), confidence)
        };
        let earned = |at: usize| {
            let kept = self.models[at]
                .iter()
                .map(|row| f64::from(u8::from(row.kept)));
            Earned {
                per_mille: interval(&|totals| totals.models[at]),
                over_observed: interval(&|totals| totals.models[at] / totals.observed),
                kept: self.mean(weights, kept),
            }
        };
        let compared = self.models.len() > 1;
        Revenue {
            rows: self.rows.len(),
            observed: interval(&|totals| totals.observed),
            model: earned(0),
            against: compared.then(|| earned(1)),
            ratio: compared.then(|| interval(&|totals| totals.models[0] / totals.models[1])),
        }
    }

    /// The mean over rows whose auction is known.
    fn mean(&self, weights: &[f64], values: impl Iterator<Item = f64>) -> f64 {
        let (mut sum, mut total) = (0.0, 0.0);
        for (row, value) in self.rows.iter().zip(values) {
            sum += weights[*row] * value;
            total += weights[*row];
        }
        sum / total
    }
}

#[cfg(test)]
mod tests;
