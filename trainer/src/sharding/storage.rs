//! How the numbers of a table lie in memory.

use bytemuck::Zeroable;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Type of a table's weights; optimizer state is always f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// Four bytes a weight.
    #[default]
    F32,
    /// Two bytes; the exponent of f32, 8 bits of precision.
    Bf16,
    /// Two bytes; 11 bits of precision between 6e-5 and 65504.
    F16,
}

impl Storage {
    /// Bytes of a weight.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// Weights in their type.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Values {
    pub fn zeros(storage: Storage, len: usize) -> Self {
        match storage {
            Storage::F32 => Self::F32(zeros(len)),
            Storage::Bf16 => Self::Bf16(zeros(len)),
            Storage::F16 => Self::F16(zeros(len)),
        }
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(values.as_slice()),
            Self::Bf16(values) => size_of_val(values.as_slice()),
            Self::F16(values) => size_of_val(values.as_slice()),
        }
    }

    /// Stores values from `at` on, rounded to the nearest.
    pub fn set(&mut self, at: usize, from: &[f32]) {
        match self {
            Self::F32(values) => values[at..at + from.len()].copy_from_slice(from),
            Self::Bf16(values) => {
                for (value, from) in values[at..at + from.len()].iter_mut().zip(from) {
                    *value = bf16::from_f32(*from);
                }
            }
            Self::F16(values) => {
                for (value, from) in values[at..at + from.len()].iter_mut().zip(from) {
                    *value = f16::from_f32(*from);
                }
            }
        }
    }

    /// Copies the values from `at` on.
    pub fn read(&self, at: usize, to: &mut [f32]) {
        match self {
            Self::F32(values) => to.copy_from_slice(&values[at..at + to.len()]),
            Self::Bf16(values) => {
                for (to, value) in to.iter_mut().zip(&values[at..]) {
                    *to = value.to_f32();
                }
            }
            Self::F16(values) => {
                for (to, value) in to.iter_mut().zip(&values[at..]) {
                    *to = value.to_f32();
                }
            }
        }
    }

    /// Adds the values from `at` on, times `scale`.
    pub fn add_to(&self, at: usize, scale: f32, to: &mut [f32]) {
        match self {
            Self::F32(values) => {
                for (to, value) in to.iter_mut().zip(&values[at..]) {
                    *to += scale * value;
                }
            }
            Self::Bf16(values) => {
                for (to, value) in to.iter_mut().zip(&values[at..]) {
                    *to += scale * value.to_f32();
                }
            }
            Self::F16(values) => {
                for (to, value) in to.iter_mut().zip(&values[at..]) {
                    *to += scale * value.to_f32();
                }
            }
        }
    }

    /// Changes `len` values from `at` on as f32. Where they are shorter, what was changed is rounded
    /// up or down at random, so that the mean of many small steps is kept; `seed` draws.
    pub fn change(&mut self, at: usize, len: usize, seed: u64, change: impl FnOnce(&mut [f32])) {
        if let Self::F32(values) = self {
            change(&mut values[at..at + len]);
            return;
        }
        let mut wide = vec![0.0; len];
        self.read(at, &mut wide);
        change(&mut wide);
        let mut random = SplitMix(seed);
        match self {
            Self::F32(_) => {}
            Self::Bf16(values) => {
                for (value, wide) in values[at..at + len].iter_mut().zip(wide) {
                    *value = round_bf16(wide, random.next());
                }
            }
            Self::F16(values) => {
                for (value, wide) in values[at..at + len].iter_mut().zip(wide) {
                    *value = round_f16(wide, random.next());
                }
            }
        }
    }

    /// The `len` values from `at` on are wanted soon.
    pub fn prefetch(&self, at: usize, len: usize) {
        match self {
            Self::F32(values) => prefetch(values, at, len),
            Self::Bf16(values) => prefetch(values, at, len),
            Self::F16(values) => prefetch(values, at, len),
        }
    }
}

/// Zeros, in large pages where the system has them: a random row of a large table then misses the
/// cache alone, and not the translation of its address as well.
pub(super) fn zeros<T: Zeroable>(len: usize) -> Vec<T> {
    let mut zeros: Vec<T> = bytemuck::zeroed_vec(len);
    advise_large_pages(&mut zeros);
    zeros
}

