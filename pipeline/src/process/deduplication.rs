//! Event ids seen within the window, as 64-bit hashes.
//!
//! Of a hundred million remembered ids, the chance that any two distinct ones share a hash is
//! below 0.03 %.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
};

use features::hash::hash_text;

use crate::calendar::HOUR_US;

const ENTRY_BYTES: usize = 12;

/// A map whose keys are hashes already.
pub(crate) type HashedMap<V> = HashMap<u64, V, BuildHasherDefault<Hashed>>;

/// Takes a key that is a hash as it is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// Remembers event ids until they leave the window.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Deduplicator {
    /// Hash of the id to the hour of the event since the Unix epoch.
    hours: HashedMap<u32>,
    /// Hours before this one were dropped.
    oldest: u32,
}

impl Deduplicator {
    /// Remembers an id; false if it was known.
    pub(crate) fn insert(&mut self, event_id: &str, event_time_us: i64) -> bool {
        let hour = hour(event_time_us);
        match self.hours.entry(hash_text(event_id)) {
            Entry::Vacant(entry) => {
                entry.insert(hour);
                true
            }
            Entry::Occupied(mut entry) => {
                let seen = entry.get_mut();
                *seen = hour.max(*seen);
                false
            }
        }
    }

    /// Forgets an id, so that its event may be sent again.
    pub(crate) fn remove(&mut self, event_id: &str) {
        self.hours.remove(&hash_text(event_id));
    }

    /// Forgets what happened before `oldest_us`; walks through all ids once a day.
    pub(crate) fn expire(&mut self, oldest_us: i64) {
        let oldest = hour(oldest_us);
        if oldest >= self.oldest + 24 {
            self.hours.retain(|_, hour| *hour >= oldest);
            self.oldest = oldest;
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + self.hours.len() * ENTRY_BYTES);
        bytes.extend(self.oldest.to_le_bytes());
        for (hash, hour) in &self.hours {
            bytes.extend(hash.to_le_bytes());
            bytes.extend(hour.to_le_bytes());
        }
        bytes
    }

    /// `None` if the bytes are not those of [`Self::to_bytes`].
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (oldest, entries) = bytes.split_first_chunk::<4>()?;
        let (entries, []) = entries.as_chunks::<ENTRY_BYTES>() else {
            return None;
        };
        let mut hours = HashedMap::default();
        hours.reserve(entries.len());
        for [h0, h1, h2, h3, h4, h5, h6, h7, t0, t1, t2, t3] in entries {
            let hash = u64::from_le_bytes([*h0, *h1, *h2, *h3, *h4, *h5, *h6, *h7]);
            hours.insert(hash, u32::from_le_bytes([*t0, *t1, *t2, *t3]));
        }
        let oldest = u32::from_le_bytes(*oldest);
        Some(Self { hours, oldest })
    }
}

/// Times were checked to lie between 1970 and 2200, which is below 2^21 hours.
fn hour(time_us: i64) -> u32 {
    u32::try_from(time_us.div_euclid(HOUR_US)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_once_until_its_window_has_passed() {
        let mut seen = Deduplicator::default();
        assert!(seen.insert("a", HOUR_US));
        assert!(!seen.insert("a", HOUR_US));
        assert!(seen.insert("b", 100 * HOUR_US));
        seen.expire(50 * HOUR_US);
        assert!(seen.insert("a", HOUR_US));
        assert!(!seen.insert("b", 100 * HOUR_US));
    }

    #[test]
    fn bytes_give_it_back_and_cut_bytes_do_not() {
        let mut seen = Deduplicator::default();
        for id in 0..100 {
            seen.insert(&id.to_string(), id * HOUR_US);
        }
        let bytes = seen.to_bytes();
        assert_eq!(Deduplicator::from_bytes(&bytes).as_ref(), Some(&seen));
        for cut in [1, 5, bytes.len()] {
            assert_eq!(Deduplicator::from_bytes(&bytes[..bytes.len() - cut]), None);
        }
    }
}
