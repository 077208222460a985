//! A request as the stages see it: checked, with every default filled in.
//!
//! Wire messages are converted here, once. What a client got wrong is named by field, with what
//! was found and what was wanted.

use std::time::{Duration, Instant};

use registry::now_us;
use wire::{
    ads::GetAdsRequest,
    events::{AgeBand, Context},
    gate::Subject,
};

/// Longest id, in bytes.
const MAX_ID_BYTES: usize = 128;

/// Most further facts that a request may carry.
const MAX_ATTRIBUTES: usize = 64;

/// Longest of their values, in bytes.
const MAX_ATTRIBUTE_BYTES: usize = 1_024;

/// How far ahead of ours a client's clock may run.
const MAX_SKEW_US: i64 = 300_000_000;

/// A checked request.
#[derive(Debug, Clone)]
pub struct AdRequest {
    /// Chosen by the client.
    pub request_id: String,
    /// Who looks, behind the age gate.
    pub subject: Subject,
    /// Unspecified on the wire is unknown here.
    pub age_band: AgeBand,
    /// Where the ad stands.
    pub context: Context,
    /// How many ads fit, at least 1.
    pub slots: usize,
    /// Least price of a thousand impressions, in millionths of the account's currency.
    pub floor_ecpm_micros: i64,
    /// When it was made, microseconds since the Unix epoch.
    pub time_us: i64,
    /// When an answer is of no more use.
    pub deadline: Instant,
}

impl AdRequest {
    /// Whether personal facts of the user may be used and kept.
    pub fn is_personal(&self) -> bool {
        self.subject.is_personal()
    }
}

/// What a client got wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// A text that must be there is empty.
    #[error("`{field}` is empty: {wanted}")]
    Empty {
        /// The field.
        field: &'static str,
        /// What to send.
        wanted: &'static str,
    },
    /// A message that must be there is absent.
    #[error("`{field}` is missing: {wanted}")]
    Missing {
        /// The field.
        field: &'static str,
        /// What to send.
        wanted: &'static str,
    },
    /// A text above its limit.
    #[error("`{field}` has {found} bytes, wanted at most {limit}")]
    TooLong {
        /// The field.
        field: String,
        /// Its length.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A text with control characters.
    #[error("`{field}` has a control character at byte {at}")]
    Control {
        /// The field.
        field: String,
        /// Where.
        at: usize,
    },
    /// A number outside its range.
    #[error("`{field}` is {found}, wanted {wanted}")]
    Range {
        /// The field.
        field: &'static str,
        /// Its value.
        found: i64,
        /// What would do.
        wanted: String,
    },
}

/// What the server fills in and allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most slots.
    pub max_slots: u32,
    /// Time for an answer when the client says nothing.
    pub deadline: Duration,
    /// Longest time that a client may ask for.
    pub max_deadline: Duration,
}

/// Checks a request that arrived at `arrived`, with the time-out of its transport, if any.
///
/// # Errors
/// [`InvalidRequest`] names the first field that does not fit.
pub fn check(
    wire: GetAdsRequest,
    transport_timeout: Option<Duration>,
    arrived: Instant,
    limits: &Limits,
) -> Result<AdRequest, InvalidRequest> {
    if wire.request_id.is_empty() {
        let wanted = "an id chosen by the client, new for each placement that comes into view";
        return Err(InvalidRequest::Empty {
            field: "request_id",
            wanted,
        });
    }
    check_text("request_id", &wire.request_id, MAX_ID_BYTES)?;
    check_text("user_id", &wire.user_id, MAX_ID_BYTES)?;
    let context = wire.context.ok_or(InvalidRequest::Missing {
        field: "context",
        wanted: "the experience and the scene that the ad stands in",
    })?;
    check_context(&context)?;
    let age_band = age_band(wire.age_band)?;
    let placement = wire.placement.unwrap_or_default();
    let range = |field, found, range: std::ops::RangeInclusive<i64>| {
        if range.contains(&found) {
            return Ok(found);
        }
        let wanted = format!("{} to {}", range.start(), range.end());
        Err(InvalidRequest::Range {
            field,
            found,
            wanted,
        })
    };
    let slots = range(
        "placement.slots",
        placement.slots.into(),
        0..=limits.max_slots.into(),
    )?;
    let floor_ecpm_micros = range(
        "placement.floor_ecpm_micros",
        placement.floor_ecpm_micros,
        0..=i64::MAX,
    )?;
    // A time to come would tell the log that everything real is long over.
    let latest_us = now_us().saturating_add(MAX_SKEW_US);
    let time_us = range("request_time_us", wire.request_time_us, 0..=latest_us)?;
    let asked = Some(wire.deadline_ms).filter(|&ms| ms > 0);
    let timeout = asked
        .map(|ms| Duration::from_millis(ms.into()))
        .into_iter()
        .chain(transport_timeout)
        .min();
    let timeout = timeout.unwrap_or(limits.deadline).min(limits.max_deadline);
    Ok(AdRequest {
        request_id: wire.request_id,
        subject: Subject::admit(wire.user_id, age_band, wire.personalisation_consent),
        age_band,
        context,
        slots: slots.max(1) as usize,
        floor_ecpm_micros,
        time_us: if time_us == 0 { now_us() } else { time_us },
        deadline: arrived + timeout,
    })
}

fn age_band(number: i32) -> Result<AgeBand, InvalidRequest> {
    match AgeBand::try_from(number) {
        Ok(AgeBand::Unspecified) => Ok(AgeBand::Unknown),
        Ok(band) => Ok(band),
        Err(_) => Err(InvalidRequest::Range {
            field: "age_band",
            found: number.into(),
            wanted: "1 (under 13), 2 (13 or over) or 3 (unknown)".to_owned(),
        }),
    }
}

