use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::table::testing;

fn auction(bid_micros: i64, price_micros: i64, pctr: f32) -> Auction {
    Auction {
        bid_micros,
        price_micros,
        pctr,
    }
}

/// Rows of auctions, clicks and weights.
fn rows(of: impl IntoIterator<Item = (Option<Auction>, f32, f32)>) -> Examples {
    let mut rows = Examples::empty(&testing::schema());
    for (auction, click, weight) in of {
        testing::push(&mut rows, 0.0, 0, &[], (click, weight));
        rows.auctions.push(auction);
    }
    rows
}

fn served(rows: &Examples) -> Vec<f32> {
    let pctr = |auction: &Option<Auction>| auction.map_or(0.5, |auction| auction.pctr);
    rows.auctions.iter().map(pctr).collect()
}

/// By the rows' own weights, without replicates.
fn revenue(rows: &Examples, scores: &[&[f32]], reserve_cpc_micros: u64) -> Revenue {
    let weights: Vec<f64> = rows
        .weights
        .iter()
        .map(|weight| f64::from(*weight))
        .collect();
    let estimates = Estimates::of(rows, scores, reserve_cpc_micros).unwrap();
    estimates.revenue(&weights, &[], 0.95)
}

#[test]
fn an_ad_keeps_its_place_at_the_next_best_ones_worth_or_loses_it_to_that() {
    let check = |auction, pctr, reserve, expected: (f64, bool)| {
        let row = Row::of(&auction, 1.0, pctr, reserve);
        let near = (row.micros - expected.0).abs() < 1e-9 * expected.0.max(1.0);
        assert!(near && row.kept == expected.1, "{row:?} {expected:?}");
    };
    // The next-best ad was worth 400 × 0.25 = 100 an impression.
    let sold = auction(1_000, 400, 0.25);
    check(sold, 0.25, 0.0, (400.0, true));
    check(sold, 0.5, 0.0, (200.0, true));
    check(sold, 0.5, 250.0, (250.0, true));
    check(sold, 0.125, 0.0, (800.0, true));
    check(sold, 0.0625, 0.0, (62.5, false));
    check(sold, 0.0, 0.0, (0.0, false));
    // Nobody else is known to have asked for the place.
    check(auction(1_000, 400, 0.25), 0.0625, 400.0, (400.0, true));
    check(auction(1_000, 0, 0.25), 0.0, 0.0, (0.0, true));
    // No click costs more than the bid.
    check(auction(300, 300, 0.25), 0.25, 400.0, (300.0, true));
    // Without a click a place that is kept earns nothing.
    assert_eq!(Row::of(&sold, 0.0, 0.25, 0.0).micros, 0.0);
}

proptest! {
    #[test]
    fn a_model_that_says_what_was_served_earns_what_was_earned(
        sales in prop::collection::vec(
            (1i64..3_000_000, 0.0f64..=1.0, 1e-6f32..=1.0, any::<bool>(), 1.0f32..20.0),
            1..50,
        ),
        reserve in 0i64..500_000,
    ) {
        let sold = sales.into_iter().filter(|sale| sale.0 >= reserve);
        let sold = sold.map(|(bid, share, pctr, click, weight)| {
            let price = ((bid as f64 * share) as i64).max(reserve);
            (Some(auction(bid, price, pctr)), f32::from(u8::from(click)), weight)
        });
        let rows = rows(sold);
        prop_assume!(!rows.is_empty());
        let served = served(&rows);
        for known in [0, reserve as u64] {
            let revenue = revenue(&rows, &[&served], known);
            let (estimate, observed) = (revenue.model.per_mille.value, revenue.observed.value);
            prop_assert!((estimate - observed).abs() <= 1e-9 * observed, "{estimate} {observed}");
            prop_assert_eq!(revenue.model.kept, 1.0);
        }
    }
}

#[test]
fn rows_without_a_sale_are_left_out_and_others_count_by_weight() {
    let sold = auction(1_000, 400, 0.25);
    let no_sales = [
        None,
        Some(auction(0, 0, 0.25)),
        Some(auction(1_000, 1_001, 0.25)),
        Some(auction(1_000, -1, 0.25)),
        Some(auction(1_000, 400, 0.0)),
        Some(auction(1_000, 400, 1.5)),
        Some(auction(1_000, 400, f32::NAN)),
    ];
    let others = no_sales.map(|auction| (auction, 1.0, 1.0));
    assert!(Estimates::of(&rows(others), &[&[0.5; 7]], 0).is_none());
    let none = Examples::empty(&testing::schema());
    assert!(Estimates::of(&none, &[&[]], 0).is_none());

    let sales = [(Some(sold), 1.0, 1.0), (Some(sold), 0.0, 3.0)];
    let rows = rows(others.into_iter().chain(sales));
    let found = revenue(&rows, &[&[0.5; 9], &[0.25; 9]], 0);
    // One click in four impressions: at 400, and at 200 with twice the pCTR.
    assert_eq!(found.rows, 2);
    assert_eq!(found.observed.value, 0.1);
    assert_eq!(found.model.per_mille.value, 0.05);
    assert_eq!(found.against.unwrap().per_mille.value, 0.1);
    assert_eq!(found.ratio.unwrap().value, 0.5);
}

const ADS: usize = 8;
const AUCTIONS: usize = 60_000;

