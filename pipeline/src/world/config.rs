//! What the synthetic world is made of. The seed and this file fix every event.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The world's size, effects and delivery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorldConfig {
    /// Seed of every random stream.
    pub seed: u64,
    /// `photos` (real product photos) or `procedural` (drawn by genre).
    pub pictures: PictureSource,
    /// Folder of the product photos (Debian package `dataset-fashion-mnist`).
    pub photos_dir: PathBuf,
    /// People; with more of them each is seen less often.
    pub users: usize,
    /// Share of people under 13.
    pub under13_share: f64,
    /// Share of people of unknown age.
    pub unknown_age_share: f64,
    /// Immersive worlds.
    pub experiences: usize,
    /// Viewpoints in each of them.
    pub scenes_per_experience: usize,
    /// Campaigns that buy.
    pub campaigns: usize,
    /// Creatives over all campaigns.
    pub creatives: usize,
    /// Days of history.
    pub days: usize,
    /// Impressions served on each day.
    pub impressions_per_day: usize,
    /// First day, in days since the Unix epoch.
    pub first_day: i64,
    /// How strongly each cause moves the click.
    pub effects: Effects,
    /// How events travel and break.
    pub delivery: Delivery,
}

/// Where pictures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PictureSource {
    /// Product photos, 28×28.
    Photos,
    /// Drawn: palette, shapes and texture by category, 32×32.
    Procedural,
}

/// Standard deviations, in logits, of the causes of a click.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Effects {
    /// Base of the click logit; higher means more clicks.
    pub click_bias: f64,
    /// How well the category fits what the scene shows.
    pub scene_match: f64,
    /// What a country likes.
    pub country: f64,
    /// What a person likes beyond that.
    pub taste: f64,
    /// How popular a category is.
    pub category: f64,
    /// How good a creative is.
    pub creative: f64,
    /// How a format shows on a device.
    pub device_format: f64,
    /// The time of day.
    pub hour: f64,
    /// Base of the logit of a conversion after a click.
    pub conversion_bias: f64,
}

/// How events travel from the client to the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Delivery {
    /// Share of served impressions that are viewable.
    pub viewable_share: f64,
    /// Mean delay between an event and its arrival, seconds.
    pub mean_delay_seconds: f64,
    /// Share of events that arrive hours late.
    pub late_share: f64,
    /// Share of events that arrive twice.
    pub duplicate_share: f64,
    /// Share of further records that are broken in one of several ways.
    pub broken_share: f64,
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self {
            seed: 7,
            pictures: PictureSource::Photos,
            photos_dir: "/usr/share/datasets/fashion-mnist".into(),
            users: 1_500,
            under13_share: 0.08,
            unknown_age_share: 0.04,
            experiences: 40,
            scenes_per_experience: 3,
            campaigns: 150,
            creatives: 1_500,
            days: 8,
            impressions_per_day: 30_000,
            first_day: 20_700,
            effects: Effects::default(),
            delivery: Delivery::default(),
        }
    }
}

impl Default for Effects {
    fn default() -> Self {
        Self {
            click_bias: -2.9,
            scene_match: 0.9,
            country: 0.5,
            taste: 0.35,
            category: 0.4,
            creative: 0.3,
            device_format: 0.5,
            hour: 0.2,
            conversion_bias: -1.2,
        }
    }
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            viewable_share: 0.85,
            mean_delay_seconds: 2.0,
            late_share: 0.005,
            duplicate_share: 0.01,
            broken_share: 0.001,
        }
    }
}

/// A number outside what it may be.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("world configuration: {key} is {found}, wanted {wanted}")]
pub struct WorldConfigError {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub found: f64,
    /// What would do.
    pub wanted: &'static str,
}

/// Beyond this a probability is 0 or 1 to the last bit of an f32.
const MAX_LOGIT: f64 = 30.0;

const MAX_DELAY_SECONDS: f64 = 3_600.0;

impl WorldConfig {
    /// Checks sizes, shares, effects and delays.
    ///
    /// # Errors
    /// [`WorldConfigError`] with key, value and range.
    pub fn check(&self) -> Result<(), WorldConfigError> {
        let sizes = [
            ("users", self.users),
            ("experiences", self.experiences),
            ("scenes_per_experience", self.scenes_per_experience),
            ("campaigns", self.campaigns),
            ("creatives", self.creatives),
            ("days", self.days),
            ("impressions_per_day", self.impressions_per_day),
        ];
        for (key, found) in sizes {
            if found == 0 {
                return Err(WorldConfigError {
                    key,
                    found: 0.0,
                    wanted: "at least 1",
                });
            }
        }
        if self.creatives < self.campaigns {
            let found = self.creatives as f64;
            return Err(WorldConfigError {
                key: "creatives",
                found,
                wanted: "at least `campaigns`",
            });
        }
        let shares = [
            ("under13_share", self.under13_share),
            ("unknown_age_share", self.unknown_age_share),
            ("delivery.viewable_share", self.delivery.viewable_share),
            ("delivery.late_share", self.delivery.late_share),
            ("delivery.duplicate_share", self.delivery.duplicate_share),
            ("delivery.broken_share", self.delivery.broken_share),
        ];
        for (key, found) in shares {
            if !(0.0..=1.0).contains(&found) {
                return Err(WorldConfigError {
                    key,
                    found,
                    wanted: "0 to 1",
                });
            }
        }
        let Effects {
            click_bias,
            scene_match,
            country,
            taste,
            category,
            creative,
            device_format,
            hour,
            conversion_bias,
        } = self.effects;
        let biases = [
            ("effects.click_bias", click_bias),
            ("effects.conversion_bias", conversion_bias),
        ];
        for (key, found) in biases {
            if !(-MAX_LOGIT..=MAX_LOGIT).contains(&found) {
                return Err(WorldConfigError {
                    key,
                    found,
                    wanted: "-30 to 30",
                });
            }
        }
        let strengths = [
            ("effects.scene_match", scene_match),
            ("effects.country", country),
            ("effects.taste", taste),
            ("effects.category", category),
            ("effects.creative", creative),
            ("effects.device_format", device_format),
            ("effects.hour", hour),
        ];
        for (key, found) in strengths {
            if !(0.0..=MAX_LOGIT).contains(&found) {
                return Err(WorldConfigError {
                    key,
                    found,
                    wanted: "0 to 30",
                });
            }
        }
        if !(0.0..=MAX_DELAY_SECONDS).contains(&self.delivery.mean_delay_seconds) {
            return Err(WorldConfigError {
                key: "delivery.mean_delay_seconds",
                found: self.delivery.mean_delay_seconds,
                wanted: "0 to 3600",
            });
        }
        Ok(())
    }
}
