//! The catalogue as the stages use it: ads with numbers, and a bitmap per targeting value.
//!
//! Ads are numbered in the order of their creative ids, so an order by number is an order by id.
//! `Ads::eligible` says with a few bitmap operations what [`Targeting::admits`] says ad by ad.

use std::{cmp::Reverse, collections::BTreeMap};

use features::{AdFacts, FeatureSet, facts::ad_facts};
use roaring::RoaringBitmap;
use wire::catalogue::{Campaign, Catalogue, Creative, Experience, Scene, Targeting};

/// One creative that can be sold.
#[derive(Debug, Clone)]
pub struct Ad {
    /// The creative.
    pub creative: Creative,
    /// Number of its campaign.
    pub campaign: u32,
    /// Its facts, bound to the bundle's features; absent without features.
    pub facts: Option<AdFacts>,
}

/// What a request must match.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// Genre of the experience.
    pub genre: &'a str,
    /// Device class.
    pub device: &'a str,
    /// Country.
    pub country: &'a str,
    /// Format of the placement; empty means any.
    pub format: &'a str,
    /// Whether the user is known to be 13 or over.
    pub is_13plus: bool,
}

/// Ads by value of one targeting attribute.
#[derive(Debug, Clone, Default)]
struct Attribute {
    /// Ads that name no value: they admit all.
    any: RoaringBitmap,
    by_value: BTreeMap<String, RoaringBitmap>,
}

impl Attribute {
    fn add(&mut self, ad: u32, values: &[String]) {
        if values.is_empty() {
            self.any.insert(ad);
        }
        for value in values {
            self.by_value.entry(value.clone()).or_default().insert(ad);
        }
    }

    fn admitted(&self, value: &str) -> RoaringBitmap {
        match self.by_value.get(value) {
            Some(named) => &self.any | named,
            None => self.any.clone(),
        }
    }
}

/// The catalogue of a bundle.
#[derive(Debug, Clone, Default)]
pub struct Ads {
    /// By number.
    pub ads: Vec<Ad>,
    /// By number, in the order of their ids.
    pub campaigns: Vec<Campaign>,
    /// Scenes by id.
    pub scenes: BTreeMap<String, Scene>,
    /// Experiences by id.
    pub experiences: BTreeMap<String, Experience>,
    /// Creatives left out: without campaign, or with a bid that is not positive.
    pub left_out: usize,
    genres: Attribute,
    devices: Attribute,
    countries: Attribute,
    formats: BTreeMap<String, RoaringBitmap>,
    adults_only: RoaringBitmap,
    by_campaign: Vec<RoaringBitmap>,
    /// Numbers of the campaigns, highest bid first, equals by id.
    campaigns_by_bid: Vec<u32>,
    campaign_numbers: BTreeMap<String, u32>,
}

impl Ads {
    /// Numbers the ads of a catalogue and binds their facts.
    pub fn new(catalogue: Catalogue, features: Option<&FeatureSet>) -> Self {
        let Catalogue {
            campaigns,
            creatives,
            experiences,
            scenes,
        } = catalogue;
        let mut built = Self {
            scenes,
            experiences,
            ..Self::default()
        };
        for (number, (id, campaign)) in campaigns.into_iter().enumerate() {
            built.campaign_numbers.insert(id, number as u32);
            built.campaigns.push(campaign);
            built.by_campaign.push(RoaringBitmap::new());
        }
        for creative in creatives.into_values() {
            built.add(creative, features);
        }
        built.campaigns_by_bid = (0..built.campaigns.len() as u32).collect();
        let bid = |number: &u32| Reverse(built.campaigns[*number as usize].bid_micros);
        built.campaigns_by_bid.sort_by_key(bid);
        built
    }

