//! A table that lies wholly on the device.

use cubecl::{Runtime, calculate_cube_count_elemwise, prelude::CubeDim};

use crate::{
    device::{
        Buffer, CUBE, Device, DeviceSums, Indices, List, Sums, Vectors, check, expect,
        moved_at_once,
    },
    error::KernelError,
    kernels::rowwise_adagrad,
};

/// Numbers that are copied to the host at once: 16 MiB.
const READ_AT_ONCE: usize = 4 << 20;

/// Most units that share a row.
const MOST_LANES: usize = 32;

/// Which gradients move which rows.
#[derive(Debug, Clone, Copy)]
pub struct Touched<'a> {
    /// `[touched]`, rising.
    pub rows: &'a [u32],
    /// `[touched + 1]`, where each row's entries begin, and their end.
    pub offsets: &'a [u32],
    /// `[entries]`, which of the gradients each is.
    pub gradient_at: &'a [u32],
    /// `[entries]`, what each gradient is multiplied with; `None`: 1.
    pub scale: Option<&'a [f32]>,
}

impl Touched<'_> {
    /// Number of rows of lists that belong together. Rows rise: two cubes that move the same one
    /// would both lose.
    pub(crate) fn check(&self) -> Result<usize, KernelError> {
        let count = check(self.offsets, self.gradient_at.len(), self.scale)?;
        expect("touched rows", self.rows.len(), count)?;
        match self.rows.windows(2).find(|pair| pair[0] >= pair[1]) {
            Some(pair) => Err(KernelError::NotRising { row: pair[1] }),
            None => Ok(count),
        }
    }
}

/// Adagrad with one number of state a row: the sum of the means of the squares of its gradients.
/// Source: Mudigere et al., "Software-Hardware Co-design for Fast and Scalable Training of Deep
/// Learning Recommendation Models" (2022), section 4.1.4.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowwiseAdagrad {
    /// Step size.
    pub learning_rate: f32,
    /// Keeps the first steps finite.
    pub eps: f32,
    /// Pull of touched rows towards zero.
    pub weight_decay: f32,
}

/// [`Touched`] on the device.
#[derive(Debug, Clone)]
pub struct DeviceTouched {
    count: usize,
    rows: Indices,
    offsets: List,
    gradient_at: Indices,
    scale: List,
    scaled: bool,
}

/// Weights and optimizer state of a table, on a device.
pub struct GpuTable<R: Runtime> {
    device: Device<R>,
    dim: usize,
    /// `[rows, dim]`.
    weights: Buffer,
    /// `[rows]`.
    state: Buffer,
}

impl<R: Runtime> GpuTable<R> {
    /// Copies a table to the device.
    ///
    /// # Shapes
    /// - `weights`: `[rows, dim]`; `state`: `[rows]`
    ///
    /// # Errors
    /// [`KernelError`], also if there is no room for it.
    pub fn new(
        device: Device<R>,
        dim: usize,
        weights: &[f32],
        state: &[f32],
    ) -> Result<Self, KernelError> {
        expect("weights", weights.len(), state.len() * dim)?;
        Ok(Self {
            weights: device.keep("weights", weights)?,
            state: device.keep("optimizer state", state)?,
            device,
            dim,
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.state.len()
    }

    /// Length of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The device that it lies on.
    pub fn device(&self) -> &Device<R> {
        &self.device
    }

    /// Adds up rows, which the sums have as their sources.
    ///
    /// # Errors
    /// [`KernelError`] if a row is not there, or a target.
    pub fn lookup(&self, sums: &DeviceSums, target: Vectors<'_>) -> Result<(), KernelError> {
        self.device
            .add_up(sums, self.dim, self.vectors(&self.weights), target)
    }

    fn vectors<'a>(&self, buffer: &'a Buffer) -> Vectors<'a> {
        Vectors {
            buffer,
            step: self.dim,
        }
    }

    /// Brings to the device which gradients move which rows.
    ///
    /// # Errors
    /// [`KernelError`] if the lists do not belong together, or rows do not rise.
    pub fn touched(&self, touched: Touched<'_>) -> Result<DeviceTouched, KernelError> {
        let count = touched.check()?;
        Ok(self.distinct(touched, count))
    }

    /// `count` rows that are each there once, in some order.
    pub(crate) fn distinct(&self, touched: Touched<'_>, count: usize) -> DeviceTouched {
        DeviceTouched {
            count,
            rows: self.device.indices(touched.rows),
            offsets: self.device.list(touched.offsets),
            gradient_at: self.device.indices(touched.gradient_at),
            scaled: touched.scale.is_some(),
            scale: self.device.list(touched.scale.unwrap_or_default()),
        }
    }

