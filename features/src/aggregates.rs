//! Windowed counts per entity, kept in hourly tiles.
//!
//! An entity is the value of some facts, such as one user, or one user and one category; its
//! [`EntityState`] holds one [`Tile`] per hour in which something happened. A window ends with
//! the hour of the request, so "24 h" is the running hour and the 23 before it.
//!
//! Time is twofold: an event counts in the hour in which it happened, for requests after the
//! moment at which the platform learnt of it. What was learnt lately is kept event by event
//! ([`Aggregates::with_horizon`]), so that a request that reaches the pipeline somewhat after its
//! time still sees only what was known then. An event that claims to come from after that moment
//! happened at that moment: its sender's clock was ahead.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, VecDeque},
};

use crate::{
    hash,
    set::{AdFacts, FeatureSet, Recent, RequestFacts},
};

pub(crate) const HOUR_US: i64 = 3_600_000_000;

/// Distinct values that one entity remembers of a fact; the oldest go first.
pub const MAX_RECENT: usize = 64;

/// What is counted.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
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

impl SourceEvent {
    /// All of them, each at the index that it has as a number.
    pub const ALL: [Self; NUM_SOURCES] = [
        Self::Impression,
        Self::Click,
        Self::Conversion,
        Self::Activity,
    ];

    /// The word for it in specs and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Impression => "impression",
            Self::Click => "click",
            Self::Conversion => "conversion",
            Self::Activity => "activity",
        }
    }
}

/// An event that is counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counted {
    /// What happened.
    pub source: SourceEvent,
    /// What it was worth.
    pub value: f64,
    /// When it happened, microseconds since the Unix epoch.
    pub event_us: i64,
    /// When the platform learnt of it, microseconds since the Unix epoch.
    pub known_us: i64,
}

impl Counted {
    /// One that was learnt of when it happened.
    pub fn at_once(source: SourceEvent, value: f64, time_us: i64) -> Self {
        Self {
            source,
            value,
            event_us: time_us,
            known_us: time_us,
        }
    }
}

/// Names an entity. With a hundred million entities of a group the chance that any two share a key is
/// below 0.03 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityKey {
    /// The lower half of XXH64 over the names of its key facts: entities of one kind share it.
    pub group: u32,
    /// XXH64 over the names of its key facts and their values, chained.
    pub id: u64,
}

impl std::fmt::Display for EntityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}-{:016x}", self.group, self.id)
    }
}

/// Counts of one hour.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tile {
    /// Hours since the Unix epoch.
    pub hour: u32,
    /// Events by [`SourceEvent`].
    pub counts: [u32; NUM_SOURCES],
    /// Sums of their values by [`SourceEvent`].
    pub sums: [f64; NUM_SOURCES],
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
#[derive(Debug, Clone, PartialEq)]
pub struct EntityState {
    /// Tiles by rising hour.
    tiles: Vec<Tile>,
    /// Recent values by slot, by rising time, of all but the fresh events.
    recent: Vec<Vec<Seen>>,
    /// Events learnt of lately, by the time of that: what is to be taken off the tiles, and seen beside the
    /// recent values.
    fresh: VecDeque<Fresh>,
    /// When the newest of the others was learnt of: what was known before is not known any more.
    settled_us: i64,
}

/// When a value was seen last: time in microseconds, and its id.
type Seen = (i64, u64);

/// An event that was learnt of lately.
#[derive(Debug, Clone, PartialEq)]
struct Fresh {
    event: Counted,
    /// Slot and id of the values to be remembered.
    values: Vec<(u8, u64)>,
}

impl Default for EntityState {
    fn default() -> Self {
        Self {
            tiles: Vec::new(),
            recent: Vec::new(),
            fresh: VecDeque::new(),
            settled_us: i64::MIN,
        }
    }
}

/// Where evaluation finds the state of an entity.
pub trait StateSource {
    /// The state, or `None` if the entity is unknown.
    fn state(&self, key: EntityKey) -> Option<&EntityState>;

    /// Sums over the windows of the entity's kind for requests of this time, if somebody has them already.
    fn windows(&self, _key: EntityKey, _now_us: i64) -> Option<&[WindowSums]> {
        None
    }

    /// Until when what arrived is in the states, microseconds since the Unix epoch; `None` if nothing
    /// is left out. A feature whose `ttl` has passed since then is stale.
    fn as_of_us(&self) -> Option<i64> {
        None
    }
}

