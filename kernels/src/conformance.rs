//! What the kernels must do on any device: random cases against plain host arithmetic.

use cubecl::Runtime;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    Buffer, CachedTable, Device, GpuTable, KernelError, RowwiseAdagrad, Sums, Touched, Vectors,
};

const ADAGRAD: RowwiseAdagrad = RowwiseAdagrad {
    learning_rate: 0.1,
    eps: 1e-8,
    weight_decay: 0.01,
};

/// Largest difference, of numbers up to one: a device may multiply and add in one rounding, and
/// sums squares by lanes.
const TOLERANCE: f32 = 4e-6;

/// Rows of the cache.
const SLOTS: usize = 8;

/// Why a device does not conform.
#[derive(Debug, thiserror::Error)]
pub enum Nonconformance {
    /// A kernel failed.
    #[error("{case}")]
    Failed {
        /// The case.
        case: String,
        /// Why.
        source: KernelError,
    },
    /// A kernel gave something else.
    #[error("{case}: {what} at {at} is {found}, wanted {wanted}")]
    Wrong {
        /// The case.
        case: String,
        /// What differs.
        what: &'static str,
        /// Where.
        at: usize,
        /// What the device has.
        found: f32,
        /// What the host has.
        wanted: f32,
    },
}

/// Pools, moves and caches the rows of a random table on a device, and compares.
///
/// # Errors
/// [`Nonconformance`] at the first that fails or gives something else.
pub fn conform<R: Runtime>(device: &Device<R>, seed: u64) -> Result<(), Nonconformance> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let case = Case::new(&mut random);
    let failed = |source| Nonconformance::Failed {
        case: case.name(seed),
        source,
    };
    let differences = [
        case.pooling(device).map_err(failed)?,
        case.update(device).map_err(failed)?,
        case.cache(device, &mut random).map_err(failed)?,
    ];
    match differences.into_iter().flatten().next() {
        None => Ok(()),
        Some(Difference {
            what,
            at,
            found,
            wanted,
        }) => Err(Nonconformance::Wrong {
            case: case.name(seed),
            what,
            at,
            found,
            wanted,
        }),
    }
}

/// Where a device and the host differ first.
struct Difference {
    what: &'static str,
    at: usize,
    found: f32,
    wanted: f32,
}

fn compare(
    what: &'static str,
    found: &[f32],
    wanted: &[f32],
    tolerance: f32,
) -> Option<Difference> {
    let missing = [f32::NAN];
    let found = found.iter().chain(missing.iter().cycle());
    let pairs = found.zip(wanted).enumerate();
    let mut far = pairs.filter(|(_, (found, wanted))| {
        let near = (*found - *wanted).abs() <= tolerance * wanted.abs().max(1.0);
        !near
    });
    far.next().map(|(at, (found, wanted))| Difference {
        what,
        at,
        found: *found,
        wanted: *wanted,
    })
}

/// A table with weights, ids and gradients that are not round.
#[derive(Debug, Clone)]
struct Case {
    dim: usize,
    block: Block,
    weights: Vec<f32>,
    state: Vec<f32>,
    rows: Vec<u32>,
    offsets: Vec<u32>,
    scale: Vec<f32>,
    scaled: bool,
}

/// Where pooled vectors and their gradients lie: one a line, between other columns.
#[derive(Debug, Clone, Copy)]
struct Block {
    /// Numbers of a line.
    width: usize,
    /// Where the vector begins in it.
    column: usize,
    /// A divisor of both.
    step: usize,
}

impl Block {
    /// Where each of `count` vectors begins, in steps.
    fn places(self, count: usize) -> Vec<u32> {
        let place = |line: usize| ((line * self.width + self.column) / self.step) as u32;
        (0..count).map(place).collect()
    }

    fn vectors(self, buffer: &Buffer) -> Vectors<'_> {
        Vectors {
            buffer,
            step: self.step,
        }
    }

    /// Vectors of `dim` numbers in their lines.
    fn spread(self, vectors: &[f32], dim: usize) -> Vec<f32> {
        let mut lines = vec![f32::NAN; vectors.len() / dim * self.width];
        for (line, vector) in lines
            .chunks_exact_mut(self.width)
            .zip(vectors.chunks_exact(dim))
        {
            line[self.column..self.column + dim].copy_from_slice(vector);
        }
        lines
    }

    /// The inverse of [`Self::spread`].
    fn gather(self, lines: &[f32], dim: usize) -> Vec<f32> {
        let lines = lines.chunks_exact(self.width);
        let vectors = lines.flat_map(|line| &line[self.column..self.column + dim]);
        vectors.copied().collect()
    }
}

