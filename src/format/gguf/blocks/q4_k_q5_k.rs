//! Q4_K and Q5_K: 256 weights in 144 or 176 bytes, eight sub-blocks of 32.
//!
//! | Q4_K    | Q5_K    | content |
//! |---------|---------|---------|
//! | 0..2    | 0..2    | scale of the scales, half precision |
//! | 2..4    | 2..4    | scale of the minimums, half precision |
//! | 4..16   | 4..16   | a scale and a minimum of 6 bits for each sub-block ([`pack_scales`]) |
//! |         | 16..48  | bit 4 of the levels: bit `k` of byte `i` is that of level `i + 32 * k` |
//! | 16..144 | 48..176 | low four bits: of 64 levels, byte `i` holds level `i` and, in its upper half, `i + 32` |
//!
//! A weight is `scale * level - minimum`.

use super::half_types::{f16_to_f32_one, f32_to_f16, read_f16};
use super::lanes::{Lanes, MAX_LANES};
use super::levels::{divide, multiply, pack_4_bits, pack_bit, unpack_4_bits, unpack_bit};
use super::rows::{Rows, scale_importance, sum, sum_of_squares};
use super::search_qkx::{AffineSearch, points, search_affine};
use super::search_qp::search_positive;
use super::simd::{Kernel, Simd};
use super::types::QK_K;

/// Sub-blocks of a block.
const SUBS: usize = 8;
/// Weights of a sub-block.
const LEN: usize = QK_K / SUBS;
/// Sub-blocks searched side by side.
const TOGETHER: usize = 2;

/// Encodes blocks of `BITS` (4 or 5) bits a weight (`quantize_row_q4_K_ref`, and `quantize_row_q4_K_impl` with
/// importance).
pub(super) fn encode<const BITS: u32>(rows: Rows<'_>, dst: &mut [u8], simd: Simd) {
    simd.run(Encoder::<BITS> { rows, dst });
}

const fn block_bytes(bits: u32) -> usize {
    if bits == 5 { 176 } else { 144 }
}

struct Encoder<'a, const BITS: u32> {
    rows: Rows<'a>,
    dst: &'a mut [u8],
}

/// Per sub-block and lane, what is needed to write the blocks.
struct Found {
    scale_levels: [[u8; MAX_LANES]; SUBS],
    min_levels: [[u8; MAX_LANES]; SUBS],
    factors: [[f32; MAX_LANES]; SUBS],
    offsets: [[f32; MAX_LANES]; SUBS],
    scale: [f32; MAX_LANES],
    min: [f32; MAX_LANES],
}

impl<const BITS: u32> Kernel for Encoder<'_, BITS> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let zero = V::splat(0.0);
        let top = (1 << BITS) - 1;
        let search = match (self.rows.importance, BITS) {
            (Some(_), _) => AffineSearch::with_importance(top),
            (None, 4) => AffineSearch { max_level: top, first: -1.0, step: 0.1, steps: 20, magnitude: false },
            (None, _) => AffineSearch { max_level: top, first: -0.5, step: 0.1, steps: 15, magnitude: false },
        };
        let mut x = [zero; QK_K];
        let mut w = x;
        let mut found = Found {
            scale_levels: [[0; MAX_LANES]; SUBS],
            min_levels: [[0; MAX_LANES]; SUBS],
            factors: [[0.0; MAX_LANES]; SUBS],
            offsets: [[0.0; MAX_LANES]; SUBS],
            scale: [0.0; MAX_LANES],
            min: [0.0; MAX_LANES],
        };
        for (g, out) in self.dst.chunks_mut(V::N * block_bytes(BITS)).enumerate() {
            let group = self.rows.group(g * V::N, V::N, QK_K);
            V::transpose(self.rows.src, &group.starts, &mut x);
            let subs = x.as_chunks::<LEN>().0;
            if let Some(importance) = self.rows.importance {
                V::transpose(importance, &group.columns, &mut w);
                let sigma2 = V::splat(2.0) * sum_of_squares(&x) / V::splat(QK_K as f32);
                scale_importance(&mut w, &x, sigma2);
            } else {
                for (w, x) in w.as_chunks_mut::<LEN>().0.iter_mut().zip(subs) {
                    let mean = (sum_of_squares(x) / V::splat(LEN as f32)).sqrt();
                    for i in 0..LEN {
                        w[i] = mean + x[i].abs();
                    }
                }
            }

            let (mut scales, mut mins, mut sums) = ([zero; SUBS], [zero; SUBS], [zero; SUBS]);
            let pairs = subs.as_chunks::<TOGETHER>().0.iter().zip(w.as_chunks::<LEN>().0.as_chunks().0);
            for (n, (x, w)) in pairs.enumerate() {
                let affine = search_affine(&points(x, w), search);
                for k in 0..TOGETHER {
                    let j = n * TOGETHER + k;
                    (scales[j], mins[j], sums[j]) = (affine.scale.0[k], affine.min.0[k], sum(&w[k]));
                    affine.factor.0[k].store(&mut found.factors[j]);
                    affine.offset.0[k].store(&mut found.offsets[j]);
                }
            }

            let Found { scale_levels, min_levels, .. } = &mut found;
            let (scale, min) = if self.rows.importance.is_some() {
                let limit = if BITS == 5 { 63 } else { 255 };
                (
                    quantize_by_search(&scales, &sums, 63, limit, scale_levels),
                    quantize_by_search(&mins, &sums, 63, limit, min_levels),
                )
            } else {
                (
                    quantize_by_largest(&scales, 63, 63, scale_levels),
                    quantize_by_largest(&mins, 63, 63, min_levels),
                )
            };
            scale.store(&mut found.scale);
            min.store(&mut found.min);

            for (s, out) in out.chunks_exact_mut(block_bytes(BITS)).enumerate() {
                let x = &self.rows.src[group.starts[s]..][..QK_K];
                write::<V, BITS>(x, &found, s, out);
            }
        }
    }
}

