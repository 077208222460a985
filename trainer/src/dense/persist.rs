//! The dense half in a checkpoint: flat vectors.

use super::{Rule, Saved};
use crate::checkpoint::{CheckpointError, Piece, Restored};

impl Saved {
    /// As tensors of a file.
    pub fn pieces(&self) -> Vec<Piece> {
        let mut pieces = vec![
            Piece::vector("weights", &self.weights),
            Piece::vector("means", &self.means),
            Piece::vector("squares", &self.squares),
        ];
        let averages = self.averages.as_ref();
        pieces.extend(averages.map(|averages| Piece::vector("averages", averages)));
        pieces
    }

    /// The inverse of [`Self::pieces`] for the network of a rule, after so many updates.
    ///
    /// # Errors
    /// [`CheckpointError`] if it does not fit the network.
    pub fn read(
        restored: &Restored,
        rule: &Rule,
        averaged: bool,
        updates: u64,
    ) -> Result<Self, CheckpointError> {
        let tensors = restored.dense.tensors();
        let wanted = rule.segments.iter().sum();
        let read = |what: &'static str| {
            let found = tensors
                .tensor(what)
                .map_err(|error| restored.damaged(error.to_string()))?;
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(found.data());
            match values.len() == wanted {
                true => Ok(values),
                false => Err(CheckpointError::Length {
                    name: restored.name.clone(),
                    what,
                    found: values.len(),
                    wanted,
                }),
            }
        };
        Ok(Self {
            weights: read("weights")?,
            means: read("means")?,
            squares: read("squares")?,
            averages: averaged.then(|| read("averages")).transpose()?,
            updates,
        })
    }
}