#[cfg(target_os = "linux")]
fn advise_large_pages<T>(values: &mut [T]) {
    use rustix::mm::{Advice, madvise};
    const PAGE: usize = 4096;
    let bytes = values.as_mut_ptr_range();
    let first = (bytes.start as usize).next_multiple_of(PAGE);
    let end = bytes.end as usize / PAGE * PAGE;
    if first < end {
        let start = bytes.start.cast::<u8>();
        let start = start.wrapping_add(first - start as usize).cast();
        // SAFETY: the pages lie within memory that is borrowed here; the advice changes no content.
        // Where a system cannot follow it, as without large pages, nothing is lost.
        let _ = unsafe { madvise(start, end - first, Advice::LinuxHugepage) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_large_pages<T>(_: &mut [T]) {}

/// The lines of the cache that hold `len` values from `at` on are wanted soon.
pub(super) fn prefetch<T>(values: &[T], at: usize, len: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE: usize = 64;
        let first = values.as_ptr().wrapping_add(at) as usize / LINE * LINE;
        let end = values.as_ptr().wrapping_add(at + len) as usize;
        for line in (first..end).step_by(LINE) {
            // SAFETY: a prefetch is a hint; it reads nothing, and any address is allowed.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line as *const i8) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, at, len);
}

/// Up with a probability of the part that is cut off.
fn round_bf16(value: f32, random: u64) -> bf16 {
    if !value.is_finite() {
        return bf16::from_f32(value);
    }
    let bits = value.to_bits().saturating_add(random as u32 & 0xffff);
    bf16::from_bits((bits >> 16) as u16)
}

/// As [`round_bf16`]: the two neighbours are found by rounding to the nearest and going one on.
fn round_f16(value: f32, random: u64) -> f16 {
    let nearest = f16::from_f32(value);
    let near = nearest.to_f32();
    if !value.is_finite() || near == value || !near.is_finite() {
        return nearest;
    }
    // Of the same sign, a larger magnitude has larger bits; from zero, the smallest of its sign.
    let away = (value.abs() > near.abs()) as i32 * 2 - 1;
    let other = match near == 0.0 {
        true => f16::from_bits(f16::from_f32(0f32.copysign(value)).to_bits() + 1),
        false => f16::from_bits((i32::from(nearest.to_bits()) + away) as u16),
    };
    let far = other.to_f32();
    if !far.is_finite() {
        return nearest;
    }
    let share = (value - near) / (far - near);
    let draw = (random >> 40) as f32 / (1u64 << 24) as f32;
    if draw < share { other } else { nearest }
}

/// A stateless stream of random numbers: Steele, Lea and Flood, "Fast splittable pseudorandom
/// number generators", OOPSLA 2014.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// One number out of several, for seeds.
pub(super) fn mix(numbers: &[u64]) -> u64 {
    numbers
        .iter()
        .fold(0, |seed, number| SplitMix(seed ^ number).next())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STORAGES: [Storage; 3] = [Storage::F32, Storage::Bf16, Storage::F16];

    #[test]
    fn what_is_set_is_read_within_the_types_precision() {
        for (storage, precision) in STORAGES.into_iter().zip([0.0, 1.0 / 256.0, 1.0 / 2048.0]) {
            let mut values = Values::zeros(storage, 4);
            values.set(1, &[0.1, -2.7]);
            assert_eq!(values.bytes(), 4 * storage.bytes());
            let mut found = [9.0; 4];
            values.read(0, &mut found);
            for (found, wanted) in found.into_iter().zip([0.0f32, 0.1, -2.7, 0.0]) {
                assert!(
                    (found - wanted).abs() <= precision * wanted.abs(),
                    "{storage:?}: {found}"
                );
            }
            let mut sum = [1.0, 1.0];
            values.add_to(1, 2.0, &mut sum);
            assert!(
                (sum[0] - 1.2).abs() < 0.01 && (sum[1] + 4.4).abs() < 0.05,
                "{sum:?}"
            );
        }
    }

    #[test]
    fn many_steps_that_are_too_small_to_see_add_up() {
        for storage in STORAGES {
            let mut values = Values::zeros(storage, 1);
            values.set(0, &[1.0]);
            for step in 0..20_000 {
                values.change(0, 1, mix(&[7, step]), |value| value[0] += 1e-4);
            }
            let mut found = [0.0];
            values.read(0, &mut found);
            assert!((found[0] - 3.0).abs() < 0.15, "{storage:?}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn random_rounding_gives_a_neighbour(value in prop::num::f32::NORMAL, random in any::<u64>()) {
            let found = round_bf16(value, random).to_f32();
            prop_assert!(!value.is_finite() || (found - value).abs() <= value.abs() / 127.0 || !found.is_finite());
            let value = value.clamp(-60_000.0, 60_000.0);
            let found = round_f16(value, random).to_f32();
            prop_assert!((found - value).abs() <= (value.abs() / 1023.0).max(6e-8), "{value} {found}");
        }
    }
}
