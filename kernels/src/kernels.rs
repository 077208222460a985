//! What runs on the device. Vectors are of `N` neighbouring numbers; where one begins is told in
//! steps of so many such vectors.

use cubecl::prelude::*;

/// One unit for each vector of the result: adds up the sources of its target.
///
/// # Shapes
/// - `source_at`, `scale`: `[entries]`; `offsets`: `[count + 1]`; `target_at`: `[count]`
#[cube(launch_unchecked)]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel has no other way to take them"
)]
pub(crate) fn add_up<N: Size>(
    source: &Array<Vector<f32, N>>,
    source_at: &Array<u32>,
    offsets: &Array<u32>,
    scale: &Array<f32>,
    target_at: &Array<u32>,
    target: &mut Array<Vector<f32, N>>,
    source_step: u32,
    target_step: u32,
    vectors: u32,
    count: u32,
    #[comptime] scaled: bool,
) {
    let (at, vectors) = (ABSOLUTE_POS, vectors as usize);
    if at < count as usize * vectors {
        let (sum_at, column) = (at / vectors, at % vectors);
        let mut sum = Vector::<f32, N>::new(0.0);
        for entry in offsets[sum_at]..offsets[sum_at + 1] {
            let from = source_at[entry as usize] as usize * source_step as usize;
            let value = source[from + column];
            if comptime!(scaled) {
                sum += value * Vector::new(scale[entry as usize]);
            } else {
                sum += value;
            }
        }
        let to = target_at[sum_at] as usize * target_step as usize;
        target[to + column] = sum;
    }
}

/// `lanes` units for each touched row: they add up its gradients, the mean of whose squares goes to
/// the row's state, and move the row.
///
/// # Shapes
/// - `weights`: `[rows, vectors]`; `state`: `[rows]`
/// - `touched`: `[count]`, each once; `offsets`: `[count + 1]`
/// - `gradient_at`, `scale`: `[entries]`, where a gradient begins, and its factor
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
    gradient_step: u32,
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
                    let from = gradient_at[entry as usize] as usize * gradient_step as usize;
                    let gradient = gradients[from + column];
                    if comptime!(scaled) {
                        sum += gradient * Vector::new(scale[entry as usize]);
                    } else {
                        sum += gradient;
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
