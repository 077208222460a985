//! Tables in a device's memory.
//!
//! All that a step does with rows is one operation, a sum of vectors that lie somewhere and go
//! somewhere ([`kernels::Sums`]): rows to the vectors that others have asked for, vectors to the
//! bags of the pooled block, the block's gradient to the gradients of vectors; and at last the
//! update. Lists say what goes where, and are made of what routing has found.

use std::{
    borrow::Cow,
    cell::{RefCell, RefMut},
    collections::BTreeMap,
};

use burn::tensor::Tensor;
use kernels::{
    Buffer, CachedTable, Device, GpuTable, KernelError, RowwiseAdagrad, Sums, Vectors,
    moved_at_once,
};
use rayon::prelude::*;

use super::{
    Routed, Router, ShardedTables,
    block::{PlacementError, Tables, WriteDense},
    optimizer::SparseOptimizer,
    plan::{Place, ShardSpec},
    routing::{Order, Request},
    shard::{Shard, Touched},
    storage::{Storage, Values},
};
use crate::{
    backend::{Gpu, GpuRuntime},
    checkpoint::{CheckpointError, Restored},
    collective::{ExchangeError, ProcessGroup},
    dense::{from_buffer, to_buffer},
};

/// [`Tables`] of backends on a GPU: f32, moved by row-wise Adagrad.
pub struct DeviceTables<R: GpuRuntime> {
    /// All but the weights and their optimizer's state.
    host: ShardedTables,
    /// Those of the shards of this rank.
    stores: Vec<RefCell<Store<R>>>,
    cache_rows: usize,
    device: Device<R>,
    place: R::Device,
    layout: Layout,
}

/// Where a shard's rows lie.
enum Store<R: GpuRuntime> {
    Whole(GpuTable<R>),
    Cached(CachedTable<R>),
}

/// How far apart vectors begin, in numbers.
#[derive(Debug, Clone)]
struct Layout {
    /// Where the features of each table stand.
    places: Vec<Vec<Place>>,
    /// Of the pooled block.
    width: usize,
    /// Divides where the block's vectors begin.
    block_step: usize,
    /// Divides where vectors on their way begin.
    wire_step: usize,
}

/// Gradients that have reached the owners of their rows, on the device.
pub struct Given<'a> {
    routed: &'a Routed,
    gradient: Buffer,
}

/// [`Sums`] in the making.
#[derive(Debug)]
struct Lists {
    source_at: Vec<u32>,
    offsets: Vec<u32>,
    scale: Vec<f32>,
    target_at: Vec<u32>,
}

impl Default for Lists {
    fn default() -> Self {
        Self {
            source_at: Vec::new(),
            offsets: vec![0],
            scale: Vec::new(),
            target_at: Vec::new(),
        }
    }
}

impl Lists {
    /// A further sum, of entries and their factors.
    fn push(&mut self, target: usize, entries: impl IntoIterator<Item = (usize, f32)>) {
        for (source, scale) in entries {
            self.source_at.push(index(source));
            self.scale.push(scale);
        }
        self.offsets.push(index(self.source_at.len()));
        self.target_at.push(index(target));
    }

    fn sums(&self) -> Sums<'_> {
        let scaled = self.scale.iter().any(|scale| *scale != 1.0);
        Sums {
            source_at: &self.source_at,
            offsets: &self.offsets,
            scale: scaled.then_some(&self.scale),
            target_at: &self.target_at,
        }
    }
}

fn index(at: usize) -> u32 {
    // A batch of 4 G vectors of numbers fits no device.
    u32::try_from(at).expect("fewer than 2^32 vectors")
}

impl<R: GpuRuntime> Store<R> {
    fn new(
        device: &Device<R>,
        shard: &mut Shard,
        cache_rows: usize,
    ) -> Result<Self, PlacementError> {
        let Values::F32(weights) = &mut shard.values else {
            return Err(unsupported("tables.storage", "a 16-bit type", "f32"));
        };
        let (weights, state) = (std::mem::take(weights), std::mem::take(&mut shard.state));
        let device = device.clone();
        Ok(if cache_rows == 0 || shard.rows <= cache_rows {
            Self::Whole(GpuTable::new(device, shard.dim, &weights, &state)?)
        } else {
            Self::Cached(CachedTable::new(
                device, shard.dim, weights, state, cache_rows,
            )?)
        })
    }

