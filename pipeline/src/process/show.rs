//! `marquee events show`: the log for people.

use comfy_table::{Table, presets};
use serde_json::{Map, Value, json};
use wire::{
    events::{AgeBand, Event, event::Payload},
    log::{Log, LogError, Position},
};

use super::refusal::Refusal;
use super::{hex, validation};

/// Which records to show.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// One partition, or all of them one after the other.
    pub partition: Option<String>,
    /// First offset.
    pub from: u64,
    /// At most this many of each partition.
    pub limit: usize,
}

/// Records as JSON objects.
///
/// # Errors
/// [`LogError`] if a partition is missing or damaged.
pub fn select(log: &dyn Log, selection: &Selection) -> Result<Vec<Value>, LogError> {
    let wanted = |name: &str| selection.partition.as_ref().is_none_or(|it| it == name);
    let mut position = Position::new();
    if selection.from > 0 {
        let names = log.read(&Position::new())?.into_iter().map(|it| it.0);
        let names = names.filter(|name| wanted(name));
        position.extend(names.map(|name| (name, selection.from)));
    }
    let mut partitions = log.read(&position)?;
    partitions.retain(|(name, _)| wanted(name));
    if let (Some(partition), true) = (&selection.partition, partitions.is_empty()) {
        return Err(LogError::Gap {
            partition: partition.clone(),
            wanted: selection.from,
            first: 0,
            end: 0,
        });
    }
    let mut records = Vec::new();
    for (partition, reader) in partitions {
        for record in reader.take(selection.limit) {
            let record = record?;
            records.push(to_json(&partition, record.offset, &record.payload));
        }
    }
    Ok(records)
}

/// One record as a JSON object; pictures and snapshots by their size.
pub fn to_json(partition: &str, offset: u64, payload: &[u8]) -> Value {
    use prost::Message;

    let mut object = Map::new();
    object.insert("partition".to_owned(), json!(partition));
    object.insert("offset".to_owned(), json!(offset));
    let event = match Event::decode(payload) {
        Ok(event) => event,
        Err(error) => {
            let refusal = Refusal::Malformed(error);
            object.insert("malformed".to_owned(), json!(refusal.to_string()));
            object.insert("payload_hex".to_owned(), json!(hex(payload)));
            return Value::Object(object);
        }
    };
    // The clock skew is the pipeline's to judge.
    if let Err(refusal) = validation::check(&event, i64::MAX) {
        object.insert("refused".to_owned(), json!(refusal.to_string()));
    }
    object.insert("event_id".to_owned(), json!(event.event_id));
    object.insert("event_time_us".to_owned(), json!(event.event_time_us));
    object.insert("ingest_time_us".to_owned(), json!(event.ingest_time_us));
    if !event.user_id.is_empty() {
        object.insert("user_id".to_owned(), json!(event.user_id));
        let age = AgeBand::try_from(event.age_band).map_or("?", |age| age.as_str_name());
        object.insert("age_band".to_owned(), json!(age));
    }
    let (kind, body) = body(event.payload);
    object.insert("type".to_owned(), json!(kind));
    object.insert("event".to_owned(), body);
    Value::Object(object)
}

fn body(payload: Option<Payload>) -> (&'static str, Value) {
    match payload {
        None => ("nothing", Value::Null),
        Some(Payload::ImpressionServed(served)) => {
            let context = served.context.unwrap_or_default();
            let snapshot = served.snapshot.map(|snapshot| {
                json!({
                    "spec_digest": snapshot.spec_digest,
                    "dense": snapshot.dense.len(),
                    "sparse_ids": snapshot.sparse_ids.len(),
                })
            });
            let body = json!({
                "impression_id": served.impression_id,
                "request_id": served.request_id,
                "campaign_id": served.campaign_id,
                "creative_id": served.creative_id,
                "slot": served.slot,
                "pctr": served.pctr,
                "bid_micros": served.bid_micros,
                "price_micros": served.price_micros,
                "bundle_digest": served.bundle_digest,
                "candidates": served.candidates.len(),
                "snapshot": snapshot,
                "context": {
                    "experience_id": context.experience_id,
                    "genre": context.genre,
                    "scene_id": context.scene_id,
                    "placement_id": context.placement_id,
                    "format": context.format,
                    "device": context.device,
                    "country": context.country,
                    "attributes": context.attributes,
                },
            });
            ("ImpressionServed", body)
        }
        Some(Payload::ImpressionViewed(viewed)) => {
            let body = json!({
                "impression_id": viewed.impression_id,
                "viewport_share": viewed.viewport_share,
                "occluded_share": viewed.occluded_share,
                "duration_ms": viewed.duration_ms,
            });
            ("ImpressionViewed", body)
        }
        Some(Payload::Click(click)) => ("Click", json!({ "impression_id": click.impression_id })),
        Some(Payload::Conversion(conversion)) => {
            let body = json!({
                "campaign_id": conversion.campaign_id,
                "conversion_type": conversion.conversion_type,
                "value_micros": conversion.value_micros,
            });
            ("Conversion", body)
        }
        Some(Payload::UserActivity(activity)) => {
            let body = json!({
                "activity_type": activity.activity_type,
                "experience_id": activity.experience_id,
                "genre": activity.genre,
                "dwell_seconds": activity.dwell_seconds,
            });
            ("UserActivity", body)
        }
        Some(change) => catalogue_body(change),
    }
}

