//! The fused operations on a GPU: what one pass over memory can do is one kernel, and matrix products
//! take a strategy by their shape.
//!
//! The strategies are fixed, not tuned at the first call: tuning takes minutes on a GPU that it has not
//! seen, and what a run computes would depend on what it found.

use burn_cubecl::{
    CubeBackend, CubeRuntime, FloatElement, IntElement, element::BoolElement,
    kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor,
};
use cubecl::{calculate_cube_count_elemwise, prelude::*};
use cubek::{
    matmul::{
        definition::{MatmulElems, MatmulGlobalElems},
        launch::{Strategy, launch_ref},
    },
    std::InputBinding,
};
use kernels::moved_at_once;

use super::{FusedKernels, dropout, primitive, tensor};

/// Rows and columns of the result that one group of a device's units makes.
const TILE: usize = 128;

/// Groups of units that a large device is busy with: twice its multiprocessors.
const GROUPS: usize = 264;

/// Fewer rows than these are not worth a part of their own.
const LEAST_ROWS: usize = 256;

/// `max(z + bias, 0)`; arrays are of `count` vectors, `bias` of `vectors`.
#[cube(launch_unchecked)]
fn bias_relu<F: Float, N: Size>(
    z: &Array<Vector<F, N>>,
    bias: &Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    vectors: u32,
    count: u32,
    #[define(F)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < count as usize {
        let mut sum = z[at] + bias[at % vectors as usize];
        #[unroll]
        for cell in 0..N::value() {
            if sum[cell] < F::new(0.0) {
                sum[cell] = F::new(0.0);
            }
        }
        y[at] = sum;
    }
}

/// The gradient, where `y` is above 0.
#[cube(launch_unchecked)]
fn relu_backward<F: Float, N: Size>(
    gradient: &Array<Vector<F, N>>,
    y: &Array<Vector<F, N>>,
    of_z: &mut Array<Vector<F, N>>,
    count: u32,
    #[define(F)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < count as usize {
        let mut found = gradient[at];
        let y = y[at];
        #[unroll]
        for cell in 0..N::value() {
            if y[cell] <= F::new(0.0) {
                found[cell] = F::new(0.0);
            }
        }
        of_z[at] = found;
    }
}

/// `t = u + bias` and `x0 ⊙ t + x`.
#[cube(launch_unchecked)]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel has no other way to take them"
)]
fn cross<F: Float, N: Size>(
    x0: &Array<Vector<F, N>>,
    u: &Array<Vector<F, N>>,
    bias: &Array<Vector<F, N>>,
    x: &Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    t: &mut Array<Vector<F, N>>,
    vectors: u32,
    count: u32,
    #[define(F)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < count as usize {
        let sum = u[at] + bias[at % vectors as usize];
        t[at] = sum;
        y[at] = x0[at] * sum + x[at];
    }
}

/// `gradient ⊙ t` and `gradient ⊙ x0`.
#[cube(launch_unchecked)]
fn cross_backward<F: Float, N: Size>(
    gradient: &Array<Vector<F, N>>,
    x0: &Array<Vector<F, N>>,
    t: &Array<Vector<F, N>>,
    of_x0: &mut Array<Vector<F, N>>,
    of_u: &mut Array<Vector<F, N>>,
    count: u32,
    #[define(F)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < count as usize {
        let found = gradient[at];
        of_x0[at] = found * t[at];
        of_u[at] = found * x0[at];
    }
}

/// Sums over the middle of three dimensions, of which the last is `vectors`: one unit for each vector of
/// the result adds up `terms`.
#[cube(launch_unchecked)]
fn add_parts<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    sums: &mut Array<Vector<F, N>>,
    terms: u32,
    vectors: u32,
    count: u32,
    #[define(F)] _dtype: StorageType,
) {
    let (at, vectors) = (ABSOLUTE_POS, vectors as usize);
    if at < count as usize {
        let first = (at / vectors) * terms as usize * vectors + at % vectors;
        let mut sum = Vector::<f32, N>::new(0.0);
        for term in 0..terms as usize {
            sum += Vector::<f32, N>::cast_from(x[first + term * vectors]);
        }
        sums[at] = Vector::cast_from(sum);
    }
}

/// How a kernel goes over matrices of one shape.
struct Pass<R: CubeRuntime> {
    like: CubeTensor<R>,
    /// Numbers that are moved at once.
    width: usize,
    vectors: u32,
    count: u32,
}

