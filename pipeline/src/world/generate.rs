//! History: days of impressions by a logging policy, written to the event log as they arrive.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use anyhow::Context as _;
use indicatif::ProgressBar;
use prost::Message;
use rand::{Rng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp};
use serde::{Deserialize, Serialize};
use wire::{
    catalogue::Targeting,
    events::{
        self, AgeBand, CampaignChanged, Click, Context, Conversion, CreativeChanged, Event,
        ExperienceChanged, ImpressionServed, ImpressionViewed, UserActivity, event::Payload,
    },
    log::{LogWriter, SegmentWriter},
};

use super::{
    config::Delivery,
    truth::{CATEGORIES, FORMATS, GENRES, Moment, World, stream},
};

const SECOND_US: i64 = 1_000_000;
const HOUR_US: i64 = 3_600 * SECOND_US;
/// One day, in microseconds.
pub const DAY_US: i64 = 24 * HOUR_US;
/// Days over which the catalogue grew before the history begins.
const CATALOGUE_DAYS: i64 = 60;

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    /// Records in the log.
    pub records: u64,
    /// Impressions served.
    pub impressions: u64,
    /// Of those, viewable ones.
    pub viewable: u64,
    /// Clicks.
    pub clicks: u64,
    /// Conversions.
    pub conversions: u64,
    /// Records written a second time.
    pub duplicates: u64,
    /// Records that arrive hours late.
    pub late: u64,
    /// Records that would arrive after the last day, and are not in the log.
    pub after_end: u64,
    /// Broken records by what is wrong with them.
    pub broken: BTreeMap<String, u64>,
    /// The AUC to expect of the true probabilities over viewed impressions.
    pub auc_best: f64,
    /// Mean true probability of a click on a viewed impression.
    pub click_rate: f64,
}

/// How one impression ended at the client.
pub struct Outcome {
    /// Events of the client, in the order they happened.
    pub events: Vec<Event>,
    /// Whether it was viewable.
    pub viewed: bool,
    /// Whether it was clicked.
    pub clicked: bool,
    /// Whether it converted.
    pub converted: bool,
}

/// Columns of `truth.csv`: an impression, its true probabilities, and by what it may be looked at
/// apart.
pub const TRUTH_COLUMNS: [&str; 8] = [
    "impression_id",
    "p_click",
    "p_conversion",
    "genre",
    "device",
    "format",
    "country",
    "category",
];

