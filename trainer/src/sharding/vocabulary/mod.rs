//! Which row of a dynamic table an id has: its own, once it was seen often enough.
//!
//! A dynamic table has a fixed number of rows and no collisions: row 0 is shared by all ids that
//! have none, and the others are given to ids, one each. An id is admitted when it was seen
//! `admit_after` times; it loses its row when it was not seen for long, or when a newcomer needs
//! room and no id was seen longer ago. Everything after this (routing, sharding, optimizers)
//! knows rows only. Source: the managed collision modules of TorchRec, and the frequency filter
//! and eviction of DeepRec's `EmbeddingVariable`.
//!
//! The ids of a table are cut into a fixed number of partitions, each with rows of its own, and
//! every partition is kept by one rank: so what happens does not depend on the number of ranks.
//! Translation changes nothing, and [`Vocabulary::observe`] changes everything at one point
//! between two translations: so nothing depends on which thread is faster.

mod partition;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, collections::HashMap};

use features::Jagged;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use self::partition::{Entry, Partition, SHARED_ROW};
use super::plan::Plan;
use crate::{
    checkpoint::Piece,
    collective::{CollectiveError, ProcessGroup, split_evenly},
};

/// Parts of a table's ids; not more ranks keep some.
pub(super) const PARTITIONS: usize = 64;

/// How ids come by rows of their own, and lose them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DynamicConfig {
    /// How often an id must be seen; until then it shares a row with all others that have none.
    pub admit_after: u32,
    /// Steps without an id after which it is forgotten; a little later, as ids are looked through
    /// in turn. 0: never.
    pub evict_after_steps: u64,
}

impl Default for DynamicConfig {
    fn default() -> Self {
        Self {
            admit_after: 2,
            evict_after_steps: 0,
        }
    }
}

/// How a dynamic table is used, on all ranks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableUse {
    /// The table's name.
    pub table: String,
    /// Rows there are.
    pub rows: u64,
    /// Rows that ids have, without the shared one.
    pub used: u64,
    /// Ids that were seen, but not often enough.
    pub candidates: u64,
    /// What has happened since the start.
    #[serde(flatten)]
    pub counts: Counts,
}

/// What has happened to a dynamic table's ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Ids that were given a row.
    pub admitted: u64,
    /// Ids that lost theirs because they were not seen for long.
    pub evicted_by_age: u64,
    /// Ids that lost theirs to a newcomer.
    pub evicted_for_room: u64,
    /// Times an id was seen.
    pub seen: u64,
    /// Times an id was seen that shared the row of those without one.
    pub shared: u64,
}

impl Counts {
    const LEN: usize = 5;

    fn words(self) -> [u64; Self::LEN] {
        [
            self.admitted,
            self.evicted_by_age,
            self.evicted_for_room,
            self.seen,
            self.shared,
        ]
    }

    fn add(&mut self, words: &[u64]) {
        let [admitted, by_age, for_room, seen, shared] = words else {
            return;
        };
        self.admitted += admitted;
        self.evicted_by_age += by_age;
        self.evicted_for_room += for_room;
        self.seen += seen;
        self.shared += shared;
    }
}

/// What the ranks asked of this one: for each dynamic table, ids and how often each was seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Seen(Vec<Vec<(u64, u32)>>);

/// This rank's part of the ids of all dynamic tables.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Vocabulary {
    rank: usize,
    world_size: usize,
    tables: Vec<TableIds>,
    /// Observations so far.
    now: u64,
}

#[derive(Debug, Clone, PartialEq)]
struct TableIds {
    /// Index in the plan.
    table: usize,
    name: String,
    rows: usize,
    config: DynamicConfig,
    /// By number, those of this rank.
    partitions: HashMap<usize, Partition>,
    counts: Counts,
}

fn partition_of(id: u64) -> usize {
    // Ids are hashes; a multiplication spreads also those that are not (Fibonacci hashing).
    (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PARTITIONS.ilog2())) as usize
}