impl<R: CubeRuntime> Pass<R> {
    /// Over matrices like this one; with a bias, no vector goes on in the next row.
    fn over(like: &CubeTensor<R>, with_bias: bool) -> Self {
        let elements = like.meta.shape().num_elements();
        let columns = like.meta.shape()[1];
        let width = moved_at_once([if with_bias { columns } else { elements }]);
        Self {
            like: like.clone(),
            width,
            vectors: (columns / width) as u32,
            count: (elements / width) as u32,
        }
    }

    fn room(&self) -> CubeTensor<R> {
        let like = &self.like;
        let shape = like.meta.shape().clone();
        empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, like.dtype)
    }

    fn cubes(&self) -> (CubeCount, CubeDim) {
        units(&self.like.client, self.count as usize)
    }
}

/// Units for so many vectors, and the cubes that they are in.
fn units<R: CubeRuntime>(client: &ComputeClient<R>, count: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(client, count);
    (calculate_cube_count_elemwise(client, count, dim), dim)
}

/// A contiguous tensor as a kernel's argument.
fn arg<R: CubeRuntime>(tensor: &CubeTensor<R>) -> ArrayArg<R> {
    // SAFETY: the length is that of the tensor, which is contiguous.
    unsafe { ArrayArg::from_raw_parts(tensor.handle.clone(), tensor.meta.shape().num_elements()) }
}

impl<R: CubeRuntime, F: FloatElement, I: IntElement, T: BoolElement> FusedKernels
    for CubeBackend<R, F, I, T>
{
    fn product(x: CubeTensor<R>, weight: CubeTensor<R>) -> CubeTensor<R> {
        multiply(x, weight)
    }

    fn product_backward(
        gradient: CubeTensor<R>,
        x: CubeTensor<R>,
        weight: CubeTensor<R>,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        let [rows, inputs] = x.meta.shape().dims();
        let [_, outputs] = gradient.meta.shape().dims();
        let of_x = multiply(
            gradient.clone(),
            primitive(tensor::<Self, 2>(weight).transpose()),
        );
        // The result is small and the sum long: parts of the rows are summed beside each other.
        let tiles = inputs.div_ceil(TILE) * outputs.div_ceil(TILE);
        let parts = parts_of(rows, GROUPS.div_ceil(tiles).min(rows / LEAST_ROWS));
        let cut = |x: CubeTensor<R>, width| {
            let x = tensor::<Self, 2>(into_contiguous(x));
            x.reshape([parts, rows / parts, width])
        };
        let x = cut(x, inputs).swap_dims(1, 2);
        let gradient = cut(gradient, outputs);
        let products = multiply(primitive(x), primitive(gradient));
        let sum = sum_over(products, 1, parts, inputs * outputs);
        let of_weight = tensor::<Self, 1>(sum).reshape([inputs, outputs]);
        (of_x, primitive(of_weight))
    }

    fn bias_relu_forward(z: CubeTensor<R>, bias: CubeTensor<R>) -> CubeTensor<R> {
        let [z, bias] = [z, bias].map(into_contiguous);
        let pass = Pass::over(&z, true);
        let (y, (cubes, dim)) = (pass.room(), pass.cubes());
        // SAFETY: all arrays have the lengths that the kernel is told.
        unsafe {
            bias_relu::launch_unchecked::<R>(
                &z.client,
                cubes,
                dim,
                pass.width,
                arg(&z),
                arg(&bias),
                arg(&y),
                pass.vectors,
                pass.count,
                z.dtype.into(),
            );
        }
        y
    }

    fn bias_relu_backward(
        gradient: CubeTensor<R>,
        y: CubeTensor<R>,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        let [gradient, y] = [gradient, y].map(into_contiguous);
        let pass = Pass::over(&y, false);
        let (of_z, (cubes, dim)) = (pass.room(), pass.cubes());
        // SAFETY: as above.
        unsafe {
            relu_backward::launch_unchecked::<R>(
                &y.client,
                cubes,
                dim,
                pass.width,
                arg(&gradient),
                arg(&y),
                arg(&of_z),
                pass.count,
                y.dtype.into(),
            );
        }
        let of_bias = sum_of_rows(of_z.clone());
        (of_z, of_bias)
    }

    fn cross_forward(
        x0: CubeTensor<R>,
        u: CubeTensor<R>,
        bias: CubeTensor<R>,
        x: CubeTensor<R>,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        let [x0, u, bias, x] = [x0, u, bias, x].map(into_contiguous);
        let pass = Pass::over(&u, true);
        let (y, t, (cubes, dim)) = (pass.room(), pass.room(), pass.cubes());
        // SAFETY: as above.
        unsafe {
            cross::launch_unchecked::<R>(
                &u.client,
                cubes,
                dim,
                pass.width,
                arg(&x0),
                arg(&u),
                arg(&bias),
                arg(&x),
                arg(&y),
                arg(&t),
                pass.vectors,
                pass.count,
                u.dtype.into(),
            );
        }
        (y, t)
    }

    fn cross_backward(
        gradient: CubeTensor<R>,
        x0: CubeTensor<R>,
        t: CubeTensor<R>,
    ) -> (CubeTensor<R>, CubeTensor<R>, CubeTensor<R>) {
        let [gradient, x0, t] = [gradient, x0, t].map(into_contiguous);
        let pass = Pass::over(&t, false);
        let (of_x0, of_u, (cubes, dim)) = (pass.room(), pass.room(), pass.cubes());
        // SAFETY: as above.
        unsafe {
            cross_backward::launch_unchecked::<R>(
                &t.client,
                cubes,
                dim,
                pass.width,
                arg(&gradient),
                arg(&x0),
                arg(&t),
                arg(&of_x0),
                arg(&of_u),
                pass.count,
                t.dtype.into(),
            );
        }
        let of_bias = sum_of_rows(of_u.clone());
        (of_x0, of_u, of_bias)
    }

    fn dropout_mask(rows: &[u32], width: usize, rate: f64, device: &R::Device) -> CubeTensor<R> {
        dropout::on_device::<Self>(rows, width, rate, device)
    }
}