/// Knows no entity: every aggregate is its default.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoState;

impl StateSource for NoState {
    fn state(&self, _: EntityKey) -> Option<&EntityState> {
        None
    }
}

/// What is known of some entities; `None` says that one is unknown.
pub type Known = HashMap<EntityKey, Option<EntityState>>;

impl StateSource for Known {
    fn state(&self, key: EntityKey) -> Option<&EntityState> {
        self.get(&key)?.as_ref()
    }
}

/// Sums over the windows of entities, for requests of one hour: a server makes them of what it keeps
/// ([`FeatureSet::window_sums`]), so that no request adds up the same hours again.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HourSums {
    hour: u32,
    of: HashMap<EntityKey, Box<[WindowSums]>>,
}

impl HourSums {
    pub(crate) fn new(
        now_us: i64,
        sums: impl Iterator<Item = (EntityKey, Box<[WindowSums]>)>,
    ) -> Self {
        Self {
            hour: hour(now_us),
            of: sums.collect(),
        }
    }

    /// Whether they are those of requests of this time.
    pub fn are_of(&self, now_us: i64) -> bool {
        self.hour == hour(now_us)
    }

    /// As [`StateSource::windows`].
    pub fn windows(&self, key: EntityKey, now_us: i64) -> Option<&[WindowSums]> {
        let windows = self.are_of(now_us).then(|| self.of.get(&key))?;
        windows.map(AsRef::as_ref)
    }
}

/// Why stored aggregates could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// They are cut off.
    #[error("aggregate bytes end at {at}, wanted {wanted} more")]
    End {
        /// Where reading stopped.
        at: usize,
        /// How many bytes were missing.
        wanted: usize,
    },
    /// No event has this number.
    #[error("aggregate bytes name event {number}, wanted at most {}", NUM_SOURCES - 1)]
    Source {
        /// The number.
        number: u8,
    },
    /// A number does not fit what it counts.
    #[error("aggregate bytes have a number before {at} that is too large")]
    Number {
        /// Where it ends.
        at: usize,
    },
}

impl EntityState {
    /// Whether all requests of an hour see the same windows: nothing was learnt of so lately that some
    /// of them may have come before it.
    pub(crate) fn is_settled(&self) -> bool {
        self.fresh.is_empty()
    }

    /// Whether it is still known what was known at a time.
    pub(crate) fn remembers(&self, now_us: i64) -> bool {
        self.settled_us < now_us
    }

    /// Counts and sums over the hours of a window that ends with the hour of `now_us`, of what was
    /// known before it.
    pub fn window(&self, window_hours: u32, now_us: i64) -> WindowSums {
        let mut found = WindowSums::default();
        self.windows([window_hours], now_us, |_, sums| found = sums);
        found
    }

    /// The same over several windows, by rising length, in one pass; `each` gets a window's place and
    /// its sums.
    pub(crate) fn windows(
        &self,
        hours: impl IntoIterator<Item = u32>,
        now_us: i64,
        mut each: impl FnMut(usize, WindowSums),
    ) {
        let now = hour(now_us);
        let end = self.tiles.partition_point(|tile| tile.hour <= now);
        let mut tiles = &self.tiles[..end];
        let mut running = WindowSums::default();
        for (place, hours) in hours.into_iter().enumerate() {
            let from = now.saturating_sub(hours.saturating_sub(1));
            // From the newest on.
            while let Some((tile, before)) = tiles.split_last()
                && tile.hour >= from
            {
                for at in 0..NUM_SOURCES {
                    running.counts[at] += u64::from(tile.counts[at]);
                    running.sums[at] += tile.sums[at];
                }
                tiles = before;
            }
            let mut found = running;
            // Most often there is none: requests come after what was learnt of.
            let unknown = |fresh: &&Fresh| fresh.event.known_us >= now_us;
            for Fresh { event, .. } in self.fresh.iter().rev().take_while(unknown) {
                if (from..=now).contains(&hour(event.event_us)) {
                    let count = &mut found.counts[event.source as usize];
                    *count = count.saturating_sub(1);
                    found.sums[event.source as usize] -= event.value;
                }
            }
            each(place, found);
        }
    }

