//! Which values are dropped in training: a hash of the row's number and the column.

use burn::{
    prelude::Backend,
    tensor::{Device, Tensor, TensorData, ops::FloatTensor},
};
use rayon::prelude::*;

use super::primitive;

/// Spreads the columns: 2^32 over the golden ratio.
const COLUMN: u32 = 0x9e37_79b1;
/// The finalizer of MurmurHash3: Appleby, <https://github.com/aappleby/smhasher>, `fmix32`.
const MIX: [u32; 2] = [0x85eb_ca6b, 0xc2b2_ae35];
/// A draw has so many bits: what a signed integer of 32 bits has above zero.
const DRAW_BITS: u32 = 31;

/// Draws below are dropped.
fn threshold(rate: f64) -> u32 {
    (rate * f64::from(1u32 << DRAW_BITS)) as u32
}

fn scale(rate: f64) -> f32 {
    (1.0 / (1.0 - rate)) as f32
}

fn draw(row: u32, column: u32) -> u32 {
    let mut hash = row ^ column.wrapping_mul(COLUMN);
    hash = (hash ^ (hash >> 16)).wrapping_mul(MIX[0]);
    hash = (hash ^ (hash >> 13)).wrapping_mul(MIX[1]);
    (hash ^ (hash >> 16)) & ((1 << DRAW_BITS) - 1)
}

/// The mask in one pass on all threads.
pub(super) fn on_host<B: Backend>(
    rows: &[u32],
    width: usize,
    rate: f64,
    device: &Device<B>,
) -> FloatTensor<B> {
    let (threshold, scale) = (threshold(rate), scale(rate));
    let mut mask = vec![0.0f32; rows.len() * width];
    mask.par_chunks_mut(width.max(1))
        .with_min_len(64)
        .zip(rows)
        .for_each(|(mask, row)| {
            for (column, value) in (0u32..).zip(mask) {
                *value = if draw(*row, column) < threshold {
                    0.0
                } else {
                    scale
                };
            }
        });
    let mask = TensorData::new(mask, [rows.len(), width]);
    primitive(Tensor::<B, 2>::from_data(mask, device))
}

/// The mask of a device's own integers, which have 32 bits, a sign, and wrap.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(super) fn on_device<B: Backend>(
    rows: &[u32],
    width: usize,
    rate: f64,
    device: &Device<B>,
) -> FloatTensor<B> {
    use burn::tensor::{ElementConversion, Int};
    // A sign that is shifted in is cut off.
    let shifted = |hash: &Tensor<B, 2, Int>, bits: u32| {
        let shifted = hash
            .clone()
            .bitwise_right_shift_scalar((bits as i32).elem());
        shifted.bitwise_and_scalar(((u32::MAX >> bits) as i32).elem())
    };
    let mixed = |hash: Tensor<B, 2, Int>, bits| {
        let shifted = shifted(&hash, bits);
        hash.bitwise_xor(shifted)
    };
    let integers = |values: Vec<u32>, shape| {
        let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
        Tensor::<B, 2, Int>::from_data(TensorData::new(values, shape), device)
    };
    let columns = (0..width as u32).map(|column| column.wrapping_mul(COLUMN));
    let columns = integers(columns.collect(), [1, width]).expand([rows.len(), width]);
    let rows = integers(rows.to_vec(), [rows.len(), 1]).expand([rows.len(), width]);
    let mut hash = rows.bitwise_xor(columns);
    hash = mixed(hash, 16).mul_scalar(MIX[0] as i32);
    hash = mixed(hash, 13).mul_scalar(MIX[1] as i32);
    let draw = mixed(hash, 16).bitwise_and_scalar(i32::MAX.elem());
    let kept = draw.greater_equal_elem(threshold(rate) as i32);
    primitive(kept.float().mul_scalar(scale(rate)))
}
