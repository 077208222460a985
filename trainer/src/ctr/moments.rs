//! How the dense features of the training rows are distributed.

use models::ctr::Normalisation;

use crate::{
    collective::{CollectiveError, ProcessGroup, segment},
    table::{Projection, Slice},
};

use super::train::TrainError;

/// Variances below are of constant columns.
const LEAST_VARIANCE: f64 = 1e-12;

/// Mean and standard deviation of each dense feature over all rows; a constant one gets 1. Every
/// rank reads its share of the row groups, and all have the same bits, whatever their number.
///
/// # Errors
/// [`TrainError`] if rows cannot be read, or a rank was lost.
pub fn fit_normalisation(
    rows: &Slice,
    group: &mut impl ProcessGroup,
) -> Result<Normalisation, TrainError> {
    let width = rows.schema().dense.len();
    let parts: Vec<Slice> = rows.row_groups().collect();
    let mut mine = Vec::new();
    for part in &parts[segment(parts.len(), group.world_size(), group.rank())] {
        let dense = part.read(Projection::Dense)?.features.dense;
        mine.extend(Moments::of(&dense, width).0);
    }
    merge(&mine, width, group).map_err(TrainError::from)
}

fn merge(
    mine: &[f64],
    width: usize,
    group: &mut impl ProcessGroup,
) -> Result<Normalisation, CollectiveError> {
    let all = group.all_gather_v(mine)?.concat();
    let parts = all.chunks_exact(2 * width + 1);
    let mut sum = Moments(vec![0.0; 2 * width + 1]);
    parts.for_each(|part| sum.add(part));
    Ok(sum.normalisation())
}

/// Count, means, and sums of squared distances from the mean: `[1 + 2 × width]`.
#[derive(Debug, Clone, PartialEq)]
struct Moments(Vec<f64>);

impl Moments {
    /// Of `[rows, width]` values.
    fn of(values: &[f32], width: usize) -> Self {
        let rows = || values.chunks_exact(width.max(1));
        let count = rows().len() as f64;
        let mut moments = vec![0.0; 2 * width + 1];
        moments[0] = count;
        let (means, squares) = moments[1..].split_at_mut(width);
        for row in rows() {
            for (mean, value) in means.iter_mut().zip(row) {
                *mean += f64::from(*value);
            }
        }
        means.iter_mut().for_each(|mean| *mean /= count);
        for row in rows() {
            for ((square, mean), value) in squares.iter_mut().zip(&*means).zip(row) {
                *square += (f64::from(*value) - mean).powi(2);
            }
        }
        Self(moments)
    }

    /// Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    /// sample variances" (1979).
    fn add(&mut self, other: &[f64]) {
        let (ours, theirs) = (self.0[0], other[0]);
        let count = ours + theirs;
        if theirs == 0.0 {
            return;
        }
        let width = other.len() / 2;
        for column in 1..=width {
            let apart = other[column] - self.0[column];
            self.0[column] += apart * (theirs / count);
            self.0[column + width] +=
                other[column + width] + apart * apart * (ours * theirs / count);
        }
        self.0[0] = count;
    }

    fn normalisation(&self) -> Normalisation {
        let (means, squares) = self.0[1..].split_at(self.0.len() / 2);
        let deviation = |sum: &f64| match sum / self.0[0] {
            variance if variance > LEAST_VARIANCE => variance.sqrt() as f32,
            _ => 1.0,
        };
        Normalisation {
            mean: means.iter().map(|mean| *mean as f32).collect(),
            std: squares.iter().map(deviation).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        collective::{CollectiveConfig, TcpGroup, testing::meet},
        table::testing,
    };

    #[test]
    fn mean_and_deviation_are_those_of_the_rows() {
        let moments = Moments::of(&[1.0, 5.0, 3.0, 5.0], 2);
        let wanted = Normalisation {
            mean: vec![2.0, 5.0],
            std: vec![1.0, 1.0],
        };
        assert_eq!(moments.normalisation(), wanted);
        // 1e6 and a bit: the sum of squares alone would lose it.
        let values: Vec<f32> = (0..1000).map(|at| 1e6 + (at % 2) as f32).collect();
        let mut sum = Moments(vec![0.0; 3]);
        values
            .chunks(7)
            .for_each(|part| sum.add(&Moments::of(part, 1).0));
        let found = sum.normalisation();
        assert!((found.std[0] - 0.5).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn any_number_of_ranks_finds_the_same() {
        let times: Vec<i64> = (0..500).collect();
        let (_dir, rows) = testing::table(&testing::rows(&times), 30);
        let alone = fit_normalisation(&rows, &mut TcpGroup::alone()).unwrap();
        assert!((alone.mean[0] - 249.5).abs() < 1e-3);
        let found = meet(3, &CollectiveConfig::default(), |met| {
            fit_normalisation(&rows, &mut TcpGroup::connect(&met, "dense").unwrap()).unwrap()
        });
        assert_eq!(found, vec![alone; 3]);
    }
}
