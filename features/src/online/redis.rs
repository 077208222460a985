//! Hot states on a Redis Cluster.
//!
//! ```text
//! <prefix>:current:<spec>         JSON: the version that serves
//! <prefix>:epoch                  the number of the newest epoch
//! <prefix>:epochs:<spec>          set: epochs of which keys may be there
//! <prefix>:<epoch>:<entity>       hash: generation → packed state
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

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, mpsc},
    time::Instant,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use cluster::{Cluster, Link, Node};
use futures::future::join_all;
use redis::{Cmd, FromRedisValue, Pipeline, Value, cmd};
use xxhash_rust::xxh64::xxh64;

use super::{
    OnlineError, RedisConfig, Version, parse_version,
    published::{self, Hashes},
    short, version_text,
};
use crate::{EntityKey, EntityState, Keeping, Known, aggregates::HOUR_US};

/// Entities of one pipeline of writes.
const WRITTEN_AT_ONCE: usize = 2_000;

/// Keys that one step of a search for old ones looks at.
const SCANNED_AT_ONCE: usize = 1_000;

/// Puts a generation beside the newest one below it, and removes all others.
const WRITE: &str = "local new, keep = tonumber(ARGV[1]), -1
local fields = redis.call('HKEYS', KEYS[1])
for _, field in ipairs(fields) do
  local at = tonumber(field)
  if at < new and at > keep then keep = at end
end
for _, field in ipairs(fields) do
  if tonumber(field) ~= keep then redis.call('HDEL', KEYS[1], field) end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])";

/// Moves the pointer if it still names the epoch and generation that it did.
const MOVE: &str = "local found = redis.call('GET', KEYS[1])
local at = found and cjson.decode(found)
if (at and at.epoch .. '-' .. at.generation or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1";

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
}

/// What one node said of some keys.
struct Part {
    node: String,
    keys: Vec<(EntityKey, String)>,
    answers: Result<Vec<Value>, OnlineError>,
}