/// Writes the world's history to partition `world` of the log, and the truth of every impression
/// to `truth.csv` in `folder`: [`TRUTH_COLUMNS`].
///
/// # Errors
/// When the log or the folder cannot be written.
pub fn generate(
    world: &World,
    log: &Path,
    folder: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<Generated> {
    let config = &world.config;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let truth_path = folder.join("truth.csv");
    let mut truth = std::io::BufWriter::new(
        fs::File::create(&truth_path)
            .with_context(|| format!("writing {}", truth_path.display()))?,
    );
    writeln!(truth, "{}", TRUTH_COLUMNS.join(","))?;

    let mut random = stream(config.seed, "history");
    let end_us = (config.first_day + config.days as i64) * DAY_US;
    let mut mail = Mail::new(&config.delivery, stream(config.seed, "delivery"), end_us);
    let mut viewed_truth = Vec::new();
    let mut generated = Generated::default();
    for event in catalogue_events(world) {
        mail.prompt(event);
    }
    let mut writer = SegmentWriter::open(log, "world")?;
    if writer.next_offset() > 0 {
        anyhow::bail!(
            "partition `world` in {} holds {} records already: choose another --root, or remove it",
            log.display(),
            writer.next_offset()
        );
    }
    for day in 0..config.days as i64 {
        let day = config.first_day + day;
        for user in 0..world.users.len() {
            mail.send(activity(world, user, day, &mut random), &mut generated);
        }
        for number in 0..config.impressions_per_day {
            let moment = world.moment(day, &mut random);
            let Some(creative) = choose(world, &moment, &mut random) else {
                continue;
            };
            let impression_id = format!("i{day}-{number:06}");
            let p_click = world.click_probability(&moment, creative);
            let p_conversion = world.conversion_probability(&moment, creative);
            let Context {
                genre,
                device,
                format,
                country,
                ..
            } = world.context(&moment);
            let category = CATEGORIES[world.creatives[creative].category];
            writeln!(
                truth,
                "{impression_id},{p_click},{p_conversion},{genre},{device},{format},{country},{category}"
            )?;
            mail.send(
                served(world, &moment, creative, &impression_id),
                &mut generated,
            );
            let outcome = play(world, &moment, creative, &impression_id, &mut random);
            generated.impressions += 1;
            generated.viewable += u64::from(outcome.viewed);
            generated.clicks += u64::from(outcome.clicked);
            generated.conversions += u64::from(outcome.converted);
            if outcome.viewed {
                viewed_truth.push(p_click);
            }
            for event in outcome.events {
                mail.send(event, &mut generated);
            }
            bar.inc(1);
        }
        mail.deliver(&mut writer, (day + 1) * DAY_US)?;
    }
    writer.sync()?;
    truth.flush()?;
    generated.records = mail.delivered;
    generated.auc_best = super::measure::expected_auc(&viewed_truth).unwrap_or(0.5);
    generated.click_rate = viewed_truth.iter().sum::<f64>() / viewed_truth.len().max(1) as f64;
    Ok(generated)
}

/// The campaigns, creatives and experiences, as change events before the first day. Creatives came
/// one after the other, so that their age says nothing of the day.
fn catalogue_events(world: &World) -> Vec<Event> {
    let end_us = world.config.first_day * DAY_US - HOUR_US;
    let start_us = end_us - CATALOGUE_DAYS * DAY_US;
    let mut payloads = Vec::new();
    for (at, experience) in world.experiences.iter().enumerate() {
        let scenes = world.scenes.iter().filter(|scene| scene.experience == at);
        let scene = |scene: &super::truth::Scene| events::Scene {
            scene_id: scene.scene_id.clone(),
            picture_png: scene.png.clone(),
        };
        payloads.push(Payload::ExperienceChanged(ExperienceChanged {
            experience_id: experience.experience_id.clone(),
            genre: GENRES[experience.genre].to_owned(),
            scenes: scenes.map(scene).collect(),
            removed: false,
        }));
    }
    for campaign in &world.campaigns {
        let Targeting {
            genres,
            devices,
            countries,
            adults_only,
        } = campaign.targeting.clone();
        payloads.push(Payload::CampaignChanged(CampaignChanged {
            campaign_id: campaign.campaign_id.clone(),
            advertiser_id: format!("a-{}", campaign.campaign_id),
            bid_micros: campaign.bid_micros,
            daily_budget_micros: campaign.daily_budget_micros,
            targeting: Some(events::Targeting {
                genres,
                devices,
                countries,
                adults_only,
            }),
            removed: false,
        }));
    }
    let standing = payloads.len();
    for creative in &world.creatives {
        payloads.push(Payload::CreativeChanged(CreativeChanged {
            creative_id: creative.creative_id.clone(),
            campaign_id: world.campaigns[creative.campaign].campaign_id.clone(),
            category: CATEGORIES[creative.category].to_owned(),
            title: format!("{} {}", CATEGORIES[creative.category], creative.creative_id),
            format: FORMATS[creative.format].to_owned(),
            picture_png: creative.png.clone(),
            removed: false,
            attributes: Default::default(),
        }));
    }
    let creatives = (payloads.len() - standing).max(1) as i64;
    let event = |(at, payload): (usize, Payload)| {
        let number = at.saturating_sub(standing) as i64;
        let time_us = start_us + (end_us - start_us) / creatives * number;
        Event {
            event_id: format!("catalogue-{at}"),
            event_time_us: time_us,
            ingest_time_us: time_us,
            schema_version: wire::SCHEMA_VERSION,
            payload: Some(payload),
            ..Event::default()
        }
    };
    payloads.into_iter().enumerate().map(event).collect()
}

fn envelope(world: &World, user: usize, event_id: String, time_us: i64, payload: Payload) -> Event {
    let user = &world.users[user];
    let known = user.age_band == AgeBand::AgeBand13plus;
    Event {
        event_id,
        event_time_us: time_us,
        ingest_time_us: time_us,
        // A client does not tell who a child is.
        user_id: if known {
            user.user_id.clone()
        } else {
            String::new()
        },
        age_band: user.age_band.into(),
        schema_version: wire::SCHEMA_VERSION,
        payload: Some(payload),
    }
}

fn activity(world: &World, user: usize, day: i64, random: &mut ChaCha8Rng) -> Event {
    let experience = random.random_range(0..world.experiences.len());
    let time_us = day * DAY_US + random.random_range(0..DAY_US);
    let payload = Payload::UserActivity(UserActivity {
        activity_type: "visit".to_owned(),
        experience_id: world.experiences[experience].experience_id.clone(),
        genre: GENRES[world.experiences[experience].genre].to_owned(),
        dwell_seconds: random.random_range(30..3_600),
    });
    envelope(
        world,
        user,
        format!("activity-{day}-{user}"),
        time_us,
        payload,
    )
}

/// The logging policy: a uniform choice among what is eligible, so that every pair is seen.
fn choose(world: &World, moment: &Moment, random: &mut ChaCha8Rng) -> Option<usize> {
    let fitting = world.creatives_for(moment.scene);
    (0..50).find_map(|_| {
        fitting
            .choose(random)
            .copied()
            .filter(|at| world.eligible(moment, *at))
    })
}

fn served(world: &World, moment: &Moment, creative: usize, impression_id: &str) -> Event {
    let campaign = &world.campaigns[world.creatives[creative].campaign];
    let payload = Payload::ImpressionServed(ImpressionServed {
        impression_id: impression_id.to_owned(),
        request_id: format!("r{}", &impression_id[1..]),
        campaign_id: campaign.campaign_id.clone(),
        creative_id: world.creatives[creative].creative_id.clone(),
        context: Some(world.context(moment)),
        bid_micros: campaign.bid_micros,
        price_micros: campaign.bid_micros * 7 / 10,
        ..ImpressionServed::default()
    });
    envelope(
        world,
        moment.user,
        format!("served-{impression_id}"),
        moment.time_us,
        payload,
    )
}

/// Plays the client of one served impression: viewability evidence, then a click and a conversion
/// drawn from the true probabilities.
pub fn play(
    world: &World,
    moment: &Moment,
    creative: usize,
    impression_id: &str,
    random: &mut ChaCha8Rng,
) -> Outcome {
    let viewed = random.random_bool(world.config.delivery.viewable_share);
    let clicked = random.random_bool(world.click_probability(moment, creative)) && viewed;
    let converted = random.random_bool(world.conversion_probability(moment, creative)) && clicked;
    let view_us = moment.time_us + random.random_range(SECOND_US..4 * SECOND_US);
    let evidence = if viewed {
        (
            random.random_range(0.7..1.0),
            random.random_range(0.0..0.2),
            random.random_range(1_000..20_000),
        )
    } else if random.random_bool(0.5) {
        (
            random.random_range(0.0..0.45),
            0.0,
            random.random_range(1_000..20_000),
        )
    } else {
        (
            random.random_range(0.7..1.0),
            0.1,
            random.random_range(10..990),
        )
    };
    let view = Payload::ImpressionViewed(ImpressionViewed {
        impression_id: impression_id.to_owned(),
        viewport_share: evidence.0,
        occluded_share: evidence.1,
        duration_ms: evidence.2,
        ..ImpressionViewed::default()
    });
    let mut events = vec![envelope(
        world,
        moment.user,
        format!("viewed-{impression_id}"),
        view_us,
        view,
    )];
    let click_us = view_us + random.random_range(SECOND_US..60 * SECOND_US);
    if clicked {
        let click = Payload::Click(Click {
            impression_id: impression_id.to_owned(),
        });
        events.push(envelope(
            world,
            moment.user,
            format!("click-{impression_id}"),
            click_us,
            click,
        ));
    }
    let conversion_us = click_us + random.random_range(60 * SECOND_US..2 * DAY_US);
    let value_micros = random.random_range(5_000_000..80_000_000);
    if converted {
        let payload = Payload::Conversion(Conversion {
            campaign_id: world.campaigns[world.creatives[creative].campaign]
                .campaign_id
                .clone(),
            conversion_type: "purchase".to_owned(),
            value_micros,
        });
        events.push(envelope(
            world,
            moment.user,
            format!("conversion-{impression_id}"),
            conversion_us,
            payload,
        ));
    }
    Outcome {
        events,
        viewed,
        clicked,
        converted,
    }
}

/// Carries records to the log in the order of arrival.
struct Mail<'a> {
    delivery: &'a Delivery,
    random: ChaCha8Rng,
    delay: Exp<f64>,
    /// What would arrive from here on lies after this history and is not in it.
    end_us: i64,
    /// By arrival, then by sending.
    waiting: BTreeMap<(i64, u64), Vec<u8>>,
    sent: u64,
    delivered: u64,
}

