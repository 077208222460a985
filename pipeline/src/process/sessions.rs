//! Sessions: what one person does without a long pause.

use features::hash::{chain_integer, hash_text};
use serde::{Deserialize, Serialize};
use wire::gate::UserId;

use super::deduplication::HashedMap;

/// The running session of each person, by hash of the user id.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Sessions {
    of_users: HashedMap<Session>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Session {
    start_us: i64,
    last_us: i64,
    impressions: u32,
}

/// Where in a session an event stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InSession {
    /// Names the session: a hash of the person and its start; 0 for people who are not known.
    pub(crate) id: u64,
    /// Impressions of the session before this one.
    pub(crate) impression: u32,
}

impl Sessions {
    /// Puts an event into its person's session. One that is older than the running session by more than
    /// `gap_us` is of a session of its own, and changes nothing.
    pub(crate) fn see(
        &mut self,
        person: Option<&UserId>,
        time_us: i64,
        gap_us: i64,
        impression: bool,
    ) -> InSession {
        let Some(person) = person else {
            return InSession::default();
        };
        let user = hash_text(person.as_str());
        let new = Session {
            start_us: time_us,
            last_us: time_us,
            impressions: 0,
        };
        let session = self.of_users.entry(user).or_insert(new);
        if time_us > session.last_us + gap_us {
            *session = new;
        } else if time_us < session.start_us - gap_us {
            return InSession {
                id: chain_integer(user, time_us),
                impression: 0,
            };
        }
        session.last_us = session.last_us.max(time_us);
        let place = InSession {
            id: chain_integer(user, session.start_us),
            impression: session.impressions,
        };
        session.impressions += u32::from(impression);
        place
    }

    /// Forgets sessions that ended before a time.
    pub(crate) fn expire(&mut self, before_us: i64) {
        self.of_users
            .retain(|_, session| session.last_us >= before_us);
    }
}

#[cfg(test)]
mod tests {
    use wire::{events::AgeBand, gate::Subject};

    use super::*;

    const GAP_US: i64 = 100;

    fn see(sessions: &mut Sessions, user: &str, time_us: i64) -> InSession {
        let subject = Subject::admit(user.to_owned(), AgeBand::AgeBand13plus, true);
        sessions.see(subject.person(), time_us, GAP_US, true)
    }

    #[test]
    fn a_pause_longer_than_the_gap_begins_a_session() {
        let mut sessions = Sessions::default();
        let mut see = |user: &str, time_us| see(&mut sessions, user, time_us);
        let first = see("a", 1_000);
        assert_eq!(see("a", 1_100).id, first.id);
        assert_eq!(see("a", 1_150).impression, 2);
        let second = see("a", 1_251);
        assert_ne!(second.id, first.id);
        assert_eq!(second.impression, 0);
        assert_ne!(see("b", 1_000).id, first.id);
    }

    #[test]
    fn what_comes_late_joins_the_running_session_or_stands_alone() {
        let mut sessions = Sessions::default();
        let mut see = |time_us| see(&mut sessions, "a", time_us);
        let running = see(1_000);
        assert_eq!(see(950).id, running.id);
        assert_ne!(see(850).id, running.id);
        assert_eq!(see(1_090).id, running.id);
    }

    #[test]
    fn people_who_are_not_known_have_none() {
        let mut sessions = Sessions::default();
        assert_eq!(see(&mut sessions, "", 1), InSession::default());
        see(&mut sessions, "a", 1_000);
        sessions.expire(1_001);
        assert!(sessions.of_users.is_empty());
    }
}