    fn lookup(
        &mut self,
        device: &Device<R>,
        sums: Sums<'_>,
        target: Vectors<'_>,
    ) -> Result<(), KernelError> {
        match self {
            Self::Whole(table) => table.lookup(&device.sums(sums)?, target),
            Self::Cached(table) => table.lookup(sums, target),
        }
    }

    fn update(
        &mut self,
        touched: kernels::Touched<'_>,
        gradients: Vectors<'_>,
        optimizer: RowwiseAdagrad,
    ) -> Result<(), KernelError> {
        match self {
            Self::Whole(table) => table.update(&table.touched(touched)?, gradients, optimizer),
            Self::Cached(table) => table.update(touched, gradients, optimizer),
        }
    }

    /// Weights and state of all rows.
    fn read(&mut self) -> Result<(Vec<f32>, Vec<f32>), KernelError> {
        match self {
            Self::Whole(table) => table.read(),
            Self::Cached(table) => {
                let (weights, state) = table.read()?;
                Ok((weights.to_vec(), state.to_vec()))
            }
        }
    }

    fn write_rows(&mut self, rows: &[u32], weights: &[f32]) -> Result<(), KernelError> {
        let state = vec![0.0; rows.len()];
        match self {
            Self::Whole(table) => table.write_rows(rows, weights, &state),
            Self::Cached(table) => table.write_rows(rows, weights, &state),
        }
    }
}

fn unsupported(key: &'static str, found: impl ToString, wanted: &'static str) -> PlacementError {
    PlacementError::Unsupported {
        key,
        found: found.to_string(),
        wanted,
    }
}

impl Layout {
    fn new(tables: &ShardedTables) -> Self {
        let places = tables.router().plan().places();
        let (specs, width) = (tables.router().specs(), tables.width());
        let first_of_each = places.iter().flatten().map(|place| place.column);
        let first_of_each = first_of_each.chain([width]);
        let first_of_parts = specs.iter().map(|spec| spec.columns.start);
        Self {
            block_step: moved_at_once(first_of_each.chain(first_of_parts)),
            wire_step: moved_at_once(specs.iter().map(|spec| spec.columns.len())),
            places,
            width,
        }
    }

    /// Where a bag's vector of a shard begins, in steps; each feature of the table has `rows` bags.
    fn in_block(&self, bag: usize, rows: usize, spec: &ShardSpec) -> usize {
        let column = self.places[spec.table][bag / rows].column + spec.columns.start;
        (bag % rows * self.width + column) / self.block_step
    }

    fn block<'a>(&self, buffer: &'a Buffer) -> Vectors<'a> {
        Vectors {
            buffer,
            step: self.block_step,
        }
    }

    fn wire<'a>(&self, buffer: &'a Buffer) -> Vectors<'a> {
        Vectors {
            buffer,
            step: self.wire_step,
        }
    }
}

/// Vectors on their way: where each one's begins, in numbers, and how many go to or come from each
/// rank.
struct Wire<'a, T> {
    /// `(spec, what is sent or received, where it begins)`.
    parts: Vec<(&'a ShardSpec, &'a T, usize)>,
    per_rank: Vec<usize>,
}

impl<'a, T> Wire<'a, T> {
    /// `of_ranks` gives the parts of each rank, with how many vectors they are.
    fn new(of_ranks: impl Iterator<Item = Vec<(&'a ShardSpec, &'a T, usize)>>) -> Self {
        let (mut parts, mut per_rank, mut at) = (Vec::new(), Vec::new(), 0);
        for of_rank in of_ranks {
            let first = at;
            for (spec, part, num_vectors) in of_rank {
                parts.push((spec, part, at));
                at += num_vectors * spec.columns.len();
            }
            per_rank.push(at - first);
        }
        Self { parts, per_rank }
    }

    fn len(&self) -> usize {
        self.per_rank.iter().sum()
    }
}