impl<'a> Mail<'a> {
    fn new(delivery: &'a Delivery, random: ChaCha8Rng, end_us: i64) -> Self {
        let rate = 1.0 / delivery.mean_delay_seconds.max(1e-3);
        let delay = Exp::new(rate).expect("the rate is above zero");
        Self {
            delivery,
            random,
            end_us,
            delay,
            waiting: BTreeMap::new(),
            sent: 0,
            delivered: 0,
        }
    }

    /// A record that arrives at once, whole and only once.
    fn prompt(&mut self, event: Event) {
        self.post(event.ingest_time_us, event.encode_to_vec());
    }

    /// A record with delay, perhaps a second copy, perhaps a broken one beside it.
    fn send(&mut self, mut event: Event, generated: &mut Generated) {
        let late = self.random.random_bool(self.delivery.late_share);
        event.ingest_time_us = event.event_time_us + self.draw_delay(late);
        if event.ingest_time_us >= self.end_us {
            generated.after_end += 1;
            return;
        }
        generated.late += u64::from(late);
        self.post(event.ingest_time_us, event.encode_to_vec());
        if self.random.random_bool(self.delivery.duplicate_share) {
            let again = event.ingest_time_us + self.draw_delay(false);
            if again < self.end_us {
                let copy = Event {
                    ingest_time_us: again,
                    ..event.clone()
                };
                self.post(again, copy.encode_to_vec());
                generated.duplicates += 1;
            }
        }
        if self.random.random_bool(self.delivery.broken_share) {
            let (kind, bytes) = self.broken(&event);
            self.post(event.ingest_time_us, bytes);
            *generated.broken.entry(kind.to_owned()).or_default() += 1;
        }
    }

