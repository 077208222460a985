//! People, places and ads with known probabilities of click and conversion.
//!
//! The click logit is a sum of causes: what the scene shows against the category (an asymmetric
//! matrix, so that likeness of pixels does not explain it), what a country and a person like,
//! how popular the category and how good the creative is, how the format shows on the device,
//! and the time of day. Each cause has a stated standard deviation ([`super::config::Effects`]).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sha2::{Digest, Sha256};
use wire::{
    catalogue::Targeting,
    events::{AgeBand, Context},
};

use super::{
    config::{WorldConfig, WorldConfigError},
    pictures::{PictureError, Stock},
};

/// Product categories, in the order of the photo set's classes.
pub const CATEGORIES: [&str; NUM_CATEGORIES] = [
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
];
/// How many there are.
pub const NUM_CATEGORIES: usize = 10;
/// Genres of experiences.
pub const GENRES: [&str; 8] = [
    "racing",
    "adventure",
    "fashion",
    "sports",
    "puzzle",
    "social",
    "horror",
    "building",
];
/// Device classes.
pub const DEVICES: [&str; 4] = ["phone", "desktop", "console", "headset"];
/// Placement formats.
pub const FORMATS: [&str; 3] = ["billboard", "portal", "sponsored_item"];
/// Countries.
pub const COUNTRIES: [&str; 6] = ["US", "DE", "BR", "JP", "IN", "FR"];

const TASTE_DIM: usize = 3;
const DAY_US: i64 = 86_400_000_000;

/// A person.
#[derive(Debug, Clone)]
pub struct User {
    /// Id.
    pub user_id: String,
    /// Age band as the platform is told.
    pub age_band: AgeBand,
    /// Index into [`COUNTRIES`].
    pub country: usize,
    /// Index into [`DEVICES`] of the usual device.
    pub device: usize,
    /// Relative number of visits.
    pub activity: f64,
    taste: [f64; TASTE_DIM],
}

/// A viewpoint with one placement.
#[derive(Debug, Clone)]
pub struct Scene {
    /// Id.
    pub scene_id: String,
    /// Index of the experience.
    pub experience: usize,
    /// Index of the category that it shows.
    pub shows: usize,
    /// Index into [`FORMATS`] of its placement.
    pub format: usize,
    /// Its picture.
    pub png: Vec<u8>,
}

/// An immersive world.
#[derive(Debug, Clone)]
pub struct Experience {
    /// Id.
    pub experience_id: String,
    /// Index into [`GENRES`].
    pub genre: usize,
}

/// A buyer.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// Id.
    pub campaign_id: String,
    /// Most that a click may cost.
    pub bid_micros: i64,
    /// Most that a day may cost.
    pub daily_budget_micros: i64,
    /// Where it shows.
    pub targeting: Targeting,
}

/// An ad.
#[derive(Debug, Clone)]
pub struct Creative {
    /// Id.
    pub creative_id: String,
    /// Index of the campaign.
    pub campaign: usize,
    /// Index into [`CATEGORIES`].
    pub category: usize,
    /// Index into [`FORMATS`].
    pub format: usize,
    /// Its picture.
    pub png: Vec<u8>,
    quality: f64,
}

/// One moment in which an ad may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Index of the person.
    pub user: usize,
    /// Index of the scene.
    pub scene: usize,
    /// Index into [`DEVICES`].
    pub device: usize,
    /// When, microseconds since the Unix epoch.
    pub time_us: i64,
}

