//! The fused operations on the CPU: one pass, on all threads. Sums over rows are made by blocks of
//! fixed size in a fixed order, so that they do not depend on the number of threads. For f32, which
//! networks hold here; what is of 16 bits is composed.

mod attention;
mod cores;
mod simd;

use burn::tensor::{DType, Shape, TensorData, TensorMetadata};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use self::{
    attention::{Heads, attend},
    simd::{BiasAdd, BiasGelu, Normalise, vectorised},
};
use super::{FusedKernels, Gelu, composed};
use crate::Cpu;

/// Values that one task takes on; a serving batch is one task.
const VALUES_PER_TASK: usize = 32 * 1024;

impl FusedKernels for Cpu {
    // A share of the cache: above it, fresh memory costs as much as what is computed in it.
    const ACTIVATION_BYTES: usize = 3 << 20;

    fn each_part<T: Send, R: Send>(parts: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
        cores::each_part(parts, work)
    }

    fn bias_relu_forward(z: FlexTensor, bias: FlexTensor) -> FlexTensor {
        if z.dtype() != DType::F32 {
            return composed::bias_relu_forward::<Self>(z, bias);
        }
        let (shape, bias) = (z.shape(), values(&bias));
        let mut z = owned(z);
        let bias = bias.as_slice();
        each_block(&mut z, bias.len(), |_, rows| {
            for row in rows.chunks_exact_mut(bias.len()) {
                for (z, b) in row.iter_mut().zip(bias) {
                    *z = (*z + b).max(0.0);
                }
            }
        });
        tensor(z, shape)
    }

