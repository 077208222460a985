//! Windowed counts per entity, kept in hourly tiles.
//!
//! An entity is the value of some facts, such as one user, or one user and one category; its
//! [`EntityState`] holds one [`Tile`] per hour in which something happened. A window ends with
//! the hour of the request, so "24 h" is the running hour and the 23 before it. What the tiles
//! hold is what the platform had learnt when they were read: the pipeline applies events in the
//! order of their arrival, so a value that came late is not known earlier.

use std::collections::{BTreeMap, HashMap};

use crate::{
    hash,
    set::{AdFacts, FeatureSet, RequestFacts},
};

const HOUR_US: i64 = 3_600_000_000;

/// Distinct values that one entity remembers per feature group; the oldest go first.
const MAX_RECENT: usize = 64;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceEvent {
    /// A viewed impression.
    Impression,
    /// A click.
    Click,
    /// A conversion; its value is what it was worth.
    Conversion,
    /// Something a user did in an experience; its value is the dwell time in seconds.
    Activity,
}

pub(crate) const NUM_SOURCES: usize = 4;

/// Names an entity: XXH64 over the names of its key facts and their values, chained. With a
/// hundred million entities the chance that any two share a key is below 0.03 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityKey(pub u64);

/// Counts of one hour.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tile {
    /// Hours since the Unix epoch.
    pub hour: u32,
    /// Events by [`SourceEvent`].
    pub counts: [u32; NUM_SOURCES],
    /// Sums of their values by [`SourceEvent`].
    pub sums: [f32; NUM_SOURCES],
}

/// What happened to an entity in a window.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct WindowSums {
    /// Events by [`SourceEvent`].
    pub counts: [u64; NUM_SOURCES],
    /// Sums of their values by [`SourceEvent`].
    pub sums: [f64; NUM_SOURCES],
}

/// What is known of one entity.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EntityState {
    /// Tiles by rising hour.
    pub tiles: Vec<Tile>,
    /// Recent values by slot: (id, last seen in microseconds), by rising time.
    pub recent: Vec<Vec<(u64, i64)>>,
}

/// Where evaluation finds the state of an entity.
pub trait StateSource {
    /// The state, or `None` if the entity is unknown.
    fn state(&self, key: EntityKey) -> Option<&EntityState>;
}

/// Knows no entity: every aggregate is its default.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoState;

impl StateSource for NoState {
    fn state(&self, _: EntityKey) -> Option<&EntityState> {
        None
    }
}

impl StateSource for HashMap<EntityKey, EntityState> {
    fn state(&self, key: EntityKey) -> Option<&EntityState> {
        self.get(&key)
    }
}

/// Why stored aggregates could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("aggregate bytes end at {at}, wanted {wanted} more")]
pub struct DecodeError {
    /// Where reading stopped.
    pub at: usize,
    /// How many bytes were missing.
    pub wanted: usize,
}

impl EntityState {
    /// Counts and sums over the hours of a window that ends with the hour of `now_us`.
    pub fn window(&self, window_hours: u32, now_us: i64) -> WindowSums {
        let now = hour(now_us);
        let from = now.saturating_sub(window_hours.saturating_sub(1));
        let start = self.tiles.partition_point(|tile| tile.hour < from);
        let inside = self.tiles[start..]
            .iter()
            .take_while(|tile| tile.hour <= now);
        let mut found = WindowSums::default();
        for tile in inside {
            for at in 0..NUM_SOURCES {
                found.counts[at] += u64::from(tile.counts[at]);
                found.sums[at] += f64::from(tile.sums[at]);
            }
        }
        found
    }

    /// The most recent values of a slot before `now_us`, newest first.
    pub fn recent(&self, slot: usize, now_us: i64) -> impl Iterator<Item = (u64, i64)> {
        let values = self.recent.get(slot).map_or(&[][..], Vec::as_slice);
        values
            .iter()
            .rev()
            .filter(move |(_, seen)| *seen <= now_us)
            .copied()
    }

    fn add(&mut self, source: SourceEvent, value: f64, time_us: i64) {
        let hour = hour(time_us);
        let at = self.tiles.partition_point(|tile| tile.hour < hour);
        if self.tiles.get(at).is_none_or(|tile| tile.hour != hour) {
            self.tiles.insert(
                at,
                Tile {
                    hour,
                    ..Tile::default()
                },
            );
        }
        let tile = &mut self.tiles[at];
        tile.counts[source as usize] = tile.counts[source as usize].saturating_add(1);
        tile.sums[source as usize] += value as f32;
    }

