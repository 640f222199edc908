//! What Q2_K, Q4_K and Q5_K have in common: blocks of 256 weights in sub-blocks that have a scale and a minimum each,
//! both quantized in turn.

use super::lanes::{Lanes, MAX_LANES};
use super::levels::{divide, multiply};
use super::rows::sum;
use super::search_qkx::{AffineSearch, points, search_affine};
use super::search_qp::search_positive;
use super::types::QK_K;

/// Sub-blocks searched side by side.
const TOGETHER: usize = 2;

/// Scales and minimums of the blocks of all lanes, in `SUBS` sub-blocks.
pub(super) struct SubBlocks<const SUBS: usize> {
    /// The quantized scales.
    pub(super) scale_levels: [[u8; MAX_LANES]; SUBS],
    /// The quantized minimums.
    pub(super) min_levels: [[u8; MAX_LANES]; SUBS],
    /// What a quantized scale is multiplied by.
    pub(super) scale: [f32; MAX_LANES],
    /// What a quantized minimum is multiplied by.
    pub(super) min: [f32; MAX_LANES],
    factors: [[f32; MAX_LANES]; SUBS],
    offsets: [[f32; MAX_LANES]; SUBS],
}

/// How scales and minimums are quantized.
#[derive(Clone, Copy)]
pub(super) struct ScaleLevels {
    /// The largest level.
    pub(super) max: i32,
    /// Bytes are limited to this, where a value could not be represented.
    pub(super) limit: i32,
    /// Whether the scale of the levels is searched for; else the largest value sets it.
    pub(super) searched: bool,
}

impl<const SUBS: usize> SubBlocks<SUBS> {
    pub(super) fn new() -> Self {
        SubBlocks {
            scale_levels: [[0; MAX_LANES]; SUBS],
            min_levels: [[0; MAX_LANES]; SUBS],
            scale: [0.0; MAX_LANES],
            min: [0.0; MAX_LANES],
            factors: [[0.0; MAX_LANES]; SUBS],
            offsets: [[0.0; MAX_LANES]; SUBS],
        }
    }

    /// Searches for scales and minimums and quantizes them. `LEN` weights `x`, which count `w`, are a sub-block.
    #[inline(always)]
    pub(super) fn search<V: Lanes, const LEN: usize>(
        &mut self,
        x: &[V; QK_K],
        w: &[V; QK_K],
        search: AffineSearch,
        levels: ScaleLevels,
    ) {
        let zero = V::splat(0.0);
        let (mut scales, mut mins, mut sums) = ([zero; SUBS], [zero; SUBS], [zero; SUBS]);
        let (x, w) = (x.as_chunks::<LEN>().0, w.as_chunks::<LEN>().0);
        let groups = x.as_chunks::<TOGETHER>().0.iter().zip(w.as_chunks::<TOGETHER>().0);
        for (n, (x, w)) in groups.enumerate() {
            let found = search_affine(&points(x, w), search);
            for k in 0..TOGETHER {
                let j = n * TOGETHER + k;
                (scales[j], mins[j], sums[j]) = (found.scale.0[k], found.min.0[k], sum(&w[k]));
                found.factor.0[k].store(&mut self.factors[j]);
                found.offset.0[k].store(&mut self.offsets[j]);
            }
        }
        quantize(&scales, &sums, levels, &mut self.scale_levels).store(&mut self.scale);
        quantize(&mins, &sums, levels, &mut self.min_levels).store(&mut self.min);
    }

    /// Levels of the weights of sub-block `j` of lane `s`, 0 to `top`, with its scale and minimum as they are decoded.
    #[inline(always)]
    pub(super) fn levels<V: Lanes>(
        &self,
        (j, s): (usize, usize),
        x: &[f32],
        (scale, min): (f32, f32),
        top: i32,
        out: &mut [u8],
    ) {
        if scale == 0.0 {
            // Nothing to divide by: the levels of the search stay.
            multiply::<V>(x, self.factors[j][s], self.offsets[j][s], 0, top, out);
        } else {
            divide::<V>(x, scale, min, 0, top, out);
        }
    }
}

/// Writes the levels of values to `out` and returns their scale.
#[inline(always)]
fn quantize<V: Lanes, const SUBS: usize>(
    v: &[V; SUBS],
    w: &[V; SUBS],
    levels: ScaleLevels,
    out: &mut [[u8; MAX_LANES]; SUBS],
) -> V {
    let zero = V::splat(0.0);
    let limit = V::int(levels.limit);
    if levels.searched {
        let mut found = [zero; SUBS];
        let scale = search_positive(v, w, levels.max, &mut found);
        for j in 0..SUBS {
            V::store_u8(V::int_min(limit, found[j].trunc()), &mut out[j]);
        }
        scale
    } else {
        let mut max = zero;
        for &v in v {
            max = v.max(max);
        }
        let top = V::splat(levels.max as f32);
        let factor = V::select(max.gt(zero), top / max, zero);
        for j in 0..SUBS {
            let byte = V::int_and((factor * v[j]).nearest(), V::int(255));
            V::store_u8(V::int_min(limit, byte), &mut out[j]);
        }
        max / top
    }
}
