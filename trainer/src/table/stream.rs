//! Batches of a slice, in an order that a seed fixes and any rank can take its share of.
//!
//! The rows are cut into a fixed number of streams, and the row at place `p` of the order is the
//! next one of stream `p mod streams`. A rank reads some of the streams, and nothing else of the
//! files, yet batches hold the same rows whatever the number of ranks; and a place in the order
//! is all that a checkpoint has to keep. The order is random on two levels, as in WebDataset or
//! `tf.data`: row groups follow each other in random order, and rows are mixed within blocks.

use std::ops::Range;

use features::hash::chain_integer;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    TableError,
    rows::{Examples, Projection},
    slice::{Reader, Slice},
};
use crate::collective::segment;

/// How rows are streamed from their files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReaderConfig {
    /// Streams of all ranks together: at least as many as there are ranks, and best a multiple.
    pub streams: usize,
    /// Rows that all ranks together hold in memory to mix them.
    pub shuffle_rows: usize,
    /// Steps whose rows are read ahead.
    pub prefetch_steps: usize,
}

impl Default for ReaderConfig {
    fn default() -> Self {
        Self {
            // Two to six ranks have equal shares, as have ten, twelve, fifteen, twenty and thirty.
            streams: 60,
            shuffle_rows: 262_144,
            prefetch_steps: 4,
        }
    }
}

/// In which order rows come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Every stream as it stands in the files.
    Stored,
    /// Mixed anew in each epoch.
    Shuffled {
        /// Seed of the run.
        seed: u64,
        /// Passes before this one.
        epoch: u64,
    },
}

impl Order {
    /// The random numbers of a place in this order.
    fn random(self, place: [u64; 2]) -> Option<ChaCha8Rng> {
        let Self::Shuffled { seed, epoch } = self else {
            return None;
        };
        let [stream, block] = place;
        let chain = |hash, number: u64| chain_integer(hash, number as i64);
        let hash = [seed, epoch, stream, block].into_iter();
        Some(ChaCha8Rng::seed_from_u64(
            hash.fold(features::hash::SEED, chain),
        ))
    }
}

/// Whose rows of every batch are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The reader.
    pub rank: usize,
    /// Of how many.
    pub world_size: usize,
}

impl Share {
    /// The streams that a rank reads.
    fn streams(self, all: usize) -> Range<usize> {
        segment(all, self.world_size, self.rank)
    }
}

/// A rank's rows of one batch after the other.
pub struct Batches {
    streams: Vec<Stream>,
    /// The stream that comes first.
    first: usize,
    /// Of all ranks.
    num_streams: usize,
    /// Place in the order of all rows.
    at: usize,
    empty: Examples,
}

impl Batches {
    /// Batches from place `at` of the order on.
    pub fn new(
        rows: &Slice,
        config: &ReaderConfig,
        order: Order,
        share: Share,
        projection: Projection,
        at: usize,
    ) -> Self {
        let num_streams = config.streams.max(1);
        let mine = share.streams(num_streams);
        let mut groups: Vec<usize> = (0..rows.num_groups()).collect();
        // No stream has this number.
        if let Some(mut random) = order.random([u64::MAX, 0]) {
            groups.shuffle(&mut random);
        }
        let len = |stream| behind(rows.len(), stream, num_streams);
        let mut begin: usize = (0..mine.start).map(len).sum();
        let block = (config.shuffle_rows / num_streams).max(1);
        let streams = mine.clone().map(|stream| {
            let range = begin..begin + len(stream);
            begin = range.end;
            let done = behind(at, stream, num_streams).min(range.len());
            let cut = Cut {
                block,
                // Blocks of different streams end at different times.
                first: (block * (stream + 1) / num_streams).max(1),
            };
            let (number, start) = cut.block_of(done);
            let unread = range.start + start.min(range.len())..range.end;
            Stream {
                number: stream as u64,
                order,
                cut,
                left: unread.len(),
                reader: Reader::new(rows, groups.clone(), unread, projection),
                next_block: number,
                mixed: Examples::empty(rows.schema()),
                rows: Vec::new(),
                skip: done - start,
            }
        });
        Self {
            streams: streams.collect(),
            first: mine.start,
            num_streams,
            at,
            empty: Examples::empty(rows.schema()),
        }
    }

    /// This rank's rows of the next `count` rows of all ranks.
    ///
    /// # Errors
    /// [`TableError`] that names the file and the column.
    pub fn take(&mut self, count: usize) -> Result<Examples, TableError> {
        let mut taken = self.empty.clone();
        let end = self.at + count;
        for (stream, number) in self.streams.iter_mut().zip(self.first..) {
            let before = behind(self.at, number, self.num_streams);
            stream.take(behind(end, number, self.num_streams) - before, &mut taken)?;
            let places = (before..).map(|row| (row * self.num_streams + number) as u64);
            let missing = taken.len() - taken.places.len();
            taken.places.extend(places.take(missing));
        }
        self.at = end;
        Ok(taken)
    }
}

/// Rows of a stream that lie before a place in the order of all rows; of the end, all of them.
fn behind(at: usize, stream: usize, num_streams: usize) -> usize {
    (at + num_streams - 1 - stream) / num_streams
}

/// How a stream is cut into blocks within which rows are mixed.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// Rows of a block.
    block: usize,
    /// Rows of the first one.
    first: usize,
}

impl Cut {
    /// Number of the block that a row lies in, and where it begins.
    fn block_of(self, row: usize) -> (u64, usize) {
        match row.checked_sub(self.first) {
            None => (0, 0),
            Some(after) => {
                let number = after / self.block;
                (number as u64 + 1, self.first + number * self.block)
            }
        }
    }

