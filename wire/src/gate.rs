//! The age gate: behind it, one of whom nothing personal may be kept has no identifier.
//!
//! The Children's Online Privacy Protection Act (16 CFR part 312) forbids keeping what identifies a child
//! under 13. An age that is not known counts as one, and so does a person who has not consented. Whoever
//! comes through the gate is a [`Subject`]: a [`UserId`], which nothing else makes, or [`Restricted`],
//! which has no field and no method that says who it is. So code behind the gate cannot keep, log or look
//! up what it must not:
//!
//! ```compile_fail
//! fn who(restricted: &wire::gate::Restricted) -> &str {
//!     restricted.user_id()
//! }
//! ```
//!
//! ```compile_fail
//! fn forged(user_id: &str) -> wire::gate::UserId {
//!     wire::gate::UserId(user_id.to_owned())
//! }
//! ```
//!
//! ```compile_fail
//! fn who(subject: &wire::gate::Subject) -> &str {
//!     subject.person().as_str()
//! }
//! ```
//!
//! A person has one:
//!
//! ```
//! use wire::{events::AgeBand, gate::Subject};
//!
//! let subject = Subject::admit("u1".to_owned(), AgeBand::AgeBand13plus, true);
//! assert_eq!(subject.person().map(|person| person.as_str()), Some("u1"));
//! let child = Subject::admit("u2".to_owned(), AgeBand::Under13, true);
//! assert_eq!(child.person(), None);
//! ```

use serde::{Deserialize, Serialize};

use crate::events::{AgeBand, Context, Event, event::Payload};

/// Names a person of whom something may be kept. Only [`Subject::admit`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(String);

impl UserId {
    /// The id as it was sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why nothing may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// A child.
    Under13,
    /// It could be a child.
    UnknownAge,
    /// Asked not to.
    NoConsent,
    /// There is no id to keep.
    NoId,
}

impl Why {
    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Under13 => "under13",
            Self::UnknownAge => "unknown_age",
            Self::NoConsent => "no_consent",
            Self::NoId => "no_id",
        }
    }
}

/// One of whom nothing personal may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Restricted {
    why: Why,
}

impl Restricted {
    /// Why.
    pub fn why(self) -> Why {
        self.why
    }
}

/// Who an event or a request is of, behind the gate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// 13 or over, with consent.
    Person(UserId),
    /// Anybody else.
    Restricted(Restricted),
}

impl Subject {
    /// Lets somebody through the gate. The id of one who is restricted is dropped here.
    pub fn admit(user_id: String, age_band: AgeBand, consent: bool) -> Self {
        let why = match age_band {
            AgeBand::Under13 => Why::Under13,
            AgeBand::Unknown | AgeBand::Unspecified => Why::UnknownAge,
            AgeBand::AgeBand13plus if !consent => Why::NoConsent,
            AgeBand::AgeBand13plus if user_id.is_empty() => Why::NoId,
            AgeBand::AgeBand13plus => return Self::Person(UserId(user_id)),
        };
        Self::Restricted(Restricted { why })
    }

    /// The person, if it is one of whom something may be kept.
    pub fn person(&self) -> Option<&UserId> {
        match self {
            Self::Person(person) => Some(person),
            Self::Restricted(_) => None,
        }
    }

    /// Why it is restricted, if it is.
    pub fn restricted(&self) -> Option<Restricted> {
        match self {
            Self::Person(_) => None,
            Self::Restricted(restricted) => Some(*restricted),
        }
    }

    /// Whether personal features may be used and kept.
    pub fn is_personal(&self) -> bool {
        self.person().is_some()
    }
}

/// Takes the person out of an event, and lets it through the gate. What is left in the event names
/// nobody: of one who is restricted the attributes are dropped too, in which a client may say anything.
///
/// An attribute `consent` of `false` withdraws consent, for logs of other ad servers.
pub fn admit(event: &mut Event) -> Subject {
    let user_id = std::mem::take(&mut event.user_id);
    let subject = subject(event, user_id);
    if !subject.is_personal()
        && let Some(context) = self::context(event)
    {
        context.attributes.clear();
    }
    subject
}