    /// The distinct values of a slot that were known before `now_us`, by rising time of their last
    /// sight and then by id (as a signed number, as tables hold it).
    pub fn recent(&self, slot: usize, now_us: i64) -> Cow<'_, [Seen]> {
        let mut recent = Cow::Borrowed(self.recent.get(slot).map_or(&[][..], Vec::as_slice));
        for Fresh { event, values } in self.fresh_before(now_us) {
            for (_, id) in values.iter().filter(|(of, _)| usize::from(*of) == slot) {
                remember(recent.to_mut(), *id, event.event_us);
            }
        }
        recent
    }

    fn fresh_before(&self, now_us: i64) -> impl Iterator<Item = &Fresh> {
        let known = move |fresh: &&Fresh| fresh.event.known_us < now_us;
        self.fresh.iter().take_while(known)
    }

    fn add(&mut self, fresh: Fresh) {
        add(&mut self.tiles, fresh.event);
        let known_us = fresh.event.known_us;
        let at = self
            .fresh
            .partition_point(|before| before.event.known_us <= known_us);
        self.fresh.insert(at, fresh);
    }

    /// Forgets when events were learnt of that were so before a time.
    fn settle(&mut self, before_us: i64) {
        let known = |fresh: &mut Fresh| fresh.event.known_us < before_us;
        while let Some(Fresh { event, values }) = self.fresh.pop_front_if(known) {
            self.settled_us = self.settled_us.max(event.known_us);
            for (slot, id) in values {
                let slot = usize::from(slot);
                if self.recent.len() <= slot {
                    self.recent.resize(slot + 1, Vec::new());
                }
                remember(&mut self.recent[slot], id, event.event_us);
            }
        }
    }

    /// The newest hour of which something is known, since the Unix epoch.
    pub(crate) fn last_hour(&self) -> u32 {
        let seen = self.recent.iter().flatten().map(|(seen, _)| hour(*seen));
        let tiles = self.tiles.iter().map(|tile| tile.hour);
        tiles.chain(seen).max().unwrap_or(0)
    }

    /// The state of an entity that these events are all of.
    #[cfg(test)]
    pub(crate) fn of(events: impl IntoIterator<Item = Counted>) -> Self {
        let mut state = Self::default();
        for event in events {
            let values = Vec::new();
            state.add(Fresh { event, values });
        }
        state
    }

    /// All that is known, for requests after it.
    pub fn settled(&self) -> Self {
        let mut settled = self.clone();
        settled.settle(i64::MAX);
        settled.settled_us = i64::MIN;
        settled
    }

    /// Drops what happened before an hour; returns whether anything is left.
    fn expire(&mut self, from_hour: u32) -> bool {
        self.tiles.retain(|tile| tile.hour >= from_hour);
        let from_us = i64::from(from_hour) * HOUR_US;
        for values in &mut self.recent {
            values.retain(|(seen, _)| *seen >= from_us);
        }
        self.fresh.retain(|fresh| fresh.event.event_us >= from_us);
        let remembers = self.recent.iter().any(|values| !values.is_empty());
        !self.tiles.is_empty() || !self.fresh.is_empty() || remembers
    }

    /// Compact bytes: numbers in LEB128, hours and times as what they are above the one before; counts
    /// and sums of zero take no space.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + self.tiles.len() * 8);
        push_time(&mut bytes, i64::MIN, self.settled_us);
        push(&mut bytes, self.tiles.len() as u64);
        let mut last = 0;
        for tile in &self.tiles {
            push(&mut bytes, u64::from(tile.hour - last));
            last = tile.hour;
            let counted = |at: &usize| tile.counts[*at] > 0;
            let summed = |at: &usize| tile.sums[*at] != 0.0;
            let bit = |mask, at: usize| mask | 1 << at;
            let present = (0..NUM_SOURCES).filter(counted).fold(0u8, bit);
            let present = (0..NUM_SOURCES)
                .filter(summed)
                .map(|at| at + NUM_SOURCES)
                .fold(present, bit);
            bytes.push(present);
            for at in (0..NUM_SOURCES).filter(counted) {
                push(&mut bytes, u64::from(tile.counts[at]));
            }
            for at in (0..NUM_SOURCES).filter(summed) {
                bytes.extend(tile.sums[at].to_le_bytes());
            }
        }
        push(&mut bytes, self.recent.len() as u64);
        for values in &self.recent {
            push(&mut bytes, values.len() as u64);
            let mut last = 0;
            for (seen, id) in values {
                push_time(&mut bytes, last, *seen);
                last = *seen;
                bytes.extend(id.to_le_bytes());
            }
        }
        push(&mut bytes, self.fresh.len() as u64);
        for Fresh { event, values } in &self.fresh {
            bytes.push(event.source as u8);
            bytes.extend(event.value.to_le_bytes());
            push_time(&mut bytes, 0, event.event_us);
            push_time(&mut bytes, event.event_us, event.known_us);
            push(&mut bytes, values.len() as u64);
            for (slot, id) in values {
                bytes.push(*slot);
                bytes.extend(id.to_le_bytes());
            }
        }
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes end early, or say what no state says.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::read(&mut Bytes { bytes, at: 0 })
    }

    fn read(reader: &mut Bytes<'_>) -> Result<Self, DecodeError> {
        let mut state = Self {
            settled_us: reader.time(i64::MIN)?,
            ..Self::default()
        };
        let mut last = 0u32;
        let num_tiles = reader.number::<u64>()?;
        // A tile takes two bytes at least, whatever their number claims to be.
        let most = (reader.bytes.len() - reader.at) / 2;
        state.tiles.reserve_exact(most.min(num_tiles as usize));
        for _ in 0..num_tiles {
            last = last
                .checked_add(reader.number()?)
                .ok_or(DecodeError::Number { at: reader.at })?;
            let mut tile = Tile {
                hour: last,
                ..Tile::default()
            };
            let present = reader.byte()?;
            for at in (0..NUM_SOURCES).filter(|at| present & 1 << at != 0) {
                tile.counts[at] = reader.number()?;
            }
            for at in (0..NUM_SOURCES).filter(|at| present & 1 << (at + NUM_SOURCES) != 0) {
                tile.sums[at] = f64::from_le_bytes(reader.take()?);
            }
            state.tiles.push(tile);
        }
        for _ in 0..reader.number::<u8>()? {
            let mut last = 0;
            let mut values = Vec::new();
            for _ in 0..reader.number::<u8>()? {
                last = reader.time(last)?;
                values.push((last, u64::from_le_bytes(reader.take()?)));
            }
            state.recent.push(values);
        }
        for _ in 0..reader.number::<u64>()? {
            state.fresh.push_back(Fresh::read(reader)?);
        }
        Ok(state)
    }
}

