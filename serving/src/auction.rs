//! The auction: who gets the slots, and what a click costs.
//!
//! Generalised second price (Edelman, Ostrovsky, Schwarz: "Internet Advertising and the
//! Generalized Second-Price Auction", AER 2007) with quality weights: ads stand in the order of
//! eCPM = bid × pCTR, and each pays per click the least bid that would have kept its place. With
//! one slot that is the second-price auction. A page shows one ad of each campaign.
//!
//! A pure function of its arguments, so that every decision can be replayed from the log.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Impressions that an eCPM counts.
const MILLE: f64 = 1_000.0;

/// What the seller asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuctionConfig {
    /// Least price of a click, in millionths of the account's currency. Higher: lone bidders pay
    /// more, and more slots stay empty.
    pub reserve_cpc_micros: i64,
    /// Most slots that one request may ask for.
    pub max_slots: u32,
}

impl Default for AuctionConfig {
    fn default() -> Self {
        Self {
            reserve_cpc_micros: 10_000,
            max_slots: 16,
        }
    }
}

/// One ad that bids.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bidder {
    /// The ad's number in the bundle; ads are numbered in the order of their creative ids.
    pub ad: u32,
    /// Its campaign's number.
    pub campaign: u32,
    /// Most that a click may cost, in millionths of the account's currency.
    pub bid_micros: i64,
    /// Predicted click probability.
    pub pctr: f32,
}

/// What one page sells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// How many ads fit.
    pub slots: usize,
    /// Least price of a thousand impressions, in millionths of the account's currency.
    pub floor_ecpm_micros: i64,
    /// Least price of a click, in millionths of the account's currency.
    pub reserve_cpc_micros: i64,
}

/// One slot, sold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sale {
    /// Who bought it.
    pub bidder: Bidder,
    /// Value of a thousand impressions, in millionths of the account's currency.
    pub ecpm_micros: f64,
    /// What a click costs, in millionths of the account's currency; at most the bid.
    pub price_micros: i64,
}

impl Sale {
    /// What the impression is expected to cost: price × pCTR, rounded up.
    pub fn expected_cost_micros(&self) -> i64 {
        (self.price_micros as f64 * f64::from(self.bidder.pctr)).ceil() as i64
    }
}

/// Value of a thousand impressions to a bidder.
fn ecpm_micros(bidder: &Bidder) -> f64 {
    bidder.bid_micros as f64 * f64::from(bidder.pctr) * MILLE
}

/// Sells the slots of a page, best first. Bids below the reserve or below the floor, and scores
/// that are no probability above zero, take no part. Equal eCPM stands by creative id.
pub fn sell(bidders: &[Bidder], page: &Page) -> Vec<Sale> {
    let floor = page.floor_ecpm_micros.max(0) as f64;
    let takes_part = |bidder: &Bidder| {
        bidder.pctr > 0.0
            && bidder.pctr <= 1.0
            && bidder.bid_micros > 0
            && bidder.bid_micros >= page.reserve_cpc_micros
            && ecpm_micros(bidder) >= floor
    };
    let mut order: Vec<Bidder> = bidders.iter().copied().filter(takes_part).collect();
    order.sort_by(|a, b| {
        ecpm_micros(b)
            .total_cmp(&ecpm_micros(a))
            .then(a.ad.cmp(&b.ad))
    });
    let mut seen = BTreeSet::new();
    order.retain(|bidder| seen.insert(bidder.campaign));

    let runners_up = order.iter().skip(1).map(Some).chain([None]);
    order
        .iter()
        .zip(runners_up)
        .take(page.slots)
        .map(|(winner, next)| {
            let to_beat = next.map_or(0.0, ecpm_micros).max(floor);
            Sale {
                bidder: *winner,
                ecpm_micros: ecpm_micros(winner),
                price_micros: price(winner, to_beat, page.reserve_cpc_micros),
            }
        })
        .collect()
}

