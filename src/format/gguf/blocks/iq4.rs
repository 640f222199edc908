//! IQ4_NL and IQ4_XS: four bits a weight that stand for unevenly spaced values.
//!
//! IQ4_NL, 32 weights in 18 bytes:
//!
//! | bytes | content |
//! |-------|---------|
//! | 0..2  | scale, half precision |
//! | 2..18 | byte `i`: level `i`, and level `i + 16` in the upper half |
//!
//! IQ4_XS, 256 weights in 136 bytes, eight sub-blocks of 32:
//!
//! | bytes  | content |
//! |--------|---------|
//! | 0..2   | scale of the scales, half precision |
//! | 2..4   | high two bits of the eight scales, from the low bits of a little-endian word up |
//! | 4..8   | low four bits of the scales, two to a byte |
//! | 8..136 | levels, 16 bytes for each sub-block as in IQ4_NL |
//!
//! A weight is `scale * VALUES[level]`, where a scale of IQ4_XS is `scale of the scales * (its 6 bits - 32)`.

use super::half_types::{f32_to_f16, read_f16};
use super::lanes::{Lanes, MAX_LANES};
use super::levels::pack_block;
use super::rows::{Rows, scale_importance, sum_of_squares};
use super::search_qx::{ZERO_BELOW, extreme};
use super::simd::{Kernel, Simd};
use super::types::QK_K;

const NL_BYTES: usize = 18;
const XS_BYTES: usize = 136;
/// Weights of a block of IQ4_NL and of a sub-block of IQ4_XS.
const LEN: usize = 32;
/// Sub-blocks of a block of IQ4_XS.
const SUBS: usize = 8;

/// What the levels stand for (`kvalues_iq4nl`).
const VALUES: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// Width of the cells by which the nearest value is looked up. Cells are less wide than the values are apart, so that
/// none has more than one of the points halfway between values, and 32 of them cover -155..=155.
const CELL: f32 = 10.0;

/// For each cell, by the five low bits of its number: the halfway point in it, and the level on both sides of it.
struct Cells {
    halfway: [f32; 32],
    below: [f32; 32],
    above: [f32; 32],
}

/// Levels by cell.
const LEVELS: Cells = cells(false);
/// Values by cell.
const NEAREST: Cells = cells(true);

const fn cells(values: bool) -> Cells {
    let mut cells = Cells { halfway: [f32::INFINITY; 32], below: [0.0; 32], above: [0.0; 32] };
    let mut number = -16;
    while number < 16 {
        let end = (number as f32 + 0.5) * CELL;
        let mut level = 0;
        let mut below = 0;
        let mut halfway = f32::INFINITY;
        while level < 15 {
            let point = (VALUES[level] + VALUES[level + 1]) / 2.0;
            if point < end - CELL {
                below = level + 1;
            } else if point < end {
                halfway = point;
            }
            level += 1;
        }
        let above = if halfway < f32::INFINITY { below + 1 } else { below };
        let cell = (number & 31) as usize;
        cells.halfway[cell] = halfway;
        cells.below[cell] = if values { VALUES[below] } else { below as f32 };
        cells.above[cell] = if values { VALUES[above] } else { above as f32 };
        number += 1;
    }
    cells
}

impl Cells {
    /// The entry for the value nearest to `x`, for -155 < x < 155; at a halfway point, for the larger one
    /// (`best_index_int8`).
    #[inline(always)]
    fn nearest<V: Lanes>(&self, x: V) -> V {
        let cell = x * V::splat(1.0 / CELL) + V::splat(12_582_912.0);
        let above = x.ge(cell.lookup(&self.halfway));
        V::select(above, cell.lookup(&self.above), cell.lookup(&self.below))
    }
}