    fn remember(&mut self, slot: usize, id: u64, time_us: i64) {
        if self.recent.len() <= slot {
            self.recent.resize(slot + 1, Vec::new());
        }
        let values = &mut self.recent[slot];
        let newest = values
            .iter()
            .find(|(known, _)| *known == id)
            .map_or(time_us, |(_, seen)| time_us.max(*seen));
        values.retain(|(known, _)| *known != id);
        let at = values.partition_point(|(_, seen)| *seen <= newest);
        values.insert(at, (id, newest));
        if values.len() > MAX_RECENT {
            values.remove(0);
        }
    }

    /// Compact bytes: counts of zero take no space.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 + self.tiles.len() * 12);
        bytes.extend((self.tiles.len() as u32).to_le_bytes());
        for tile in &self.tiles {
            bytes.extend(tile.hour.to_le_bytes());
            let present = (0..NUM_SOURCES)
                .filter(|at| tile.counts[*at] > 0)
                .fold(0u8, |mask, at| mask | 1 << at);
            bytes.push(present);
            for at in (0..NUM_SOURCES).filter(|at| tile.counts[*at] > 0) {
                bytes.extend(tile.counts[at].to_le_bytes());
                bytes.extend(tile.sums[at].to_le_bytes());
            }
        }
        bytes.push(self.recent.len() as u8);
        for values in &self.recent {
            bytes.push(values.len() as u8);
            for (id, seen) in values {
                bytes.extend(id.to_le_bytes());
                bytes.extend(seen.to_le_bytes());
            }
        }
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes end early.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Bytes { bytes, at: 0 };
        let state = Self::read(&mut reader)?;
        Ok(state)
    }

    fn read(reader: &mut Bytes<'_>) -> Result<Self, DecodeError> {
        let mut state = Self::default();
        for _ in 0..u32::from_le_bytes(reader.take()?) {
            let mut tile = Tile {
                hour: u32::from_le_bytes(reader.take()?),
                ..Tile::default()
            };
            let [present] = reader.take::<1>()?;
            for at in (0..NUM_SOURCES).filter(|at| present & 1 << at != 0) {
                tile.counts[at] = u32::from_le_bytes(reader.take()?);
                tile.sums[at] = f32::from_le_bytes(reader.take()?);
            }
            state.tiles.push(tile);
        }
        let [slots] = reader.take::<1>()?;
        for _ in 0..slots {
            let [values] = reader.take::<1>()?;
            let pair = |reader: &mut Bytes<'_>| {
                Ok((
                    u64::from_le_bytes(reader.take()?),
                    i64::from_le_bytes(reader.take()?),
                ))
            };
            state.recent.push(
                (0..values)
                    .map(|_| pair(reader))
                    .collect::<Result<_, _>>()?,
            );
        }
        Ok(state)
    }
}

/// The states of all entities.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Aggregates {
    states: BTreeMap<EntityKey, EntityState>,
}

impl StateSource for Aggregates {
    fn state(&self, key: EntityKey) -> Option<&EntityState> {
        self.states.get(&key)
    }
}

impl Aggregates {
    /// Counts one event for every entity that it touches. Entities keyed by personal facts are
    /// left alone unless the request allows personal features.
    pub fn apply(
        &mut self,
        set: &FeatureSet,
        source: SourceEvent,
        request: &RequestFacts,
        ad: Option<&AdFacts>,
        value: f64,
        time_us: i64,
    ) {
        for group in set.groups() {
            if (group.personal && !request.personal_allowed()) || (group.needs_ad && ad.is_none()) {
                continue;
            }
            let key = set.entity_key(group, request, ad);
            let state = self.states.entry(key).or_default();
            state.add(source, value, time_us);
            for (slot, recent) in group.recent.iter().enumerate() {
                if recent.source == source
                    && let Some(id) = set.value_id(recent.slot, request, ad)
                {
                    state.remember(slot, id, time_us);
                }
            }
        }
    }

    /// States of some entities as they were when the hour of `now_us` began: for what is counted
    /// late, when that hour's tiles hold what happened after it.
    pub fn before_hour(&self, keys: &[EntityKey], now_us: i64) -> HashMap<EntityKey, EntityState> {
        let hour = hour(now_us);
        let known = keys
            .iter()
            .filter_map(|key| Some((*key, self.states.get(key)?)));
        known
            .map(|(key, state)| {
                let mut state = state.clone();
                state.tiles.retain(|tile| tile.hour < hour);
                for values in &mut state.recent {
                    values.retain(|(_, seen)| *seen < i64::from(hour) * HOUR_US);
                }
                (key, state)
            })
            .collect()
    }

    /// Drops what no window reaches any more.
    pub fn expire(&mut self, now_us: i64, longest_window_hours: u32) {
        let from = hour(now_us).saturating_sub(longest_window_hours);
        let oldest_us = i64::from(from) * HOUR_US;
        self.states.retain(|_, state| {
            state.tiles.retain(|tile| tile.hour >= from);
            for values in &mut state.recent {
                values.retain(|(_, seen)| *seen >= oldest_us);
            }
            !state.tiles.is_empty() || state.recent.iter().any(|values| !values.is_empty())
        });
    }

