//! Attention of one picture's tokens to each other, on the CPU: queries, keys and values are read where
//! the product left them, and scores stay in the core's cache.

use super::simd::{Softmax, vectorised};

/// How the numbers of a picture lie.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) tokens: usize,
    pub(super) num_heads: usize,
    /// Length of a token: that of all heads together.
    pub(super) dim: usize,
}

/// # Shapes
/// - `qkv`: `[tokens, 3 × dim]`; `out`: `[tokens, dim]`
/// - `scores`: `[tokens × tokens]`, whatever it holds
pub(super) fn attend(qkv: &[f32], out: &mut [f32], scores: &mut [f32], heads: Heads) {
    let Heads {
        tokens,
        num_heads,
        dim,
    } = heads;
    let (length, wide) = (dim / num_heads, 3 * dim);
    let scale = (length as f32).sqrt().recip();
    for head in 0..num_heads {
        let part = |which: usize| &qkv[which * dim + head * length..];
        // Scores are products of rows with rows: keys are read as columns.
        let (queries, keys) = (Matrix::rows(part(0), wide), Matrix::columns(part(1), wide));
        multiply(
            [tokens, length, tokens],
            scale,
            queries,
            keys,
            scores,
            tokens,
        );
        vectorised(Softmax {
            rows: scores,
            width: tokens,
        });
        let (scores, values) = (Matrix::rows(scores, tokens), Matrix::rows(part(2), wide));
        let out = &mut out[head * length..];
        multiply([tokens, tokens, length], 1.0, scores, values, out, dim);
    }
}

/// A matrix in a slice.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows that begin `stride` apart.
    fn rows(values: &'a [f32], stride: usize) -> Self {
        Self {
            values,
            row_stride: stride,
            column_stride: 1,
        }
    }

    /// The same transposed.
    fn columns(values: &'a [f32], stride: usize) -> Self {
        Self {
            values,
            row_stride: 1,
            column_stride: stride,
        }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.values.len()
    }
}

/// `out = factor · a b` on this thread, for `[m, k]` and `[k, n]`; rows of `out` begin `stride` apart.
fn multiply(
    [m, k, n]: [usize; 3],
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    stride: usize,
) {
    assert!(m > 0 && k > 0 && n > 0, "an empty product");
    assert!(a.holds(m, k) && b.holds(k, n), "operands end early");
    assert!(
        n <= stride && (m - 1) * stride + n <= out.len(),
        "the product ends early"
    );
    // SAFETY: all three matrices lie within their slices, as was just checked, `out` is borrowed alone,
    // and its elements are distinct since rows are no longer than their distance.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            false,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            0.0,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
