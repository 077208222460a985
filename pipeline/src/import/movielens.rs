//! MovieLens-100K, as the package `recbole` holds it, as events with its real timestamps.
//!
//! Movies become creatives, one campaign per first genre; each rating becomes an impression that
//! was served and viewed at the time of the rating, and clicked if the rating is high enough.
//! People often rate many movies within one second. The log learns of views and clicks a moment
//! after the impressions of their second, so that no impression's features know what came of it,
//! nor of the others of that second.

mod files;

use std::path::{Path, PathBuf};

use prost::Message;
use serde::{Deserialize, Serialize};
use wire::{
    events::{
        AgeBand, CampaignChanged, Click, Context, CreativeChanged, Event, ImpressionServed,
        ImpressionViewed, event::Payload,
    },
    log::{LogError, LogWriter, SegmentReader, SegmentWriter},
};

pub use files::{Dataset, ImportError, Movie, Person, Rating};

const SECOND_US: i64 = 1_000_000;

/// How MovieLens becomes events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MovielensConfig {
    /// Folder with `ml-100k.inter`, `ml-100k.item` and `ml-100k.user`.
    pub from: PathBuf,
    /// Partition of the log that gets the events.
    pub partition: String,
    /// Least rating, 1 to 5, that counts as a click.
    pub click_rating: f32,
    /// How long after its impression a view or click reaches the log, in milliseconds. Below
    /// 1000 it comes before the impressions of the next second.
    pub feedback_delay_ms: u32,
}