    fn add(&mut self, creative: Creative, features: Option<&FeatureSet>) {
        let Some(&number) = self.campaign_numbers.get(&creative.campaign_id) else {
            self.left_out += 1;
            return;
        };
        let campaign = &self.campaigns[number as usize];
        if campaign.bid_micros <= 0 {
            self.left_out += 1;
            return;
        }
        let ad = self.ads.len() as u32;
        let Targeting {
            genres,
            devices,
            countries,
            adults_only,
        } = &campaign.targeting;
        self.genres.add(ad, genres);
        self.devices.add(ad, devices);
        self.countries.add(ad, countries);
        if *adults_only {
            self.adults_only.insert(ad);
        }
        self.formats
            .entry(creative.format.clone())
            .or_default()
            .insert(ad);
        self.by_campaign[number as usize].insert(ad);
        let facts = features.map(|set| set.bind_ad(&ad_facts(&creative, campaign)));
        self.ads.push(Ad {
            creative,
            campaign: number,
            facts,
        });
    }

    /// One ad.
    pub fn ad(&self, number: u32) -> &Ad {
        &self.ads[number as usize]
    }

    /// The campaign of an ad.
    pub fn campaign_of(&self, ad: u32) -> &Campaign {
        &self.campaigns[self.ad(ad).campaign as usize]
    }

    /// The ads that a request may see, without those of `closed` campaigns: by id, with the
    /// budget that was too small. A campaign with a larger budget by now is open again.
    pub fn eligible(&self, query: &Query<'_>, closed: &BTreeMap<String, i64>) -> RoaringBitmap {
        let mut eligible = self.genres.admitted(query.genre);
        eligible &= self.devices.admitted(query.device);
        eligible &= self.countries.admitted(query.country);
        if !query.format.is_empty() {
            match self.formats.get(query.format) {
                Some(of_format) => eligible &= of_format,
                None => eligible.clear(),
            }
        }
        if !query.is_13plus {
            eligible -= &self.adults_only;
        }
        for (campaign_id, budget) in closed {
            if let Some(&number) = self.campaign_numbers.get(campaign_id)
                && self.campaigns[number as usize].daily_budget_micros <= *budget
            {
                eligible -= &self.by_campaign[number as usize];
            }
        }
        eligible
    }