impl Asked {
    /// Waits for all nodes, no longer than each was given.
    pub(super) fn wait(self, known: &mut Known) -> Result<(), OnlineError> {
        let (mut unread, mut first) = (self.wanted, None);
        for Part {
            node,
            keys,
            answers,
        } in self.nodes
        {
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
            Some(OnlineError::Late { .. }) => Err(OnlineError::Late { unread }),
            Some(error) => Err(error),
            // Only if the runtime is gone.
            None if unread > 0 => Err(OnlineError::Late { unread }),
            None => Ok(()),
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

    fn pointer(&self, spec_digest: &str) -> String {
        format!("{}:current:{}", self.config.prefix, short(spec_digest))
    }

    fn keys_of(&self, epoch: u64) -> String {
        format!("{}:{epoch}:", self.config.prefix)
    }

    /// The version of these features that serves.
    pub(super) fn current(&self, spec_digest: &str) -> Result<Option<Version>, OnlineError> {
        let place = self.pointer(spec_digest);
        let get = Cmd::get(&place);
        let found = self.cluster.wait(move |link| {
            let get = get.clone();
            async move { link.one(get, "reading the version that serves").await }
        })?;
        let text = bytes(found);
        text.map(|text| parse_version(&place, &text)).transpose()
    }

    /// Asks the nodes for the states of `keys`, each for all of its own at once.
    pub(super) fn ask(&self, version: &Version, keys: &[EntityKey], until: Instant) -> Asked {
        let (tell, nodes) = mpsc::channel();
        let asked = Asked {
            nodes,
            generation: version.generation,
            wanted: keys.len(),
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
                        answers: cluster.read(link, &node, commands, until).await,
                        node: node.name.to_string(),
                        keys,
                    });
                }
            }))
            .await;
        });
        asked
    }

    /// Writes what changed, moves the pointer, and gives how many entities were written. The epoch of
    /// `version` is set here; `folder` holds what is known of the version before.
    pub(super) fn publish(
        &self,
        version: &mut Version,
        before: Option<&Version>,
        states: &[(EntityKey, &EntityState)],
        keeping: &BTreeMap<u32, Keeping>,
        folder: &Path,
    ) -> Result<usize, OnlineError> {
        let file = folder.join("published.bin");
        let known = match before {
            Some(before) => published::take(&file, before)?,
            None => None,
        };
        let epochs = format!(
            "{}:epochs:{}",
            self.config.prefix,
            short(&version.spec_digest)
        );
        self.remove_epochs(&epochs, before)?;
        version.epoch = match (before, &known) {
            (Some(before), Some(_)) => before.epoch,
            _ => self.new_epoch(&epochs)?,
        };
        let known = known.unwrap_or_default();
        let mut hashes = Hashes::with_capacity(states.len());
        let mut written = 0;
        let mut pending = Vec::with_capacity(WRITTEN_AT_ONCE);
        let begin = self.keys_of(version.epoch);
        for (key, state) in states {
            let packed = state.settled().to_bytes();
            let hash = xxh64(&packed, 0);
            hashes.insert(*key, hash);
            if known.get(key) == Some(&hash) {
                continue;
            }
            let hours = keeping.get(&key.group).map_or(0, |keeping| keeping.hours);
            let write = Write {
                key: begin.clone() + &encoded(*key),
                packed,
                seconds: lifetime(state, hours, version.as_of_us),
            };
            pending.push(write);
            written += 1;
            if pending.len() == WRITTEN_AT_ONCE {
                self.write(version.generation, std::mem::take(&mut pending))?;
            }
        }
        self.write(version.generation, pending)?;
        self.move_pointer(version, before)?;
        published::put(&file, version, &hashes)?;
        Ok(written)
    }

    fn write(&self, generation: u64, writes: Vec<Write>) -> Result<(), OnlineError> {
        let writes = Arc::new(writes);
        self.cluster.wait(move |link| {
            let writes = writes.clone();
            async move {
                let doing = "writing states";
                let load = cmd("SCRIPT").arg("LOAD").arg(WRITE).take();
                let script: String = link.everywhere(load, doing).await?;
                let writes = writes.iter().collect();
                for (node, writes) in link.nodes.split(writes, |write: &&Write| &write.key) {
                    let mut pipeline = Pipeline::with_capacity(writes.len());
                    for write in &writes {
                        pipeline.cmd("EVALSHA").arg(&script).arg(1).arg(&write.key);
                        pipeline
                            .arg(generation)
                            .arg(&write.packed)
                            .arg(write.seconds);
                    }
                    link.pipeline(&node, pipeline, writes.len(), doing).await?;
                }
                Ok(())
            }
        })
    }

    fn move_pointer(&self, version: &Version, before: Option<&Version>) -> Result<(), OnlineError> {
        let place = self.pointer(&version.spec_digest);
        let mut moving = cmd("EVAL");
        moving.arg(MOVE).arg(1).arg(&place);
        let named = before.map(|before| format!("{}-{}", before.epoch, before.generation));
        moving.arg(named.unwrap_or_default());
        moving.arg(version_text(version));
        let moved = self.cluster.wait(move |link| {
            let moving = moving.clone();
            async move { link.one(moving, "moving the pointer").await }
        })?;
        match moved {
            Value::Int(1) => Ok(()),
            _ => Err(OnlineError::Raced { place }),
        }
    }

    fn new_epoch(&self, epochs: &str) -> Result<u64, OnlineError> {
        let next = Cmd::incr(format!("{}:epoch", self.config.prefix), 1);
        let epochs = epochs.to_owned();
        self.cluster.wait(move |link| {
            let (next, epochs) = (next.clone(), epochs.clone());
            async move {
                let doing = "beginning an epoch";
                let epoch = match link.one(next, doing).await? {
                    Value::Int(epoch) => epoch.unsigned_abs(),
                    other => return Err(cluster::unexpected(doing, &other)),
                };
                link.one(Cmd::sadd(&epochs, epoch), doing).await?;
                Ok(epoch)
            }
        })
    }

    /// Removes the keys of all epochs but the one that serves.
    fn remove_epochs(&self, epochs: &str, before: Option<&Version>) -> Result<(), OnlineError> {
        let (epochs, serves) = (epochs.to_owned(), before.map(|before| before.epoch));
        let prefix = self.config.prefix.clone();
        self.cluster.wait(move |link| {
            let (epochs, prefix) = (epochs.clone(), prefix.clone());
            async move {
                let doing = "removing old epochs";
                let found = link.one(Cmd::smembers(&epochs), doing).await?;
                let found: Vec<u64> = parse(found, doing)?;
                for epoch in found.into_iter().filter(|epoch| Some(*epoch) != serves) {
                    for node in link.nodes.all() {
                        remove_keys(&link, node, &format!("{prefix}:{epoch}:*")).await?;
                    }
                    link.one(Cmd::srem(&epochs, epoch), doing).await?;
                }
                Ok(())
            }
        })
    }
}