impl Fresh {
    fn read(reader: &mut Bytes<'_>) -> Result<Self, DecodeError> {
        let number = reader.byte()?;
        let source = SourceEvent::ALL.get(usize::from(number)).copied();
        let source = source.ok_or(DecodeError::Source { number })?;
        let value = f64::from_le_bytes(reader.take()?);
        let event_us = reader.time(0)?;
        let event = Counted {
            source,
            value,
            event_us,
            known_us: reader.time(event_us)?,
        };
        let value =
            |reader: &mut Bytes<'_>| Ok((reader.byte()?, u64::from_le_bytes(reader.take()?)));
        let values = (0..reader.number::<u8>()?).map(|_| value(reader));
        Ok(Self {
            event,
            values: values.collect::<Result<_, _>>()?,
        })
    }
}

fn add(tiles: &mut Vec<Tile>, event: Counted) {
    let hour = hour(event.event_us);
    let at = tiles.partition_point(|tile| tile.hour < hour);
    if tiles.get(at).is_none_or(|tile| tile.hour != hour) {
        let tile = Tile {
            hour,
            ..Tile::default()
        };
        tiles.insert(at, tile);
    }
    let (tile, source) = (&mut tiles[at], event.source as usize);
    tile.counts[source] = tile.counts[source].saturating_add(1);
    tile.sums[source] += event.value;
}

fn remember(values: &mut Vec<Seen>, id: u64, time_us: i64) {
    let known = values.iter().position(|(_, known)| *known == id);
    let newest = known.map_or(time_us, |at| time_us.max(values.remove(at).0));
    let order = |(seen, id): Seen| (seen, id as i64);
    let at = values.partition_point(|seen| order(*seen) <= order((newest, id)));
    values.insert(at, (newest, id));
    if values.len() > MAX_RECENT {
        values.remove(0);
    }
}

/// The states of all entities.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Aggregates {
    states: BTreeMap<EntityKey, EntityState>,
    horizon_us: i64,
}

