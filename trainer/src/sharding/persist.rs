//! Tables to and from checkpoints, whoever held which part.

use safetensors::{Dtype, SafeTensors};

use super::{
    ShardedTables,
    optimizer::{SparseOptimizer, SparseOptimizerConfig},
    plan::ShardSpec,
    shard::Shard,
    storage::Values,
};
use crate::checkpoint::{CheckpointError, Piece, Restored, RestoredFile};

impl ShardedTables {
    /// Copies what this rank saves: its parts, and as rank 0 the tables that all ranks hold.
    pub fn save(&self) -> (Vec<ShardSpec>, Vec<Piece>) {
        let saved = self
            .shards
            .iter()
            .filter(|shard| shard.spec.owner.is_some() || self.rank == 0);
        let (mut specs, mut pieces) = (Vec::new(), Vec::new());
        for (at, shard) in saved.enumerate() {
            specs.push(shard.spec.clone());
            let name = format!("{at}.weights");
            let shape = [shard.rows, shard.dim];
            pieces.push(match &shard.values {
                Values::F32(values) => Piece::new(name, Dtype::F32, &shape, values),
                Values::Bf16(values) => Piece::new(name, Dtype::BF16, &shape, values),
                Values::F16(values) => Piece::new(name, Dtype::F16, &shape, values),
            });
            let shape = [shard.rows, shard.state_len];
            pieces.push(Piece::new(
                format!("{at}.state"),
                Dtype::F32,
                &shape,
                &shard.state,
            ));
        }
        (specs, pieces)
    }

    /// Takes weights and optimizer state from a checkpoint; `step` is the number of updates then.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if a part is not as large as it says.
    pub fn restore(&mut self, restored: &Restored, step: u64) -> Result<(), CheckpointError> {
        self.step = step;
        let ids: Vec<_> = restored.ids.iter().map(RestoredFile::tensors).collect();
        if let Some(mut vocabulary) = self.router.vocabulary_mut() {
            let damaged = |problem| CheckpointError::Damaged {
                key: restored.name.clone(),
                problem,
            };
            vocabulary.restore(&ids).map_err(damaged)?;
        }
        for file in &restored.tables {
            let tensors = file.tensors();
            for (at, spec) in file.shards.iter().enumerate() {
                for shard in &mut self.shards {
                    if shard.spec.overlaps(spec) {
                        let table = &self.router.plan().tables[spec.table].0;
                        let saved = Saved::read(&tensors, at, spec, table.rows, &self.optimizer)
                            .map_err(|problem| CheckpointError::Damaged {
                                key: restored.name.clone(),
                                problem: format!("table `{}`: {problem}", table.name),
                            })?;
                        shard.take(&saved, &self.optimizer);
                    }
                }
            }
        }
        Ok(())
    }
}

/// A part as it was saved.
struct Saved<'a> {
    spec: &'a ShardSpec,
    rows: usize,
    dim: usize,
    values: Values,
    state: Vec<f32>,
}

impl<'a> Saved<'a> {
    fn read(
        tensors: &SafeTensors<'_>,
        at: usize,
        spec: &'a ShardSpec,
        table_rows: usize,
        optimizer: &SparseOptimizerConfig,
    ) -> Result<Self, String> {
        let (rows, dim) = (spec.rows.count(table_rows), spec.columns.len());
        let tensor = |name: String| {
            let found = tensors.tensor(&name).map_err(|error| error.to_string())?;
            Ok::<_, String>((found.dtype(), found.shape().to_vec(), found.data().to_vec()))
        };
        let (dtype, shape, bytes) = tensor(format!("{at}.weights"))?;
        if shape != [rows, dim] {
            return Err(format!(
                "weights of shape {shape:?}, wanted {:?}",
                [rows, dim]
            ));
        }
        let values = match dtype {
            Dtype::F32 => Values::F32(bytemuck::pod_collect_to_vec(&bytes)),
            Dtype::BF16 => Values::Bf16(bytemuck::pod_collect_to_vec(&bytes)),
            Dtype::F16 => Values::F16(bytemuck::pod_collect_to_vec(&bytes)),
            other => return Err(format!("weights of type {other:?}")),
        };
        let (_, shape, bytes) = tensor(format!("{at}.state"))?;
        let wanted = [rows, optimizer.state_len(dim)];
        if shape != wanted {
            return Err(format!(
                "optimizer state of shape {shape:?}, wanted {wanted:?}"
            ));
        }
        Ok(Self {
            spec,
            rows,
            dim,
            values,
            state: bytemuck::pod_collect_to_vec(&bytes),
        })
    }
}

impl Shard {
    /// Copies the cells that both have.
    fn take(&mut self, saved: &Saved<'_>, optimizer: &SparseOptimizerConfig) {
        let first = self.spec.columns.start.max(saved.spec.columns.start);
        let end = self.spec.columns.end.min(saved.spec.columns.end);
        let here = first - self.spec.columns.start;
        let there = first - saved.spec.columns.start;
        let mut cells = vec![0.0; end - first];
        // State of one number a row, or of one or two a weight.
        let (per_row, parts) = match optimizer.kind {
            SparseOptimizer::RowwiseAdagrad => (true, 1),
            _ => (false, optimizer.state_len(1)),
        };
        for old in 0..saved.rows {
            let row = saved.spec.rows.global(old);
            if !self.spec.rows.has(row) {
                continue;
            }
            let new = self.spec.rows.local(row);
            saved.values.read(old * saved.dim + there, &mut cells);
            self.values.set(new * self.dim + here, &cells);
            if per_row {
                self.state[new] = saved.state[old];
                continue;
            }
            for part in 0..parts {
                let from = (old * parts + part) * saved.dim + there;
                let to = (new * parts + part) * self.dim + here;
                self.state[to..to + cells.len()]
                    .copy_from_slice(&saved.state[from..from + cells.len()]);
            }
        }
    }
}
