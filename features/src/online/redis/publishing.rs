//! Writing a version.
//!
//! One publisher at a time has the lock. What was written is known from a file of the publisher's and
//! from a mark on each node; if one of them is missing or of another version, all is written into a new
//! epoch: the last publisher died, or a node lost what it had.

use std::{collections::BTreeMap, path::Path};

use redis::{Cmd, FromRedisValue, Value, cmd};
use xxhash_rust::xxh64::xxh64;

use super::{
    super::{
        OnlineError, Version, parse_version,
        published::{self, Hashes},
        version_text,
    },
    Redis,
    cluster::{Link, Node, failed, unexpected},
    encoded,
};
use crate::{EntityKey, EntityState, Keeping, aggregates::HOUR_US};

/// Entities of one pipeline of writes.
const WRITTEN_AT_ONCE: usize = 2_000;

/// Keys that one step of a search for old ones looks at.
const SCANNED_AT_ONCE: usize = 1_000;

/// How long a publisher that died keeps others away, milliseconds.
const LEASE_MS: u64 = 60_000;

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

/// Goes on holding the lock.
const HOLD: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

/// Gives the lock up.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end";

/// Moves the pointer, if it still is what it was and the lock is still held. Done again, it is done.
const MOVE: &str = "local found = redis.call('GET', KEYS[1]) or ''
if found == ARGV[3] then return 1 end
if redis.call('GET', KEYS[2]) ~= ARGV[1] or found ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[3])
return 1";

/// One entity to be written.
#[derive(Debug)]
struct Write {
    key: String,
    packed: Vec<u8>,
    seconds: i64,
}

/// A publisher that has the lock; it gives it up when it is dropped.
pub(crate) struct Publisher<'a> {
    redis: &'a Redis,
    token: u64,
    /// The pointer's text; empty if there is none.
    found: Vec<u8>,
    /// What it says, if it can be read.
    before: Option<Version>,
    pointer: String,
}

impl Drop for Publisher<'_> {
    fn drop(&mut self) {
        let mut release = cmd("EVAL");
        release.arg(RELEASE).arg(1).arg(self.redis.admin("lock"));
        release.arg(self.token);
        if let Err(error) = self.redis.one(release, "giving the lock up") {
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::warn!(error, "the online store's lock ends by itself in a minute");
        }
    }
}

impl<'a> Publisher<'a> {
    /// Takes the lock, and looks at what serves.
    pub(crate) fn new(redis: &'a Redis, spec_digest: &str) -> Result<Self, OnlineError> {
        let doing = "taking the lock";
        let token = redis.number(Cmd::incr(redis.admin("publishers"), 1), doing)?;
        let lock = redis.admin("lock");
        let mut take = cmd("SET");
        take.arg(&lock).arg(token).arg("NX");
        take.arg("PX").arg(LEASE_MS);
        if redis.one(take, doing)? != Value::Okay {
            return Err(OnlineError::Busy { place: lock });
        }
        let pointer = redis.pointer(spec_digest);
        let mut publisher = Self {
            redis,
            token,
            found: Vec::new(),
            before: None,
            pointer,
        };
        let get = Cmd::get(&publisher.pointer);
        if let Value::BulkString(found) = redis.one(get, "reading the version that serves")? {
            // One that is damaged is written over.
            publisher.before = parse_version(&publisher.pointer, &found).ok();
            publisher.found = found;
        }
        Ok(publisher)
    }

    /// The version that serves.
    pub(crate) fn before(&self) -> Option<&Version> {
        self.before.as_ref()
    }

    /// Writes what changed, moves the pointer, and gives how many entities were written. The epoch of
    /// `version` is set here; `folder` holds what is known of the version before.
    pub(crate) fn publish(
        &self,
        version: &mut Version,
        states: &[(EntityKey, &EntityState)],
        keeping: &BTreeMap<u32, Keeping>,
        folder: &Path,
    ) -> Result<usize, OnlineError> {
        let file = folder.join("published.bin");
        let epochs = self.redis.epochs(&version.spec_digest);
        let mut known = None;
        if let Some(before) = &self.before {
            // Of a publisher that died.
            self.remove_epochs(&epochs, |epoch| epoch > before.epoch)?;
            if self.is_whole(before)? {
                known = published::read(&file, before)?;
            }
        }
        version.epoch = match (&self.before, &known) {
            (Some(before), Some(_)) => before.epoch,
            _ => self.new_epoch(&epochs)?,
        };
        let load = cmd("SCRIPT").arg("LOAD").arg(WRITE).take();
        let doing = "writing states";
        let script: String = parse(self.redis.one(load, doing)?, doing)?;
        published::remove(&file)?;

        let known = known.unwrap_or_default();
        let mut hashes = Hashes::with_capacity(states.len());
        let (mut written, mut pending) = (0, Vec::with_capacity(WRITTEN_AT_ONCE));
        let begin = self.redis.keys_of(version.epoch);
        for (key, state) in states {
            let packed = state.settled().to_bytes();
            let hash = xxh64(&packed, 0);
            hashes.insert(*key, hash);
            if known.get(key) == Some(&hash) {
                continue;
            }
            let hours = keeping.get(&key.group).map_or(0, |keeping| keeping.hours);
            pending.push(Write {
                key: begin.clone() + &encoded(*key),
                packed,
                seconds: lifetime(state, hours, version.as_of_us),
            });
            written += 1;
            if pending.len() == WRITTEN_AT_ONCE {
                self.write(version, &script, std::mem::take(&mut pending))?;
            }
        }
        self.write(version, &script, pending)?;
        self.mark(version)?;
        self.move_pointer(version)?;
        published::put(&file, version, &hashes)?;
        // Readers of the version before may still be there.
        let kept = [Some(version.epoch), self.before.as_ref().map(|it| it.epoch)];
        self.remove_epochs(&epochs, |epoch| !kept.contains(&Some(epoch)))?;
        Ok(written)
    }