impl<R: GpuRuntime> DeviceTables<R> {
    /// A lookup changes what a cache holds.
    fn store(&self, shard: usize) -> RefMut<'_, Store<R>> {
        self.stores[shard].borrow_mut()
    }

    /// What is asked of each rank; `replicated`: also of shards that are here too.
    fn requests<'a>(&'a self, routed: &'a Routed, replicated: bool) -> Wire<'a, Request> {
        let ranks = routed.requests.iter().enumerate();
        Wire::new(ranks.map(|(rank, requests)| {
            let held = self.host.router.held_by(rank).zip(requests);
            let sent = held.filter(|((_, spec), _)| replicated || spec.owner.is_some());
            sent.map(|((_, spec), request)| (spec, request, request.num_vectors))
                .collect()
        }))
    }

    /// What each rank asks of this one.
    fn orders<'a>(&'a self, routed: &'a Routed, replicated: bool) -> Wire<'a, Order> {
        Wire::new(routed.orders.iter().map(|orders| {
            let spec = |order: &Order| &self.host.shards[order.shard].spec;
            let sent = orders.iter();
            let sent = sent.filter(|order| replicated || spec(order).owner.is_some());
            sent.map(|order| (spec(order), order, order.num_vectors))
                .collect()
        }))
    }

    /// Pools tables that are wholly here.
    fn pool_locally(&self, routed: &Routed, block: &Buffer) -> Result<(), KernelError> {
        let alone = self.host.router.plan().world_size == 1;
        for (at, shard) in self.host.shards.iter().enumerate() {
            if !alone && shard.spec.owner.is_some() {
                continue;
            }
            let batch = &routed.tables[shard.spec.table];
            let place = |bag| self.layout.in_block(bag, routed.rows, &shard.spec);
            let target_at = (0..batch.num_bags()).map(|bag| index(place(bag)));
            let sums = Sums {
                source_at: &batch.rows,
                offsets: &batch.offsets,
                scale: (!batch.scale.is_empty()).then_some(&batch.scale),
                target_at: &target_at.collect::<Vec<u32>>(),
            };
            let target = self.layout.block(block);
            self.store(at).lookup(&self.device, sums, target)?;
        }
        Ok(())
    }

    /// The vectors that the ranks have ordered, one rank's after the other's.
    fn answer(&self, orders: &Wire<'_, Order>) -> Result<Buffer, KernelError> {
        let vectors = self.device.room(orders.len());
        let mut lists: BTreeMap<usize, Lists> = BTreeMap::new();
        for (spec, order, begin) in &orders.parts {
            let lists = lists.entry(order.shard).or_default();
            let mut entry = 0;
            for vector in 0..order.num_vectors {
                let length = order
                    .lengths
                    .get(vector)
                    .map_or(1, |length| *length as usize);
                let entries = entry..entry + length;
                entry += length;
                let to = begin + vector * spec.columns.len();
                lists.push(
                    to / self.layout.wire_step,
                    entries.map(|entry| {
                        let scale = order.weights.get(entry).copied().unwrap_or(1.0);
                        (order.rows[entry] as usize, scale)
                    }),
                );
            }
        }
        for (shard, lists) in lists {
            let target = self.layout.wire(&vectors);
            self.store(shard)
                .lookup(&self.device, lists.sums(), target)?;
        }
        Ok(vectors)
    }

    /// Adds what the owners sent to the bags.
    fn pool_received(
        &self,
        routed: &Routed,
        requests: &Wire<'_, Request>,
        received: &Buffer,
        block: &Buffer,
    ) -> Result<(), KernelError> {
        // Entries of each bag, by the columns that they go to.
        type Bags = Vec<Vec<(usize, f32)>>;
        let mut places: BTreeMap<(usize, usize), (&ShardSpec, Bags)> = BTreeMap::new();
        for (spec, request, begin) in &requests.parts {
            let place = (spec.table, spec.columns.start);
            let num_bags = routed.tables[spec.table].num_bags();
            let fresh = || (*spec, vec![Vec::new(); num_bags]);
            let (_, bags) = places.entry(place).or_insert_with(fresh);
            for term in &request.terms {
                let from = begin + term.vector as usize * spec.columns.len();
                let from = from / self.layout.wire_step;
                bags[term.bag as usize].push((from, term.scale));
            }
        }
        let mut by_dim: BTreeMap<usize, Lists> = BTreeMap::new();
        for (spec, bags) in places.into_values() {
            let lists = by_dim.entry(spec.columns.len()).or_default();
            for (bag, entries) in bags.into_iter().enumerate() {
                lists.push(self.layout.in_block(bag, routed.rows, spec), entries);
            }
        }
        self.add_up(
            &by_dim,
            self.layout.wire(received),
            self.layout.block(block),
        )
    }

    /// The gradients of the vectors that were asked for.
    fn gradients(
        &self,
        requests: &Wire<'_, Request>,
        rows: usize,
        gradient: &Buffer,
    ) -> Result<Buffer, KernelError> {
        let sent = self.device.room(requests.len());
        let mut by_dim: BTreeMap<usize, Lists> = BTreeMap::new();
        for (spec, request, begin) in &requests.parts {
            let mut vectors = vec![Vec::new(); request.num_vectors];
            for term in &request.terms {
                let from = self.layout.in_block(term.bag as usize, rows, spec);
                vectors[term.vector as usize].push((from, term.scale));
            }
            let dim = spec.columns.len();
            let lists = by_dim.entry(dim).or_default();
            for (vector, entries) in vectors.into_iter().enumerate() {
                lists.push((begin + vector * dim) / self.layout.wire_step, entries);
            }
        }
        self.add_up(
            &by_dim,
            self.layout.block(gradient),
            self.layout.wire(&sent),
        )?;
        Ok(sent)
    }

    fn add_up(
        &self,
        by_dim: &BTreeMap<usize, Lists>,
        source: Vectors<'_>,
        target: Vectors<'_>,
    ) -> Result<(), KernelError> {
        for (dim, lists) in by_dim {
            let sums = self.device.sums(lists.sums())?;
            self.device.add_up(&sums, *dim, source, target)?;
        }
        Ok(())
    }

    /// Puts buffers one after the other.
    fn concat(&self, buffers: &[&Buffer]) -> Buffer {
        if let [one] = buffers {
            return (*one).clone();
        }
        let tensor = |buffer: &&Buffer| -> Tensor<Gpu<R>, 1> {
            from_buffer(&self.device, buffer, [buffer.len()], &self.place)
        };
        to_buffer(Tensor::cat(buffers.iter().map(tensor).collect(), 0)).1
    }
}