    fn bias_relu_backward(gradient: FlexTensor, y: FlexTensor) -> (FlexTensor, FlexTensor) {
        if gradient.dtype() != DType::F32 {
            return composed::bias_relu_backward::<Self>(gradient, y);
        }
        let shape = gradient.shape();
        let width = shape[1];
        let y = values(&y);
        let mut gradient = owned(gradient);
        let sums = each_block(&mut gradient, width, |at, rows| {
            let mut sums = vec![0.0; width];
            let y = &y.as_slice()[at..at + rows.len()];
            for (row, y) in rows.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
                for ((g, y), sum) in row.iter_mut().zip(y).zip(&mut sums) {
                    *g = if *y > 0.0 { *g } else { 0.0 };
                    *sum += *g;
                }
            }
            sums
        });
        (tensor(gradient, shape), column_sums(&sums, width))
    }

    fn cross_forward(
        x0: FlexTensor,
        u: FlexTensor,
        bias: FlexTensor,
        x: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        if u.dtype() != DType::F32 {
            return composed::cross_forward::<Self>(x0, u, bias, x);
        }
        let shape = u.shape();
        let width = shape[1];
        let (x0, bias, x) = (values(&x0), values(&bias), values(&x));
        let mut t = owned(u);
        let mut y = vec![0.0; t.len()];
        let block = block(width);
        y.par_chunks_mut(block)
            .zip(t.par_chunks_mut(block))
            .zip(x0.as_slice().par_chunks(block))
            .zip(x.as_slice().par_chunks(block))
            .for_each(|(((y, t), x0), x)| {
                let rows = y.chunks_exact_mut(width).zip(t.chunks_exact_mut(width));
                let rows = rows.zip(x0.chunks_exact(width)).zip(x.chunks_exact(width));
                for (((y, t), x0), x) in rows {
                    let cells = y.iter_mut().zip(t).zip(x0).zip(x).zip(bias.as_slice());
                    for ((((y, t), x0), x), b) in cells {
                        *t += b;
                        *y = x0 * *t + x;
                    }
                }
            });
        (tensor(y, shape.clone()), tensor(t, shape))
    }

    fn cross_backward(
        gradient: FlexTensor,
        x0: FlexTensor,
        t: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if gradient.dtype() != DType::F32 {
            return composed::cross_backward::<Self>(gradient, x0, t);
        }
        let shape = gradient.shape();
        let width = shape[1];
        let (gradient, x0) = (values(&gradient), values(&x0));
        // The place of `t` becomes the gradient of `x0`.
        let mut of_x0 = owned(t);
        let mut of_u = vec![0.0; of_x0.len()];
        let block = block(width);
        let sums: Vec<Vec<f32>> = of_x0
            .par_chunks_mut(block)
            .zip(of_u.par_chunks_mut(block))
            .zip(gradient.as_slice().par_chunks(block))
            .zip(x0.as_slice().par_chunks(block))
            .map(|(((of_x0, of_u), g), x0)| {
                let mut sums = vec![0.0; width];
                let rows = of_x0
                    .chunks_exact_mut(width)
                    .zip(of_u.chunks_exact_mut(width));
                let rows = rows.zip(g.chunks_exact(width)).zip(x0.chunks_exact(width));
                for (((of_x0, of_u), g), x0) in rows {
                    let cells = of_x0.iter_mut().zip(of_u).zip(g).zip(x0).zip(&mut sums);
                    for ((((of_x0, of_u), g), x0), sum) in cells {
                        *of_x0 *= g;
                        *of_u = g * x0;
                        *sum += *of_u;
                    }
                }
                sums
            })
            .collect();
        let of_bias = column_sums(&sums, width);
        (tensor(of_x0, shape.clone()), tensor(of_u, shape), of_bias)
    }

    fn bias_add(z: FlexTensor, bias: FlexTensor, residual: Option<FlexTensor>) -> FlexTensor {
        if z.dtype() != DType::F32 {
            return composed::bias_add::<Self>(z, bias, residual);
        }
        let (shape, bias, residual) = (z.shape(), values(&bias), residual.as_ref().map(values));
        let mut z = owned(z);
        let bias = bias.as_slice();
        each_block(&mut z, bias.len(), |at, rows| {
            let residual = residual
                .as_ref()
                .map(|all| &all.as_slice()[at..at + rows.len()]);
            vectorised(BiasAdd {
                rows,
                bias,
                residual,
            });
        });
        tensor(z, shape)
    }

    fn bias_gelu(z: FlexTensor, bias: FlexTensor, gelu: Gelu) -> FlexTensor {
        if z.dtype() != DType::F32 {
            return composed::bias_gelu::<Self>(z, bias, gelu);
        }
        let (shape, bias) = (z.shape(), values(&bias));
        let mut z = owned(z);
        let bias = bias.as_slice();
        each_block(&mut z, bias.len(), |_, rows| {
            vectorised(BiasGelu { rows, bias, gelu });
        });
        tensor(z, shape)
    }

    fn layer_norm(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, eps: f64) -> FlexTensor {
        if x.dtype() != DType::F32 {
            return composed::layer_norm::<Self>(x, gamma, beta, eps);
        }
        let (shape, x) = (x.shape(), values(&x));
        let (gamma, beta, width) = (values(&gamma), values(&beta), shape[1]);
        let (gamma, beta, x) = (gamma.as_slice(), beta.as_slice(), x.as_slice());
        let mut y = vec![0.0; x.len()];
        each_block(&mut y, width, |at, rows| {
            vectorised(Normalise {
                from: &x[at..at + rows.len()],
                to: rows,
                gamma,
                beta,
                eps: eps as f32,
            });
        });
        tensor(y, shape)
    }

    fn attention(qkv: FlexTensor, tokens: usize, num_heads: usize) -> FlexTensor {
        if qkv.dtype() != DType::F32 {
            return composed::attention::<Self>(qkv, tokens, num_heads);
        }
        let (shape, qkv) = (qkv.shape(), values(&qkv));
        let dim = shape[1] / 3;
        let heads = Heads {
            tokens,
            num_heads,
            dim,
        };
        let mut out = vec![0.0; shape[0] * dim];
        let pictures = qkv.as_slice().par_chunks_exact(tokens * 3 * dim);
        pictures
            .zip(out.par_chunks_exact_mut(tokens * dim))
            .for_each_init(
                || vec![0.0; tokens * tokens],
                |scores, (qkv, out)| attend(qkv, out, scores, heads),
            );
        tensor(out, Shape::from([shape[0], dim]))
    }
}

/// Values of whole rows in a task.
fn block(width: usize) -> usize {
    (VALUES_PER_TASK / width.max(1)).max(1) * width.max(1)
}

/// Runs over blocks of whole rows; `body` hears where its block begins.
fn each_block<T: Send>(
    values: &mut [f32],
    width: usize,
    body: impl Fn(usize, &mut [f32]) -> T + Sync,
) -> Vec<T> {
    let block = block(width);
    let blocks = values.par_chunks_mut(block).enumerate();
    blocks.map(|(at, rows)| body(at * block, rows)).collect()
}

fn column_sums(blocks: &[Vec<f32>], width: usize) -> FlexTensor {
    let mut sums = vec![0.0; width];
    for block in blocks {
        for (sum, value) in sums.iter_mut().zip(block) {
            *sum += value;
        }
    }
    tensor(sums, Shape::from([width]))
}

/// A tensor's numbers, contiguous; a copy only where they are not.
struct Values(FlexTensor);

impl Values {
    fn as_slice(&self) -> &[f32] {
        // It was made contiguous.
        self.0.as_slice().expect("a contiguous tensor of f32")
    }
}

fn values(tensor: &FlexTensor) -> Values {
    Values(tensor.to_contiguous())
}

/// A tensor's numbers to be changed; a copy only where another still needs them.
fn owned(tensor: FlexTensor) -> Vec<f32> {
    let data = tensor.into_data();
    // Other types were sent away.
    data.into_vec().expect("a tensor of f32")
}

fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}
