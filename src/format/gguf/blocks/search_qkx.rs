//! Search for scale and minimum of a block: `x ~ scale * level + minimum`, levels from 0 on.

use super::lanes::Floats;
use super::wide::Wide;

/// How a search goes about it.
#[derive(Clone, Copy)]
pub(super) struct AffineSearch {
    /// The largest level.
    pub(super) max_level: i32,
    /// The first rounding factor tried takes the range of the block to `max_level + first` levels.
    pub(super) first: f32,
    /// Growth of that from one try to the next.
    pub(super) step: f32,
    /// Number of tries after the first one.
    pub(super) steps: i32,
    /// Whether errors count by their magnitude rather than by their square.
    pub(super) magnitude: bool,
}

impl AffineSearch {
    /// The search of all types that have an importance for each weight.
    pub(super) const fn with_importance(max_level: i32) -> AffineSearch {
        AffineSearch { max_level, first: -0.9, step: 0.05, steps: 36, magnitude: false }
    }
}

/// One weight of each block, and what it counts. The two are side by side because arrays of their own, a multiple of 4096
/// bytes apart from the array of the levels, would have the processor take reads of them for reads of levels.
#[derive(Clone, Copy)]
pub(super) struct Point<V> {
    pub(super) x: V,
    pub(super) w: V,
}

/// The points of `K` blocks side by side.
#[inline(always)]
pub(super) fn points<V: Floats, const L: usize, const K: usize>(
    x: &[[V; L]; K],
    w: &[[V; L]; K],
) -> [Point<Wide<V, K>>; L] {
    let (x, w) = (Wide::join(x), Wide::join(w));
    let mut points = [Point { x: x[0], w: w[0] }; L];
    for (point, (&x, &w)) in points.iter_mut().zip(x.iter().zip(&w)) {
        *point = Point { x, w };
    }
    points
}

/// What the search found, one block per lane.
#[derive(Clone, Copy)]
pub(super) struct Affine<V> {
    /// The scale; zero for a block of equal weights.
    pub(super) scale: V,
    /// The minimum, negated.
    pub(super) min: V,
    /// With `offset`, how weights go to the levels that were found: `nearest(factor * (x - offset))`. Zero for a block
    /// of equal weights.
    pub(super) factor: V,
    /// See `factor`.
    pub(super) offset: V,
}

/// Scale and minimum that minimise the weighted error: each try rounds with another factor and fits a line to the levels
/// that this gives. Follows `make_qkx2_quants` and `make_qkx3_quants`, which differ in their constants only.
#[inline(always)]
pub(super) fn search_affine<V: Floats, const L: usize>(
    points: &[Point<V>; L],
    search: AffineSearch,
) -> Affine<V> {
    let AffineSearch { max_level, magnitude, .. } = search;
    let zero = V::splat(0.0);
    let Point { x, w } = points[0];
    let (mut min, mut max) = (x, x);
    let (mut sum_w, mut sum_x) = (w, w * x);
    for &Point { x, w } in &points[1..] {
        min = x.min(min);
        max = x.max(max);
        sum_w = sum_w + w;
        sum_x = sum_x + w * x;
    }
    min = V::select(min.gt(zero), zero, min);
    let first_min = min;
    let uneven = max.gt(min);

    let top = V::splat(max_level as f32);

    let mut factor = top / (max - min);
    let mut offset = min;
    let mut scale = V::splat(1.0) / factor;
    let mut best = zero;
    for &Point { x, w } in points {
        let l = V::from_int((factor * (x - min)).nearest_within(0, max_level));
        best = best + w * cost(scale * l + min - x, magnitude);
    }

    for step in 0..=search.steps {
        let range = max - min;
        let tried = V::splat(search.first + search.step * step as f32 + max_level as f32) / range;
        // Where numbers are so small, so large or so far off that a level might be beyond what rounds well.
        let (small, large) = (range.lt(V::splat(1e-30)), range.gt(V::splat(1e30)));
        let far = (first_min - min).abs().gt(range * V::splat(1e4));
        let wild = V::any(V::and(uneven, V::or(V::or(small, large), far)));
        let fit = if wild {
            fit::<V, L, true>(points, (sum_x, sum_w), tried, min, search)
        } else {
            fit::<V, L, false>(points, (sum_x, sum_w), tried, min, search)
        };
        let better = V::and(fit.valid, fit.error.lt(best));
        best = V::select(better, fit.error, best);
        scale = V::select(better, fit.scale, scale);
        factor = V::select(better, tried, factor);
        offset = V::select(better, min, offset);
        min = V::select(better, fit.min, min);
    }

    Affine {
        scale: V::select(uneven, scale, zero),
        min: V::select(uneven, min, first_min).neg(),
        factor: V::select(uneven, factor, zero),
        offset: V::select(uneven, offset, zero),
    }
}

/// A line fitted to levels.
struct Fit<V: Floats> {
    valid: V::Mask,
    scale: V,
    min: V,
    error: V,
}

/// Fits a line to the levels that a factor gives. `EXACT` is for arguments of any size.
#[inline(always)]
fn fit<V: Floats, const L: usize, const EXACT: bool>(
    points: &[Point<V>; L],
    (sum_x, sum_w): (V, V),
    factor: V,
    offset: V,
    search: AffineSearch,
) -> Fit<V> {
    let zero = V::splat(0.0);
    let mut levels = [zero; L];
    let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
    for (&Point { x, w }, level) in points.iter().zip(&mut levels) {
        let scaled = factor * (x - offset);
        let l = if EXACT {
            V::from_int(scaled.nearest_within(0, search.max_level))
        } else {
            scaled.round_within(0, search.max_level)
        };
        *level = l;
        let wl = w * l;
        sum_l = sum_l + wl;
        sum_l2 = sum_l2 + wl * l;
        sum_xl = sum_xl + wl * x;
    }
    let det = sum_w * sum_l2 - sum_l * sum_l;
    let scale = (sum_w * sum_xl - sum_x * sum_l) / det;
    let min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
    let above = min.gt(zero);
    let min = V::select(above, zero, min);
    let scale = V::select(above, sum_xl / sum_l2, scale);
    let mut error = zero;
    for (&Point { x, w }, &level) in points.iter().zip(&levels) {
        error = error + w * cost(scale * level + min - x, search.magnitude);
    }
    Fit { valid: det.gt(zero), scale, min, error }
}

#[inline(always)]
fn cost<V: Floats>(diff: V, magnitude: bool) -> V {
    if magnitude { diff.abs() } else { diff * diff }
}