impl<R: GpuRuntime> Tables<Gpu<R>> for DeviceTables<R> {
    type Given<'a> = Given<'a>;

    // The squares of a row's gradient would have to be exchanged.
    const COLUMN_WISE: bool = false;

    fn place(
        mut host: ShardedTables,
        cache_rows: usize,
        place: &R::Device,
    ) -> Result<Self, PlacementError> {
        let optimizer = &host.optimizer;
        if optimizer.kind != SparseOptimizer::RowwiseAdagrad {
            let found = format!("{:?}", optimizer.kind).to_lowercase();
            return Err(unsupported(
                "tables.optimizer.kind",
                found,
                "rowwise_adagrad",
            ));
        }
        if optimizer.max_row_norm > 0.0 {
            let found = optimizer.max_row_norm;
            return Err(unsupported("tables.optimizer.max_row_norm", found, "0"));
        }
        let device = Device::new(R::client(place));
        let stores = host.shards.iter_mut().map(|shard| {
            let store = Store::new(&device, shard, cache_rows)?;
            Ok(RefCell::new(store))
        });
        Ok(Self {
            stores: stores.collect::<Result<_, PlacementError>>()?,
            layout: Layout::new(&host),
            host,
            cache_rows,
            device,
            place: place.clone(),
        })
    }

    fn router(&self) -> &Router {
        self.host.router()
    }

    fn reinitialise(&mut self) -> Result<(), PlacementError> {
        let mut host = self.host.clone();
        for shard in &mut host.shards {
            shard.values = Values::zeros(Storage::F32, shard.rows * shard.dim);
        }
        host.reinitialise();
        self.stores.clear();
        *self = Self::place(host, self.cache_rows, &self.place)?;
        Ok(())
    }

