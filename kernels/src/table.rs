//! A table that lies wholly on the device.

use cubecl::{
    Runtime, calculate_cube_count_elemwise,
    client::ComputeClient,
    prelude::{ArrayArg, CubeDim},
    server::Handle,
};

use crate::{
    error::KernelError,
    kernels::{gather_pool, rowwise_adagrad, scatter},
};

/// Units of a cube.
const CUBE: u32 = 128;

/// Most units that share a row.
const MOST_LANES: usize = 32;

/// Which rows are pooled to what; a mean is a sum with a scale of one over the bag's length.
#[derive(Debug, Clone, Copy)]
pub struct Bags<'a> {
    /// `[entries]`, the row of each.
    pub rows: &'a [u32],
    /// `[bags + 1]`, where each bag's entries begin, and their end.
    pub offsets: &'a [u32],
    /// `[entries]`, what each entry's row is multiplied with; `None`: 1.
    pub scale: Option<&'a [f32]>,
}

/// Which gradients move which rows.
#[derive(Debug, Clone, Copy)]
pub struct Touched<'a> {
    /// `[touched]`, each once.
    pub rows: &'a [u32],
    /// `[touched + 1]`, where each row's entries begin, and their end.
    pub offsets: &'a [u32],
    /// `[entries]`, which of the gradients each is.
    pub gradient_at: &'a [u32],
    /// `[entries]`, what each gradient is multiplied with; `None`: 1.
    pub scale: Option<&'a [f32]>,
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

/// [`Bags`] on the device.
#[derive(Debug, Clone)]
pub struct DeviceBags {
    count: usize,
    rows: List,
    offsets: List,
    scale: List,
    scaled: bool,
    table_rows: usize,
}

/// [`Touched`] on the device.
#[derive(Debug, Clone)]
pub struct DeviceTouched {
    count: usize,
    rows: List,
    offsets: List,
    gradient_at: List,
    scale: List,
    scaled: bool,
    table_rows: usize,
    num_gradients: usize,
}

/// A list of 32-bit numbers on the device.
#[derive(Debug, Clone)]
struct List {
    handle: Handle,
    len: usize,
}

impl List {
    fn arg<R: Runtime>(&self) -> ArrayArg<R> {
        // SAFETY: the length is that with which the buffer was made.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), self.len) }
    }
}

/// Weights and optimizer state of a table, on a device.
pub struct GpuTable<R: Runtime> {
    client: ComputeClient<R>,
    rows: usize,
    dim: usize,
    weights: Handle,
    state: Handle,
}