impl StateSource for Aggregates {
    fn state(&self, key: EntityKey) -> Option<&EntityState> {
        self.states.get(&key)
    }
}

impl Aggregates {
    /// Goes on with events kept apart for so long, in microseconds, after they were learnt of: what was
    /// known at a time as long ago can be told. With none, which is the default, a request must
    /// come after all that its entities have counted.
    pub fn with_horizon(self, horizon_us: i64) -> Self {
        Self { horizon_us, ..self }
    }

    /// Counts one event for every entity that it touches. Entities keyed by personal facts are
    /// left alone unless the request allows personal features.
    pub fn apply(
        &mut self,
        set: &FeatureSet,
        request: &RequestFacts,
        ad: Option<&AdFacts>,
        mut event: Counted,
    ) {
        event.event_us = event.event_us.min(event.known_us);
        for group in set.groups() {
            if (group.personal && !request.personal_allowed()) || (group.needs_ad && ad.is_none()) {
                continue;
            }
            let value = |(slot, recent): (usize, &Recent)| {
                let id = set.value_id(recent.slot, request, ad)?;
                (recent.source == event.source).then_some((slot as u8, id))
            };
            let values = group.recent.iter().enumerate().filter_map(value).collect();
            let key = set.entity_key(group, request, ad);
            let state = self.states.entry(key).or_default();
            state.add(Fresh { event, values });
            state.settle(event.known_us + 1 - self.horizon_us);
        }
    }

    /// Drops what no window reaches any more.
    pub fn expire(&mut self, now_us: i64, longest_window_hours: u32) {
        let from = hour(now_us).saturating_sub(longest_window_hours);
        self.states.retain(|_, state| state.expire(from));
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
            bytes.extend(key.group.to_le_bytes());
            bytes.extend(key.id.to_le_bytes());
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
            let key = EntityKey {
                group: u32::from_le_bytes(reader.take()?),
                id: u64::from_le_bytes(reader.take()?),
            };
            states.insert(key, EntityState::read(&mut reader)?);
        }
        Ok(Self {
            states,
            horizon_us: 0,
        })
    }
}

/// The key of an entity: its group's name, then each fact.
pub(crate) fn entity_key<'a>(
    group: &str,
    values: impl Iterator<Item = crate::expression::Value<'a>>,
) -> EntityKey {
    let name = hash::hash_text(group);
    EntityKey {
        group: name as u32,
        id: values.fold(name, |seed, value| value.chain(seed)),
    }
}

