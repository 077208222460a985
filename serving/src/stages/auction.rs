//! Winners and prices, within the campaigns' budgets.

use std::collections::BTreeSet;

use super::{Ranked, Scope};
use crate::{
    auction::{Bidder, Page, Sale, sell},
    budgets::Cost,
};

/// One sold slot and the candidate that bought it.
#[derive(Debug, Clone, Copy)]
pub struct Auctioned {
    /// Its place among the candidates.
    pub candidate: usize,
    /// What it pays.
    pub sale: Sale,
}

/// Sells the slots. A winner reserves its expected cost of its campaign's budget; if that does
/// not fit, the campaign is out and the slots are sold anew.
pub fn auction(scope: &Scope<'_>, candidates: &[Ranked]) -> Vec<Auctioned> {
    let page = Page {
        slots: scope.request.slots,
        floor_ecpm_micros: scope.request.floor_ecpm_micros,
        reserve_cpc_micros: scope.config.auction.reserve_cpc_micros,
    };
    let mut bidders: Vec<Bidder> = candidates
        .iter()
        .map(|candidate| Bidder {
            ad: candidate.ad,
            campaign: scope.bundle.ads.ad(candidate.ad).campaign,
            bid_micros: scope.bundle.ads.campaign_of(candidate.ad).bid_micros,
            pctr: candidate.pctr,
        })
        .collect();
    let sales = loop {
        let sales = sell(&bidders, &page);
        match reserve_all(scope, &sales) {
            Ok(()) => break sales,
            // Each turn takes one campaign out, so there are at most as many turns as campaigns.
            Err(campaigns) => bidders.retain(|bidder| !campaigns.contains(&bidder.campaign)),
        }
    };
    let place = |ad| candidates.iter().position(|candidate| candidate.ad == ad);
    sales
        .into_iter()
        .filter_map(|sale| {
            let candidate = place(sale.bidder.ad)?;
            Some(Auctioned { candidate, sale })
        })
        .collect()
}

/// Reserves the expected cost of every sale, or nothing; tells the campaigns that cannot pay.
fn reserve_all(scope: &Scope<'_>, sales: &[Sale]) -> Result<(), BTreeSet<u32>> {
    let cost = |sale: &Sale| {
        let campaign = scope.bundle.ads.campaign_of(sale.bidder.ad);
        Cost {
            campaign_id: &campaign.campaign_id,
            daily_budget_micros: campaign.daily_budget_micros,
            micros: sale.expected_cost_micros(),
        }
    };
    let costs: Vec<Cost<'_>> = sales.iter().map(cost).collect();
    let refused = scope.budgets.reserve(&costs);
    refused.map_err(|refused| {
        refused
            .iter()
            .map(|&at| sales[at].bidder.campaign)
            .collect()
    })
}
