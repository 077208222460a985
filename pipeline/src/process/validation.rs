//! What an event must look like on its own, before anything else is known.
//!
//! A reading of the wire contract that refuses what later steps could not make sense of. What
//! depends on other events (unknown creatives, windows) is refused later, by
//! [`Processor`](super::Processor).

use wire::events::{
    CampaignChanged, Context, Conversion, CreativeChanged, Event, ExperienceChanged,
    ImpressionServed, ImpressionViewed, UserActivity, event::Payload,
};

use super::refusal::Refusal;

/// Longest id or name, in bytes.
pub const MAX_ID_BYTES: usize = 512;

/// 1 January 2200, microseconds since the Unix epoch.
const END_OF_TIME_US: i64 = 7_258_118_400_000_000;

type Checked = Result<(), Refusal>;

/// Checks an event and gives its payload.
///
/// # Errors
/// [`Refusal`] names the field and what was wanted.
pub fn check(event: &Event, max_skew_us: i64) -> Result<&Payload, Refusal> {
    if !(1..=wire::SCHEMA_VERSION).contains(&event.schema_version) {
        return Err(Refusal::SchemaVersion {
            found: event.schema_version,
        });
    }
    id("event_id", &event.event_id)?;
    time("event_time_us", event.event_time_us)?;
    time("ingest_time_us", event.ingest_time_us)?;
    let ahead_us = event.event_time_us - event.ingest_time_us;
    if ahead_us > max_skew_us {
        return Err(Refusal::InFuture {
            ahead_us,
            most_us: max_skew_us,
        });
    }
    let payload = event.payload.as_ref().ok_or(Refusal::NoPayload)?;
    match payload {
        Payload::CreativeChanged(creative) => check_creative(creative)?,
        Payload::CampaignChanged(campaign) => check_campaign(campaign)?,
        Payload::ExperienceChanged(experience) => check_experience(experience)?,
        of_a_user => {
            // Empty for people who are not known, and for those who may not be.
            name("user_id", &event.user_id)?;
            check_of_user(of_a_user)?;
        }
    }
    Ok(payload)
}

fn check_of_user(payload: &Payload) -> Checked {
    match payload {
        Payload::ImpressionServed(served) => check_served(served),
        Payload::ImpressionViewed(viewed) => check_viewed(viewed),
        Payload::Click(click) => id("impression_id", &click.impression_id),
        Payload::Conversion(conversion) => check_conversion(conversion),
        Payload::UserActivity(activity) => check_activity(activity),
        Payload::CreativeChanged(_)
        | Payload::CampaignChanged(_)
        | Payload::ExperienceChanged(_) => Ok(()),
    }
}

fn check_served(served: &ImpressionServed) -> Checked {
    id("impression_id", &served.impression_id)?;
    id("campaign_id", &served.campaign_id)?;
    id("creative_id", &served.creative_id)?;
    name("request_id", &served.request_id)?;
    if let Some(context) = &served.context {
        check_context(context)?;
    }
    finite("pctr", served.pctr)?;
    amount("bid_micros", served.bid_micros)?;
    amount("price_micros", served.price_micros)?;
    let mut dense = served.snapshot.iter().flat_map(|snapshot| &snapshot.dense);
    dense.try_for_each(|value| finite("snapshot.dense", *value))
}

fn check_context(context: &Context) -> Checked {
    name("context.experience_id", &context.experience_id)?;
    name("context.genre", &context.genre)?;
    name("context.scene_id", &context.scene_id)?;
    name("context.placement_id", &context.placement_id)?;
    name("context.format", &context.format)?;
    name("context.device", &context.device)?;
    name("context.country", &context.country)
}

fn check_viewed(viewed: &ImpressionViewed) -> Checked {
    id("impression_id", &viewed.impression_id)?;
    share("viewport_share", viewed.viewport_share)?;
    share("occluded_share", viewed.occluded_share)
}

fn check_conversion(conversion: &Conversion) -> Checked {
    id("campaign_id", &conversion.campaign_id)?;
    name("conversion_type", &conversion.conversion_type)?;
    amount("value_micros", conversion.value_micros)
}

fn check_activity(activity: &UserActivity) -> Checked {
    name("activity_type", &activity.activity_type)?;
    name("experience_id", &activity.experience_id)?;
    name("genre", &activity.genre)
}

fn check_creative(creative: &CreativeChanged) -> Checked {
    id("creative_id", &creative.creative_id)?;
    if creative.removed {
        return Ok(());
    }
    id("campaign_id", &creative.campaign_id)?;
    name("category", &creative.category)?;
    name("title", &creative.title)?;
    name("format", &creative.format)
}

fn check_campaign(campaign: &CampaignChanged) -> Checked {
    id("campaign_id", &campaign.campaign_id)?;
    if campaign.removed {
        return Ok(());
    }
    name("advertiser_id", &campaign.advertiser_id)?;
    amount("bid_micros", campaign.bid_micros)?;
    amount("daily_budget_micros", campaign.daily_budget_micros)
}

fn check_experience(experience: &ExperienceChanged) -> Checked {
    id("experience_id", &experience.experience_id)?;
    name("genre", &experience.genre)?;
    let mut scenes = experience.scenes.iter();
    scenes.try_for_each(|scene| id("scenes.scene_id", &scene.scene_id))
}

fn id(field: &'static str, value: &str) -> Checked {
    if value.is_empty() {
        return Err(Refusal::EmptyId { field });
    }
    name(field, value)
}

fn name(field: &'static str, value: &str) -> Checked {
    if value.len() > MAX_ID_BYTES {
        return Err(Refusal::IdTooLong {
            field,
            bytes: value.len(),
        });
    }
    Ok(())
}

fn time(field: &'static str, found: i64) -> Checked {
    if !(1..END_OF_TIME_US).contains(&found) {
        return Err(Refusal::TimeOutOfRange { field, found });
    }
    Ok(())
}

fn share(field: &'static str, found: f32) -> Checked {
    // Written so that a value that is not a number is refused.
    if !(0.0..=1.0).contains(&found) {
        return Err(Refusal::ShareOutOfRange { field, found });
    }
    Ok(())
}

fn finite(field: &'static str, value: f32) -> Checked {
    if !value.is_finite() {
        return Err(Refusal::NotFinite { field });
    }
    Ok(())
}

fn amount(field: &'static str, found: i64) -> Checked {
    if found < 0 {
        return Err(Refusal::NegativeAmount { field, found });
    }
    Ok(())
}
