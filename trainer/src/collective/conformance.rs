//! What every process group must do, whatever carries its bytes.
//!
//! All ranks call [`conform`] with the same seed. Each draws the same program of operations, makes
//! the inputs of *all* ranks from the seed, computes in one process what must come out, and
//! compares. Amounts include nothing, odd numbers, and more than any buffer.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{CollectiveError, ProcessGroup, split_evenly};

/// Why a group does not conform.
#[derive(Debug, thiserror::Error)]
pub enum Nonconformance {
    /// An operation failed.
    #[error("round {round}")]
    Failed {
        /// How many operations went well.
        round: usize,
        /// Why.
        source: CollectiveError,
    },
    /// An operation gave something else.
    #[error("round {round}: {operation} gave rank {rank} a wrong result{detail}")]
    Wrong {
        /// How many operations went well.
        round: usize,
        /// The operation.
        operation: &'static str,
        /// This rank.
        rank: usize,
        /// What differs.
        detail: String,
    },
}

/// The largest difference to a sum in f64, as a share of the sum of magnitudes.
const TOLERANCE: f64 = 1e-6;

/// Runs a random program of `rounds` operations over up to about `max_values` values.
///
/// # Errors
/// [`Nonconformance`] at the first operation that fails or gives something wrong.
pub fn conform(
    group: &mut impl ProcessGroup,
    seed: u64,
    rounds: usize,
    max_values: usize,
) -> Result<(), Nonconformance> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for round in 0..rounds {
        let amount = amount(&mut random, max_values);
        let mut test = Test {
            round,
            seed: random.random(),
            amount,
            group: &mut *group,
        };
        match random.random_range(0..6) {
            0 => test.all_reduce()?,
            1 => test.reduce_scatter()?,
            2 => test.all_to_all()?,
            3 => test.all_gather()?,
            4 => test.broadcast(random.random())?,
            _ => test.barrier()?,
        }
    }
    Ok(())
}

/// Often nothing or little, at times much.
fn amount(random: &mut ChaCha8Rng, max: usize) -> usize {
    let limit = match random.random_range(0..4) {
        0 => 3,
        1 => 100,
        2 => 5_000,
        _ => max,
    };
    random.random_range(0..=limit.min(max))
}

struct Test<'a, G> {
    round: usize,
    seed: u64,
    amount: usize,
    group: &'a mut G,
}

impl<G: ProcessGroup> Test<'_, G> {
    /// What a rank puts in, the same on every rank that asks.
    fn input(&self, rank: usize, amount: usize) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(rank as u64);
        (0..amount)
            .map(|_| random.random_range(-1.0..1.0))
            .collect()
    }

    fn failed<T>(&self, result: Result<T, CollectiveError>) -> Result<T, Nonconformance> {
        let round = self.round;
        result.map_err(|source| Nonconformance::Failed { round, source })
    }

    fn check(
        &self,
        operation: &'static str,
        holds: bool,
        detail: String,
    ) -> Result<(), Nonconformance> {
        if holds {
            return Ok(());
        }
        Err(Nonconformance::Wrong {
            round: self.round,
            operation,
            rank: self.group.rank(),
            detail,
        })
    }

    /// Sums are compared with those in f64.
    fn check_sums(
        &self,
        operation: &'static str,
        found: &[f32],
        first: usize,
    ) -> Result<(), Nonconformance> {
        let inputs: Vec<Vec<f32>> = (0..self.group.world_size())
            .map(|rank| self.input(rank, self.amount))
            .collect();
        for (at, found) in found.iter().enumerate() {
            let each = || inputs.iter().map(|input| f64::from(input[first + at]));
            let (sum, size) = (each().sum::<f64>(), each().map(f64::abs).sum::<f64>());
            let close = (f64::from(*found) - sum).abs() <= TOLERANCE * size;
            let detail = format!(
                ": value {} of {} is {found}, wanted {sum}",
                first + at,
                self.amount
            );
            self.check(operation, close, detail)?;
        }
        Ok(())
    }

    fn all_reduce(&mut self) -> Result<(), Nonconformance> {
        let mut values = self.input(self.group.rank(), self.amount);
        let reduced = self.group.all_reduce(&mut values);
        self.failed(reduced)?;
        self.check_sums("all-reduce", &values, 0)?;
        let gathered = self.group.all_gather_v(&values);
        let all = self.failed(gathered)?;
        let equal = all.iter().all(|other| *other == values);
        self.check(
            "all-reduce",
            equal,
            ": the ranks have different bits".to_owned(),
        )
    }

    fn reduce_scatter(&mut self) -> Result<(), Nonconformance> {
        let world_size = self.group.world_size();
        let mut counts = split_evenly(self.amount, world_size);
        // Uneven: one rank's share goes to another.
        let (from, to) = (self.seed as usize % world_size, self.round % world_size);
        if from != to {
            counts[to] += std::mem::take(&mut counts[from]);
        }
        let mut values = self.input(self.group.rank(), self.amount);
        let reduced = self.group.reduce_scatter(&mut values, &counts);
        let range = self.failed(reduced)?;
        let wanted: usize = counts[..self.group.rank()].iter().sum();
        let fits = range.start == wanted && range.len() == counts[self.group.rank()];
        self.check("reduce-scatter", fits, format!(": range {range:?}"))?;
        self.check_sums("reduce-scatter", &values[range.clone()], range.start)
    }

    /// Rank `r` gives rank `s` a part of a length that both know.
    fn part(&self, from: usize, to: usize) -> Vec<f32> {
        let length = (self.amount * (from * 7 + to * 3 + 1) / 5) % (self.amount + 1);
        let mut part = self.input(from, length);
        part.iter_mut().for_each(|value| *value += to as f32);
        part
    }

    fn all_to_all(&mut self) -> Result<(), Nonconformance> {
        let (rank, world_size) = (self.group.rank(), self.group.world_size());
        let parts: Vec<Vec<f32>> = (0..world_size).map(|to| self.part(rank, to)).collect();
        let parts: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
        let exchanged = self.group.all_to_all_v(&parts);
        for (from, found) in self.failed(exchanged)?.into_iter().enumerate() {
            let equal = found == self.part(from, rank);
            self.check("all-to-all", equal, format!(" from rank {from}"))?;
        }
        Ok(())
    }

    fn all_gather(&mut self) -> Result<(), Nonconformance> {
        // Bytes, so that lengths that are no multiple of four are met.
        let bytes = |test: &Self, rank: usize| -> Vec<u8> {
            let input = test.input(rank, (test.amount + rank) % (test.amount + 1));
            input.iter().map(|value| (value * 100.0) as u8).collect()
        };
        let mine = bytes(self, self.group.rank());
        let gathered = self.group.all_gather_v(&mine);
        for (from, found) in self.failed(gathered)?.into_iter().enumerate() {
            let equal = found == bytes(self, from);
            self.check("all-gather", equal, format!(" from rank {from}"))?;
        }
        Ok(())
    }

    fn broadcast(&mut self, draw: u64) -> Result<(), Nonconformance> {
        let root = draw as usize % self.group.world_size();
        let mut values = self.input(self.group.rank(), self.amount);
        let given = self.group.broadcast(root, &mut values);
        self.failed(given)?;
        let equal = values == self.input(root, self.amount);
        self.check("broadcast", equal, format!(" from rank {root}"))
    }

    fn barrier(&mut self) -> Result<(), Nonconformance> {
        let result = self.group.barrier();
        self.failed(result)
    }
}