/// Levels of values relative to the largest one, which gets the level `levels`; as bytes, no larger than `limit`.
/// Returns the scale.
#[inline(always)]
pub(super) fn quantize_by_largest<V: Lanes, const L: usize>(
    v: &[V; L],
    levels: i32,
    limit: i32,
    out: &mut [[u8; MAX_LANES]; L],
) -> V {
    let zero = V::splat(0.0);
    let mut max = zero;
    for &v in v {
        max = v.max(max);
    }
    let levels = V::splat(levels as f32);
    let factor = V::select(max.gt(zero), levels / max, zero);
    for j in 0..L {
        let byte = V::int_and((factor * v[j]).nearest(), V::int(255));
        V::store_u8(V::int_min(V::int(limit), byte), &mut out[j]);
    }
    max / levels
}

/// Levels and scale of values by [`search_positive`]; levels as bytes, no larger than `limit`.
#[inline(always)]
pub(super) fn quantize_by_search<V: Lanes, const L: usize>(
    v: &[V; L],
    w: &[V; L],
    levels: i32,
    limit: i32,
    out: &mut [[u8; MAX_LANES]; L],
) -> V {
    let mut found = [V::splat(0.0); L];
    let scale = search_positive(v, w, levels, &mut found);
    for j in 0..L {
        V::store_u8(V::int_min(V::int(limit), found[j].trunc()), &mut out[j]);
    }
    scale
}

/// Writes the block of lane `s`.
#[inline(always)]
fn write<V: Lanes, const BITS: u32>(x: &[f32], found: &Found, s: usize, out: &mut [u8]) {
    let (scale, min) = (f32_to_f16(found.scale[s]), f32_to_f16(found.min[s]));
    let (mut scale_levels, mut min_levels) = ([0; SUBS], [0; SUBS]);
    for j in 0..SUBS {
        scale_levels[j] = found.scale_levels[j][s];
        min_levels[j] = found.min_levels[j][s];
    }
    let scales = pack_scales(&scale_levels, &min_levels);
    out[..2].copy_from_slice(&scale.to_le_bytes());
    out[2..4].copy_from_slice(&min.to_le_bytes());
    out[4..16].copy_from_slice(&scales);

    let (scale, min) = (f16_to_f32_one(scale), f16_to_f32_one(min));
    let mut levels = [0; QK_K];
    let top = (1 << BITS) - 1;
    for (j, levels) in levels.as_chunks_mut::<LEN>().0.iter_mut().enumerate() {
        let x = &x[j * LEN..][..LEN];
        let (scale_level, min_level) = unpack_scale(&scales, j);
        let scale = scale * f32::from(scale_level);
        if scale == 0.0 {
            // Nothing to divide by: the levels of the search stay.
            multiply::<V>(x, found.factors[j][s], found.offsets[j][s], 0, top, levels);
        } else {
            divide::<V>(x, scale, min * f32::from(min_level), 0, top, levels);
        }
    }
    if BITS == 5 {
        pack_bit(&levels, 4, &mut out[16..48]);
    }
    pack_4_bits(&levels, &mut out[block_bytes(BITS) - QK_K / 2..]);
}

/// Packs scales and minimums of 6 bits into 12 bytes. Those of the first four sub-blocks are the low bits of bytes
/// 0..4 and 4..8. Of the other ones, the four low bits are in bytes 8..12, scale below minimum, and the two high bits
/// are the high bits of bytes 0..4 and 4..8.
#[inline(always)]
fn pack_scales(scales: &[u8; SUBS], mins: &[u8; SUBS]) -> [u8; 12] {
    let mut out = [0; 12];
    for j in 0..4 {
        out[j] = scales[j] | scales[j + 4] >> 4 << 6;
        out[j + 4] = mins[j] | mins[j + 4] >> 4 << 6;
        out[j + 8] = scales[j + 4] & 15 | mins[j + 4] << 4;
    }
    out
}

/// Scale and minimum of sub-block `j`, of what [`pack_scales`] packed (`get_scale_min_k4`).
#[inline(always)]
fn unpack_scale(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

/// Decodes one block (`dequantize_row_q4_K`, `dequantize_row_q5_K`).
#[inline(always)]
pub(super) fn decode<const BITS: u32>(src: &[u8], dst: &mut [f32]) {
    let (scale, min) = (read_f16(src), read_f16(&src[2..]));
    let (high, low) = src[16..].split_at(block_bytes(BITS) - QK_K / 2 - 16);
    for (j, y) in dst.chunks_exact_mut(LEN).enumerate() {
        let (scale_level, min_level) = unpack_scale(&src[4..16], j);
        let (scale, min) = (scale * f32::from(scale_level), min * f32::from(min_level));
        for (i, y) in y.iter_mut().enumerate() {
            let i = j * LEN + i;
            let high = if BITS == 5 { unpack_bit(high, i) << 4 } else { 0 };
            *y = scale * f32::from(unpack_4_bits(low, i) | high) - min;
        }
    }
}
