//! The catalogue as change events make it, and each ad's facts for features.
//!
//! What was removed stays known: events about it may still be on their way. The *live* catalogue
//! is what serving may choose from: without what was removed, and without creatives whose
//! campaign has not come yet. Those are kept, and go live when it comes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use features::{AdFacts, FeatureSet, facts};
use serde::{Deserialize, Serialize};
use wire::{
    catalogue::{Campaign, Catalogue, Creative, Experience, Pictures, Scene, Targeting},
    events::{CampaignChanged, CreativeChanged, ExperienceChanged, event::Payload},
};

use super::{
    picture::{self, PictureFacts},
    refusal::Refusal,
};

/// Campaigns, creatives, experiences and scenes, with removed ones remembered.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Ads {
    known: Catalogue,
    removed_campaigns: BTreeSet<String>,
    removed_creatives: BTreeSet<String>,
    /// Event time of the last change applied: one that was delayed does not undo it.
    changed_us: BTreeMap<(What, String), i64>,
    /// Creatives of each campaign.
    #[serde(skip)]
    by_campaign: BTreeMap<String, BTreeSet<String>>,
    /// Facts of the creatives whose campaign is known.
    #[serde(skip)]
    facts: HashMap<String, AdFacts>,
    /// Pictures that came since they were last taken.
    #[serde(skip)]
    new_pictures: Pictures,
}

/// What a catalogue change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum What {
    Campaign,
    Creative,
    Experience,
}

impl What {
    /// What a payload changes, if it is a catalogue change.
    pub(crate) fn of(payload: &Payload) -> Option<(Self, String)> {
        match payload {
            Payload::CampaignChanged(it) => Some((Self::Campaign, it.campaign_id.clone())),
            Payload::CreativeChanged(it) => Some((Self::Creative, it.creative_id.clone())),
            Payload::ExperienceChanged(it) => Some((Self::Experience, it.experience_id.clone())),
            _ => None,
        }
    }
}

impl Ads {
    /// Whether a newer change of the same thing was applied already.
    pub(crate) fn is_stale(&self, what: What, id: &str, event_time_us: i64) -> bool {
        let newest = self.changed_us.get(&(what, id.to_owned()));
        newest.is_some_and(|newest| *newest > event_time_us)
    }

    /// Remembers when the last change was made.
    pub(crate) fn changed(&mut self, what: What, id: String, event_time_us: i64) {
        self.changed_us.insert((what, id), event_time_us);
    }

    /// Makes what is not stored, after reading from a state.
    pub(crate) fn restore(&mut self, set: &FeatureSet) {
        for creative in self.known.creatives.values() {
            self.by_campaign
                .entry(creative.campaign_id.clone())
                .or_default()
                .insert(creative.creative_id.clone());
        }
        let ids: Vec<String> = self.known.creatives.keys().cloned().collect();
        ids.iter().for_each(|id| self.bind(set, id));
    }

    pub(crate) fn change_campaign(&mut self, set: &FeatureSet, event: &CampaignChanged) {
        let campaign_id = event.campaign_id.clone();
        if event.removed {
            self.removed_campaigns.insert(campaign_id);
            return;
        }
        self.removed_campaigns.remove(&campaign_id);
        let targeting = event.targeting.clone().unwrap_or_default();
        let campaign = Campaign {
            campaign_id: campaign_id.clone(),
            advertiser_id: event.advertiser_id.clone(),
            bid_micros: event.bid_micros,
            daily_budget_micros: event.daily_budget_micros,
            targeting: Targeting {
                genres: targeting.genres,
                devices: targeting.devices,
                countries: targeting.countries,
                adults_only: targeting.adults_only,
            },
        };
        self.known.campaigns.insert(campaign_id.clone(), campaign);
        let creatives = self.by_campaign.get(&campaign_id).cloned();
        let creatives = creatives.unwrap_or_default();
        creatives.iter().for_each(|id| self.bind(set, id));
    }

