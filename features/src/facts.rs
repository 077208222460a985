//! What a request and an ad say of themselves: the names that expressions may use.
//!
//! This is the only place where wire types become facts; the pipeline and the server both come
//! through here.

use std::collections::BTreeMap;

use wire::{
    catalogue::{Campaign, Creative, Scene},
    events::{AgeBand, Context},
    gate::{Subject, UserId},
};

/// One value that an expression may name.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// Not known.
    Missing,
    /// A number.
    Number(f64),
    /// A text, used as an id.
    Text(String),
    /// Several texts, used as ids.
    List(Vec<String>),
    /// A vector, such as a picture's style.
    Vector(Vec<f32>),
}

/// Facts by name.
pub type Facts = BTreeMap<String, Fact>;

/// The kind of value behind a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FactType {
    /// [`Fact::Number`].
    Number,
    /// [`Fact::Text`].
    Text,
    /// [`Fact::List`].
    List,
    /// [`Fact::Vector`].
    Vector,
}

/// Names that every request has.
pub const REQUEST_FACTS: [(&str, FactType); 12] = [
    ("user_id", FactType::Text),
    ("age_band", FactType::Text),
    ("experience_id", FactType::Text),
    ("genre", FactType::Text),
    ("scene_id", FactType::Text),
    ("placement_id", FactType::Text),
    ("format", FactType::Text),
    ("device", FactType::Text),
    ("country", FactType::Text),
    ("hour", FactType::Number),
    ("day_of_week", FactType::Number),
    ("scene_style", FactType::Vector),
];

/// Names that every ad has.
pub const AD_FACTS: [(&str, FactType); 8] = [
    ("creative_id", FactType::Text),
    ("campaign_id", FactType::Text),
    ("advertiser_id", FactType::Text),
    ("category", FactType::Text),
    ("ad_format", FactType::Text),
    ("bid", FactType::Number),
    ("creative_style", FactType::Vector),
    ("first_seen_us", FactType::Number),
];

/// The fact that says whether personal features may be used; never named by a feature.
pub(crate) const PERSONAL: &str = "personal_allowed";

const HOUR_US: i64 = 3_600_000_000;

/// Facts of a request: ids and context, the time in UTC hours (0 to 24, with fraction) and days
/// (Monday is 0), the scene's style, and whatever attributes the context carries. An attribute
/// that reads as a number is one; `a|b|c` is a list of texts. One who is restricted has neither an id
/// nor attributes, in which a client may say anything.
pub fn request_facts(
    subject: &Subject,
    age_band: AgeBand,
    context: &Context,
    scene: Option<&Scene>,
    time_us: i64,
) -> Facts {
    let person = subject.person();
    let mut facts = match person {
        Some(_) => attributes(context.attributes.iter()),
        None => Facts::new(),
    };
    let hours = time_us.rem_euclid(24 * HOUR_US) as f64 / HOUR_US as f64;
    // 1 January 1970 was a Thursday.
    let day = (time_us.div_euclid(24 * HOUR_US) + 3).rem_euclid(7);
    let style = scene.map_or(Fact::Missing, |scene| vector(&scene.style));
    let own = [
        ("user_id", text(person.map_or("", UserId::as_str))),
        ("age_band", text(age_band.as_str_name())),
        ("experience_id", text(&context.experience_id)),
        ("genre", text(&context.genre)),
        ("scene_id", text(&context.scene_id)),
        ("placement_id", text(&context.placement_id)),
        ("format", text(&context.format)),
        ("device", text(&context.device)),
        ("country", text(&context.country)),
        ("hour", Fact::Number(hours)),
        ("day_of_week", Fact::Number(day as f64)),
        ("scene_style", style),
        (
            PERSONAL,
            Fact::Number(f64::from(u8::from(person.is_some()))),
        ),
    ];
    facts.extend(own.map(|(name, fact)| (name.to_owned(), fact)));
    facts
}

/// Facts of an ad: ids, category, the bid in currency units, the picture's style, and the
/// creative's attributes, read as in [`request_facts`].
pub fn ad_facts(creative: &Creative, campaign: &Campaign) -> Facts {
    let mut facts = attributes(creative.attributes.iter());
    let own = [
        ("creative_id", text(&creative.creative_id)),
        ("campaign_id", text(&campaign.campaign_id)),
        ("advertiser_id", text(&campaign.advertiser_id)),
        ("category", text(&creative.category)),
        ("ad_format", text(&creative.format)),
        ("bid", Fact::Number(campaign.bid_micros as f64 / 1e6)),
        ("creative_style", vector(&creative.style)),
        ("first_seen_us", Fact::Number(creative.first_seen_us as f64)),
    ];
    facts.extend(own.map(|(name, fact)| (name.to_owned(), fact)));
    facts
}

fn text(value: &str) -> Fact {
    if value.is_empty() {
        Fact::Missing
    } else {
        Fact::Text(value.to_owned())
    }
}

fn vector(values: &[f32]) -> Fact {
    if values.is_empty() {
        Fact::Missing
    } else {
        Fact::Vector(values.to_vec())
    }
}

fn attributes<'a>(pairs: impl Iterator<Item = (&'a String, &'a String)>) -> Facts {
    pairs
        .map(|(name, value)| (name.clone(), attribute(value)))
        .collect()
}

fn attribute(value: &str) -> Fact {
    if value.contains('|') {
        let items = value.split('|').filter(|item| !item.is_empty());
        return Fact::List(items.map(str::to_owned).collect());
    }
    match value.parse::<f64>() {
        Ok(number) if number.is_finite() => Fact::Number(number),
        _ => text(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_numbers_lists_or_texts() {
        let check = |value: &str, expected| assert_eq!(attribute(value), expected);
        check("1995", Fact::Number(1995.0));
        check("nan", Fact::Text("nan".into()));
        check("drama|war", Fact::List(vec!["drama".into(), "war".into()]));
        check("", Fact::Missing);
    }

    #[test]
    fn personal_features_need_a_known_age_and_consent() {
        let context = Context {
            attributes: [("nick".to_owned(), "joe".to_owned())].into(),
            ..Context::default()
        };
        let allowed = |age, consent| {
            let subject = Subject::admit("u".to_owned(), age, consent);
            let facts = request_facts(&subject, age, &context, None, 0);
            let allowed = facts[PERSONAL] == Fact::Number(1.0);
            assert_eq!(facts["user_id"] == Fact::Text("u".into()), allowed);
            assert_eq!(facts.contains_key("nick"), allowed);
            allowed
        };
        assert!(allowed(AgeBand::AgeBand13plus, true));
        assert!(!allowed(AgeBand::AgeBand13plus, false));
        assert!(!allowed(AgeBand::Under13, true));
        assert!(!allowed(AgeBand::Unknown, true));
        assert!(!allowed(AgeBand::Unspecified, true));
    }

    #[test]
    fn the_epoch_was_a_thursday_at_midnight() {
        let subject = Subject::admit(String::new(), AgeBand::Unknown, true);
        let context = Context::default();
        let facts = request_facts(&subject, AgeBand::Unknown, &context, None, HOUR_US / 2);
        assert_eq!(facts["day_of_week"], Fact::Number(3.0));
        assert_eq!(facts["hour"], Fact::Number(0.5));
    }
}
