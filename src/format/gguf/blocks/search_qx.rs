//! Search for the scale of a block whose levels lie on both sides of zero: `x ~ scale * level`.

use super::lanes::Floats;

/// Blocks whose largest magnitude is below this are taken for zero (`GROUP_MAX_EPS`).
pub(super) const ZERO_BELOW: f32 = 1e-15;

/// Steps away from plain rounding that the search tries, in tenths of a level.
const STEPS: [f32; 18] =
    [-9.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];

/// Steps tried at the same time, so that the additions of one need not wait for those of another.
const TOGETHER: usize = 3;

/// What the search found, one block per lane.
#[derive(Clone, Copy)]
pub(super) struct Symmetric<V> {
    /// The scale; zero for a zero block.
    pub(super) scale: V,
    /// The factor that takes weights to the levels that the scale goes with: `nearest(factor * x)`. Zero for a zero
    /// block.
    pub(super) factor: V,
}

/// The largest magnitude, and the first value that has it.
#[inline(always)]
pub(super) fn extreme<V: Floats>(x: &[V]) -> (V, V) {
    let (mut largest, mut value) = (V::splat(0.0), V::splat(0.0));
    for &x in x {
        let magnitude = x.abs();
        value = V::select(magnitude.gt(largest), x, value);
        largest = magnitude.max(largest);
    }
    (largest, value)
}

/// Scale that minimises the weighted squared error, of 19 rounding factors around the one that takes the extreme value
/// to the level `-levels`. Levels are `-levels..levels`. Follows `make_qx_quants` with `rmse_type` 1.
#[inline(always)]
pub(super) fn search_symmetric<V: Floats, const L: usize>(
    x: &[V; L],
    w: &[V; L],
    levels: i32,
) -> Symmetric<V> {
    let zero = V::splat(0.0);
    let (magnitude, max) = extreme(x);
    let mut wx = *x;
    for i in 0..L {
        wx[i] = w[i] * x[i];
    }

    let first = V::splat(-levels as f32) / max;
    let [(sum_lx, sum_l2)] = fit([first], x, w, &wx, levels);
    let mut factor = first;
    let mut scale = V::select(sum_l2.ne(zero), sum_lx / sum_l2, zero);
    let mut best = scale * sum_lx;
    for steps in STEPS.as_chunks::<TOGETHER>().0 {
        let mut tried = [zero; TOGETHER];
        for (tried, step) in tried.iter_mut().zip(steps) {
            *tried = V::splat(-(levels as f32 + 0.1f32 * step)) / max;
        }
        let sums = fit(tried, x, w, &wx, levels);
        for ((sum_lx, sum_l2), tried) in sums.into_iter().zip(tried) {
            let better = V::and(sum_l2.gt(zero), (sum_lx * sum_lx).gt(best * sum_l2));
            let fitted = sum_lx / sum_l2;
            factor = V::select(better, tried, factor);
            scale = V::select(better, fitted, scale);
            best = V::select(better, fitted * sum_lx, best);
        }
    }

    let is_zero = magnitude.lt(V::splat(ZERO_BELOW));
    Symmetric { scale: V::select(is_zero, zero, scale), factor: V::select(is_zero, zero, factor) }
}

/// Sums of `w * x * level` and `w * level * level` for the levels that each factor gives.
#[inline(always)]
fn fit<V: Floats, const L: usize, const K: usize>(
    factors: [V; K],
    x: &[V; L],
    w: &[V; L],
    wx: &[V; L],
    levels: i32,
) -> [(V, V); K] {
    let mut sums = [(V::splat(0.0), V::splat(0.0)); K];
    for i in 0..L {
        for k in 0..K {
            // Never beyond what rounds well: |factor * x| is at most levels + 1.
            let l = (factors[k] * x[i]).round_within(-levels, levels - 1);
            sums[k].0 = sums[k].0 + wx[i] * l;
            sums[k].1 = sums[k].1 + w[i] * l * l;
        }
    }
    sums
}