    fn draw_delay(&mut self, late: bool) -> i64 {
        let seconds = self.delay.sample(&mut self.random);
        let hours = if late {
            self.random.random_range(1..6)
        } else {
            0
        };
        (seconds * SECOND_US as f64) as i64 + hours * HOUR_US
    }

    fn broken(&mut self, near: &Event) -> (&'static str, Vec<u8>) {
        let mut event = Event {
            event_id: format!("broken-{}", self.sent),
            ..near.clone()
        };
        let view = |share, impression_id: &str| {
            Some(Payload::ImpressionViewed(ImpressionViewed {
                impression_id: impression_id.to_owned(),
                viewport_share: share,
                occluded_share: 0.0,
                duration_ms: 2_000,
                ..ImpressionViewed::default()
            }))
        };
        let kind = match self.random.random_range(0..5) {
            0 => return ("not_protobuf", b"\xff\xff\xffgarbage".to_vec()),
            1 => {
                event.payload = view(1.7, "x");
                "share_out_of_range"
            }
            2 => {
                event.payload = view(f32::NAN, "x");
                "share_not_a_number"
            }
            3 => {
                event.event_id = String::new();
                "empty_event_id"
            }
            _ => {
                event.payload = None;
                "no_payload"
            }
        };
        (kind, event.encode_to_vec())
    }

    fn post(&mut self, arrival_us: i64, bytes: Vec<u8>) {
        self.waiting.insert((arrival_us, self.sent), bytes);
        self.sent += 1;
    }

    /// Writes what has arrived before a time.
    fn deliver(&mut self, writer: &mut SegmentWriter, before_us: i64) -> anyhow::Result<()> {
        let later = self.waiting.split_off(&(before_us, 0));
        for bytes in std::mem::replace(&mut self.waiting, later).into_values() {
            writer.append(&bytes)?;
            self.delivered += 1;
        }
        Ok(())
    }
}