    /// Entities by key.
    pub fn iter(&self) -> impl Iterator<Item = (EntityKey, &EntityState)> {
        self.states.iter().map(|(key, state)| (*key, state))
    }

    /// How many entities are known.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether no entity is known.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// All states as bytes; equal aggregates give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = (self.states.len() as u64).to_le_bytes().to_vec();
        for (key, state) in &self.states {
            bytes.extend(key.0.to_le_bytes());
            bytes.extend(state.to_bytes());
        }
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes end early.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Bytes { bytes, at: 0 };
        let mut states = BTreeMap::new();
        for _ in 0..u64::from_le_bytes(reader.take()?) {
            let key = EntityKey(u64::from_le_bytes(reader.take()?));
            states.insert(key, EntityState::read(&mut reader)?);
        }
        Ok(Self { states })
    }
}

/// The key of an entity: its group's name, then each fact.
pub(crate) fn entity_key<'a>(
    group: &str,
    values: impl Iterator<Item = crate::expression::Value<'a>>,
) -> EntityKey {
    EntityKey(values.fold(hash::hash_text(group), |seed, value| value.chain(seed)))
}

fn hour(time_us: i64) -> u32 {
    u32::try_from(time_us.div_euclid(HOUR_US)).unwrap_or(0)
}

struct Bytes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let found = self.bytes[self.at..].first_chunk::<N>();
        let missing = DecodeError {
            at: self.bytes.len(),
            wanted: N,
        };
        self.at += N.min(self.bytes.len() - self.at);
        found.copied().ok_or(missing)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_window_ends_with_the_running_hour() {
        let mut state = EntityState::default();
        for hour in [1, 2, 24, 25] {
            state.add(SourceEvent::Click, 2.0, hour * HOUR_US + 5);
        }
        let check = |window, now_hour: i64, expected| {
            let found = state.window(window, now_hour * HOUR_US + 9);
            let click = SourceEvent::Click as usize;
            assert_eq!((found.counts[click], found.sums[click]), expected);
            assert_eq!(found.counts.iter().sum::<u64>(), expected.0);
        };
        check(24, 25, (3, 6.0));
        check(1, 25, (1, 2.0));
        check(24, 24, (3, 6.0));
        check(1, 23, (0, 0.0));
        check(168, 30, (4, 8.0));
    }

    #[test]
    fn before_an_hour_is_without_it() {
        let mut state = EntityState::default();
        for hour in [3, 4, 5] {
            state.add(SourceEvent::Click, 1.0, hour * HOUR_US + 7);
            state.remember(0, hour as u64, hour * HOUR_US + 7);
        }
        let aggregates = Aggregates {
            states: BTreeMap::from([(EntityKey(1), state)]),
        };
        let known = aggregates.before_hour(&[EntityKey(1), EntityKey(2)], 4 * HOUR_US + 9);
        assert_eq!(known.len(), 1);
        let state = &known[&EntityKey(1)];
        assert_eq!(state.tiles.len(), 1);
        assert_eq!(state.recent, [vec![(3, 3 * HOUR_US + 7)]]);
    }

    #[test]
    fn recent_values_are_distinct_and_newest_first() {
        let mut state = EntityState::default();
        for (id, time) in [(1, 10), (2, 20), (1, 30), (3, 15)] {
            state.remember(0, id, time);
        }
        let ids = |now| state.recent(0, now).map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!(ids(100), [1, 2, 3]);
        assert_eq!(ids(20), [2, 3]);
    }

    proptest! {
        #[test]
        fn states_survive_bytes_and_cut_bytes_are_refused(
            events in prop::collection::vec((0usize..4, 0i64..500, 0u64..100), 0..60),
            cut in 1usize..40,
        ) {
            let sources = [SourceEvent::Impression, SourceEvent::Click, SourceEvent::Conversion, SourceEvent::Activity];
            let mut state = EntityState::default();
            for (source, hour, id) in events {
                state.add(sources[source], 0.5, hour * HOUR_US);
                state.remember(source % 2, id, hour * HOUR_US);
            }
            let aggregates = Aggregates { states: BTreeMap::from([(EntityKey(7), state.clone()), (EntityKey(9), state)]) };
            let bytes = aggregates.to_bytes();
            prop_assert_eq!(&Aggregates::from_bytes(&bytes).unwrap(), &aggregates);
            let cut = cut.min(bytes.len());
            prop_assert!(Aggregates::from_bytes(&bytes[..bytes.len() - cut]).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = EntityState::from_bytes(&bytes);
        }
    }
}