/// Scale of blocks, one per lane, that minimises the weighted squared error, of 16 rounding factors. Follows
/// `quantize_row_iq4_nl_impl` with `ntry` 7.
#[inline(always)]
fn search_scale<V: Lanes>(x: &[V; LEN], w: &[V; LEN]) -> V {
    let zero = V::splat(0.0);
    let (magnitude, max) = extreme(x);
    let (sum_qx, sum_q2) = fit(V::splat(1.0) / (max.neg() / V::splat(VALUES[0])), x, w);
    let mut scale = V::select(sum_q2.gt(zero), sum_qx / sum_q2, zero);
    let mut best = scale * sum_qx;
    for step in -7i32..=7 {
        let (sum_qx, sum_q2) = fit(V::splat(step as f32 + VALUES[0]) / max, x, w);
        let better = V::and(sum_q2.gt(zero), (sum_qx * sum_qx).gt(best * sum_q2));
        let fitted = sum_qx / sum_q2;
        scale = V::select(better, fitted, scale);
        best = V::select(better, fitted * sum_qx, best);
    }
    V::select(magnitude.lt(V::splat(ZERO_BELOW)), zero, scale)
}

/// Sums of `w * x * value` and `w * value * value` for the values nearest to `factor * x`.
#[inline(always)]
fn fit<V: Lanes>(factor: V, x: &[V; LEN], w: &[V; LEN]) -> (V, V) {
    let (mut sum_qx, mut sum_q2) = (V::splat(0.0), V::splat(0.0));
    for i in 0..LEN {
        let q = NEAREST.nearest(factor * x[i]);
        let wq = w[i] * q;
        sum_qx = sum_qx + wq * x[i];
        sum_q2 = sum_q2 + wq * q;
    }
    (sum_qx, sum_q2)
}

/// What each weight counts, from its importance in `w` if there is one, else from its square.
#[inline(always)]
fn weigh<V: Lanes>(w: &mut [V], x: &[V], with_importance: bool) {
    if with_importance {
        let sigma2 = sum_of_squares(x) * V::splat(2.0 / x.len() as f32);
        scale_importance(w, x, sigma2);
    } else {
        for (w, &x) in w.iter_mut().zip(x) {
            *w = x * x;
        }
    }
}

/// Packs the levels nearest to `factor * x`.
#[inline(always)]
fn write_levels<V: Lanes>(x: &[f32], factor: f32, out: &mut [u8]) {
    let mut levels = [0; LEN];
    for i in (0..LEN).step_by(V::N) {
        let scaled = V::splat(factor) * V::load(&x[i..]);
        let scaled = scaled.min(V::splat(VALUES[15])).max(V::splat(VALUES[0]));
        V::store_u8(LEVELS.nearest(scaled).trunc(), &mut levels[i..]);
    }
    pack_block(&levels, out);
}

#[inline(always)]
fn inverse(v: f32) -> f32 {
    if v != 0.0 { 1.0 / v } else { 0.0 }
}

/// Encodes blocks of IQ4_NL (`quantize_iq4_nl`).
pub(super) fn encode_nl(rows: Rows<'_>, dst: &mut [u8], simd: Simd) {
    simd.run(EncoderNl { rows, dst });
}

struct EncoderNl<'a> {
    rows: Rows<'a>,
    dst: &'a mut [u8],
}

impl Kernel for EncoderNl<'_> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let mut x = [V::splat(0.0); LEN];
        let mut w = x;
        let mut scales = [0.0; MAX_LANES];
        for (g, out) in self.dst.chunks_mut(V::N * NL_BYTES).enumerate() {
            let group = self.rows.group(g * V::N, V::N, LEN);
            V::transpose(self.rows.src, &group.starts, &mut x);
            if let Some(importance) = self.rows.importance {
                V::transpose(importance, &group.columns, &mut w);
            }
            weigh(&mut w, &x, self.rows.importance.is_some());
            search_scale(&x, &w).store(&mut scales);
            for (s, out) in out.chunks_exact_mut(NL_BYTES).enumerate() {
                let x = &self.rows.src[group.starts[s]..][..LEN];
                out[..2].copy_from_slice(&f32_to_f16(scales[s]).to_le_bytes());
                write_levels::<V>(x, inverse(scales[s]), &mut out[2..]);
            }
        }
    }
}

