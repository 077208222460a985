//! What runs on the device. Vectors are of `N` neighbouring columns.

use cubecl::prelude::*;

/// One unit for each vector of the result: adds up the rows of its bag.
///
/// # Shapes
/// - `weights`: `[rows, vectors]`
/// - `rows`, `scale`: `[entries]`; `offsets`: `[bags + 1]`
/// - `pooled`: `[bags, vectors]`
#[cube(launch_unchecked)]
pub(crate) fn gather_pool<N: Size>(
    weights: &Array<Vector<f32, N>>,
    rows: &Array<u32>,
    offsets: &Array<u32>,
    scale: &Array<f32>,
    pooled: &mut Array<Vector<f32, N>>,
    vectors: u32,
    bags: u32,
    #[comptime] scaled: bool,
) {
    let (at, vectors) = (ABSOLUTE_POS, vectors as usize);
    if at < bags as usize * vectors {
        let (bag, column) = (at / vectors, at % vectors);
        let mut sum = Vector::<f32, N>::new(0.0);
        for entry in offsets[bag]..offsets[bag + 1] {
            let value = weights[rows[entry as usize] as usize * vectors + column];
            if comptime!(scaled) {
                sum += value * Vector::new(scale[entry as usize]);
            } else {
                sum += value;
            }
        }
        pooled[at] = sum;
    }
}

/// One unit for each vector: puts rows in their places.
///
/// # Shapes
/// - `values`: `[count, vectors]`; `rows`: `[count]`, each once
/// - `table`: `[rows, vectors]`
#[cube(launch_unchecked)]
pub(crate) fn scatter<N: Size>(
    values: &Array<Vector<f32, N>>,
    rows: &Array<u32>,
    table: &mut Array<Vector<f32, N>>,
    vectors: u32,
    count: u32,
) {
    let (at, vectors) = (ABSOLUTE_POS, vectors as usize);
    if at < count as usize * vectors {
        let row = rows[at / vectors] as usize;
        table[row * vectors + at % vectors] = values[at];
    }
}

/// `lanes` units for each touched row: they add up its gradients, the mean of whose squares goes to
/// the row's state, and move the row.
///
/// # Shapes
/// - `weights`: `[rows, vectors]`; `state`: `[rows]`
/// - `touched`: `[count]`, each once; `offsets`: `[count + 1]`
/// - `gradient_at`, `scale`: `[entries]`, a row of `gradients` and its factor
/// - `gradients`: `[any, vectors]`
#[cube(launch_unchecked)]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel has no other way to take them"
)]
pub(crate) fn rowwise_adagrad<N: Size>(
    weights: &mut Array<Vector<f32, N>>,
    state: &mut Array<f32>,
    touched: &Array<u32>,
    offsets: &Array<u32>,
    gradient_at: &Array<u32>,
    scale: &Array<f32>,
    gradients: &Array<Vector<f32, N>>,
    count: u32,
    rate: f32,
    eps: f32,
    weight_decay: f32,
    #[comptime] vectors: usize,
    #[comptime] lanes: usize,
    #[comptime] rows_per_cube: usize,
    #[comptime] scaled: bool,
) {
    let per_lane = comptime!(vectors.div_ceil(lanes));
    let mut sums = Array::<Vector<f32, N>>::new(per_lane);
    let mut squares = SharedMemory::<f32>::new(comptime!(lanes * rows_per_cube));
    let lane = UNIT_POS_X as usize;
    let in_cube = UNIT_POS_Y as usize;
    let at = CUBE_POS * rows_per_cube + in_cube;
    // No unit may leave before all have met below.
    let here = at < count as usize;

    let mut mine = 0.0f32;
    let mut before = 0.0f32;
    if here {
        let row = touched[at] as usize;
        // Read by all lanes before one of them writes it.
        before = state[row];
        for part in 0..per_lane {
            let column = lane + part * lanes;
            if column < vectors {
                let mut sum = Vector::<f32, N>::new(0.0);
                for entry in offsets[at]..offsets[at + 1] {
                    let from = gradient_at[entry as usize] as usize * vectors + column;
                    if comptime!(scaled) {
                        sum += gradients[from] * Vector::new(scale[entry as usize]);
                    } else {
                        sum += gradients[from];
                    }
                }
                if weight_decay > 0.0 {
                    sum += weights[row * vectors + column] * Vector::new(weight_decay);
                }
                #[unroll]
                for cell in 0..N::value() {
                    mine += sum[cell] * sum[cell];
                }
                sums[part] = sum;
            }
        }
    }
    squares[in_cube * lanes + lane] = mine;
    sync_cube();
    if here {
        let row = touched[at] as usize;
        let mut total = 0.0f32;
        for other in 0..lanes {
            total += squares[in_cube * lanes + other];
        }
        let after = before + total / (vectors * N::value()) as f32;
        let step = rate / (after.sqrt() + eps);
        for part in 0..per_lane {
            let column = lane + part * lanes;
            if column < vectors {
                weights[row * vectors + column] -= sums[part] * Vector::new(step);
            }
        }
        if lane == 0 {
            state[row] = after;
        }
    }
}