fn subject(event: &Event, user_id: String) -> Subject {
    let age_band = AgeBand::try_from(event.age_band).unwrap_or(AgeBand::Unknown);
    let context = match &event.payload {
        Some(Payload::ImpressionServed(served)) => served.context.as_ref(),
        _ => None,
    };
    let consent = context.and_then(|context| context.attributes.get("consent"));
    let consent = consent.is_none_or(|consent| consent != "false");
    Subject::admit(user_id, age_band, consent)
}

/// An event as it may be stored: without what names one who is restricted. `None` if it may be stored as it
/// is.
pub fn stripped(event: &Event) -> Option<Event> {
    let grown = event.age_band == i32::from(AgeBand::AgeBand13plus);
    let context = match &event.payload {
        Some(Payload::ImpressionServed(served)) => served.context.as_ref(),
        _ => None,
    };
    let attributes = context.is_some_and(|context| !context.attributes.is_empty());
    if !attributes && (grown || event.user_id.is_empty()) {
        return None;
    }
    let mut stripped = event.clone();
    // A person goes on under the own name.
    match admit(&mut stripped) {
        Subject::Person(_) => None,
        Subject::Restricted(_) => Some(stripped),
    }
}

/// Whether an event may be kept for long: it is about no person, or about one who came through the gate.
/// Of anybody else it may be kept, [`stripped`], for as long as it is needed.
pub fn may_keep(event: &Event) -> bool {
    match &event.payload {
        Some(
            Payload::CampaignChanged(_)
            | Payload::CreativeChanged(_)
            | Payload::ExperienceChanged(_),
        ) => true,
        _ => subject(event, event.user_id.clone()).is_personal(),
    }
}

fn context(event: &mut Event) -> Option<&mut Context> {
    match &mut event.payload {
        Some(Payload::ImpressionServed(served)) => served.context.as_mut(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::events::ImpressionServed;

    #[test]
    fn only_who_is_known_of_age_and_consents_is_a_person() {
        let check = |user: &str, age, consent, expected| {
            let subject = Subject::admit(user.to_owned(), age, consent);
            assert_eq!(subject.restricted().map(Restricted::why), expected);
            assert_eq!(subject.is_personal(), expected.is_none());
        };
        check("u", AgeBand::AgeBand13plus, true, None);
        check("u", AgeBand::AgeBand13plus, false, Some(Why::NoConsent));
        check("", AgeBand::AgeBand13plus, true, Some(Why::NoId));
        check("u", AgeBand::Under13, true, Some(Why::Under13));
        check("u", AgeBand::Unknown, true, Some(Why::UnknownAge));
        check("u", AgeBand::Unspecified, true, Some(Why::UnknownAge));
    }

    proptest! {
        #[test]
        fn nothing_of_one_who_is_restricted_is_left_in_the_event(age in -1i32..6, consent in any::<bool>()) {
            let mut event = Event {
                event_id: "e".to_owned(),
                user_id: "the-person".to_owned(),
                age_band: age,
                payload: Some(Payload::ImpressionServed(ImpressionServed {
                    context: Some(Context {
                        attributes: [
                            ("name".to_owned(), "the-person".to_owned()),
                            ("consent".to_owned(), consent.to_string()),
                        ]
                        .into(),
                        ..Context::default()
                    }),
                    ..ImpressionServed::default()
                })),
                ..Event::default()
            };
            let subject = admit(&mut event);
            let grown = age == i32::from(AgeBand::AgeBand13plus);
            prop_assert_eq!(subject.is_personal(), grown && consent);
            prop_assert!(event.user_id.is_empty());
            if !subject.is_personal() {
                let bytes = event.encode_to_vec();
                let found = bytes.windows(10).any(|window| window == b"the-person");
                prop_assert!(!found);
            }
        }
    }
}