/// The bags' entries in the order of their rows: what a backward pass gives.
struct Backward {
    rows: Vec<u32>,
    offsets: Vec<u32>,
    gradient_at: Vec<u32>,
    scale: Vec<f32>,
}

impl Case {
    /// Up to 130 columns and 40 rows, and up to 30 bags of up to 5.
    fn new(random: &mut ChaCha8Rng) -> Self {
        let (dim, num_rows) = (random.random_range(1..=130), random.random_range(1..=40));
        let mut offsets = vec![0u32];
        for _ in 0..random.random_range(0..=30) {
            let last = offsets[offsets.len() - 1];
            offsets.push(last + random.random_range(0..=5));
        }
        let entries = offsets[offsets.len() - 1];
        let step = [1usize, 2, 4][random.random_range(0..3)];
        let column = step * random.random_range(0..=3);
        let block = Block {
            width: (column + dim).next_multiple_of(step) + step * random.random_range(0..=2),
            column,
            step,
        };
        let mut list = |len: usize, from: f32, to: f32| -> Vec<f32> {
            (0..len).map(|_| random.random_range(from..to)).collect()
        };
        let weights = list(num_rows * dim, -1.0, 1.0);
        let state = list(num_rows, 0.0, 3.0);
        let scale = list(entries as usize, 0.1, 2.0);
        Self {
            dim,
            block,
            weights,
            state,
            rows: (0..entries)
                .map(|_| random.random_range(0..num_rows as u32))
                .collect(),
            offsets,
            scale,
            scaled: random.random(),
        }
    }

    fn name(&self, seed: u64) -> String {
        format!(
            "seed {seed}: {} bags of {} entries in a table of {} × {}",
            self.num_bags(),
            self.rows.len(),
            self.state.len(),
            self.dim
        )
    }

    /// The bags' vectors, pooled from a table into lines.
    fn pool(
        &self,
        device: &Device<impl Runtime>,
        lookup: impl FnOnce(Sums<'_>, Vectors<'_>) -> Result<(), KernelError>,
    ) -> Result<Vec<f32>, KernelError> {
        let count = self.num_bags();
        let block = device.room(count * self.block.width);
        let sums = Sums {
            source_at: &self.rows,
            offsets: &self.offsets,
            scale: self.scaled.then_some(&self.scale),
            target_at: &self.block.places(count),
        };
        lookup(sums, self.block.vectors(&block))?;
        Ok(self.block.gather(&device.download(&block)?, self.dim))
    }

    fn table<R: Runtime>(&self, device: &Device<R>) -> Result<GpuTable<R>, KernelError> {
        GpuTable::new(device.clone(), self.dim, &self.weights, &self.state)
    }

    fn num_bags(&self) -> usize {
        self.offsets.len() - 1
    }

    fn scale_of(&self, entry: usize) -> f32 {
        if self.scaled { self.scale[entry] } else { 1.0 }
    }

    /// A gradient for each bag.
    fn gradients(&self) -> Vec<f32> {
        let numbers = (0..self.num_bags() * self.dim).map(|at| (at as f32 * 0.37).sin());
        numbers.collect()
    }

    fn backward(&self) -> Backward {
        let bag_of = |entry: usize| {
            let begun = self
                .offsets
                .partition_point(|first| *first as usize <= entry);
            begun - 1
        };
        let places = self.block.places(self.num_bags());
        let mut entries: Vec<usize> = (0..self.rows.len()).collect();
        entries.sort_by_key(|entry| self.rows[*entry]);
        let (mut rows, mut offsets) = (Vec::new(), vec![0]);
        for run in entries.chunk_by(|a, b| self.rows[*a] == self.rows[*b]) {
            rows.push(self.rows[run[0]]);
            offsets.push(offsets[offsets.len() - 1] + run.len() as u32);
        }
        Backward {
            rows,
            offsets,
            gradient_at: entries.iter().map(|entry| places[bag_of(*entry)]).collect(),
            scale: entries.iter().map(|entry| self.scale[*entry]).collect(),
        }
    }

    fn pooling<R: Runtime>(&self, device: &Device<R>) -> Result<Option<Difference>, KernelError> {
        let table = self.table(device)?;
        let found = self.pool(device, |sums, target| {
            table.lookup(&device.sums(sums)?, target)
        })?;
        let mut wanted = vec![0.0; self.num_bags() * self.dim];
        for (bag, sum) in wanted.chunks_exact_mut(self.dim).enumerate() {
            for entry in self.offsets[bag] as usize..self.offsets[bag + 1] as usize {
                let row = self.rows[entry] as usize * self.dim;
                for (sum, value) in sum.iter_mut().zip(&self.weights[row..]) {
                    *sum += self.scale_of(entry) * value;
                }
            }
        }
        // Without a factor there are additions alone, in the order of the entries.
        let tolerance = if self.scaled { TOLERANCE } else { 0.0 };
        Ok(compare("a pooled vector", &found, &wanted, tolerance))
    }

