//! Hot states on a Redis Cluster.
//!
//! ```text
//! {<prefix>}:current:<spec>         JSON: the version that serves
//! {<prefix>}:lock                   who publishes
//! {<prefix>}:epoch, :publishers     the newest numbers of both
//! {<prefix>}:epochs:<spec>          set: epochs of which keys may be there
//! <prefix>:<epoch>:<entity>         hash: generation → packed state
//! <prefix>:<epoch>:{<tag>}:written  the generation of which this node has all
//! ```
//!
//! Versions of one epoch share their keys. A version writes only the entities that changed since the
//! one before, each beside what that one had: a reader takes the newest generation that is not above
//! its own, so that what it reads is of its version alone, however far the next one is written. Where
//! what changed is not known, all is written into a new epoch, and the one before is removed when the
//! next version is published.
//!
//! Entities expire once no window of their features reaches them any more.

mod cluster;
mod publishing;

use std::{
    fmt,
    sync::mpsc,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use cluster::Cluster;
pub(super) use cluster::Reading;
use futures::future::join_all;
pub(super) use publishing::Publisher;
use redis::{Cmd, Value};

use super::{OnlineError, RedisConfig, Version, parse_version, short};
use crate::{EntityKey, EntityState, Known};

/// How much later than its time a node's answer, or its silence, is heard of.
const GRACE: Duration = Duration::from_millis(2);

/// The hot half of the store.
#[derive(Debug)]
pub(super) struct Redis {
    cluster: Cluster,
    config: RedisConfig,
}

impl fmt::Display for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis at {}", self.config.nodes.join(", "))
    }
}

/// States on their way.
pub(super) struct Asked {
    nodes: mpsc::Receiver<Part>,
    generation: u64,
    wanted: usize,
    until: Instant,
}

/// What one node said of some keys.
struct Part {
    node: String,
    keys: Vec<(EntityKey, String)>,
    answers: Result<Vec<Value>, OnlineError>,
}