impl<R: Runtime> GpuTable<R> {
    /// Copies a table to the device.
    ///
    /// # Shapes
    /// - `weights`: `[rows, dim]`; `state`: `[rows]`
    ///
    /// # Errors
    /// [`KernelError::Length`].
    pub fn new(
        client: ComputeClient<R>,
        dim: usize,
        weights: &[f32],
        state: &[f32],
    ) -> Result<Self, KernelError> {
        let rows = state.len();
        expect("weights", weights.len(), rows * dim)?;
        Ok(Self {
            weights: upload(&client, weights),
            state: upload(&client, state),
            client,
            rows,
            dim,
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The device's client, to make further buffers with.
    pub fn client(&self) -> &ComputeClient<R> {
        &self.client
    }

    /// Brings bags to the device.
    ///
    /// # Errors
    /// [`KernelError`] if the lists do not belong together, or a row is not there.
    pub fn bags(&self, bags: Bags<'_>) -> Result<DeviceBags, KernelError> {
        let count = check(bags.offsets, bags.rows.len(), bags.scale)?;
        check_rows(bags.rows, self.rows)?;
        Ok(DeviceBags {
            count,
            rows: self.list(bags.rows),
            offsets: self.list(bags.offsets),
            scaled: bags.scale.is_some(),
            scale: self.list(bags.scale.unwrap_or_default()),
            table_rows: self.rows,
        })
    }

    /// Adds up the rows of each bag; an empty one gives zeros.
    ///
    /// # Shapes
    /// - returns a buffer of `[bags, dim]` f32 on the device
    ///
    /// # Panics
    /// If the bags were made for a table of another number of rows.
    pub fn gather_pool(&self, bags: &DeviceBags) -> Handle {
        assert_eq!(bags.table_rows, self.rows, "bags of this table");
        let pooled = self.client.empty((bags.count * self.dim * 4).max(4));
        let (width, vectors) = vectors(self.dim);
        let (cube, count) = (CubeDim::new_1d(CUBE), bags.count * vectors);
        if count == 0 {
            return pooled;
        }
        let cubes = calculate_cube_count_elemwise(&self.client, count, cube);
        // SAFETY: lengths are those of the buffers, rows and offsets were checked to lie within
        // them, and the kernel does nothing beyond `bags × vectors`.
        unsafe {
            gather_pool::launch_unchecked::<R>(
                &self.client,
                cubes,
                cube,
                width,
                ArrayArg::from_raw_parts(self.weights.clone(), self.rows * self.dim),
                bags.rows.arg(),
                bags.offsets.arg(),
                bags.scale.arg(),
                ArrayArg::from_raw_parts(pooled.clone(), bags.count * self.dim),
                vectors as u32,
                bags.count as u32,
                bags.scaled,
            );
        }
        pooled
    }

    /// Brings to the device which of `num_gradients` gradients move which rows.
    ///
    /// # Errors
    /// [`KernelError`] if the lists do not belong together, a row is there twice, or a row or a
    /// gradient is not there.
    pub fn touched(
        &self,
        touched: Touched<'_>,
        num_gradients: usize,
    ) -> Result<DeviceTouched, KernelError> {
        let count = check(touched.offsets, touched.gradient_at.len(), touched.scale)?;
        expect("touched rows", touched.rows.len(), count)?;
        check_rows(touched.rows, self.rows)?;
        let mut sorted = touched.rows.to_vec();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(KernelError::Twice { row: pair[0] });
        }
        check_rows(touched.gradient_at, num_gradients)?;
        Ok(DeviceTouched {
            count,
            rows: self.list(touched.rows),
            offsets: self.list(touched.offsets),
            gradient_at: self.list(touched.gradient_at),
            scaled: touched.scale.is_some(),
            scale: self.list(touched.scale.unwrap_or_default()),
            table_rows: self.rows,
            num_gradients,
        })
    }

    /// Moves each touched row once, by the sum of its gradients in the order of its entries.
    ///
    /// # Shapes
    /// - `gradients`: `[num_gradients, dim]` f32 on the device
    ///
    /// # Panics
    /// If `touched` was made for a table of another number of rows.
    pub fn update(
        &mut self,
        touched: &DeviceTouched,
        gradients: &Handle,
        optimizer: RowwiseAdagrad,
    ) {
        assert_eq!(touched.table_rows, self.rows, "rows of this table");
        if touched.count == 0 || self.dim == 0 {
            return;
        }
        let (width, vectors) = vectors(self.dim);
        let lanes = vectors.next_power_of_two().min(MOST_LANES);
        let rows_per_cube = CUBE as usize / lanes;
        let cube = CubeDim::new_2d(lanes as u32, rows_per_cube as u32);
        let units = touched.count.div_ceil(rows_per_cube) * CUBE as usize;
        let cubes = calculate_cube_count_elemwise(&self.client, units, cube);
        // SAFETY: as above; rows are each there once, so that no two cubes write the same.
        unsafe {
            rowwise_adagrad::launch_unchecked::<R>(
                &self.client,
                cubes,
                cube,
                width,
                ArrayArg::from_raw_parts(self.weights.clone(), self.rows * self.dim),
                ArrayArg::from_raw_parts(self.state.clone(), self.rows),
                touched.rows.arg(),
                touched.offsets.arg(),
                touched.gradient_at.arg(),
                touched.scale.arg(),
                ArrayArg::from_raw_parts(gradients.clone(), touched.num_gradients * self.dim),
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
    }

    /// Weights (`[rows, dim]`) and state (`[rows]`) of all rows.
    ///
    /// # Errors
    /// [`KernelError::Device`].
    pub fn read(&self) -> Result<(Vec<f32>, Vec<f32>), KernelError> {
        Ok((
            self.download(self.weights.clone())?,
            self.download(self.state.clone())?,
        ))
    }

    /// A buffer of f32 on the device, here.
    ///
    /// # Errors
    /// [`KernelError::Device`].
    pub fn download(&self, buffer: Handle) -> Result<Vec<f32>, KernelError> {
        let bytes = self.client.read_one(buffer);
        let bytes = bytes.map_err(|error| KernelError::Device(format!("{error:?}")))?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    /// Copies numbers to the device.
    pub fn upload(&self, values: &[f32]) -> Handle {
        upload(&self.client, values)
    }

    /// Weights and state of some rows.
    pub(crate) fn read_rows(&self, rows: &[u32]) -> Result<(Vec<f32>, Vec<f32>), KernelError> {
        let offsets: Vec<u32> = (0..=rows.len() as u32).collect();
        let bags = Bags {
            rows,
            offsets: &offsets,
            scale: None,
        };
        let bags = self.bags(bags)?;
        let states = Self {
            client: self.client.clone(),
            rows: self.rows,
            dim: 1,
            weights: self.state.clone(),
            state: self.state.clone(),
        };
        let mut weights = self.download(self.gather_pool(&bags))?;
        let mut state = states.download(states.gather_pool(&bags))?;
        // A device has no empty buffers.
        weights.truncate(rows.len() * self.dim);
        state.truncate(rows.len());
        Ok((weights, state))
    }

    /// Replaces weights and state of some rows, each once.
    pub(crate) fn write_rows(&mut self, rows: &[u32], weights: &[f32], state: &[f32]) {
        self.scatter(rows, weights, &self.weights, self.dim);
        self.scatter(rows, state, &self.state, 1);
    }

    fn scatter(&self, rows: &[u32], values: &[f32], table: &Handle, dim: usize) {
        let (width, vectors) = vectors(dim);
        let (cube, count) = (CubeDim::new_1d(CUBE), rows.len() * vectors);
        if count == 0 {
            return;
        }
        let cubes = calculate_cube_count_elemwise(&self.client, count, cube);
        // SAFETY: the lengths are those of the buffers, the rows are slots of the table, and the
        // kernel does nothing beyond `count × vectors`.
        unsafe {
            scatter::launch_unchecked::<R>(
                &self.client,
                cubes,
                cube,
                width,
                self.list(values).arg(),
                self.list(rows).arg(),
                ArrayArg::from_raw_parts(table.clone(), self.rows * dim),
                vectors as u32,
                rows.len() as u32,
            );
        }
    }

    /// A list on the device.
    fn list<T: bytemuck::Pod>(&self, values: &[T]) -> List {
        List {
            handle: upload(&self.client, values),
            len: values.len().max(1),
        }
    }
}

fn check_rows(wanted: &[u32], rows: usize) -> Result<(), KernelError> {
    match wanted.iter().find(|row| **row as usize >= rows) {
        Some(row) => Err(KernelError::Row { row: *row, rows }),
        None => Ok(()),
    }
}

/// A device has no empty buffers.
fn upload<R: Runtime, T: bytemuck::Pod>(client: &ComputeClient<R>, values: &[T]) -> Handle {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    match bytes.is_empty() {
        true => client.empty(4),
        false => client.create_from_slice(bytes),
    }
}

/// Neighbouring columns that are moved at once, and how many such vectors a row has.
fn vectors(dim: usize) -> (usize, usize) {
    let width = [4, 2].into_iter().find(|width| dim.is_multiple_of(*width));
    let width = width.unwrap_or(1);
    (width, dim / width)
}

fn expect(what: &'static str, found: usize, wanted: usize) -> Result<(), KernelError> {
    match found == wanted {
        true => Ok(()),
        false => Err(KernelError::Length {
            what,
            found,
            wanted,
        }),
    }
}

/// Number of bags of offsets that rise from 0 to the number of entries.
fn check(offsets: &[u32], entries: usize, scale: Option<&[f32]>) -> Result<usize, KernelError> {
    let whole = offsets.first() == Some(&0)
        && offsets.last().copied() == u32::try_from(entries).ok()
        && offsets.is_sorted();
    if !whole {
        return Err(KernelError::Offsets { entries });
    }
    if let Some(scale) = scale {
        expect("scale", scale.len(), entries)?;
    }
    Ok(offsets.len() - 1)
}