    fn update<R: Runtime>(&self, device: &Device<R>) -> Result<Option<Difference>, KernelError> {
        let run = || {
            let mut table = self.table(device)?;
            let gradients = device.upload(&self.block.spread(&self.gradients(), self.dim));
            let touched = self.backward();
            let touched = table.touched(touched.borrow(self.scaled))?;
            table.update(&touched, self.block.vectors(&gradients), ADAGRAD)?;
            table.read()
        };
        let (weights, state) = run()?;
        let (again_weights, again_state) = run()?;
        let (wanted_weights, wanted_state) = self.updated();
        let weights_differ = compare("a weight", &weights, &wanted_weights, TOLERANCE);
        Ok(weights_differ
            .or_else(|| compare("a state", &state, &wanted_state, TOLERANCE))
            .or_else(|| compare("a weight, done again,", &again_weights, &weights, 0.0))
            .or_else(|| compare("a state, done again,", &again_state, &state, 0.0)))
    }

    /// As `trainer::sharding` does it on the host.
    fn updated(&self) -> (Vec<f32>, Vec<f32>) {
        let (mut weights, mut state) = (self.weights.clone(), self.state.clone());
        let (gradients, dim) = (self.block.spread(&self.gradients(), self.dim), self.dim);
        let touched = self.backward();
        for (row, ends) in touched.rows.iter().zip(touched.offsets.windows(2)) {
            let mut sum = vec![0.0f32; dim];
            for entry in ends[0] as usize..ends[1] as usize {
                let scale = if self.scaled {
                    touched.scale[entry]
                } else {
                    1.0
                };
                let gradient = &gradients[touched.gradient_at[entry] as usize * self.block.step..];
                for (sum, g) in sum.iter_mut().zip(gradient) {
                    *sum += scale * g;
                }
            }
            let row = *row as usize;
            let weights = &mut weights[row * dim..(row + 1) * dim];
            for (g, w) in sum.iter_mut().zip(&*weights) {
                *g += ADAGRAD.weight_decay * w;
            }
            state[row] += sum.iter().map(|g| g * g).sum::<f32>() / dim as f32;
            let rate = ADAGRAD.learning_rate / (state[row].sqrt() + ADAGRAD.eps);
            for (w, g) in weights.iter_mut().zip(sum) {
                *w -= rate * g;
            }
        }
        (weights, state)
    }

    /// Some steps on a table whose hot rows are cached, and on one that lies wholly on the device.
    fn cache<R: Runtime>(
        &self,
        device: &Device<R>,
        random: &mut ChaCha8Rng,
    ) -> Result<Option<Difference>, KernelError> {
        let mut whole = self.table(device)?;
        let (weights, state) = (self.weights.clone(), self.state.clone());
        let mut cached = CachedTable::new(device.clone(), self.dim, weights, state, SLOTS)?;
        for _ in 0..10 {
            let rows = (0..random.random_range(1..=2 * SLOTS))
                .map(|_| random.random_range(0..self.state.len() as u32));
            let rows: Vec<u32> = rows.collect();
            let step = Self {
                offsets: (0..=rows.len() as u32).collect(),
                scale: vec![1.0; rows.len()],
                rows,
                ..self.clone()
            };
            let found = step.pool(device, |sums, target| cached.lookup(sums, target))?;
            let wanted = step.pool(device, |sums, target| {
                whole.lookup(&device.sums(sums)?, target)
            })?;
            if let Some(difference) = compare("a cached vector", &found, &wanted, 0.0) {
                return Ok(Some(difference));
            }
            let touched = step.backward();
            let touched = touched.borrow(false);
            let gradients = device.upload(&self.block.spread(&step.gradients(), self.dim));
            let gradients = self.block.vectors(&gradients);
            cached.update(touched, gradients, ADAGRAD)?;
            whole.update(&whole.touched(touched)?, gradients, ADAGRAD)?;
        }
        let (weights, state) = whole.read()?;
        let (cached_weights, cached_state) = cached.read()?;
        let weights_differ = compare("a cached weight", cached_weights, &weights, 0.0);
        Ok(weights_differ.or_else(|| compare("a cached state", cached_state, &state, 0.0)))
    }
}

impl Backward {
    fn borrow(&self, scaled: bool) -> Touched<'_> {
        Touched {
            rows: &self.rows,
            offsets: &self.offsets,
            gradient_at: &self.gradient_at,
            scale: scaled.then_some(&self.scale),
        }
    }
}
