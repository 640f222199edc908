//! Search for the scale of the scales: `x ~ scale * level` where nothing is expected to be negative.

use super::lanes::Floats;
use super::search_qx::ZERO_BELOW;

/// Scale of up to `max_level` steps and the bytes that stand for `x`, minimising the weighted squared error. Follows
/// `make_qp_quants`; a level is kept as the byte that it is there, so a negative `x` wraps as it does there.
#[inline(always)]
pub(super) fn search_positive<V: Floats, const L: usize>(
    x: &[V; L],
    w: &[V; L],
    max_level: i32,
    out: &mut [V; L],
) -> V {
    let zero = V::splat(0.0);
    let one = V::splat(1.0);
    let byte = V::int(255);
    let limit = V::int(max_level);
    let mut max = zero;
    for &x in x {
        max = max.max(x);
    }
    let is_zero = max.lt(V::splat(ZERO_BELOW));

    let mut factor = V::splat(max_level as f32) / max;
    let scale = one / factor;
    let mut best = zero;
    for i in 0..L {
        let l = V::from_int(V::int_and((factor * x[i]).nearest(), byte));
        let diff = x[i] - scale * l;
        best = best + w[i] * diff * diff;
    }
    for step in -4i32..=4 {
        if step == 0 {
            continue;
        }
        let tried = V::splat(0.1f32 * step as f32 + max_level as f32) / max;
        let scale = one / tried;
        let mut error = zero;
        for i in 0..L {
            let l = V::from_int(V::int_min(limit, (tried * x[i]).nearest()));
            let diff = x[i] - scale * l;
            error = error + w[i] * diff * diff;
        }
        let better = error.lt(best);
        best = V::select(better, error, best);
        factor = V::select(better, tried, factor);
    }

    let (mut sum_lx, mut sum_l2) = (zero, zero);
    for i in 0..L {
        let level = V::int_min(limit, (factor * x[i]).nearest());
        let l = V::from_int(level);
        out[i] = V::from_int(V::int_and(level, byte));
        sum_lx = sum_lx + w[i] * x[i] * l;
        sum_l2 = sum_l2 + w[i] * l * l;
    }
    for _ in 0..5 {
        // A lane that changes nothing changes nothing in the next round either, so the lanes stop together.
        let mut changed = zero.gt(zero);
        for i in 0..L {
            let wx = w[i] * x[i];
            let lx = sum_lx - wx * out[i];
            let l2 = sum_l2 - w[i] * out[i] * out[i];
            let level = V::int_min(limit, (x[i] * l2 / lx).nearest());
            let l = V::from_int(level);
            let tried = V::and(V::and(lx.gt(zero), l2.gt(zero)), l.ne(out[i]));
            let lx = lx + wx * l;
            let l2 = l2 + w[i] * l * l;
            let better = V::and(tried, (lx * lx * sum_l2).gt(sum_lx * sum_lx * l2));
            out[i] = V::select(better, V::from_int(V::int_and(level, byte)), out[i]);
            sum_lx = V::select(better, lx, sum_lx);
            sum_l2 = V::select(better, l2, sum_l2);
            changed = V::or(changed, better);
        }
        if !V::any(changed) {
            break;
        }
    }

    for l in out.iter_mut() {
        *l = V::select(is_zero, zero, *l);
    }
    V::select(is_zero, zero, V::select(sum_l2.gt(zero), sum_lx / sum_l2, zero))
}