fn parse<T: FromRedisValue>(value: Value, doing: &str) -> Result<T, OnlineError> {
    redis::from_redis_value(value).map_err(|error| cluster::failed(doing, error.into()))
}

async fn remove_keys(link: &Link, node: &Node, pattern: &str) -> Result<(), OnlineError> {
    let doing = "removing old keys";
    let mut cursor = "0".to_owned();
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg(pattern);
        scan.arg("COUNT").arg(SCANNED_AT_ONCE);
        let found = link.on(node, scan, doing).await?;
        let (next, keys): (String, Vec<Vec<u8>>) = parse(found, doing)?;
        if !keys.is_empty() {
            let mut pipeline = Pipeline::with_capacity(keys.len());
            for key in &keys {
                pipeline.unlink(key);
            }
            link.pipeline(node, pipeline, keys.len(), doing).await?;
        }
        if next == "0" {
            return Ok(());
        }
        cursor = next;
    }
}

/// One entity to be written.
#[derive(Debug, Clone)]
struct Write {
    key: String,
    packed: Vec<u8>,
    seconds: i64,
}

/// An entity's place among the keys: without braces, which would choose its slot.
fn encoded(key: EntityKey) -> String {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&key.group.to_be_bytes());
    bytes[4..].copy_from_slice(&key.id.to_be_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds until no window of so many hours reaches what an entity saw last; an hour at least.
fn lifetime(state: &EntityState, hours: u32, as_of_us: i64) -> i64 {
    let end_us = (i64::from(state.last_hour()) + i64::from(hours) + 1) * HOUR_US;
    (end_us.saturating_sub(as_of_us) / 1_000_000).max(3_600)
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
    let mut newest = None;
    for (field, state) in pairs {
        let (Some(field), Some(state)) = (bytes(field), bytes(state)) else {
            return Err("a hash of something else than texts".to_owned());
        };
        let at = std::str::from_utf8(&field).ok();
        let at = at.and_then(|text| text.parse::<u64>().ok());
        let at = at.ok_or_else(|| format!("field {}", field.escape_ascii()))?;
        if at <= generation && newest.as_ref().is_none_or(|(best, _)| *best < at) {
            newest = Some((at, state));
        }
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
        check(both(), 8, None);
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

    #[test]
    fn an_entity_expires_when_its_last_hour_leaves_the_longest_window() {
        let event = crate::Counted::at_once(crate::SourceEvent::Click, 0.0, 10 * HOUR_US + 5);
        let state = EntityState::of([event]);
        assert_eq!(lifetime(&state, 24, 12 * HOUR_US), 23 * 3_600);
        assert_eq!(lifetime(&state, 24, 40 * HOUR_US), 3_600);
    }
}