/// The least bid that still reaches `to_beat`, rounded up, between the reserve and the bid.
fn price(winner: &Bidder, to_beat: f64, reserve: i64) -> i64 {
    let least = (to_beat / (f64::from(winner.pctr) * MILLE)).ceil();
    (least as i64).max(reserve).min(winner.bid_micros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bidder(ad: u32, campaign: u32, bid_micros: i64, pctr: f32) -> Bidder {
        Bidder {
            ad,
            campaign,
            bid_micros,
            pctr,
        }
    }

    fn page(slots: usize) -> Page {
        Page {
            slots,
            floor_ecpm_micros: 0,
            reserve_cpc_micros: 0,
        }
    }

    fn check(bidders: &[Bidder], page: Page, expected: &[(u32, i64)]) {
        let sold: Vec<_> = sell(bidders, &page)
            .iter()
            .map(|sale| (sale.bidder.ad, sale.price_micros))
            .collect();
        assert_eq!(sold, expected);
    }

    #[test]
    fn the_winner_pays_what_keeps_it_ahead_of_the_runner_up() {
        // eCPM 100,000 against 60,000: a click of ad 0 costs 60,000 / (0.1 × 1000) = 600.
        let bidders = [bidder(0, 0, 1_000, 0.1), bidder(1, 1, 300, 0.2)];
        check(&bidders, page(1), &[(0, 600)]);
    }

    #[test]
    fn a_lone_bidder_pays_the_floor_or_the_reserve() {
        let bidders = [bidder(0, 0, 1_000, 0.1)];
        check(&bidders, page(3), &[(0, 0)]);
        let floor = Page {
            floor_ecpm_micros: 20_001,
            ..page(1)
        };
        check(&bidders, floor, &[(0, 201)]);
        let reserve = Page {
            reserve_cpc_micros: 700,
            ..page(1)
        };
        check(&bidders, reserve, &[(0, 700)]);
    }

    #[test]
    fn a_campaign_takes_one_slot_and_does_not_bid_against_itself() {
        let bidders = [
            bidder(0, 7, 1_000, 0.1),
            bidder(1, 7, 1_000, 0.09),
            bidder(2, 8, 500, 0.1),
        ];
        check(&bidders, page(3), &[(0, 500), (2, 0)]);
    }

    #[test]
    fn equal_bidders_stand_by_creative_id() {
        let bidders = [bidder(4, 4, 100, 0.5), bidder(3, 3, 100, 0.5)];
        check(&bidders, page(2), &[(3, 100), (4, 0)]);
    }

    #[test]
    fn bids_and_scores_that_are_no_offer_take_no_part() {
        let bidders = [
            bidder(0, 0, -5, 0.5),
            bidder(1, 1, 100, f32::NAN),
            bidder(2, 2, 100, 0.0),
            bidder(3, 3, 100, 1.5),
            bidder(4, 4, 0, 0.5),
        ];
        check(&bidders, page(5), &[]);
    }

    fn bidders() -> impl Strategy<Value = Vec<Bidder>> {
        let one = (0u32..10, -10i64..3_000_000, 0.0f32..1.0);
        prop::collection::vec(one, 0..40).prop_map(|many| {
            let numbered = many.into_iter().enumerate();
            numbered
                .map(|(ad, (campaign, bid, pctr))| bidder(ad as u32, campaign, bid, pctr))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn prices_stay_between_floor_and_bid_and_places_follow_value(
            bidders in bidders(),
            slots in 0usize..6,
            floor_ecpm_micros in 0i64..200_000_000,
            reserve_cpc_micros in 0i64..500_000,
        ) {
            let page = Page { slots, floor_ecpm_micros, reserve_cpc_micros };
            let sales = sell(&bidders, &page);
            prop_assert!(sales.len() <= slots);
            for sale in &sales {
                prop_assert!(sale.price_micros <= sale.bidder.bid_micros);
                prop_assert!(sale.price_micros >= reserve_cpc_micros);
                prop_assert!(sale.ecpm_micros >= floor_ecpm_micros as f64);
                // Up to rounding, a thousand impressions at this price bring the floor.
                let brings = sale.price_micros as f64 * f64::from(sale.bidder.pctr) * MILLE;
                prop_assert!(brings >= floor_ecpm_micros as f64 * (1.0 - 1e-9));
            }
            for pair in sales.windows(2) {
                prop_assert!(pair[0].ecpm_micros >= pair[1].ecpm_micros);
                prop_assert_ne!(pair[0].bidder.campaign, pair[1].bidder.campaign);
                // The one below would not pay more per thousand than the one above does.
                let brings = pair[0].price_micros as f64 * f64::from(pair[0].bidder.pctr) * MILLE;
                prop_assert!(brings >= pair[1].ecpm_micros * (1.0 - 1e-9));
            }
        }

        #[test]
        fn the_order_of_bidders_changes_nothing(bidders in bidders(), slots in 0usize..6) {
            let mut reversed = bidders.clone();
            reversed.reverse();
            prop_assert_eq!(sell(&bidders, &page(slots)), sell(&reversed, &page(slots)));
        }

        #[test]
        fn a_loser_never_held_an_offer_above_a_winner(bidders in bidders(), slots in 1usize..6) {
            let sales = sell(&bidders, &page(slots));
            let won: BTreeSet<u32> = sales.iter().map(|sale| sale.bidder.campaign).collect();
            if let Some(last) = sales.last() {
                for loser in bidders.iter().filter(|bidder| !won.contains(&bidder.campaign)) {
                    prop_assert!(sales.len() < slots || ecpm_micros(loser) <= last.ecpm_micros);
                }
            }
        }
    }
}