/// Appends a number in LEB128: seven bits to a byte, the lowest first, the top bit set before more.
fn push(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Appends a time that is most often at or after another one.
fn push_time(bytes: &mut Vec<u8>, base_us: i64, time_us: i64) {
    push(bytes, time_us.wrapping_sub(base_us) as u64);
}

fn hour(time_us: i64) -> u32 {
    u32::try_from(time_us.div_euclid(HOUR_US)).unwrap_or(0)
}

struct Bytes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bytes<'_> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn number<T: TryFrom<u64>>(&mut self) -> Result<T, DecodeError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let at = self.at;
                return T::try_from(number).map_err(|_| DecodeError::Number { at });
            }
        }
        Err(DecodeError::Number { at: self.at })
    }

    fn time(&mut self, base_us: i64) -> Result<i64, DecodeError> {
        Ok(base_us.wrapping_add(self.number::<u64>()? as i64))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let found = self.bytes[self.at..].first_chunk::<N>();
        let missing = DecodeError::End {
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

    const CLICK: usize = SourceEvent::Click as usize;

    fn state(events: impl IntoIterator<Item = Fresh>, horizon_us: i64) -> EntityState {
        let mut state = EntityState::default();
        for fresh in events {
            let known_us = fresh.event.known_us;
            state.add(fresh);
            state.settle(known_us + 1 - horizon_us);
        }
        state
    }

    /// A click worth 2 that is remembered as its id.
    fn click(id: u64, event_us: i64, known_us: i64) -> Fresh {
        let event = Counted {
            source: SourceEvent::Click,
            value: 2.0,
            event_us,
            known_us,
        };
        let values = vec![(0, id)];
        Fresh { event, values }
    }

    #[test]
    fn a_window_ends_with_the_running_hour() {
        let hours = [1, 2, 24, 25].map(|hour| hour * HOUR_US + 5);
        let state = state(hours.map(|time| click(1, time, time)), 0);
        let check = |window, now_hour: i64, expected| {
            let found = state.window(window, now_hour * HOUR_US + 9);
            assert_eq!((found.counts[CLICK], found.sums[CLICK]), expected);
            assert_eq!(found.counts.iter().sum::<u64>(), expected.0);
        };
        check(24, 25, (3, 6.0));
        check(1, 25, (1, 2.0));
        check(168, 30, (4, 8.0));
    }

    #[test]
    fn recent_values_are_distinct_and_by_time_and_id() {
        let events = [(1, 10), (2, 20), (1, 30), (3, 15), (9, 20), (u64::MAX, 20)];
        let events = events.map(|(id, time)| click(id, time, 30 + time));
        for horizon in [0, 1000] {
            let state = state(events.clone(), horizon);
            let ids: Vec<u64> = state.recent(0, 100).iter().map(|(_, id)| *id).collect();
            assert_eq!(ids, [3, u64::MAX, 2, 9, 1]);
        }
    }

    #[test]
    fn what_is_settled_cannot_be_told_of_an_earlier_time() {
        let state = state([10, 50, 90].map(|time| click(1, time, time)), 45);
        assert!(!state.remembers(10) && state.remembers(11));
        let count = |now| state.window(1, now).counts[CLICK];
        assert_eq!([11, 50, 51, 90, 91].map(count), [1, 1, 2, 2, 3]);
        assert!(state.settled().remembers(i64::MIN + 1));
        assert_eq!(state.settled().window(1, 11).counts[CLICK], 3);
    }

    proptest! {
        #[test]
        fn what_was_known_then_is_told_within_the_horizon(
            events in prop::collection::vec((0i64..400, 0i64..200, 0u64..90), 1..120),
            horizon in 1i64..300,
            back in 0i64..300,
        ) {
            // Minutes; learnt of up to 200 later than they happened.
            let minute = HOUR_US / 60;
            let mut events: Vec<Fresh> = events
                .into_iter()
                .map(|(at, late, id)| click(id, at * minute, (at + late) * minute))
                .collect();
            events.sort_by_key(|fresh| fresh.event.known_us);
            let newest = events[events.len() - 1].event.known_us;
            let now = newest + minute - back.min(horizon) * minute;
            let state = state(events.clone(), horizon * minute);
            prop_assert!(state.remembers(now));
            let known = |fresh: &&Fresh| fresh.event.known_us < now;
            for window in [1, 3, 6] {
                let inside = |fresh: &&Fresh| hour(fresh.event.event_us) + window > hour(now);
                let wanted = events.iter().filter(known).filter(inside).count() as u64;
                let found = state.window(window, now);
                prop_assert_eq!((found.counts[CLICK], found.sums[CLICK]), (wanted, 2.0 * wanted as f64));
            }
            let mut last: BTreeMap<u64, i64> = BTreeMap::new();
            for Fresh { event, values } in events.iter().filter(known) {
                let seen = last.entry(values[0].1).or_insert(event.event_us);
                *seen = event.event_us.max(*seen);
            }
            let mut wanted: Vec<Seen> = last.into_iter().map(|(id, seen)| (seen, id)).collect();
            wanted.sort_unstable();
            wanted.drain(..wanted.len().saturating_sub(MAX_RECENT));
            prop_assert_eq!(&*state.recent(0, now), &wanted[..]);
        }

        #[test]
        fn states_survive_bytes_and_cut_bytes_are_refused(
            events in prop::collection::vec((0usize..4, 0i64..500, 0u64..100, -1.0f64..1.0), 0..60),
            horizon in 0i64..500,
            cut in 1usize..40,
        ) {
            let events = events.into_iter().map(|(source, hour, id, value)| {
                let mut fresh = click(id, hour * HOUR_US, hour * HOUR_US);
                (fresh.event.source, fresh.event.value) = (SourceEvent::ALL[source], value);
                fresh.values[0].0 = source as u8 % 2;
                fresh
            });
            let state = state(events, horizon * HOUR_US);
            let aggregates = Aggregates {
                states: [(1, 7), (2, 5)]
                    .map(|(group, id)| (EntityKey { group, id }, state.clone()))
                    .into(),
                ..Aggregates::default()
            };
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