    fn len(self, number: u64) -> usize {
        if number == 0 { self.first } else { self.block }
    }
}

/// One stream: a reader, and the block that is being given away.
struct Stream {
    number: u64,
    order: Order,
    cut: Cut,
    reader: Reader,
    /// Rows that are not read yet.
    left: usize,
    next_block: u64,
    mixed: Examples,
    /// The block's rows that are still to be given, the next one last.
    rows: Vec<usize>,
    /// Rows of the next block that were given before.
    skip: usize,
}

impl Stream {
    fn take(&mut self, mut count: usize, into: &mut Examples) -> Result<(), TableError> {
        while count > 0 {
            if self.rows.is_empty() && !self.refill()? {
                return Ok(());
            }
            let taken = count.min(self.rows.len());
            let kept = self.rows.len() - taken;
            let next: Vec<usize> = self.rows.drain(kept..).rev().collect();
            into.push_from(&self.mixed, &next);
            count -= taken;
        }
        Ok(())
    }

    /// Reads the next block; false at the end of the stream.
    fn refill(&mut self) -> Result<bool, TableError> {
        let len = self.cut.len(self.next_block).min(self.left);
        if len == 0 {
            return Ok(false);
        }
        self.mixed.clear();
        self.reader.read(len, &mut self.mixed)?;
        self.rows = (0..len).collect();
        if let Some(mut random) = self.order.random([self.number, self.next_block]) {
            self.rows.shuffle(&mut random);
        }
        self.rows.reverse();
        self.rows.truncate(len - self.skip);
        self.skip = 0;
        self.left -= len;
        self.next_block += 1;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::testing;

    /// Ids of the rows of each batch, of all ranks, by their places.
    fn batches(
        rows: &Slice,
        config: &ReaderConfig,
        order: Order,
        world_size: usize,
        from: usize,
        size: usize,
    ) -> Vec<Vec<u64>> {
        let mut ranks: Vec<Batches> = (0..world_size)
            .map(|rank| {
                let share = Share { rank, world_size };
                Batches::new(rows, config, order, share, Projection::Training, from)
            })
            .collect();
        let mut all = Vec::new();
        for first in (from..rows.len()).step_by(size) {
            let count = size.min(rows.len() - first);
            let rows = ranks.iter_mut().flat_map(|rank| {
                let batch = rank.take(count).unwrap();
                assert_eq!(batch.clicks.len(), batch.len());
                let ids = batch.features.sparse[0].ids.iter();
                batch
                    .places
                    .into_iter()
                    .zip(ids.copied())
                    .collect::<Vec<_>>()
            });
            let mut rows: Vec<(u64, u64)> = rows.collect();
            rows.sort_unstable();
            let places = rows.iter().map(|(place, _)| *place);
            assert!(places.eq(first as u64..(first + count) as u64));
            all.push(rows.into_iter().map(|(_, id)| id).collect());
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_row_comes_once_in_batches_that_the_ranks_do_not_change(
            count in 1usize..300,
            group_rows in 1usize..60,
            streams in 1usize..20,
            shuffle_rows in 1usize..400,
            size in 1usize..50,
            seed in any::<u64>(),
        ) {
            let times: Vec<i64> = (0..count as i64).collect();
            let (_dir, rows) = testing::table(&testing::rows(&times), group_rows);
            let config = ReaderConfig { streams, shuffle_rows, prefetch_steps: 1 };
            for order in [Order::Stored, Order::Shuffled { seed, epoch: 3 }] {
                let alone = batches(&rows, &config, order, 1, 0, size);
                let mut all: Vec<u64> = alone.concat();
                all.sort_unstable();
                prop_assert!(all.into_iter().eq(0..count as u64));
                for world_size in 2..=streams.min(4) {
                    let several = batches(&rows, &config, order, world_size, 0, size);
                    prop_assert_eq!(&several, &alone);
                }
                // From any batch on, as if it had read all before.
                for done in 0..alone.len() {
                    let rest = batches(&rows, &config, order, 1, done * size, size);
                    prop_assert_eq!(&rest[..], &alone[done..]);
                }
            }
        }
    }

    #[test]
    fn each_epoch_has_its_own_order_which_the_seed_fixes() {
        let times: Vec<i64> = (0..500).collect();
        let (_dir, rows) = testing::table(&testing::rows(&times), 40);
        let config = ReaderConfig::default();
        let of = |seed, epoch| batches(&rows, &config, Order::Shuffled { seed, epoch }, 1, 0, 500);
        assert_eq!(of(1, 0), of(1, 0));
        assert_ne!(of(1, 0), of(1, 1));
        assert_ne!(of(1, 0), of(2, 0));
        assert_ne!(
            of(1, 0)[0],
            batches(&rows, &config, Order::Stored, 1, 0, 500)[0]
        );
    }

    #[test]
    fn a_file_that_is_gone_or_cut_off_is_named() {
        let times: Vec<i64> = (0..100).collect();
        let (dir, rows) = testing::table(&testing::rows(&times), 100);
        let path = dir.path().join("part-1.parquet");
        let read = || {
            let share = Share {
                rank: 0,
                world_size: 1,
            };
            let config = ReaderConfig::default();
            let mut batches = Batches::new(
                &rows,
                &config,
                Order::Stored,
                share,
                Projection::Training,
                0,
            );
            batches.take(100).unwrap_err().to_string()
        };
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..40]).unwrap();
        assert!(read().contains("part-1.parquet"), "{}", read());
        std::fs::remove_file(&path).unwrap();
        assert!(read().contains("part-1.parquet"), "{}", read());
    }
}
