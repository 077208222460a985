//! Tables as a training step uses them: what they pool is a tensor.

use std::borrow::Cow;

use burn::{
    prelude::Backend,
    tensor::{Tensor, TensorData},
};

use super::{Received, Routed, Router, ShardedTables};
use crate::{
    checkpoint::{CheckpointError, Restored},
    collective::{ExchangeError, ProcessGroup},
    dense::to_vec,
};

/// Why tables cannot lie where they should.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlacementError {
    /// Something that is not there on this device.
    #[error("{key} is {found}, and tables in GPU memory take {wanted}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What there is.
        wanted: &'static str,
    },
    /// The device refuses.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    #[error(transparent)]
    Kernel(#[from] kernels::KernelError),
}

/// What fills the columns before the tables': gets lines of a width, and writes the first of each.
pub type WriteDense<'a> = &'a dyn Fn(&mut [f32], usize);

/// The tables of a step, in the memory that a backend's tensors lie in.
pub trait Tables<B: Backend>: Sized {
    /// Gradients that have reached the owners of their rows.
    type Given<'a>;

    /// Whether a row's columns may lie on several ranks.
    const COLUMN_WISE: bool;

    /// Brings tables to where they are used; of those with more rows than `cache_rows`, if that is
    /// not 0, only so many at a time.
    ///
    /// # Errors
    /// [`PlacementError`].
    fn place(
        tables: ShardedTables,
        cache_rows: usize,
        device: &B::Device,
    ) -> Result<Self, PlacementError>;

    /// Who finds the way of ids.
    fn router(&self) -> &Router;

    /// As [`Router::width`].
    fn width(&self) -> usize {
        self.router().width()
    }

    /// The same tables in host memory.
    ///
    /// # Errors
    /// [`ExchangeError`] if the device refuses.
    fn to_host(&self) -> Result<Cow<'_, ShardedTables>, ExchangeError>;

    /// As [`ShardedTables::reinitialise`].
    ///
    /// # Errors
    /// [`PlacementError`].
    fn reinitialise(&mut self) -> Result<(), PlacementError>;

    /// As [`ShardedTables::observe`].
    ///
    /// # Errors
    /// [`ExchangeError`].
    fn observe<'a>(
        &mut self,
        routed: impl IntoIterator<Item = &'a Routed>,
        group: &mut impl ProcessGroup,
    ) -> Result<(), ExchangeError>;

    /// As [`ShardedTables::lookup`]; `dense` fills the first columns.
    ///
    /// # Errors
    /// [`ExchangeError`].
    fn lookup(
        &self,
        routed: &Routed,
        dense: WriteDense<'_>,
        device: &B::Device,
        group: &mut impl ProcessGroup,
    ) -> Result<Tensor<B, 2>, ExchangeError>;

    /// As [`ShardedTables::exchange`].
    ///
    /// # Errors
    /// [`ExchangeError`].
    fn exchange<'a>(
        &self,
        routed: &'a Routed,
        gradient: Tensor<B, 2>,
        group: &mut impl ProcessGroup,
    ) -> Result<Self::Given<'a>, ExchangeError>;

    /// As [`ShardedTables::apply`].
    ///
    /// # Errors
    /// [`ExchangeError`].
    fn apply(
        &mut self,
        given: &[Self::Given<'_>],
        rate_scale: f32,
        group: &mut impl ProcessGroup,
    ) -> Result<(), ExchangeError>;

    /// As [`ShardedTables::restore`].
    ///
    /// # Errors
    /// [`CheckpointError`].
    fn restore(&mut self, restored: &Restored, step: u64) -> Result<(), CheckpointError>;
}

/// In host memory, for any backend.
impl<B: Backend> Tables<B> for ShardedTables {
    type Given<'a> = Received<'a>;

    const COLUMN_WISE: bool = true;

    fn place(
        tables: ShardedTables,
        _cache_rows: usize,
        _device: &B::Device,
    ) -> Result<Self, PlacementError> {
        Ok(tables)
    }

    fn reinitialise(&mut self) -> Result<(), PlacementError> {
        self.reinitialise();
        Ok(())
    }

    fn router(&self) -> &Router {
        self.router()
    }

    fn to_host(&self) -> Result<Cow<'_, ShardedTables>, ExchangeError> {
        Ok(Cow::Borrowed(self))
    }

    fn observe<'a>(
        &mut self,
        routed: impl IntoIterator<Item = &'a Routed>,
        group: &mut impl ProcessGroup,
    ) -> Result<(), ExchangeError> {
        Ok(self.observe(routed, group)?)
    }

    fn lookup(
        &self,
        routed: &Routed,
        dense: WriteDense<'_>,
        device: &B::Device,
        group: &mut impl ProcessGroup,
    ) -> Result<Tensor<B, 2>, ExchangeError> {
        let mut block = self.lookup(routed, group)?;
        dense(&mut block, self.width());
        let block = TensorData::new(block, [routed.rows, self.width()]);
        Ok(Tensor::from_data(block, device))
    }

    fn exchange<'a>(
        &self,
        routed: &'a Routed,
        gradient: Tensor<B, 2>,
        group: &mut impl ProcessGroup,
    ) -> Result<Received<'a>, ExchangeError> {
        Ok(self.exchange(routed, to_vec(gradient), group)?)
    }

    fn apply(
        &mut self,
        given: &[Received<'_>],
        rate_scale: f32,
        group: &mut impl ProcessGroup,
    ) -> Result<(), ExchangeError> {
        Ok(self.apply(given, rate_scale, group)?)
    }

    fn restore(&mut self, restored: &Restored, step: u64) -> Result<(), CheckpointError> {
        self.restore(restored, step)
    }
}
