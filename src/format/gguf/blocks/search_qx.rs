//! Search for the scale of a block whose levels lie on both sides of zero: `x ~ scale * level`.

use super::lanes::Lanes;

/// Blocks whose largest magnitude is below this are taken for zero (`GROUP_MAX_EPS`).
pub(super) const ZERO_BELOW: f32 = 1e-15;

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
pub(super) fn extreme<V: Lanes>(x: &[V]) -> (V, V) {
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
pub(super) fn search_symmetric<V: Lanes, const L: usize>(x: &[V; L], w: &[V; L], levels: i32) -> Symmetric<V> {
    let zero = V::splat(0.0);
    let (magnitude, max) = extreme(x);
    let mut wx = *x;
    for i in 0..L {
        wx[i] = w[i] * x[i];
    }

    let mut factor = V::splat(-levels as f32) / max;
    let (sum_lx, sum_l2) = fit(factor, x, w, &wx, levels);
    let mut scale = V::select(sum_l2.ne(zero), sum_lx / sum_l2, zero);
    let mut best = scale * sum_lx;
    for step in -9i32..=9 {
        if step == 0 {
            continue;
        }
        let tried = V::splat(-(levels as f32 + 0.1f32 * step as f32)) / max;
        let (sum_lx, sum_l2) = fit(tried, x, w, &wx, levels);
        let better = V::and(sum_l2.gt(zero), (sum_lx * sum_lx).gt(best * sum_l2));
        let fitted = sum_lx / sum_l2;
        factor = V::select(better, tried, factor);
        scale = V::select(better, fitted, scale);
        best = V::select(better, fitted * sum_lx, best);
    }

    let is_zero = magnitude.lt(V::splat(ZERO_BELOW));
    Symmetric { scale: V::select(is_zero, zero, scale), factor: V::select(is_zero, zero, factor) }
}

/// Sums of `w * x * level` and `w * level * level` for the levels that a factor gives.
#[inline(always)]
fn fit<V: Lanes, const L: usize>(factor: V, x: &[V; L], w: &[V; L], wx: &[V; L], levels: i32) -> (V, V) {
    let (mut sum_lx, mut sum_l2) = (V::splat(0.0), V::splat(0.0));
    for i in 0..L {
        // Never beyond what rounds well: |factor * x| is at most levels + 1.
        let l = (factor * x[i]).round_within(-levels, levels - 1);
        sum_lx = sum_lx + wx[i] * l;
        sum_l2 = sum_l2 + w[i] * l * l;
    }
    (sum_lx, sum_l2)
}