fn catalogue_body(change: Payload) -> (&'static str, Value) {
    match change {
        Payload::CreativeChanged(creative) => {
            let body = json!({
                "creative_id": creative.creative_id,
                "campaign_id": creative.campaign_id,
                "category": creative.category,
                "title": creative.title,
                "format": creative.format,
                "picture_bytes": creative.picture_png.len(),
                "removed": creative.removed,
                "attributes": creative.attributes,
            });
            ("CreativeChanged", body)
        }
        Payload::CampaignChanged(campaign) => {
            let targeting = campaign.targeting.unwrap_or_default();
            let body = json!({
                "campaign_id": campaign.campaign_id,
                "advertiser_id": campaign.advertiser_id,
                "bid_micros": campaign.bid_micros,
                "daily_budget_micros": campaign.daily_budget_micros,
                "removed": campaign.removed,
                "targeting": {
                    "genres": targeting.genres,
                    "devices": targeting.devices,
                    "countries": targeting.countries,
                    "adults_only": targeting.adults_only,
                },
            });
            ("CampaignChanged", body)
        }
        Payload::ExperienceChanged(experience) => {
            let scenes = experience.scenes.iter().map(|scene| {
                json!({
                    "scene_id": scene.scene_id,
                    "picture_bytes": scene.picture_png.len(),
                })
            });
            let body = json!({
                "experience_id": experience.experience_id,
                "genre": experience.genre,
                "removed": experience.removed,
                "scenes": scenes.collect::<Vec<_>>(),
            });
            ("ExperienceChanged", body)
        }
        _ => ("nothing", Value::Null),
    }
}

/// Records as a table for people.
pub fn table(records: &[Value]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["partition", "offset", "type", "user", "event time", "event"]);
    for record in records {
        let text = |key: &str| match &record[key] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let kind = if record["malformed"].is_null() {
            text("type")
        } else {
            "malformed".to_owned()
        };
        let event = match (&record["malformed"], &record["refused"]) {
            (Value::String(why), _) => why.clone(),
            (_, Value::String(why)) => format!("refused: {why}"),
            _ => summary(&record["event"]),
        };
        let time = record["event_time_us"].as_i64().map(time_text);
        table.add_row([
            text("partition"),
            text("offset"),
            kind,
            text("user_id"),
            time.unwrap_or_default(),
            event,
        ]);
    }
    table
}

/// The fields that say something, on one line.
fn summary(event: &Value) -> String {
    let Value::Object(fields) = event else {
        return String::new();
    };
    let shown = fields.iter().filter_map(|(name, value)| match value {
        Value::String(text) if !text.is_empty() => Some(format!("{name}={text}")),
        Value::Number(number) if number.as_f64() != Some(0.0) => Some(format!("{name}={number}")),
        Value::Bool(true) => Some(name.clone()),
        Value::Array(items) if !items.is_empty() => Some(format!("{name}={}", items.len())),
        _ => None,
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// `YYYY-MM-DD hh:mm:ss` in UTC.
pub(crate) fn time_text(time_us: i64) -> String {
    let seconds = time_us.div_euclid(1_000_000);
    let day = crate::calendar::day_of(time_us);
    let of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    let day = crate::calendar::day_name(day);
    format!("{day} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_time_reads_as_a_person_writes_it() {
        assert_eq!(time_text(881_250_949_000_000), "1997-12-04 15:55:49");
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_shown(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let record = to_json("a", 0, &payload);
            let _ = table(&[record]).to_string();
        }
    }
}
