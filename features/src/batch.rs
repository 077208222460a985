//! Rows of feature values in memory: dense numbers and jagged ids.

use wire::events::FeatureSnapshot;

use crate::Schema;

/// Ids of one sparse feature over the rows of a batch.
///
/// Row `i` owns `ids[offsets[i]..offsets[i + 1]]`; ids are 64-bit hashes, and a table of `n` rows
/// takes `id % n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jagged {
    /// `[rows + 1]`, rising from 0.
    pub offsets: Vec<u32>,
    /// The ids of all rows, one after the other.
    pub ids: Vec<u64>,
}

impl Default for Jagged {
    fn default() -> Self {
        Self {
            offsets: vec![0],
            ids: Vec::new(),
        }
    }
}

impl Jagged {
    /// Ids of one row.
    pub fn row(&self, row: usize) -> &[u64] {
        &self.ids[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }

    /// Whether the offsets are those of `rows` rows of the ids.
    pub fn fits(&self, rows: usize) -> bool {
        self.offsets.len() == rows + 1
            && self.offsets[0] == 0
            && self.offsets[rows] as usize == self.ids.len()
            && self.offsets.is_sorted()
    }

    /// Appends one row.
    pub fn push_row(&mut self, ids: &[u64]) {
        self.ids.extend_from_slice(ids);
        self.offsets.push(self.ids.len() as u32);
    }

    /// The rows of several, one's after the other's.
    pub fn concat<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut all = Self::default();
        for part in parts {
            let before = all.ids.len() as u32;
            all.ids.extend_from_slice(&part.ids);
            all.offsets
                .extend(part.offsets[1..].iter().map(|offset| before + offset));
        }
        all
    }
}

/// Feature values of some rows.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureBatch {
    /// Number of rows.
    pub num_rows: usize,
    /// Number of dense features.
    pub num_dense: usize,
    /// `[num_rows, num_dense]`, row-major.
    pub dense: Vec<f32>,
    /// One per sparse feature.
    pub sparse: Vec<Jagged>,
}

/// Why a snapshot's values do not fit a schema.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a feature snapshot has {found} {what}, wanted {wanted}")]
pub struct SnapshotError {
    /// What was counted.
    pub what: &'static str,
    /// How many there are.
    pub found: usize,
    /// How many the schema has.
    pub wanted: usize,
}

impl FeatureBatch {
    /// An empty batch for a schema.
    pub fn new(schema: &Schema) -> Self {
        Self::with_widths(schema.dense.len(), schema.sparse.len())
    }

    /// An empty batch of some numbers of dense and sparse features.
    pub fn with_widths(num_dense: usize, num_sparse: usize) -> Self {
        let sparse = vec![Jagged::default(); num_sparse];
        Self {
            num_rows: 0,
            num_dense,
            dense: Vec::new(),
            sparse,
        }
    }

    /// Dense values of one row.
    pub fn dense_row(&self, row: usize) -> &[f32] {
        &self.dense[row * self.num_dense..(row + 1) * self.num_dense]
    }

    /// Appends one row of another batch of the same widths.
    pub fn push_from(&mut self, other: &Self, row: usize) {
        self.dense.extend_from_slice(other.dense_row(row));
        for (mine, theirs) in self.sparse.iter_mut().zip(&other.sparse) {
            mine.push_row(theirs.row(row));
        }
        self.num_rows += 1;
    }

    /// The chosen rows, in the order given.
    pub fn gather(&self, rows: &[usize]) -> Self {
        let mut gathered = Self::with_widths(self.num_dense, self.sparse.len());
        gathered.dense.reserve(rows.len() * self.num_dense);
        for &row in rows {
            gathered.push_from(self, row);
        }
        gathered
    }

    /// One row as the event log keeps it.
    pub fn snapshot(&self, row: usize, spec_digest: &str) -> FeatureSnapshot {
        let mut snapshot = FeatureSnapshot {
            spec_digest: spec_digest.to_owned(),
            dense: self.dense_row(row).to_vec(),
            sparse_offsets: vec![0],
            ..FeatureSnapshot::default()
        };
        for feature in &self.sparse {
            snapshot.sparse_ids.extend_from_slice(feature.row(row));
            snapshot
                .sparse_offsets
                .push(snapshot.sparse_ids.len() as u32);
        }
        snapshot
    }