    /// Eligible ads, the first `per_campaign` of each campaign: campaigns that ask for this genre
    /// by name come first, then higher bids, then lower ids.
    pub fn by_rules<'a>(
        &'a self,
        genre: &'a str,
        eligible: &'a RoaringBitmap,
        per_campaign: usize,
    ) -> impl Iterator<Item = u32> + 'a {
        let asks = move |number: &u32| {
            let genres = &self.campaigns[*number as usize].targeting.genres;
            genres.iter().any(|asked| asked == genre)
        };
        let by_bid = || self.campaigns_by_bid.iter().copied();
        let order = by_bid().filter(asks);
        let order = order.chain(by_bid().filter(move |number| !asks(number)));
        order.flat_map(move |number| {
            let ads = eligible & &self.by_campaign[number as usize];
            ads.into_iter().take(per_campaign)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn campaign(id: usize, targeting: Targeting, bid_micros: i64) -> Campaign {
        Campaign {
            campaign_id: format!("c{id:03}"),
            advertiser_id: "a".into(),
            bid_micros,
            daily_budget_micros: 100,
            targeting,
        }
    }

    fn creative(id: usize, campaign: usize, format: &str) -> Creative {
        Creative {
            creative_id: format!("k{id:03}"),
            campaign_id: format!("c{campaign:03}"),
            category: "shoe".into(),
            title: String::new(),
            format: format.into(),
            picture_digest: String::new(),
            style: vec![],
            first_seen_us: 0,
            attributes: BTreeMap::new(),
        }
    }

    fn catalogue(targetings: Vec<Targeting>) -> Catalogue {
        let mut catalogue = Catalogue::default();
        for (at, targeting) in targetings.into_iter().enumerate() {
            let format = ["billboard", "portal"][at % 2];
            let creative = creative(at, at, format);
            let campaign = campaign(at, targeting, 10);
            catalogue
                .creatives
                .insert(creative.creative_id.clone(), creative);
            catalogue
                .campaigns
                .insert(campaign.campaign_id.clone(), campaign);
        }
        catalogue
    }

    fn values() -> impl Strategy<Value = Vec<String>> {
        let value = prop::sample::select(vec!["a", "b", "c"]);
        prop::collection::vec(value.prop_map(str::to_owned), 0..3)
    }

    proptest! {
        #[test]
        fn bitmaps_admit_what_targeting_admits(
            targetings in prop::collection::vec((values(), values(), values(), any::<bool>()), 0..20),
            genre in "[a-d]?",
            device in "[a-d]?",
            country in "[a-d]?",
            is_13plus in any::<bool>(),
        ) {
            let targetings = targetings.into_iter().map(|(genres, devices, countries, adults_only)| {
                Targeting { genres, devices, countries, adults_only }
            });
            let ads = Ads::new(catalogue(targetings.collect()), None);
            let query = Query { genre: &genre, device: &device, country: &country, format: "", is_13plus };
            let found: Vec<u32> = ads.eligible(&query, &BTreeMap::new()).iter().collect();
            let admitted = (0..ads.ads.len() as u32).filter(|ad| {
                ads.campaign_of(*ad).targeting.admits(&genre, &device, &country, is_13plus)
            });
            prop_assert_eq!(found, admitted.collect::<Vec<_>>());
        }
    }

    const ANY: Query<'_> = Query {
        genre: "a",
        device: "a",
        country: "a",
        format: "",
        is_13plus: true,
    };

    #[test]
    fn a_closed_campaign_is_left_out_until_its_budget_grows() {
        let ads = Ads::new(catalogue(vec![Targeting::default(); 2]), None);
        let eligible = |budget| {
            let closed = BTreeMap::from([("c000".to_owned(), budget)]);
            ads.eligible(&ANY, &closed).iter().collect::<Vec<_>>()
        };
        assert_eq!(eligible(100), [1]);
        assert_eq!(eligible(99), [0, 1]);
    }

    #[test]
    fn rules_order_campaigns_by_genre_then_bid_and_take_a_few_ads_of_each() {
        let asking = Targeting {
            genres: vec!["a".into()],
            ..Targeting::default()
        };
        let mut catalogue = catalogue(vec![
            Targeting::default(),
            Targeting::default(),
            asking.clone(),
            asking,
        ]);
        for (id, campaign) in [(4, 1), (5, 1), (6, 1)] {
            let creative = creative(id, campaign, "portal");
            catalogue
                .creatives
                .insert(creative.creative_id.clone(), creative);
        }
        for (id, bid_micros) in [("c001", 30), ("c003", 20)] {
            catalogue.campaigns.get_mut(id).unwrap().bid_micros = bid_micros;
        }
        let ads = Ads::new(catalogue, None);
        let eligible = RoaringBitmap::from_iter([0, 2, 3, 4, 5, 6]);
        let order: Vec<u32> = ads.by_rules("a", &eligible, 2).collect();
        assert_eq!(order, [3, 2, 4, 5, 0]);
    }

    #[test]
    fn a_format_admits_its_own_creatives_only() {
        let ads = Ads::new(catalogue(vec![Targeting::default(); 2]), None);
        let eligible = |format| {
            let query = Query { format, ..ANY };
            ads.eligible(&query, &BTreeMap::new()).len()
        };
        assert_eq!((eligible("portal"), eligible("hologram")), (1, 0));
    }

    #[test]
    fn creatives_without_campaign_or_with_a_negative_bid_are_left_out_and_counted() {
        let mut catalogue = catalogue(vec![Targeting::default()]);
        catalogue
            .campaigns
            .insert("c001".into(), campaign(1, Targeting::default(), -7));
        for id in [1, 2] {
            let creative = creative(id, id, "portal");
            catalogue
                .creatives
                .insert(creative.creative_id.clone(), creative);
        }
        let ads = Ads::new(catalogue, None);
        assert_eq!((ads.ads.len(), ads.left_out), (1, 2));
    }
}