impl Asked {
    /// Waits for all nodes as long as there is time.
    pub(super) fn wait(self, known: &mut Known) -> Result<(), OnlineError> {
        let (mut unread, mut first) = (self.wanted, None);
        while unread > 0 {
            // Whoever waits for a node looks at the clock too: this is for the case that it is busy.
            let left = self.until.saturating_duration_since(Instant::now()) + GRACE;
            let Ok(part) = self.nodes.recv_timeout(left) else {
                break;
            };
            let Part {
                node,
                keys,
                answers,
            } = part;
            match answers {
                Ok(answers) => {
                    for ((key, _), answer) in keys.into_iter().zip(answers) {
                        match state(&node, key, answer, self.generation) {
                            Ok(state) => {
                                known.insert(key, state);
                                unread -= 1;
                            }
                            Err(error) => first = first.or(Some(error)),
                        }
                    }
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        match first {
            None if unread == 0 => Ok(()),
            None | Some(OnlineError::Late { .. }) => Err(OnlineError::Late { unread }),
            Some(error) => Err(error),
        }
    }
}

impl Redis {
    pub(super) fn new(config: &RedisConfig) -> Result<Self, OnlineError> {
        Ok(Self {
            cluster: Cluster::new(config)?,
            config: config.clone(),
        })
    }

    /// A key of the store's own: all of them lie on one node, so that one step can change two.
    fn admin(&self, name: &str) -> String {
        format!("{{{}}}:{name}", self.config.prefix)
    }

    fn pointer(&self, spec_digest: &str) -> String {
        self.admin(&format!("current:{}", short(spec_digest)))
    }

    fn keys_of(&self, epoch: u64) -> String {
        format!("{}:{epoch}:", self.config.prefix)
    }

    fn one(&self, command: Cmd, doing: &'static str) -> Result<Value, OnlineError> {
        self.cluster
            .wait(async move |link| link.one(command, doing).await)
    }

    /// The version of these features that serves.
    pub(super) fn current(&self, spec_digest: &str) -> Result<Option<Version>, OnlineError> {
        let place = self.pointer(spec_digest);
        let found = self.one(Cmd::get(&place), "reading the version that serves")?;
        let text = bytes(found);
        text.map(|text| parse_version(&place, &text)).transpose()
    }

    /// Asks the nodes for the states of `keys`, each for all of its own at once.
    pub(super) fn ask(
        &self,
        version: &Version,
        keys: &[EntityKey],
        until: Instant,
        reading: Reading,
    ) -> Asked {
        let (tell, nodes) = mpsc::channel();
        let asked = Asked {
            nodes,
            generation: version.generation,
            wanted: keys.len(),
            until,
        };
        if keys.is_empty() {
            return asked;
        }
        let begin = self.keys_of(version.epoch);
        let keys: Vec<(EntityKey, String)> = keys
            .iter()
            .map(|key| (*key, begin.clone() + &encoded(*key)))
            .collect();
        self.cluster.spawn(move |cluster| async move {
            let link = match cluster.link() {
                Ok(link) => link,
                Err(error) => {
                    let part = Part {
                        node: String::new(),
                        keys,
                        answers: Err(error),
                    };
                    // Nobody waits any more if this fails.
                    let _ = tell.send(part);
                    return;
                }
            };
            let parts = link.nodes.split(keys, |(_, key)| key);
            join_all(parts.into_iter().map(|(node, keys)| {
                let (cluster, link, tell) = (&cluster, &link, &tell);
                async move {
                    let commands: Vec<Cmd> =
                        keys.iter().map(|(_, key)| Cmd::hgetall(key)).collect();
                    let _ = tell.send(Part {
                        answers: cluster.read(link, &node, commands, until, reading).await,
                        node: node.name.to_string(),
                        keys,
                    });
                }
            }))
            .await;
        });
        asked
    }
}

/// An entity's place among the keys: without braces, which would choose its slot.
fn encoded(key: EntityKey) -> String {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&key.group.to_be_bytes());
    bytes[4..].copy_from_slice(&key.id.to_be_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

/// The newest state of an entity that is not above a generation.
fn state(
    node: &str,
    key: EntityKey,
    answer: Value,
    generation: u64,
) -> Result<Option<EntityState>, OnlineError> {
    let found = newest(answer, generation).map_err(|found| OnlineError::Reply {
        doing: format!("reading entity {key} at {node}"),
        found,
    })?;
    let state = found.map(|bytes| EntityState::from_bytes(&bytes));
    state.transpose().map_err(|source| OnlineError::State {
        place: node.to_owned(),
        key,
        source,
    })
}

fn newest(value: Value, generation: u64) -> Result<Option<Vec<u8>>, String> {
    let pairs: Vec<(Value, Value)> = match value {
        Value::Map(pairs) => pairs,
        Value::Array(values) => {
            let mut values = values.into_iter();
            std::iter::from_fn(|| values.next().zip(values.next())).collect()
        }
        other => return Err(format!("{other:?}")),
    };
    let (mut newest, mut above) = (None, 0);
    for (field, state) in pairs {
        let (Some(field), Some(state)) = (bytes(field), bytes(state)) else {
            return Err("a hash of something else than texts".to_owned());
        };
        let at = std::str::from_utf8(&field).ok();
        let at = at.and_then(|text| text.parse::<u64>().ok());
        let at = at.ok_or_else(|| format!("field {}", field.escape_ascii()))?;
        above += u32::from(at > generation);
        if at <= generation && newest.as_ref().is_none_or(|(best, _)| *best < at) {
            newest = Some((at, state));
        }
    }
    // Each publisher leaves one version beside its own: the one asked for may have been there before.
    if newest.is_none() && above > 1 {
        return Err("two newer versions have taken the place of the one that is open".to_owned());
    }
    Ok(newest.map(|(_, state)| state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(fields: &[(&str, &str)]) -> Value {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let values = fields
            .iter()
            .flat_map(|(field, state)| [text(field), text(state)]);
        Value::Array(values.collect())
    }

    #[test]
    fn a_reader_takes_the_newest_state_that_is_not_above_its_version() {
        let both = || hash(&[("9", "nine"), ("10", "ten")]);
        let check = |value, generation, expected: Option<&str>| {
            let expected = expected.map(|text| text.as_bytes().to_vec());
            assert_eq!(newest(value, generation), Ok(expected));
        };
        check(hash(&[("9", "nine")]), 8, None);
        assert!(
            newest(both(), 8)
                .unwrap_err()
                .contains("two newer versions")
        );
        check(both(), 9, Some("nine"));
        check(both(), 10, Some("ten"));
        check(both(), 11, Some("ten"));
        check(hash(&[]), 11, None);
        assert_eq!(newest(hash(&[("x", "y")]), 1), Err("field x".to_owned()));
        assert_eq!(newest(Value::Okay, 1), Err("ok".to_owned()));
    }

    #[test]
    fn keys_have_no_braces_and_name_one_entity() {
        let key = |group, id| encoded(EntityKey { group, id });
        // The bytes of `{` and `}`.
        assert_eq!(key(0x7b7b_7b7b, 0x7d7d_7d7d_7d7d_7d7d), "e3t7e319fX19fX19");
        assert_ne!(key(1, 2), key(2, 1));
    }
}