/// Why a world could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// A number in the configuration.
    #[error(transparent)]
    Config(#[from] WorldConfigError),
    /// Its pictures.
    #[error(transparent)]
    Pictures(#[from] PictureError),
}

/// The world.
#[derive(Debug, Clone)]
pub struct World {
    /// What it was made from.
    pub config: WorldConfig,
    /// People.
    pub users: Vec<User>,
    /// Immersive worlds.
    pub experiences: Vec<Experience>,
    /// Viewpoints.
    pub scenes: Vec<Scene>,
    /// Buyers.
    pub campaigns: Vec<Campaign>,
    /// Ads.
    pub creatives: Vec<Creative>,
    by_format: Vec<Vec<usize>>,
    cumulative_activity: Vec<f64>,
    category: Vec<f64>,
    category_taste: Vec<[f64; TASTE_DIM]>,
    scene_match: Vec<f64>,
    country: Vec<f64>,
    device_format: Vec<f64>,
}

/// A random stream of its own for each purpose, so that more of one thing moves no other.
pub fn stream(seed: u64, purpose: &str) -> ChaCha8Rng {
    let hash = Sha256::new_with_prefix(format!("{seed} {purpose}")).finalize();
    ChaCha8Rng::from_seed(hash.into())
}

fn normal(random: &mut ChaCha8Rng) -> f64 {
    StandardNormal.sample(random)
}

fn normals(random: &mut ChaCha8Rng, count: usize) -> Vec<f64> {
    (0..count).map(|_| normal(random)).collect()
}

impl World {
    /// Makes the world that a configuration describes.
    ///
    /// # Errors
    /// [`WorldError`] for a bad configuration or missing photos.
    pub fn build(config: WorldConfig) -> Result<Self, WorldError> {
        config.check()?;
        let seed = config.seed;
        let mut effects = stream(seed, "effects");
        let mut pictures = stream(seed, "pictures");
        let mut stock = Stock::open(config.pictures, &config.photos_dir, &mut pictures)?;
        let experiences = experiences(&config);
        let campaigns = campaigns(&config);
        let scenes = scenes(&config, &mut stock, &mut pictures)?;
        let creatives = creatives(&config, &mut stock, &mut pictures)?;
        let users = users(&config);
        let by_format = (0..FORMATS.len())
            .map(|format| {
                (0..creatives.len())
                    .filter(|at| creatives[*at].format == format)
                    .collect()
            })
            .collect();
        let mut total = 0.0;
        let cumulative_activity = users
            .iter()
            .map(|user| {
                total += user.activity;
                total
            })
            .collect();
        let taste = |random: &mut ChaCha8Rng| {
            std::array::from_fn(|_| normal(random) / (TASTE_DIM as f64).sqrt())
        };
        Ok(Self {
            category: normals(&mut effects, NUM_CATEGORIES),
            category_taste: (0..NUM_CATEGORIES).map(|_| taste(&mut effects)).collect(),
            scene_match: normals(&mut effects, NUM_CATEGORIES * NUM_CATEGORIES),
            country: normals(&mut effects, COUNTRIES.len() * NUM_CATEGORIES),
            device_format: normals(&mut effects, DEVICES.len() * FORMATS.len()),
            config,
            users,
            experiences,
            scenes,
            campaigns,
            creatives,
            by_format,
            cumulative_activity,
        })
    }

    /// True probability of a click on a viewed impression.
    pub fn click_probability(&self, moment: &Moment, creative: usize) -> f64 {
        let effects = &self.config.effects;
        let user = &self.users[moment.user];
        let scene = &self.scenes[moment.scene];
        let creative = &self.creatives[creative];
        let category = creative.category;
        let taste: f64 = user
            .taste
            .iter()
            .zip(&self.category_taste[category])
            .map(|(a, b)| a * b)
            .sum();
        let hours = moment.time_us.rem_euclid(DAY_US) as f64 / 3_600e6;
        let logit = effects.click_bias
            + effects.scene_match * self.scene_match[scene.shows * NUM_CATEGORIES + category]
            + effects.country * self.country[user.country * NUM_CATEGORIES + category]
            + effects.taste * taste
            + effects.category * self.category[category]
            + effects.creative * creative.quality
            + effects.device_format * self.device_format[moment.device * FORMATS.len() + scene.format]
            // A sine has a standard deviation of 1/√2.
            + effects.hour * 2f64.sqrt() * (std::f64::consts::TAU * (hours - 14.0) / 24.0).sin();
        sigmoid(logit)
    }

    /// True probability of a conversion after a click.
    pub fn conversion_probability(&self, moment: &Moment, creative: usize) -> f64 {
        let user = &self.users[moment.user];
        let creative = &self.creatives[creative];
        let liking = self.country[user.country * NUM_CATEGORIES + creative.category];
        sigmoid(self.config.effects.conversion_bias + 0.5 * liking + 0.3 * creative.quality)
    }

    /// Whether an ad may be shown at a moment: format of the placement and targeting.
    pub fn eligible(&self, moment: &Moment, creative: usize) -> bool {
        let (user, scene) = (&self.users[moment.user], &self.scenes[moment.scene]);
        let creative = &self.creatives[creative];
        let genre = GENRES[self.experiences[scene.experience].genre];
        let targeting = &self.campaigns[creative.campaign].targeting;
        let is_13plus = user.age_band == AgeBand::AgeBand13plus;
        creative.format == scene.format
            && targeting.admits(
                genre,
                DEVICES[moment.device],
                COUNTRIES[user.country],
                is_13plus,
            )
    }

    /// Ads whose format fits a scene's placement.
    pub fn creatives_for(&self, scene: usize) -> &[usize] {
        &self.by_format[self.scenes[scene].format]
    }

    /// A random moment of a day (days since the Unix epoch).
    pub fn moment(&self, day: i64, random: &mut ChaCha8Rng) -> Moment {
        let total = self.cumulative_activity[self.cumulative_activity.len() - 1];
        let drawn = random.random_range(0.0..total);
        let user = self
            .cumulative_activity
            .partition_point(|sum| *sum <= drawn)
            .min(self.users.len() - 1);
        let usual = random.random_bool(0.8);
        let device = if usual {
            self.users[user].device
        } else {
            random.random_range(0..DEVICES.len())
        };
        Moment {
            user,
            scene: random.random_range(0..self.scenes.len()),
            device,
            time_us: day * DAY_US + random.random_range(0..DAY_US),
        }
    }

    /// What a request of this moment says of itself.
    pub fn context(&self, moment: &Moment) -> Context {
        let scene = &self.scenes[moment.scene];
        let experience = &self.experiences[scene.experience];
        Context {
            experience_id: experience.experience_id.clone(),
            genre: GENRES[experience.genre].to_owned(),
            scene_id: scene.scene_id.clone(),
            placement_id: format!("{}-p0", scene.scene_id),
            format: FORMATS[scene.format].to_owned(),
            device: DEVICES[moment.device].to_owned(),
            country: COUNTRIES[self.users[moment.user].country].to_owned(),
            attributes: Default::default(),
        }
    }
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

fn users(config: &WorldConfig) -> Vec<User> {
    let mut random = stream(config.seed, "users");
    let one = |at: usize| {
        let drawn: f64 = random.random();
        let age_band = if drawn < config.under13_share {
            AgeBand::Under13
        } else if drawn < config.under13_share + config.unknown_age_share {
            AgeBand::Unknown
        } else {
            AgeBand::AgeBand13plus
        };
        User {
            user_id: format!("u{at:05}"),
            age_band,
            country: random.random_range(0..COUNTRIES.len()),
            device: random.random_range(0..DEVICES.len()),
            activity: (0.5 * normal(&mut random)).exp(),
            taste: std::array::from_fn(|_| normal(&mut random)),
        }
    };
    (0..config.users).map(one).collect()
}

fn experiences(config: &WorldConfig) -> Vec<Experience> {
    let one = |at| Experience {
        experience_id: format!("e{at:03}"),
        genre: at % GENRES.len(),
    };
    (0..config.experiences).map(one).collect()
}

fn scenes(
    config: &WorldConfig,
    stock: &mut Stock,
    pictures: &mut ChaCha8Rng,
) -> Result<Vec<Scene>, PictureError> {
    let mut random = stream(config.seed, "scenes");
    let one = |at: usize| {
        let experience = at / config.scenes_per_experience;
        // A genre leans towards two categories; the rest may appear anywhere.
        let favourite =
            (experience % GENRES.len() + usize::from(random.random_bool(0.5))) % NUM_CATEGORIES;
        let shows = if random.random_bool(0.5) {
            favourite
        } else {
            random.random_range(0..NUM_CATEGORIES)
        };
        Ok(Scene {
            scene_id: format!("s{at:04}"),
            experience,
            shows,
            format: random.random_range(0..FORMATS.len()),
            png: stock.take(shows, pictures)?,
        })
    };
    (0..config.experiences * config.scenes_per_experience)
        .map(one)
        .collect()
}

fn campaigns(config: &WorldConfig) -> Vec<Campaign> {
    let mut random = stream(config.seed, "campaigns");
    let some_of = |all: &[&str], chance: f64, random: &mut ChaCha8Rng| -> Vec<String> {
        if !random.random_bool(chance) {
            return Vec::new();
        }
        let kept = all
            .iter()
            .filter(|_| random.random_bool(0.5))
            .map(|name| (*name).to_owned());
        kept.collect()
    };
    let one = |at| Campaign {
        campaign_id: format!("c{at:04}"),
        bid_micros: (1e6 * (0.4 * normal(&mut random)).exp()) as i64,
        daily_budget_micros: 2_000_000_000,
        targeting: Targeting {
            genres: some_of(&GENRES, 0.3, &mut random),
            devices: some_of(&DEVICES, 0.2, &mut random),
            countries: some_of(&COUNTRIES, 0.3, &mut random),
            adults_only: random.random_bool(0.2),
        },
    };
    (0..config.campaigns).map(one).collect()
}

fn creatives(
    config: &WorldConfig,
    stock: &mut Stock,
    pictures: &mut ChaCha8Rng,
) -> Result<Vec<Creative>, PictureError> {
    let mut random = stream(config.seed, "creatives");
    let one = |at: usize| {
        let campaign = at % config.campaigns;
        // A campaign sells one or two categories.
        let category = (campaign * 3 + usize::from(random.random_bool(0.3))) % NUM_CATEGORIES;
        Ok(Creative {
            creative_id: format!("k{at:05}"),
            campaign,
            category,
            format: random.random_range(0..FORMATS.len()),
            png: stock.take(category, pictures)?,
            quality: normal(&mut random),
        })
    };
    (0..config.creatives).map(one).collect()
}