    /// Moves each touched row once, by the sum of its gradients in the order of its entries.
    ///
    /// # Errors
    /// [`KernelError`] if a row is not there, or a gradient.
    pub fn update(
        &mut self,
        touched: &DeviceTouched,
        gradients: Vectors<'_>,
        optimizer: RowwiseAdagrad,
    ) -> Result<(), KernelError> {
        let weights = self.vectors(&self.weights);
        weights.check("touched row", touched.rows.end, self.dim)?;
        gradients.check("gradient", touched.gradient_at.end, self.dim)?;
        if touched.count == 0 || self.dim == 0 {
            return Ok(());
        }
        let width = moved_at_once([self.dim, gradients.step]);
        weights.check_range("weights", width)?;
        gradients.check_range("gradients", width)?;
        let vectors = self.dim / width;
        let lanes = vectors.next_power_of_two().min(MOST_LANES);
        let rows_per_cube = CUBE as usize / lanes;
        let cube = CubeDim::new_2d(lanes as u32, rows_per_cube as u32);
        let units = touched.count.div_ceil(rows_per_cube) * CUBE as usize;
        let client = self.device.client();
        let cubes = calculate_cube_count_elemwise(client, units, cube);
        // SAFETY: lengths are those of the buffers, all rows and gradients were checked to lie
        // within them and offsets to rise; rows are each there once, so that no two cubes write the
        // same.
        unsafe {
            rowwise_adagrad::launch_unchecked::<R>(
                client,
                cubes,
                cube,
                width,
                self.weights.arg(),
                self.state.arg(),
                touched.rows.list.arg(),
                touched.offsets.arg(),
                touched.gradient_at.list.arg(),
                touched.scale.arg(),
                gradients.buffer.arg(),
                (gradients.step / width) as u32,
                touched.count as u32,
                optimizer.learning_rate,
                optimizer.eps,
                optimizer.weight_decay,
                vectors,
                lanes,
                rows_per_cube,
                touched.scaled,
            );
        }
        Ok(())
    }

    /// Weights (`[rows, dim]`) and state (`[rows]`) of all rows.
    ///
    /// # Errors
    /// [`KernelError::Device`].
    pub fn read(&self) -> Result<(Vec<f32>, Vec<f32>), KernelError> {
        let (mut weights, mut state) = (Vec::new(), Vec::new());
        // A device pins as much host memory as is read at once, and keeps it.
        let portion = (READ_AT_ONCE / self.dim.max(1)).max(1);
        for rows in numbers(self.rows()).chunks(portion) {
            let (some_weights, some_state) = self.read_rows(rows)?;
            weights.extend(some_weights);
            state.extend(some_state);
        }
        Ok((weights, state))
    }

    /// Weights and state of some rows.
    pub(crate) fn read_rows(&self, rows: &[u32]) -> Result<(Vec<f32>, Vec<f32>), KernelError> {
        let read = |table: &Buffer, step: usize| {
            let gathered = self.device.room(rows.len() * step);
            let (places, offsets) = (numbers(rows.len()), numbers(rows.len() + 1));
            let sums = self.device.sums(Sums {
                source_at: rows,
                offsets: &offsets,
                scale: None,
                target_at: &places,
            })?;
            let [from, to] = [table, &gathered].map(|buffer| Vectors { buffer, step });
            self.device.add_up(&sums, step, from, to)?;
            self.device.download(&gathered)
        };
        Ok((read(&self.weights, self.dim)?, read(&self.state, 1)?))
    }

    /// Replaces weights and state of some rows, each there once.
    ///
    /// # Shapes
    /// - `weights`: `[rows.len(), dim]`; `state`: `[rows.len()]`
    ///
    /// # Errors
    /// [`KernelError`] if a row is not there, or there are too few weights or states.
    pub fn write_rows(
        &mut self,
        rows: &[u32],
        weights: &[f32],
        state: &[f32],
    ) -> Result<(), KernelError> {
        for (values, table, step) in [(weights, &self.weights, self.dim), (state, &self.state, 1)] {
            expect("rows to write", values.len(), rows.len() * step)?;
            let (places, offsets) = (numbers(rows.len()), numbers(rows.len() + 1));
            let sums = self.device.sums(Sums {
                source_at: &places,
                offsets: &offsets,
                scale: None,
                target_at: rows,
            })?;
            let values = self.device.upload(values);
            let [from, to] = [&values, table].map(|buffer| Vectors { buffer, step });
            self.device.add_up(&sums, step, from, to)?;
        }
        Ok(())
    }
}

fn numbers(count: usize) -> Vec<u32> {
    (0..count as u32).collect()
}