    /// Appends a row that the event log kept.
    ///
    /// # Errors
    /// [`SnapshotError`] if the widths differ or the offsets do not rise to the number of ids;
    /// the batch is unchanged then.
    pub fn push_snapshot(&mut self, snapshot: &FeatureSnapshot) -> Result<(), SnapshotError> {
        let check = |what, found, wanted| {
            if found == wanted {
                Ok(())
            } else {
                Err(SnapshotError {
                    what,
                    found,
                    wanted,
                })
            }
        };
        let offsets = &snapshot.sparse_offsets;
        check("dense values", snapshot.dense.len(), self.num_dense)?;
        check("sparse offsets", offsets.len(), self.sparse.len() + 1)?;
        let rising = offsets.windows(2).filter(|pair| pair[0] <= pair[1]).count();
        check("rising sparse offsets", rising, self.sparse.len())?;
        check("sparse ids before the first offset", offsets[0] as usize, 0)?;
        check(
            "sparse ids",
            snapshot.sparse_ids.len(),
            offsets[self.sparse.len()] as usize,
        )?;

        self.dense.extend_from_slice(&snapshot.dense);
        for (feature, pair) in self.sparse.iter_mut().zip(offsets.windows(2)) {
            feature.push_row(&snapshot.sparse_ids[pair[0] as usize..pair[1] as usize]);
        }
        self.num_rows += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch() -> FeatureBatch {
        let mut batch = FeatureBatch::with_widths(2, 2);
        for row in 0..3u64 {
            batch.dense.extend([row as f32, 0.5]);
            batch.sparse[0].push_row(&[row]);
            batch.sparse[1].push_row(&vec![7; row as usize]);
            batch.num_rows += 1;
        }
        batch
    }

    #[test]
    fn a_row_survives_the_event_log() {
        let batch = batch();
        let mut read = FeatureBatch::with_widths(2, 2);
        for row in 0..batch.num_rows {
            read.push_snapshot(&batch.snapshot(row, "d")).unwrap();
        }
        assert_eq!(read, batch);
    }

    #[test]
    fn joined_rows_are_those_of_each_in_turn() {
        let [one, two] = <[Jagged; 2]>::try_from(batch().sparse).unwrap();
        let joined = Jagged::concat([&one, &two, &one]);
        assert!(joined.fits(9));
        let rows: Vec<&[u64]> = (0..9).map(|row| joined.row(row)).collect();
        let wanted: [&[u64]; 9] = [&[0], &[1], &[2], &[], &[7], &[7, 7], &[0], &[1], &[2]];
        assert_eq!(rows, wanted);
        assert_eq!(Jagged::concat([]), Jagged::default());
    }

    #[test]
    fn gathering_keeps_the_order_given() {
        let gathered = batch().gather(&[2, 0]);
        assert_eq!(gathered.dense, [2.0, 0.5, 0.0, 0.5]);
        assert_eq!(gathered.sparse[1].offsets, [0, 2, 2]);
    }

    proptest! {
        #[test]
        fn no_snapshot_panics_and_a_refused_one_changes_nothing(
            dense in prop::collection::vec(any::<f32>(), 0..4),
            sparse_offsets in prop::collection::vec(0u32..5, 0..5),
            sparse_ids in prop::collection::vec(any::<u64>(), 0..5),
        ) {
            let snapshot = FeatureSnapshot { dense, sparse_offsets, sparse_ids, ..FeatureSnapshot::default() };
            let mut read = FeatureBatch::with_widths(2, 2);
            let before = read.clone();
            if read.push_snapshot(&snapshot).is_err() {
                prop_assert_eq!(read, before);
            } else {
                prop_assert_eq!(read.snapshot(0, ""), snapshot);
            }
        }
    }
}