impl Default for MovielensConfig {
    fn default() -> Self {
        Self {
            from: PathBuf::from("data/movielens"),
            partition: "movielens".to_owned(),
            click_rating: 4.0,
            feedback_delay_ms: 500,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Imported {
    /// Events of the whole import.
    pub events: usize,
    /// Events that the log did not have yet.
    pub written: usize,
    /// Ratings.
    pub impressions: usize,
    /// Ratings that count as clicks.
    pub clicks: usize,
    /// People.
    pub users: usize,
    /// Movies.
    pub movies: usize,
    /// Movies without a release year that reads as one.
    pub movies_without_year: usize,
}

/// Reads the files and appends what the log does not have yet: after a crash, the same command
/// again completes the import.
///
/// # Errors
/// [`ImportError`] names file, line and field.
pub fn import(config: &MovielensConfig, log: &Path) -> Result<Imported, ImportError> {
    let dataset = Dataset::load(&config.from)?;
    let events = events(&dataset, config);
    let mut writer = SegmentWriter::open(log, &config.partition)?;
    let had = check_start(log, config, &events)?;
    for event in &events[had..] {
        writer.append_event(event)?;
    }
    writer.sync()?;
    let is_click = |rating: &&Rating| rating.rating >= config.click_rating;
    let without_year = |movie: &&Movie| movie.release_year.is_none();
    Ok(Imported {
        events: events.len(),
        written: events.len() - had,
        impressions: dataset.ratings.len(),
        clicks: dataset.ratings.iter().filter(is_click).count(),
        users: dataset.people.len(),
        movies: dataset.movies.len(),
        movies_without_year: dataset.movies.values().filter(without_year).count(),
    })
}

/// How many of the events the log has already; they must be the same.
fn check_start(
    log: &Path,
    config: &MovielensConfig,
    events: &[Event],
) -> Result<usize, ImportError> {
    let mut had = 0;
    for record in SegmentReader::open(log, &config.partition, 0)? {
        let record: Result<_, LogError> = record;
        let record = record?;
        let same = events
            .get(had)
            .is_some_and(|event| Event::decode(record.payload.as_slice()).as_ref() == Ok(event));
        if !same {
            return Err(ImportError::OtherLog {
                partition: log.join(&config.partition),
                offset: record.offset,
            });
        }
        had += 1;
    }
    Ok(had)
}

/// The whole import as events, in the order of their arrival.
pub fn events(dataset: &Dataset, config: &MovielensConfig) -> Vec<Event> {
    let mut events = catalogue_events(dataset);
    let delay_us = i64::from(config.feedback_delay_ms) * 1_000;
    let mut of_ratings = Vec::with_capacity(dataset.ratings.len() * 5 / 2);
    for rating in &dataset.ratings {
        let (Some(person), Some(movie)) = (
            dataset.people.get(&rating.user_id),
            dataset.movies.get(&rating.item_id),
        ) else {
            // Loading has checked that both are there.
            continue;
        };
        of_ratings.extend(rating_events(rating, person, movie, delay_us, config));
    }
    // Stable: equal arrivals stay in the order of ratings.
    of_ratings.sort_by_key(|event| event.ingest_time_us);
    events.extend(of_ratings);
    events
}

fn rating_events(
    rating: &Rating,
    person: &Person,
    movie: &Movie,
    delay_us: i64,
    config: &MovielensConfig,
) -> Vec<Event> {
    let impression_id = format!("ml-{}-{}", rating.user_id, rating.item_id);
    let event = |what: &str, delay_us: i64, payload| Event {
        event_id: format!("{impression_id}-{what}"),
        event_time_us: rating.time_us,
        ingest_time_us: rating.time_us + delay_us,
        user_id: format!("u{}", rating.user_id),
        age_band: person.age_band().into(),
        schema_version: wire::SCHEMA_VERSION,
        payload: Some(payload),
    };
    let served = Payload::ImpressionServed(ImpressionServed {
        impression_id: impression_id.clone(),
        request_id: impression_id.clone(),
        campaign_id: campaign_id(movie),
        creative_id: creative_id(movie),
        context: Some(context(person)),
        bid_micros: SECOND_US,
        ..ImpressionServed::default()
    });
    let viewed = Payload::ImpressionViewed(ImpressionViewed {
        impression_id: impression_id.clone(),
        viewport_share: 1.0,
        occluded_share: 0.0,
        duration_ms: 1_000,
        ..ImpressionViewed::default()
    });
    let mut events = vec![
        event("served", 0, served),
        event("viewed", delay_us, viewed),
    ];
    if rating.rating >= config.click_rating {
        let impression_id = impression_id.clone();
        let click = Payload::Click(Click { impression_id });
        events.push(event("click", delay_us, click));
    }
    events
}

fn context(person: &Person) -> Context {
    let attributes = [
        ("user_age", person.age.to_string()),
        ("user_gender", person.gender.clone()),
        ("user_occupation", person.occupation.clone()),
        ("user_zip", person.zip_code.clone()),
    ];
    Context {
        experience_id: "movielens".to_owned(),
        placement_id: "ratings".to_owned(),
        format: "sponsored_item".to_owned(),
        device: "desktop".to_owned(),
        country: "US".to_owned(),
        attributes: attributes
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        ..Context::default()
    }
}

/// Campaigns and creatives, known one second before the first rating.
fn catalogue_events(dataset: &Dataset) -> Vec<Event> {
    let first_us = dataset.ratings.first().map_or(0, |rating| rating.time_us);
    let event = |id: String, payload| Event {
        event_id: format!("ml-{id}"),
        event_time_us: first_us - SECOND_US,
        ingest_time_us: first_us - SECOND_US,
        schema_version: wire::SCHEMA_VERSION,
        payload: Some(payload),
        ..Event::default()
    };
    let mut campaigns: Vec<String> = dataset.movies.values().map(campaign_id).collect();
    campaigns.sort();
    campaigns.dedup();
    let campaigns = campaigns.into_iter().map(|campaign_id| {
        let id = campaign_id.clone();
        let changed = CampaignChanged {
            campaign_id,
            advertiser_id: "movielens".to_owned(),
            bid_micros: SECOND_US,
            daily_budget_micros: 1_000_000 * SECOND_US,
            ..CampaignChanged::default()
        };
        event(id, Payload::CampaignChanged(changed))
    });
    let creatives = dataset.movies.values().map(|movie| {
        let changed = CreativeChanged {
            creative_id: creative_id(movie),
            campaign_id: campaign_id(movie),
            category: movie.first_genre().to_owned(),
            title: movie.title.clone(),
            format: "sponsored_item".to_owned(),
            attributes: movie_attributes(movie),
            ..CreativeChanged::default()
        };
        event(creative_id(movie), Payload::CreativeChanged(changed))
    });
    campaigns.chain(creatives).collect()
}

fn movie_attributes(movie: &Movie) -> std::collections::HashMap<String, String> {
    // The closing bar makes one genre a list, too.
    let genres = movie.genres.iter().map(|genre| format!("{genre}|"));
    let mut attributes = vec![("genres".to_owned(), genres.collect::<String>())];
    if let Some(year) = movie.release_year {
        attributes.push(("release_year".to_owned(), year.to_string()));
    }
    attributes.into_iter().collect()
}

fn campaign_id(movie: &Movie) -> String {
    format!("genre-{}", movie.first_genre().to_lowercase())
}

fn creative_id(movie: &Movie) -> String {
    format!("movie-{}", movie.item_id)
}

impl Person {
    fn age_band(&self) -> AgeBand {
        if self.age < 13 {
            AgeBand::Under13
        } else {
            AgeBand::AgeBand13plus
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset() -> Dataset {
        Dataset::parse(
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n\
             1\t10\t5\t100\n1\t11\t3\t100\n2\t10\t4\t99\n1\t12\t4\t101\n",
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n\
             10\tToy Story\t1995\tAnimation Comedy\n11\tHeat\t1995\tDrama\n12\tX\tV\tDrama War\n",
            "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n\
             1\t24\tM\twriter\t85711\n2\t7\tF\tstudent\tT8H1N\n",
            Path::new(""),
        )
        .unwrap()
    }

    #[test]
    fn feedback_of_a_second_comes_after_its_impressions_and_before_the_next_second() {
        let events = events(&dataset(), &MovielensConfig::default());
        let of_ratings: Vec<&str> = events
            .iter()
            .filter(|event| !event.user_id.is_empty())
            .map(|event| event.event_id.trim_start_matches("ml-"))
            .collect();
        let expected = [
            "2-10-served",
            "2-10-viewed",
            "2-10-click",
            "1-10-served",
            "1-11-served",
            "1-10-viewed",
            "1-10-click",
            "1-11-viewed",
            "1-12-served",
            "1-12-viewed",
            "1-12-click",
        ];
        assert_eq!(of_ratings, expected);
    }

    #[test]
    fn every_event_passes_validation_and_children_are_children() {
        for event in events(&dataset(), &MovielensConfig::default()) {
            crate::process::validation::check(&event, 0).unwrap();
            if event.user_id == "u2" {
                assert_eq!(event.age_band(), AgeBand::Under13);
            }
        }
    }

    #[test]
    fn an_import_is_completed_and_never_doubled() {
        let root = tempfile::tempdir().unwrap();
        let config = MovielensConfig::default();
        let all = events(&dataset(), &config);
        let mut writer = SegmentWriter::open(root.path(), "movielens").unwrap();
        for event in &all[..5] {
            writer.append_event(event).unwrap();
        }
        drop(writer);
        assert_eq!(check_start(root.path(), &config, &all).unwrap(), 5);

        let other = MovielensConfig {
            click_rating: 3.0,
            feedback_delay_ms: 400,
            ..config
        };
        let error = check_start(root.path(), &other, &events(&dataset(), &other)[1..]).unwrap_err();
        assert!(matches!(error, ImportError::OtherLog { offset: 0, .. }));
    }

    /// Dense and sparse features of each impression, computed by the pipeline.
    fn features(dataset: &Dataset) -> std::collections::BTreeMap<String, String> {
        use features::FeatureSet;

        use crate::process::{PipelineConfig, Processor, SourceRecord};

        let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/movielens/features.toml");
        let set = FeatureSet::load(&spec).unwrap();
        let mut processor = Processor::new(&PipelineConfig::default(), set);
        for event in events(dataset, &MovielensConfig::default()) {
            processor.apply(SourceRecord {
                partition: "movielens".into(),
                offset: 0,
                payload: Vec::new(),
                event: Ok(event),
            });
        }
        processor.close();
        assert_eq!(processor.counters().events_dead, 0);
        let rows = processor.take_outputs().rows;
        let served = rows.iter().map(|row| &row.impression.served);
        let described = |it: &ImpressionServed| format!("{:?}", it.snapshot);
        served
            .map(|it| (it.impression_id.clone(), described(it)))
            .collect()
    }

    #[test]
    fn a_rating_is_not_in_the_features_of_its_own_second() {
        // One rating of three in second 100 changes from no click to click.
        let dataset = |rating: &str| {
            let header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n";
            let ratings = format!(
                "{header}1\t10\t5\t99\n1\t11\t{rating}\t100\n1\t12\t5\t100\n\
                 2\t11\t4\t100\n1\t13\t4\t101\n2\t12\t4\t300\n"
            );
            let movies = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n\
                 10\tA\t1995\tDrama\n11\tB\t1995\tDrama\n12\tC\t1990\tDrama War\n13\tD\t1991\tWar\n";
            let people = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n\
                 1\t24\tM\twriter\t85711\n2\t30\tF\tartist\t85711\n";
            Dataset::parse(&ratings, movies, people, Path::new("")).unwrap()
        };
        let (without, with) = (features(&dataset("2")), features(&dataset("5")));
        for same in ["ml-1-10", "ml-1-11", "ml-1-12", "ml-2-11"] {
            assert_eq!(without[same], with[same], "{same}");
        }
        assert_ne!(without["ml-1-13"], with["ml-1-13"]);
    }
}