impl Vocabulary {
    /// No ids yet; `None` where no table is dynamic.
    pub fn new(plan: &Plan, rank: usize) -> Option<Self> {
        let dynamic = plan.tables.iter().enumerate();
        let tables = dynamic.filter_map(|(table, (config, _))| {
            let dynamic = config.dynamic.clone()?;
            let lens = split_evenly(config.rows.saturating_sub(1), PARTITIONS);
            let mut first = SHARED_ROW + 1;
            let mut partitions = HashMap::new();
            for (number, len) in lens.into_iter().enumerate() {
                let end = first + len as u32;
                if owner_of(number, plan.world_size) == rank {
                    partitions.insert(number, Partition::new(first, end));
                }
                first = end;
            }
            Some(TableIds {
                table,
                name: config.name.clone(),
                rows: config.rows,
                config: dynamic,
                partitions,
                counts: Counts::default(),
            })
        });
        let tables: Vec<TableIds> = tables.collect();
        (!tables.is_empty()).then_some(Self {
            rank,
            world_size: plan.world_size,
            tables,
            now: 0,
        })
    }

    /// Puts rows in the place of the ids of dynamic tables; `ids` has the bags of each table. Returns
    /// what the others have asked.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn translate(
        &self,
        ids: &mut [Cow<'_, Jagged>],
        group: &mut impl ProcessGroup,
    ) -> Result<Seen, CollectiveError> {
        let asked = self.tables.iter().map(|of| Asked::new(&ids[of.table]));
        let asked: Vec<Asked> = asked.collect();
        let mut words = vec![Vec::new(); self.world_size];
        for asked in &asked {
            for (rank, words) in words.iter_mut().enumerate() {
                let of_rank = || {
                    let all = asked.distinct.iter();
                    all.filter(move |(id, _)| self.owner(*id) == rank)
                };
                words.push(of_rank().count() as u64);
                words.extend(of_rank().map(|(id, _)| *id));
                words.extend(of_rank().map(|(_, count)| u64::from(*count)));
            }
        }
        let questions = match self.world_size {
            1 => words,
            _ => group.all_to_all_v(&slices(&words))?,
        };
        let mut seen = vec![Vec::new(); self.tables.len()];
        let malformed = |rank, what| CollectiveError::Malformed { rank, what };
        let answers = questions.iter().enumerate().map(|(rank, words)| {
            let answer = self.answer(words, &mut seen);
            answer.ok_or(malformed(rank, "ids"))
        });
        let answers: Vec<Vec<u32>> = answers.collect::<Result<_, _>>()?;
        let rows = match self.world_size {
            1 => answers,
            _ => group.all_to_all_v(&slices(&answers))?,
        };
        let mut rows: Vec<_> = rows.into_iter().map(Vec::into_iter).collect();
        for (of, asked) in self.tables.iter().zip(&asked) {
            // An owner answers every question, in its order.
            let row_of = asked.distinct.iter().map(|(id, _)| {
                let owner = self.owner(*id);
                let row = rows[owner].next().filter(|row| (*row as usize) < of.rows);
                row.map(u64::from).ok_or(malformed(owner, "rows of ids"))
            });
            let row_of: Vec<u64> = row_of.collect::<Result<_, _>>()?;
            asked.write(row_of, &mut ids[of.table].to_mut().ids);
        }
        Ok(Seen(seen))
    }

    fn owner(&self, id: u64) -> usize {
        owner_of(partition_of(id), self.world_size)
    }

    /// Rows of the ids that a rank asks for; `None` if they are not what [`Self::translate`] sends.
    fn answer(&self, mut words: &[u64], seen: &mut [Vec<(u64, u32)>]) -> Option<Vec<u32>> {
        let mut rows = Vec::new();
        for (of, seen) in self.tables.iter().zip(seen) {
            let (count, rest) = words.split_first()?;
            let (ids, rest) = rest.split_at_checked(usize::try_from(*count).ok()?)?;
            let (counts, rest) = rest.split_at_checked(ids.len())?;
            words = rest;
            rows.extend(ids.iter().map(|id| of.row_of(*id)));
            seen.extend(ids.iter().zip(counts).map(|(id, n)| (*id, *n as u32)));
        }
        words.is_empty().then_some(rows)
    }

    /// Takes note of what a step saw: admits and evicts. Returns the rows that ids have lost, by
    /// table, which are to be as new.
    pub fn observe(&mut self, seen: &[&Seen]) -> Vec<(usize, Vec<u32>)> {
        self.now += 1;
        let now = self.now;
        let mut lost = Vec::new();
        for (at, of) in self.tables.iter_mut().enumerate() {
            let mut ids: Vec<(u64, u32)> = Vec::new();
            seen.iter().for_each(|seen| ids.extend(&seen.0[at]));
            ids.sort_unstable();
            let summed = ids.chunk_by(|a, b| a.0 == b.0).map(|run| {
                let count = run.iter().map(|(_, count)| *count).sum::<u32>();
                (run[0].0, count)
            });
            let mut of_table = of.note(summed, now);
            of.sweep(now, &mut of_table);
            if !of_table.is_empty() {
                lost.push((of.table, of_table));
            }
        }
        lost
    }