    /// Writes some entities of a version, if the lock is still held.
    fn write(
        &self,
        version: &Version,
        script: &str,
        writes: Vec<Write>,
    ) -> Result<(), OnlineError> {
        let mut hold = cmd("EVAL");
        hold.arg(HOLD).arg(1).arg(self.redis.admin("lock"));
        hold.arg(self.token).arg(LEASE_MS);
        if self.redis.number(hold, "holding the lock")? == 0 {
            return Err(self.raced());
        }
        let (generation, script) = (version.generation, script.to_owned());
        let command = move |write: &Write| {
            let mut command = cmd("EVALSHA");
            command.arg(&script).arg(1).arg(&write.key);
            command
                .arg(generation)
                .arg(&write.packed)
                .arg(write.seconds);
            command
        };
        self.redis.cluster.wait(async move |link| {
            for (node, writes) in link.nodes.split(writes, |write| &write.key) {
                let commands: Vec<Cmd> = writes.iter().map(&command).collect();
                link.all(&node, &commands, "writing states").await?;
            }
            Ok(())
        })
    }

    /// Whether every node has what was written of a version.
    fn is_whole(&self, version: &Version) -> Result<bool, OnlineError> {
        let begin = self.redis.keys_of(version.epoch);
        let wanted = version.generation.to_string().into_bytes();
        self.redis.cluster.wait(async move |link| {
            for tag in link.nodes.tags() {
                let get = Cmd::get(mark(&begin, &tag));
                let found = link.one(get, "looking for what was written").await?;
                if found != Value::BulkString(wanted.clone()) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Marks on every node that it has all of a version.
    fn mark(&self, version: &Version) -> Result<(), OnlineError> {
        let begin = self.redis.keys_of(version.epoch);
        let generation = version.generation;
        self.redis.cluster.wait(async move |link| {
            for tag in link.nodes.tags() {
                let set = Cmd::set(mark(&begin, &tag), generation);
                link.one(set, "marking what was written").await?;
            }
            Ok(())
        })
    }

    fn raced(&self) -> OnlineError {
        OnlineError::Raced {
            place: self.pointer.clone(),
        }
    }

    fn move_pointer(&self, version: &Version) -> Result<(), OnlineError> {
        let mut moving = cmd("EVAL");
        moving.arg(MOVE).arg(2).arg(&self.pointer);
        moving.arg(self.redis.admin("lock")).arg(self.token);
        moving.arg(&self.found).arg(version_text(version));
        match self.redis.number(moving, "moving the pointer")? {
            1 => Ok(()),
            _ => Err(self.raced()),
        }
    }

    fn new_epoch(&self, epochs: &str) -> Result<u64, OnlineError> {
        let doing = "beginning an epoch";
        let next = Cmd::incr(self.redis.admin("epoch"), 1);
        let epoch = self.redis.number(next, doing)?;
        self.redis.number(Cmd::sadd(epochs, epoch), doing)?;
        Ok(epoch)
    }

    /// Removes the keys of some epochs.
    fn remove_epochs(&self, epochs: &str, which: impl Fn(u64) -> bool) -> Result<(), OnlineError> {
        let doing = "removing old epochs";
        let found: Vec<u64> = parse(self.redis.one(Cmd::smembers(epochs), doing)?, doing)?;
        for epoch in found.into_iter().filter(|epoch| which(*epoch)) {
            let pattern = format!("{}*", self.redis.keys_of(epoch));
            self.redis.cluster.wait(async move |link| {
                for node in link.nodes.all() {
                    remove_keys(&link, node, &pattern).await?;
                }
                Ok(())
            })?;
            self.redis.number(Cmd::srem(epochs, epoch), doing)?;
        }
        Ok(())
    }
}

impl Redis {
    fn epochs(&self, spec_digest: &str) -> String {
        self.admin(&format!("epochs:{}", super::super::short(spec_digest)))
    }

    fn number(&self, command: Cmd, doing: &'static str) -> Result<u64, OnlineError> {
        match self.one(command, doing)? {
            Value::Int(number) => Ok(number.unsigned_abs()),
            other => Err(unexpected(doing, &other)),
        }
    }
}

fn mark(begin: &str, tag: &str) -> String {
    format!("{begin}{{{tag}}}:written")
}

fn parse<T: FromRedisValue>(value: Value, doing: &str) -> Result<T, OnlineError> {
    redis::from_redis_value(value).map_err(|error| failed(doing, error.into()))
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
            let commands: Vec<Cmd> = keys.iter().map(Cmd::unlink).collect();
            link.all(node, &commands, doing).await?;
        }
        if next == "0" {
            return Ok(());
        }
        cursor = next;
    }
}

/// Seconds until no window of so many hours reaches what an entity saw last; an hour at least.
fn lifetime(state: &EntityState, hours: u32, as_of_us: i64) -> i64 {
    let end_us = (i64::from(state.last_hour()) + i64::from(hours) + 1) * HOUR_US;
    (end_us.saturating_sub(as_of_us) / 1_000_000).max(3_600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entity_expires_when_its_last_hour_leaves_the_longest_window() {
        let event = crate::Counted::at_once(crate::SourceEvent::Click, 0.0, 10 * HOUR_US + 5);
        let state = EntityState::of([event]);
        assert_eq!(lifetime(&state, 24, 12 * HOUR_US), 23 * 3_600);
        assert_eq!(lifetime(&state, 24, 40 * HOUR_US), 3_600);
    }
}