/// Encodes blocks of IQ4_XS (`quantize_iq4_xs`).
pub(super) fn encode_xs(rows: Rows<'_>, dst: &mut [u8], simd: Simd) {
    simd.run(EncoderXs { rows, dst });
}

struct EncoderXs<'a> {
    rows: Rows<'a>,
    dst: &'a mut [u8],
}

impl Kernel for EncoderXs<'_> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let zero = V::splat(0.0);
        let mut x = [zero; QK_K];
        let mut w = x;
        let mut scale_levels = [[0; MAX_LANES]; SUBS];
        let mut factors = [[0.0; MAX_LANES]; SUBS];
        let mut scale = [0.0; MAX_LANES];
        for (g, out) in self.dst.chunks_mut(V::N * XS_BYTES).enumerate() {
            let group = self.rows.group(g * V::N, V::N, QK_K);
            V::transpose(self.rows.src, &group.starts, &mut x);
            if let Some(importance) = self.rows.importance {
                V::transpose(importance, &group.columns, &mut w);
            }
            weigh(&mut w, &x, self.rows.importance.is_some());
            let mut scales = [zero; SUBS];
            for (j, (x, w)) in x.as_chunks::<LEN>().0.iter().zip(w.as_chunks::<LEN>().0).enumerate() {
                scales[j] = search_scale(x, w);
            }

            let (_, max) = extreme(&scales);
            let of_scales = max.neg() / V::splat(32.0);
            of_scales.store(&mut scale);
            let one = V::splat(1.0);
            let factor = V::select(of_scales.ne(zero), one / of_scales, zero);
            for j in 0..SUBS {
                let level = (factor * scales[j]).nearest_within(-32, 31);
                V::store_u8(V::int_sub(level, V::int(-32)), &mut scale_levels[j]);
                let scale = of_scales * V::from_int(level);
                V::select(scale.ne(zero), one / scale, zero).store(&mut factors[j]);
            }

            for (s, out) in out.chunks_exact_mut(XS_BYTES).enumerate() {
                let x = &self.rows.src[group.starts[s]..][..QK_K];
                let mut high = 0;
                for j in 0..SUBS {
                    high |= u16::from(scale_levels[j][s] >> 4) << (2 * j);
                    write_levels::<V>(&x[j * LEN..][..LEN], factors[j][s], &mut out[8 + 16 * j..][..16]);
                }
                for j in 0..SUBS / 2 {
                    out[4 + j] = scale_levels[2 * j][s] & 15 | scale_levels[2 * j + 1][s] << 4;
                }
                out[..2].copy_from_slice(&f32_to_f16(scale[s]).to_le_bytes());
                out[2..4].copy_from_slice(&high.to_le_bytes());
            }
        }
    }
}

/// Decodes 32 weights.
fn decode_levels(packed: &[u8], scale: f32, dst: &mut [f32]) {
    for (i, y) in dst.iter_mut().enumerate() {
        let level = if i < 16 { packed[i] & 15 } else { packed[i - 16] >> 4 };
        *y = scale * VALUES[usize::from(level)];
    }
}

/// Decodes one block of IQ4_NL (`dequantize_row_iq4_nl`).
#[inline(always)]
pub(super) fn decode_nl(src: &[u8], dst: &mut [f32]) {
    decode_levels(&src[2..], read_f16(src), dst);
}

/// Decodes one block of IQ4_XS (`dequantize_row_iq4_xs`).
#[inline(always)]
pub(super) fn decode_xs(src: &[u8], dst: &mut [f32]) {
    let scale = read_f16(src);
    let high = u16::from_le_bytes([src[2], src[3]]);
    for (j, y) in dst.chunks_exact_mut(LEN).enumerate() {
        let low = src[4 + j / 2] >> (j % 2 * 4) & 15;
        let level = i32::from(low) | i32::from(high >> (2 * j) & 3) << 4;
        decode_levels(&src[8 + 16 * j..], scale * (level - 32) as f32, y);
    }
}