    /// How the tables are used, on all ranks.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn usage(&self, group: &mut impl ProcessGroup) -> Result<Vec<TableUse>, CollectiveError> {
        let mine = self.tables.iter().flat_map(|of| {
            let partitions = of.partitions.values();
            let candidates = partitions.clone().map(Partition::candidates);
            let used = partitions.map(Partition::used).sum::<usize>() as u64;
            let counts = of.counts.words();
            [used, candidates.sum::<usize>() as u64]
                .into_iter()
                .chain(counts)
        });
        let mine: Vec<u64> = mine.collect();
        let all = group.all_gather_v(&mine)?;
        let each = 2 + Counts::LEN;
        let tables = self.tables.iter().enumerate().map(|(at, of)| {
            let mut total = TableUse {
                table: of.name.clone(),
                rows: of.rows as u64,
                used: 0,
                candidates: 0,
                counts: Counts::default(),
            };
            for words in all.iter().map(|words| &words[at * each..(at + 1) * each]) {
                total.used += words[0];
                total.candidates += words[1];
                total.counts.add(&words[2..]);
            }
            total
        });
        Ok(tables.collect())
    }

    /// Ids of a table that have rows, rising, on every rank; `None` if the table is not dynamic.
    ///
    /// # Errors
    /// [`CollectiveError`].
    pub fn known(
        &self,
        table: usize,
        group: &mut impl ProcessGroup,
    ) -> Result<Option<Vec<(u64, u32)>>, CollectiveError> {
        let Some(of) = self.tables.iter().find(|of| of.table == table) else {
            return Ok(None);
        };
        let entries = of.partitions.values().flat_map(Partition::entries);
        let with_row = entries.filter(|(_, entry)| entry.row != SHARED_ROW);
        let mine: Vec<u64> = with_row
            .flat_map(|(id, entry)| [*id, u64::from(entry.row)])
            .collect();
        let all = group.all_gather_v(&mine)?.concat();
        let pairs = all.chunks_exact(2).map(|pair| (pair[0], pair[1] as u32));
        let mut known: Vec<(u64, u32)> = pairs.collect();
        known.sort_unstable();
        Ok(Some(known))
    }

    /// Copies what this rank saves.
    pub fn save(&self) -> Vec<Piece> {
        let mut pieces = vec![piece("now", &[self.now])];
        for of in &self.tables {
            let name = |what: &str| format!("{}.{what}", of.table);
            let entries = of.partitions.values().flat_map(Partition::entries);
            let mut entries: Vec<_> = entries.collect();
            entries.sort_unstable_by_key(|(id, _)| **id);
            let column = |of: &dyn Fn(&Entry) -> u64| {
                let values = entries.iter().map(|(_, entry)| of(entry));
                values.collect::<Vec<u64>>()
            };
            let ids: Vec<u64> = entries.iter().map(|(id, _)| **id).collect();
            pieces.extend([
                piece(&name("ids"), &ids),
                piece(&name("rows"), &column(&|entry| u64::from(entry.row))),
                piece(&name("counts"), &column(&|entry| u64::from(entry.count))),
                piece(&name("last_seen"), &column(&|entry| entry.last_seen)),
                piece(&name("history"), &of.counts.words()),
            ]);
        }
        pieces
    }

    /// Takes its part of what all ranks have saved, however many they were.
    ///
    /// # Errors
    /// What is wrong with a file.
    pub fn restore(&mut self, files: &[SafeTensors<'_>]) -> Result<(), String> {
        for of in &mut self.tables {
            of.counts = Counts::default();
            of.partitions.values_mut().for_each(Partition::clear);
        }
        for file in files {
            let words = |name: String| -> Result<Vec<u64>, String> {
                let tensor = file.tensor(&name).map_err(|error| error.to_string())?;
                match tensor.dtype() {
                    Dtype::U64 => Ok(bytemuck::pod_collect_to_vec(tensor.data())),
                    other => Err(format!("`{name}` is of type {other:?}, wanted U64")),
                }
            };
            self.now = words("now".to_owned())?.first().copied().unwrap_or(0);
            for of in &mut self.tables {
                let column = |what: &str| words(format!("{}.{what}", of.table));
                let (ids, rows) = (column("ids")?, column("rows")?);
                let (counts, last_seen) = (column("counts")?, column("last_seen")?);
                if [&rows, &counts, &last_seen].map(Vec::len) != [ids.len(); 3] {
                    return Err(format!("ids of table `{}` are cut off", of.name));
                }
                // Sums of all ranks: one of them has them all from now on.
                if self.rank == 0 {
                    of.counts.add(&column("history")?);
                }
                for (at, id) in ids.into_iter().enumerate() {
                    let entry = Entry {
                        row: rows[at] as u32,
                        count: counts[at] as u32,
                        last_seen: last_seen[at],
                    };
                    if let Some(partition) = of.partitions.get_mut(&partition_of(id)) {
                        partition.put_back(id, entry);
                    }
                }
            }
        }
        for partition in self.tables.iter_mut().flat_map(|of| &mut of.partitions) {
            partition.1.find_freed();
        }
        Ok(())
    }
}