/// The largest power of two that divides a number of rows and is at most `most`; 1 at least.
fn parts_of(rows: usize, most: usize) -> usize {
    let mut parts = 1;
    while rows > 0 && rows.is_multiple_of(2 * parts) && 2 * parts <= most {
        parts *= 2;
    }
    parts
}

/// Sums of the columns of a matrix, in two steps: of parts of the rows beside each other, and of those.
fn sum_of_rows<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let [rows, columns] = x.meta.shape().dims();
    let parts = parts_of(rows, rows.isqrt());
    let sums = sum_over(x, parts, rows / parts, columns);
    sum_over(sums, 1, parts, columns)
}

/// Of a contiguous `[outer, terms, inner]` the sums over `terms`, in f32: `[outer × inner]`.
fn sum_over<R: CubeRuntime>(
    x: CubeTensor<R>,
    outer: usize,
    terms: usize,
    inner: usize,
) -> CubeTensor<R> {
    let width = moved_at_once([inner]);
    let count = outer * inner / width;
    let shape = [outer * inner].into();
    let sums = empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape, x.dtype);
    let (cubes, dim) = units(&x.client, count);
    // SAFETY: as above.
    unsafe {
        add_parts::launch_unchecked::<R>(
            &x.client,
            cubes,
            dim,
            width,
            arg(&x),
            arg(&sums),
            terms as u32,
            (inner / width) as u32,
            count as u32,
            x.dtype.into(),
        );
    }
    sums
}

/// The product of two matrices, or of as many pairs of them.
fn multiply<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R> {
    let (rows, columns) = (a.meta.shape().clone(), b.meta.shape().clone());
    let dims = rows.num_dims();
    let mut shape = rows.clone();
    shape[dims - 1] = columns[dims - 1];
    let out = empty_device_contiguous_dtype(a.client.clone(), a.device.clone(), shape, a.dtype);
    let dtype = a.dtype;
    let launch = |strategy: Strategy| {
        let mut dtypes = MatmulElems::from_globals(&MatmulGlobalElems {
            lhs: dtype.into(),
            rhs: dtype.into(),
            out: dtype.into(),
        });
        launch_ref(
            &strategy,
            &out.client,
            InputBinding::new(a.clone().binding(), dtype.into()),
            InputBinding::new(b.clone().binding(), dtype.into()),
            out.clone().binding(),
            &mut dtypes,
        )
    };
    // Vectors are no matter for a GPU's copy engine.
    let is_vector = rows[dims - 2] == 1 || rows[dims - 1] == 1 || columns[dims - 1] == 1;
    let fast = match is_vector {
        true => None,
        false => launch(Strategy::DoubleTmaMma(Default::default())).ok(),
    };
    if fast.is_none()
        && let Err(error) = launch(Strategy::Auto)
    {
        panic!("a product of {rows:?} and {columns:?}: {error:?}");
    }
    out
}