fn check_context(context: &Context) -> Result<(), InvalidRequest> {
    for (field, text) in [
        ("context.experience_id", &context.experience_id),
        ("context.genre", &context.genre),
        ("context.scene_id", &context.scene_id),
        ("context.placement_id", &context.placement_id),
        ("context.format", &context.format),
        ("context.device", &context.device),
        ("context.country", &context.country),
    ] {
        check_text(field, text, MAX_ID_BYTES)?;
    }
    if context.attributes.len() > MAX_ATTRIBUTES {
        return Err(InvalidRequest::Range {
            field: "context.attributes",
            found: context.attributes.len() as i64,
            wanted: format!("at most {MAX_ATTRIBUTES} entries"),
        });
    }
    for (name, value) in &context.attributes {
        check_text("context.attributes name", name, MAX_ID_BYTES)?;
        check_text(
            &format!("context.attributes[{name}]"),
            value,
            MAX_ATTRIBUTE_BYTES,
        )?;
    }
    Ok(())
}

fn check_text(field: &str, text: &str, limit: usize) -> Result<(), InvalidRequest> {
    if text.len() > limit {
        return Err(InvalidRequest::TooLong {
            field: field.to_owned(),
            found: text.len(),
            limit,
        });
    }
    match text.find(char::is_control) {
        Some(at) => Err(InvalidRequest::Control {
            field: field.to_owned(),
            at,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::ads::Placement;

    use super::*;

    const LIMITS: Limits = Limits {
        max_slots: 16,
        deadline: Duration::from_millis(100),
        max_deadline: Duration::from_millis(1_000),
    };

    fn good() -> GetAdsRequest {
        GetAdsRequest {
            request_id: "r1".into(),
            context: Some(Context::default()),
            request_time_us: 5,
            ..GetAdsRequest::default()
        }
    }

    fn check(change: impl FnOnce(&mut GetAdsRequest), expected: &str) {
        let mut request = good();
        change(&mut request);
        let error = super::check(request, None, Instant::now(), &LIMITS).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn each_mistake_is_named_with_what_was_wanted() {
        check(
            |request| request.request_id.clear(),
            "`request_id` is empty: an id chosen by the client, new for each placement that comes into view",
        );
        check(
            |request| request.context = None,
            "`context` is missing: the experience and the scene that the ad stands in",
        );
        check(
            |request| {
                request.placement = Some(Placement {
                    slots: 17,
                    ..Placement::default()
                });
            },
            "`placement.slots` is 17, wanted 0 to 16",
        );
        check(
            |request| request.age_band = 9,
            "`age_band` is 9, wanted 1 (under 13), 2 (13 or over) or 3 (unknown)",
        );
        check(
            |request| request.user_id = "u".repeat(129),
            "`user_id` has 129 bytes, wanted at most 128",
        );
        check(
            |request| request.request_id = "a\nb".into(),
            "`request_id` has a control character at byte 1",
        );
        check(
            |request| {
                request.placement = Some(Placement {
                    floor_ecpm_micros: -3,
                    ..Placement::default()
                });
            },
            "`placement.floor_ecpm_micros` is -3, wanted 0 to 9223372036854775807",
        );
    }

    #[test]
    fn a_time_before_1970_or_to_come_is_refused() {
        for time_us in [-1, now_us() + 2 * MAX_SKEW_US, i64::MAX] {
            let mut request = good();
            request.request_time_us = time_us;
            let error = super::check(request, None, Instant::now(), &LIMITS).unwrap_err();
            let told = error.to_string();
            let expected = format!("`request_time_us` is {time_us}, wanted 0 to ");
            assert!(told.starts_with(&expected), "{told}");
        }
    }

    #[test]
    fn defaults_fill_what_a_client_left_open() {
        let arrived = Instant::now();
        let request = super::check(good(), None, arrived, &LIMITS).unwrap();
        assert_eq!((request.slots, request.age_band), (1, AgeBand::Unknown));
        assert_eq!(request.deadline, arrived + LIMITS.deadline);
    }

    #[test]
    fn the_shortest_deadline_wins() {
        let arrived = Instant::now();
        let deadline = |asked_ms, transport_ms: Option<u64>| {
            let request = GetAdsRequest {
                deadline_ms: asked_ms,
                ..good()
            };
            let transport = transport_ms.map(Duration::from_millis);
            let request = super::check(request, transport, arrived, &LIMITS).unwrap();
            (request.deadline - arrived).as_millis()
        };
        assert_eq!(deadline(30, None), 30);
        assert_eq!(deadline(30, Some(20)), 20);
        assert_eq!(deadline(0, Some(20)), 20);
        assert_eq!(deadline(60_000, None), 1_000);
    }

    proptest! {
        #[test]
        fn no_request_panics(
            request_id in ".{0,200}",
            age_band in any::<i32>(),
            slots in any::<u32>(),
            floor_ecpm_micros in any::<i64>(),
            request_time_us in any::<i64>(),
            deadline_ms in any::<u32>(),
        ) {
            let placement = Some(Placement { slots, floor_ecpm_micros, ..Placement::default() });
            let request = GetAdsRequest {
                request_id, age_band, placement, request_time_us, deadline_ms, ..good()
            };
            if let Ok(checked) = super::check(request, None, Instant::now(), &LIMITS) {
                prop_assert!(checked.slots >= 1 && checked.slots <= 16);
                prop_assert!(checked.time_us > 0 && checked.floor_ecpm_micros >= 0);
            }
        }
    }
}