/// Auctions of ads whose click probabilities are known.
struct Market {
    /// `[auctions][ads]`, the logit of a click.
    logits: Vec<[f64; ADS]>,
    /// `[auctions][ads]`, in millionths.
    bids: Vec<[f64; ADS]>,
    reserve: f64,
}

/// `[auctions][ads]`.
type Scores = Vec<[f64; ADS]>;

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

/// Of a normal distribution, by the sum of 12 uniform ones.
fn normal(random: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0
}

impl Market {
    fn new(reserve: f64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut draw = |of: &dyn Fn(f64) -> f64| -> Vec<[f64; ADS]> {
            let one = |_| std::array::from_fn(|_| of(normal(&mut random)));
            (0..AUCTIONS).map(one).collect()
        };
        Self {
            logits: draw(&|drawn| drawn - 3.0),
            bids: draw(&|drawn| (1e6 * (0.4 * drawn).exp()).ceil().max(reserve)),
            reserve,
        }
    }

    /// A model's scores: what it makes of true logits.
    fn scores(&self, mut of: impl FnMut(f64) -> f64) -> Scores {
        let auctions = self.logits.iter();
        auctions.map(|ads| ads.map(&mut of)).collect()
    }

    /// The true probabilities with noise in the logits.
    fn noisy(&self, noise: f64, seed: u64) -> Scores {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        self.scores(|logit| sigmoid(logit + noise * normal(&mut random)))
    }

    /// Who wins an auction by scores, and the price of a click.
    fn sell(&self, at: usize, scores: &[f64; ADS]) -> (usize, f64) {
        let bids = &self.bids[at];
        let value = |ad: &usize| bids[*ad] * scores[*ad];
        let mut order: Vec<usize> = (0..ADS).collect();
        order.sort_by(|one, other| value(other).total_cmp(&value(one)));
        let least = (value(&order[1]) / scores[order[0]]).ceil();
        (order[0], least.max(self.reserve).min(bids[order[0]]))
    }

    /// Revenue to expect when auctions are held by scores.
    fn brings(&self, scores: &Scores) -> f64 {
        let of = |(at, scores): (usize, &[f64; ADS])| {
            let (winner, price) = self.sell(at, scores);
            sigmoid(self.logits[at][winner]) * price
        };
        scores.iter().enumerate().map(of).sum()
    }

    /// Estimated and true revenue of a model over that of the one that served.
    fn ratios(&self, served: &Scores, model: &Scores) -> (f64, f64) {
        let mut random = ChaCha8Rng::seed_from_u64(6);
        let mut scores = Vec::new();
        let sold = served.iter().enumerate().map(|(at, of_served)| {
            let (winner, price) = self.sell(at, of_served);
            scores.push(model[at][winner] as f32);
            let click = random.random_bool(sigmoid(self.logits[at][winner]));
            let bid = self.bids[at][winner] as i64;
            let sold = auction(bid, price as i64, of_served[winner] as f32);
            (Some(sold), f32::from(u8::from(click)), 1.0)
        });
        let rows = rows(sold);
        let estimate = revenue(&rows, &[&scores], self.reserve as u64);
        let truth = self.brings(model) / self.brings(served);
        (estimate.model.over_observed.value, truth)
    }
}

#[test]
fn the_estimate_of_a_calibrated_model_is_near_what_its_auctions_bring() {
    let market = Market::new(0.0);
    let served = market.noisy(0.5, 1);
    let ratios = |noise, seed| market.ratios(&served, &market.noisy(noise, seed));
    let (best, better, alike, worse) = (
        ratios(0.0, 2),
        ratios(0.25, 3),
        ratios(0.5, 4),
        ratios(1.0, 7),
    );
    for (estimate, truth) in [best, better, alike, worse] {
        assert!((estimate - truth).abs() < 0.03, "{estimate} {truth}");
    }
    assert!(best.0 > better.0 && better.0 > 1.03, "{best:?} {better:?}");
    assert!((alike.0 - 1.0).abs() < 0.03, "{alike:?}");
    assert!(worse.0 < 0.9, "{worse:?}");
}

#[test]
fn with_a_reserve_that_is_known_it_is_rather_too_low() {
    let market = Market::new(6e5);
    let served = market.noisy(0.5, 1);
    for (noise, seed) in [(0.0, 2), (0.25, 3), (0.5, 4)] {
        let (estimate, truth) = market.ratios(&served, &market.noisy(noise, seed));
        assert!(
            estimate < truth + 0.02 && estimate > truth - 0.07,
            "{estimate} {truth}"
        );
    }
}

#[test]
fn an_overconfident_model_loses() {
    let market = Market::new(0.0);
    let served = market.noisy(0.5, 1);
    let sharp = market.scores(|logit| sigmoid(3.0 * (logit + 3.0) - 3.0));
    let high = market.scores(|logit| (3.0 * sigmoid(logit)).min(1.0));
    for model in [sharp, high] {
        let (estimate, _) = market.ratios(&served, &model);
        assert!(estimate < 0.7, "{estimate}");
    }
}

/// What the estimate cannot see, and calibration says.
#[test]
fn a_model_that_is_too_low_throughout_seems_to_earn_more_than_it_would() {
    let market = Market::new(0.0);
    let served = market.noisy(0.5, 1);
    let low = served.iter().map(|ads| ads.map(|score| 0.75 * score));
    let (estimate, truth) = market.ratios(&served, &low.collect());
    assert!((truth - 1.0).abs() < 1e-3, "{truth}");
    assert!((1.15..1.25).contains(&estimate), "{estimate}");
}