    fn to_host(&self) -> Result<Cow<'_, ShardedTables>, ExchangeError> {
        let mut host = self.host.clone();
        for (at, shard) in host.shards.iter_mut().enumerate() {
            let (weights, state) = self.store(at).read()?;
            shard.values = Values::F32(weights);
            shard.state = state;
        }
        Ok(Cow::Owned(host))
    }

    fn observe<'a>(
        &mut self,
        routed: impl IntoIterator<Item = &'a Routed>,
        group: &mut impl ProcessGroup,
    ) -> Result<(), ExchangeError> {
        let lost = self.host.router.observe(routed, group)?;
        for (at, shard) in self.host.shards.iter().enumerate() {
            let (rows, fresh) = shard.fresh(&lost);
            if !rows.is_empty() {
                self.store(at).write_rows(&rows, &fresh)?;
            }
        }
        Ok(())
    }

    fn lookup(
        &self,
        routed: &Routed,
        dense: WriteDense<'_>,
        _device: &R::Device,
        group: &mut impl ProcessGroup,
    ) -> Result<Tensor<Gpu<R>, 2>, ExchangeError> {
        let (rows, width) = (routed.rows, self.layout.width);
        let block = self.device.room(rows * width);
        let first_column = self.host.router.plan().first_column();
        if first_column > 0 {
            let mut values = vec![0.0; rows * first_column];
            dense(&mut values, first_column);
            let mut lists = Lists::default();
            (0..rows).for_each(|row| lists.push(row, [(row, 1.0)]));
            let values = self.device.upload(&values);
            let [from, to] = [(&values, first_column), (&block, width)];
            let [from, to] = [from, to].map(|(buffer, step)| Vectors { buffer, step });
            let sums = self.device.sums(lists.sums())?;
            self.device.add_up(&sums, first_column, from, to)?;
        }
        self.pool_locally(routed, &block)?;
        if self.host.router.plan().world_size > 1 {
            let (orders, requests) = (self.orders(routed, false), self.requests(routed, false));
            let vectors = self.answer(&orders)?;
            let (sent, wanted) = (&orders.per_rank, &requests.per_rank);
            let received = group.all_to_all_buffer(&self.device, &vectors, sent, wanted)?;
            self.pool_received(routed, &requests, &received, &block)?;
        }
        Ok(from_buffer(
            &self.device,
            &block,
            [rows, width],
            &self.place,
        ))
    }

    fn exchange<'a>(
        &self,
        routed: &'a Routed,
        gradient: Tensor<Gpu<R>, 2>,
        group: &mut impl ProcessGroup,
    ) -> Result<Given<'a>, ExchangeError> {
        let (_, gradient) = to_buffer(gradient);
        if self.host.router.plan().world_size == 1 {
            return Ok(Given { routed, gradient });
        }
        let (requests, orders) = (self.requests(routed, true), self.orders(routed, true));
        let sent = self.gradients(&requests, routed.rows, &gradient)?;
        let (given, wanted) = (&requests.per_rank, &orders.per_rank);
        let gradient = group.all_to_all_buffer(&self.device, &sent, given, wanted)?;
        Ok(Given { routed, gradient })
    }

    fn apply(
        &mut self,
        given: &[Given<'_>],
        rate_scale: f32,
        _group: &mut impl ProcessGroup,
    ) -> Result<(), ExchangeError> {
        self.host.step += 1;
        let optimizer = RowwiseAdagrad {
            learning_rate: self.host.optimizer.learning_rate * rate_scale,
            eps: self.host.optimizer.eps,
            weight_decay: self.host.optimizer.weight_decay,
        };
        let buffers: Vec<&Buffer> = given.iter().map(|given| &given.gradient).collect();
        let gradient = self.concat(&buffers);
        let step = match self.host.router.plan().world_size {
            1 => self.layout.block_step,
            _ => self.layout.wire_step,
        };
        let list = |at| {
            let touched = given.iter().map(|given| &given.routed.touched[at]);
            let touched = Touched::joined(touched.zip(buffers.iter().map(|buffer| buffer.len())));
            by_row(&touched, step)
        };
        let lists: Vec<Lists> = (0..self.stores.len()).into_par_iter().map(list).collect();
        for (at, lists) in lists.iter().enumerate() {
            let sums = lists.sums();
            let touched = kernels::Touched {
                rows: sums.target_at,
                offsets: sums.offsets,
                gradient_at: sums.source_at,
                scale: sums.scale,
            };
            let gradients = Vectors {
                buffer: &gradient,
                step,
            };
            self.store(at).update(touched, gradients, optimizer)?;
        }
        Ok(())
    }

    fn restore(&mut self, restored: &Restored, step: u64) -> Result<(), CheckpointError> {
        let failed = |error: &dyn std::fmt::Display| CheckpointError::Damaged {
            key: restored.name.clone(),
            problem: format!("it could not be brought to the device: {error}"),
        };
        let host = self.to_host().map_err(|error| failed(&error))?;
        let mut host = host.into_owned();
        host.restore(restored, step)?;
        // Otherwise the device would have to hold all tables twice.
        self.stores.clear();
        *self = Self::place(host, self.cache_rows, &self.place).map_err(|error| failed(&error))?;
        Ok(())
    }
}

/// The gradients of each touched row.
fn by_row(touched: &Touched, step: usize) -> Lists {
    let entries = touched.by_row.iter().map(|packed| Touched::entry(*packed));
    let gradient_at = |entry: usize| touched.gradient_at[entry] / step as u32;
    let mut lists = Lists {
        source_at: entries.clone().map(gradient_at).collect(),
        ..Lists::default()
    };
    if !touched.scale.is_empty() {
        lists.scale = entries.map(|entry| touched.scale[entry]).collect();
    }
    let mut end = 0;
    for run in touched.runs() {
        end += run.len();
        lists.offsets.push(index(end));
        lists.target_at.push(index(Touched::row(run[0])));
    }
    lists
}