fn owner_of(partition: usize, world_size: usize) -> usize {
    partition * world_size / PARTITIONS
}

fn slices<T>(parts: &[Vec<T>]) -> Vec<&[T]> {
    parts.iter().map(Vec::as_slice).collect()
}

fn piece(name: &str, values: &[u64]) -> Piece {
    Piece::new(name.to_owned(), Dtype::U64, &[values.len()], values)
}

/// The distinct ids of a batch, rising, and where each stands.
struct Asked {
    distinct: Vec<(u64, u32)>,
    /// `(id, entry)`, rising.
    entries: Vec<(u64, u32)>,
}

impl Asked {
    fn new(bags: &Jagged) -> Self {
        let entries = bags.ids.iter().copied().zip(0..);
        let mut entries: Vec<(u64, u32)> = entries.collect();
        entries.sort_unstable();
        let runs = entries.chunk_by(|a, b| a.0 == b.0);
        let distinct = runs.map(|run| (run[0].0, run.len() as u32)).collect();
        Self { distinct, entries }
    }

    /// Writes the row of each distinct id to its entries.
    fn write(&self, rows: Vec<u64>, ids: &mut [u64]) {
        let runs = self.entries.chunk_by(|a, b| a.0 == b.0);
        for (run, row) in runs.zip(rows) {
            for (_, entry) in run {
                ids[*entry as usize] = row;
            }
        }
    }
}

impl TableIds {
    fn row_of(&self, id: u64) -> u32 {
        let partition = self.partitions.get(&partition_of(id));
        partition.map_or(SHARED_ROW, |partition| partition.row_of(id))
    }

    /// Counts distinct ids, rising, and gives rows to those that were seen often enough.
    fn note(&mut self, seen: impl Iterator<Item = (u64, u32)>, now: u64) -> Vec<u32> {
        let (mut lost, mut newcomers) = (Vec::new(), Vec::new());
        for (id, count) in seen {
            let Some(partition) = self.partitions.get_mut(&partition_of(id)) else {
                continue;
            };
            let entry = partition.see(id, count, now);
            self.counts.seen += u64::from(count);
            if entry.row == SHARED_ROW {
                self.counts.shared += u64::from(count);
                if entry.count >= self.config.admit_after {
                    newcomers.push(id);
                }
            }
        }
        for id in newcomers {
            let Some(partition) = self.partitions.get_mut(&partition_of(id)) else {
                continue;
            };
            if partition.is_full() {
                let before = lost.len();
                partition.make_room(now, &mut lost);
                self.counts.evicted_for_room += (lost.len() - before) as u64;
            }
            self.counts.admitted += u64::from(partition.admit(id));
        }
        for partition in self.partitions.values_mut() {
            partition.bound_candidates();
        }
        lost
    }

    /// Forgets old ids of one partition; each has its turn.
    fn sweep(&mut self, now: u64, lost: &mut Vec<u32>) {
        let age = self.config.evict_after_steps;
        let partition = self.partitions.get_mut(&(now as usize % PARTITIONS));
        if let (Some(partition), true) = (partition, age > 0) {
            let before = lost.len();
            partition.forget(|entry| entry.last_seen + age <= now, lost);
            self.counts.evicted_by_age += (lost.len() - before) as u64;
        }
    }
}
