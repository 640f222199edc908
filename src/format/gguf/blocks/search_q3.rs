//! Search for levels and scale of a block of Q3_K, one level after the other.

use super::lanes::Floats;
use super::search_qx::{ZERO_BELOW, extreme};

/// Scale and levels that maximise the fit to `x`, each weight counting with its square. Starts from plain rounding
/// and then, up to five times over, gives each weight in turn the level that suits the sums of the other ones best.
/// Levels are `-levels..levels` and come back shifted by `levels`; a zero block has scale and shifted levels of zero.
/// Follows `make_q3_quants` with `do_rmse`.
#[inline(always)]
pub(super) fn search_levels<V: Floats, const L: usize>(x: &[V; L], levels: i32, out: &mut [V; L]) -> V {
    let zero = V::splat(0.0);
    let (magnitude, max) = extreme(x);
    let is_zero = magnitude.lt(V::splat(ZERO_BELOW));

    let factor = V::splat(-levels as f32) / max;
    let (mut sum_lx, mut sum_l2) = (zero, zero);
    let (mut w, mut wx) = (*x, *x);
    for i in 0..L {
        w[i] = x[i] * x[i];
        wx[i] = w[i] * x[i];
        let l = (factor * x[i]).round_within(-levels, levels - 1);
        out[i] = l;
        sum_lx = sum_lx + wx[i] * l;
        sum_l2 = sum_l2 + w[i] * l * l;
    }

    for _ in 0..5 {
        // A lane that changes nothing changes nothing in the next round either, so the lanes stop together.
        let mut changed = zero.gt(zero);
        for i in 0..L {
            let lx = sum_lx - wx[i] * out[i];
            let l2 = sum_l2 - w[i] * out[i] * out[i];
            let l = V::from_int((x[i] * l2 / lx).nearest_within(-levels, levels - 1));
            let tried = V::and(lx.gt(zero), l.ne(out[i]));
            let lx = lx + wx[i] * l;
            let l2 = l2 + w[i] * l * l;
            let better = V::and(l2.gt(zero), (lx * lx * sum_l2).gt(sum_lx * sum_lx * l2));
            let better = V::and(tried, better);
            out[i] = V::select(better, l, out[i]);
            sum_lx = V::select(better, lx, sum_lx);
            sum_l2 = V::select(better, l2, sum_l2);
            changed = V::or(changed, better);
        }
        if !V::any(changed) {
            break;
        }
    }

    for l in out.iter_mut() {
        *l = V::select(is_zero, zero, *l + V::splat(levels as f32));
    }
    V::select(is_zero, zero, V::select(sum_l2.gt(zero), sum_lx / sum_l2, zero))
}
