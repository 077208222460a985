//! Embedding tables and pooling.

use std::collections::HashMap;

use features::Jagged;
use serde::{Deserialize, Serialize};

/// What becomes of the rows of a bag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// Their sum.
    Sum,
}

/// The ids of a dynamic table, which have rows of their own. The first row is that of all others,
/// and the rest are those of the ids, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownIds {
    ids: Vec<u64>,
    /// What each id's row is.
    rows: HashMap<u64, u32>,
}

impl KnownIds {
    /// Of ids that rise.
    pub fn new(ids: Vec<u64>) -> Self {
        let rows = ids.iter().copied().zip(1..).collect();
        Self { ids, rows }
    }

    /// The ids, rising.
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }
}

/// A table's rows, which one feature reads, or several.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingTable {
    /// Its name.
    pub name: String,
    /// The sparse features that read it.
    pub features: Vec<String>,
    /// Number of rows; an id's row is `id % rows`, unless it is known.
    pub rows: usize,
    /// Length of a row.
    pub dim: usize,
    /// What becomes of the rows of a bag.
    pub pooling: Pooling,
    /// Of a dynamic table.
    pub known: Option<KnownIds>,
    /// `[rows, dim]`, row-major.
    pub weights: Vec<f32>,
}

impl EmbeddingTable {
    /// The row of an id.
    pub fn row_of(&self, id: u64) -> usize {
        match &self.known {
            None => (id % self.rows as u64) as usize,
            Some(known) => known.rows.get(&id).map_or(0, |row| *row as usize),
        }
    }

    /// Writes the mean or the sum of each bag's rows.
    ///
    /// # Shapes
    /// - `bags`: the bags `first..` that `out` has room for
    /// - `out`: rows of `stride` values; a bag's goes to `column..column + dim` of its row,
    ///   an empty bag gives zeros
    pub fn pool(&self, bags: &Jagged, first: usize, out: &mut [f32], stride: usize, column: usize) {
        for (at, row) in out.chunks_exact_mut(stride).enumerate() {
            let target = &mut row[column..column + self.dim];
            let ids = bags.row(first + at);
            if let [id] = ids {
                target.copy_from_slice(self.row(*id));
                continue;
            }
            target.fill(0.0);
            let share = match self.pooling {
                Pooling::Mean => 1.0 / ids.len().max(1) as f32,
                Pooling::Sum => 1.0,
            };
            for id in ids {
                for (sum, value) in target.iter_mut().zip(self.row(*id)) {
                    *sum += share * value;
                }
            }
        }
    }

    fn row(&self, id: u64) -> &[f32] {
        let at = self.row_of(id) * self.dim;
        &self.weights[at..at + self.dim]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bags_pool_to_their_mean_or_sum_and_empty_ones_to_zero() {
        let mut table = EmbeddingTable {
            name: "f".into(),
            features: vec!["f".into()],
            rows: 3,
            dim: 2,
            pooling: Pooling::Mean,
            known: None,
            weights: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        };
        let mut bags = Jagged::default();
        bags.push_row(&[4]);
        bags.push_row(&[]);
        bags.push_row(&[0, 2]);
        let mut out = vec![9.0; 9];
        table.pool(&bags, 0, &mut out, 3, 1);
        assert_eq!(out, [9.0, 3.0, 4.0, 9.0, 0.0, 0.0, 9.0, 3.0, 4.0]);
        table.pooling = Pooling::Sum;
        table.pool(&bags, 0, &mut out, 3, 1);
        assert_eq!(out, [9.0, 3.0, 4.0, 9.0, 0.0, 0.0, 9.0, 6.0, 8.0]);
        // 0 and 2 are known, 4 is one of the others.
        table.known = Some(KnownIds::new(vec![0, 2]));
        table.pool(&bags, 0, &mut out, 3, 1);
        assert_eq!(out, [9.0, 1.0, 2.0, 9.0, 0.0, 0.0, 9.0, 8.0, 10.0]);
    }
}
