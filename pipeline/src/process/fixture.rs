//! Events for tests, also for those that run the real binary.

use wire::events::{
    AgeBand, CampaignChanged, Click, Context, Conversion, CreativeChanged, Event,
    ExperienceChanged, ImpressionServed, ImpressionViewed, Scene, UserActivity, event::Payload,
};

pub(crate) const SECOND_US: i64 = 1_000_000;
pub(crate) const MINUTE_US: i64 = 60 * SECOND_US;
pub(crate) const HOUR_US: i64 = 60 * MINUTE_US;
/// 1 January 2026, a time that looks like one.
pub(crate) const START_US: i64 = 1_767_225_600 * SECOND_US;

/// An event of user `u1` that arrives when it happens.
pub(crate) fn event(event_id: &str, time_us: i64, payload: Payload) -> Event {
    Event {
        event_id: event_id.to_owned(),
        event_time_us: time_us,
        ingest_time_us: time_us,
        user_id: "u1".to_owned(),
        age_band: AgeBand::AgeBand13plus.into(),
        schema_version: wire::SCHEMA_VERSION,
        payload: Some(payload),
    }
}

pub(crate) fn of_user(mut event: Event, user_id: &str) -> Event {
    event.user_id = user_id.to_owned();
    event
}

pub(crate) fn campaign(campaign_id: &str, time_us: i64) -> Event {
    let changed = CampaignChanged {
        campaign_id: campaign_id.to_owned(),
        advertiser_id: "advertiser".to_owned(),
        bid_micros: 1_000_000,
        daily_budget_micros: 100_000_000,
        ..CampaignChanged::default()
    };
    let id = format!("campaign-{campaign_id}-{time_us}");
    of_user(event(&id, time_us, Payload::CampaignChanged(changed)), "")
}

pub(crate) fn creative(creative_id: &str, campaign_id: &str, time_us: i64) -> Event {
    let changed = CreativeChanged {
        creative_id: creative_id.to_owned(),
        campaign_id: campaign_id.to_owned(),
        category: format!("category of {campaign_id}"),
        title: creative_id.to_uppercase(),
        format: "billboard".to_owned(),
        picture_png: png(creative_id.len() as u8),
        ..CreativeChanged::default()
    };
    let id = format!("creative-{creative_id}-{time_us}");
    of_user(event(&id, time_us, Payload::CreativeChanged(changed)), "")
}

pub(crate) fn experience(experience_id: &str, time_us: i64) -> Event {
    let scene = Scene {
        scene_id: format!("{experience_id}-scene"),
        picture_png: png(200),
    };
    let changed = ExperienceChanged {
        experience_id: experience_id.to_owned(),
        genre: "racing".to_owned(),
        scenes: vec![scene],
        removed: false,
    };
    let id = format!("experience-{experience_id}-{time_us}");
    of_user(event(&id, time_us, Payload::ExperienceChanged(changed)), "")
}

pub(crate) fn served(impression_id: &str, creative_id: &str, time_us: i64) -> Event {
    let campaign_id = creative_id.split('-').next().unwrap_or_default();
    let served = ImpressionServed {
        impression_id: impression_id.to_owned(),
        request_id: format!("request of {impression_id}"),
        campaign_id: campaign_id.to_owned(),
        creative_id: creative_id.to_owned(),
        context: Some(Context {
            experience_id: "e1".to_owned(),
            genre: "racing".to_owned(),
            scene_id: "e1-scene".to_owned(),
            placement_id: "p1".to_owned(),
            format: "billboard".to_owned(),
            device: "phone".to_owned(),
            country: "DE".to_owned(),
            ..Context::default()
        }),
        ..ImpressionServed::default()
    };
    let id = format!("{impression_id}-served");
    event(&id, time_us, Payload::ImpressionServed(served))
}

pub(crate) fn viewed(impression_id: &str, time_us: i64) -> Event {
    evidence(impression_id, 0.9, 0.1, 2_000, time_us)
}

pub(crate) fn evidence(
    impression_id: &str,
    viewport_share: f32,
    occluded_share: f32,
    duration_ms: u32,
    time_us: i64,
) -> Event {
    let viewed = ImpressionViewed {
        impression_id: impression_id.to_owned(),
        viewport_share,
        occluded_share,
        duration_ms,
        ..ImpressionViewed::default()
    };
    let id = format!("{impression_id}-viewed-{time_us}");
    event(&id, time_us, Payload::ImpressionViewed(viewed))
}

pub(crate) fn click(impression_id: &str, time_us: i64) -> Event {
    let impression_id = impression_id.to_owned();
    let id = format!("{impression_id}-click-{time_us}");
    event(&id, time_us, Payload::Click(Click { impression_id }))
}

pub(crate) fn conversion(campaign_id: &str, value_micros: i64, time_us: i64) -> Event {
    let conversion = Conversion {
        campaign_id: campaign_id.to_owned(),
        conversion_type: "purchase".to_owned(),
        value_micros,
    };
    let id = format!("conversion-{campaign_id}-{time_us}");
    event(&id, time_us, Payload::Conversion(conversion))
}

pub(crate) fn activity(dwell_seconds: u32, time_us: i64) -> Event {
    let activity = UserActivity {
        activity_type: "visit".to_owned(),
        experience_id: "e1".to_owned(),
        genre: "racing".to_owned(),
        dwell_seconds,
    };
    event(
        &format!("activity-{time_us}"),
        time_us,
        Payload::UserActivity(activity),
    )
}

/// A small picture of one colour.
pub(crate) fn png(shade: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(3, 2, image::Rgb([shade, 90, 255 - shade]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("writing to memory works");
    bytes.into_inner()
}