    pub(crate) fn change_creative(
        &mut self,
        set: &FeatureSet,
        event: &CreativeChanged,
        ingest_time_us: i64,
        max_pixels: u64,
    ) -> Result<(), Refusal> {
        let creative_id = event.creative_id.clone();
        if event.removed {
            self.removed_creatives.insert(creative_id);
            return Ok(());
        }
        let picture = self.picture("creative", &creative_id, &event.picture_png, max_pixels)?;
        self.removed_creatives.remove(&creative_id);
        let before = self.known.creatives.get(&creative_id);
        let first_seen_us = before.map_or(ingest_time_us, |creative| creative.first_seen_us);
        if let Some(before) = before
            && let Some(siblings) = self.by_campaign.get_mut(&before.campaign_id)
        {
            siblings.remove(&creative_id);
        }
        let siblings = self.by_campaign.entry(event.campaign_id.clone());
        siblings.or_default().insert(creative_id.clone());
        let creative = Creative {
            creative_id: creative_id.clone(),
            campaign_id: event.campaign_id.clone(),
            category: event.category.clone(),
            title: event.title.clone(),
            format: event.format.clone(),
            picture_digest: picture.digest,
            style: picture.style,
            first_seen_us,
            attributes: event.attributes.clone().into_iter().collect(),
        };
        self.known.creatives.insert(creative_id.clone(), creative);
        self.bind(set, &creative_id);
        Ok(())
    }

    pub(crate) fn change_experience(
        &mut self,
        event: &ExperienceChanged,
        max_pixels: u64,
    ) -> Result<(), Refusal> {
        let experience_id = event.experience_id.clone();
        let mut scenes = Vec::with_capacity(event.scenes.len());
        if !event.removed {
            for scene in &event.scenes {
                let picture =
                    self.picture("scene", &scene.scene_id, &scene.picture_png, max_pixels)?;
                scenes.push(Scene {
                    scene_id: scene.scene_id.clone(),
                    experience_id: experience_id.clone(),
                    genre: event.genre.clone(),
                    picture_digest: picture.digest,
                    style: picture.style,
                });
            }
        }
        let of_others = |scene: &Scene| scene.experience_id != experience_id;
        self.known.scenes.retain(|_, scene| of_others(scene));
        for scene in scenes {
            self.known.scenes.insert(scene.scene_id.clone(), scene);
        }
        if event.removed {
            self.known.experiences.remove(&experience_id);
        } else {
            let genre = event.genre.clone();
            let experience = Experience {
                experience_id: experience_id.clone(),
                genre,
            };
            self.known.experiences.insert(experience_id, experience);
        }
        Ok(())
    }

    /// A creative that impressions may name.
    pub(crate) fn creative(&self, creative_id: &str) -> Result<(&Creative, &AdFacts), Refusal> {
        let creative = self.known.creatives.get(creative_id);
        let creative = creative.ok_or_else(|| Refusal::UnknownCreative {
            creative_id: creative_id.to_owned(),
        })?;
        let facts = self.facts.get(creative_id);
        let facts = facts.ok_or_else(|| Refusal::UnknownCampaign {
            creative_id: creative_id.to_owned(),
            campaign_id: creative.campaign_id.clone(),
        })?;
        Ok((creative, facts))
    }

    /// The facts of an ad that an impression has named before.
    pub(crate) fn facts(&self, creative_id: &str) -> Option<&AdFacts> {
        self.facts.get(creative_id)
    }

    pub(crate) fn scene(&self, scene_id: &str) -> Option<&Scene> {
        self.known.scenes.get(scene_id)
    }

    /// What serving may choose from.
    pub(crate) fn live(&self) -> Catalogue {
        let mut live = self.known.clone();
        let gone = &self.removed_campaigns;
        live.campaigns.retain(|id, _| !gone.contains(id));
        let (gone, campaigns) = (&self.removed_creatives, &live.campaigns);
        live.creatives.retain(|id, creative| {
            !gone.contains(id) && campaigns.contains_key(&creative.campaign_id)
        });
        live
    }

    pub(crate) fn take_new_pictures(&mut self) -> Pictures {
        std::mem::take(&mut self.new_pictures)
    }

    fn picture(
        &mut self,
        what: &'static str,
        id: &str,
        png: &[u8],
        max_pixels: u64,
    ) -> Result<PictureFacts, Refusal> {
        let facts = picture::describe(png, max_pixels).map_err(|source| Refusal::BadPicture {
            what,
            id: id.to_owned(),
            source,
        })?;
        if !facts.digest.is_empty() {
            self.new_pictures.insert(facts.digest.clone(), png.to_vec());
        }
        Ok(facts)
    }

    fn bind(&mut self, set: &FeatureSet, creative_id: &str) {
        let Some(creative) = self.known.creatives.get(creative_id) else {
            return;
        };
        match self.known.campaigns.get(&creative.campaign_id) {
            Some(campaign) => {
                let facts = set.bind_ad(&facts::ad_facts(creative, campaign));
                self.facts.insert(creative_id.to_owned(), facts);
            }
            None => {
                self.facts.remove(creative_id);
            }
        }
    }
}
