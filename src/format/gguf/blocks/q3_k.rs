//! Q3_K: 256 weights in 110 bytes, sixteen sub-blocks of 16.
//!
//! | bytes    | content |
//! |----------|---------|
//! | 0..32    | bit 2 of the levels: bit `k` of byte `i` is that of level `i + 32 * k` |
//! | 32..96   | low two bits: of 128 levels, byte `i` holds `i`, `i + 32`, `i + 64`, `i + 96` |
//! | 96..108  | a scale of 6 bits for each sub-block ([`pack_scales`]) |
//! | 108..110 | scale of the scales, half precision |
//!
//! A weight is `scale * (level - 4)`, a sub-block's scale is `scale of the scales * (its 6 bits - 32)`.

use super::half_types::{f16_to_f32_one, f32_to_f16, read_f16};
use super::lanes::{Lanes, MAX_LANES};
use super::levels::{divide, pack_2_bits, pack_bit, unpack_2_bits, unpack_bit};
use super::rows::{Rows, scale_importance, sum, sum_of_squares};
use super::search_q3::search_levels;
use super::search_qx::{extreme, search_symmetric};
use super::simd::{Kernel, Simd};
use super::types::QK_K;
use super::wide::Wide;

const BYTES: usize = 110;
/// Sub-blocks of a block, and weights of a sub-block.
const SUBS: usize = 16;
/// Sub-blocks searched side by side.
const TOGETHER: usize = 4;

/// Encodes blocks (`quantize_row_q3_K_ref`, and `quantize_row_q3_K_impl` with importance).
pub(super) fn encode(rows: Rows<'_>, dst: &mut [u8], simd: Simd) {
    if rows.importance.is_some() {
        simd.run(Encoder::<true> { rows, dst });
    } else {
        simd.run(Encoder::<false> { rows, dst });
    }
}

struct Encoder<'a, const IMPORTANCE: bool> {
    rows: Rows<'a>,
    dst: &'a mut [u8],
}

impl<const IMPORTANCE: bool> Kernel for Encoder<'_, IMPORTANCE> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let zero = V::splat(0.0);
        let mut x = [zero; QK_K];
        let mut w = x;
        let mut searched = x;
        let mut scale_levels = [[0; MAX_LANES]; SUBS];
        let mut scale = [0.0; MAX_LANES];
        for (g, out) in self.dst.chunks_mut(V::N * BYTES).enumerate() {
            let group = self.rows.group(g * V::N, V::N, QK_K);
            V::transpose(self.rows.src, &group.starts, &mut x);
            let subs = x.as_chunks::<SUBS>().0;
            let searched_subs = searched.as_chunks_mut::<SUBS>().0;
            let mut scales = [zero; SUBS];
            if IMPORTANCE {
                V::transpose(self.rows.importance.unwrap_or_default(), &group.columns, &mut w);
                let sigma2 = V::splat(2.0) * sum_of_squares(&x) / V::splat(QK_K as f32);
                scale_importance(&mut w, &x, sigma2);
                let mut sums = [zero; SUBS];
                for (j, w) in w.as_chunks::<SUBS>().0.iter().enumerate() {
                    let found = search_symmetric(&subs[j], w, 4);
                    (scales[j], sums[j]) = (found.scale, sum(w));
                    levels_of(&subs[j], found.factor, 4, &mut searched_subs[j]);
                }
                let found = search_symmetric(&scales, &sums, 32);
                let mut levels = [zero; SUBS];
                levels_of(&scales, found.factor, 32, &mut levels);
                for j in 0..SUBS {
                    V::store_u8(levels[j].trunc(), &mut scale_levels[j]);
                }
                found.scale.store(&mut scale);
            } else {
                for (n, subs) in subs.as_chunks::<TOGETHER>().0.iter().enumerate() {
                    let mut levels = [Wide([zero; TOGETHER]); SUBS];
                    let found = search_levels(&Wide::join(subs), 4, &mut levels);
                    for k in 0..TOGETHER {
                        scales[n * TOGETHER + k] = found.0[k];
                        for i in 0..SUBS {
                            searched_subs[n * TOGETHER + k][i] = levels[i].0[k];
                        }
                    }
                }
                quantize_by_extreme(&scales, &mut scale_levels).store(&mut scale);
            }

            for (s, out) in out.chunks_exact_mut(BYTES).enumerate() {
                let x = &self.rows.src[group.starts[s]..][..QK_K];
                write::<V>(x, &scale_levels, scale[s], &searched, s, out);
            }
        }
    }
}

/// Levels that go with a rounding factor, shifted by `levels` to start at zero; zero where the factor is zero.
#[inline(always)]
fn levels_of<V: Lanes>(x: &[V; SUBS], factor: V, levels: i32, out: &mut [V; SUBS]) {
    let zero = V::splat(0.0);
    let found = factor.ne(zero);
    for i in 0..SUBS {
        let level = V::int_sub((factor * x[i]).nearest_within(-levels, levels - 1), V::int(-levels));
        out[i] = V::select(found, V::from_int(level), zero);
    }
}

/// Levels of values relative to the extreme one, which gets the level -32; shifted by 32, or all zero where all values
/// are zero. Returns the scale.
#[inline(always)]
fn quantize_by_extreme<V: Lanes>(v: &[V; SUBS], out: &mut [[u8; MAX_LANES]; SUBS]) -> V {
    let zero = V::splat(0.0);
    let (_, max) = extreme(v);
    let found = max.ne(zero);
    let factor = V::splat(-32.0) / max;
    for j in 0..SUBS {
        // The level passes through a signed byte before it is limited.
        let level = V::int_sub((factor * v[j]).nearest(), V::int(-128));
        let level = V::int_sub(V::int_and(level, V::int(255)), V::int(128));
        let level = V::int_max(V::int(-32), V::int_min(V::int(31), level));
        let level = V::from_int(V::int_sub(level, V::int(-32)));
        V::store_u8(V::select(found, level, zero).trunc(), &mut out[j]);
    }
    V::select(found, V::splat(1.0) / factor, zero)
}

/// Writes the block of lane `s`.
#[inline(always)]
fn write<V: Lanes>(
    x: &[f32],
    scale_levels: &[[u8; MAX_LANES]; SUBS],
    scale: f32,
    searched: &[V; QK_K],
    s: usize,
    out: &mut [u8],
) {
    let scale = f32_to_f16(scale);
    out[108..110].copy_from_slice(&scale.to_le_bytes());
    let mut column = [0; SUBS];
    for j in 0..SUBS {
        column[j] = scale_levels[j][s];
    }
    let scales = pack_scales(&column);
    out[96..108].copy_from_slice(&scales);

    let scale = f16_to_f32_one(scale);
    let mut levels = [0; QK_K];
    for (j, levels) in levels.as_chunks_mut::<SUBS>().0.iter_mut().enumerate() {
        let scale = scale * unpack_scale(&scales, j);
        if scale == 0.0 {
            // Nothing to divide by: the levels of the search stay.
            for (i, level) in levels.iter_mut().enumerate() {
                let mut lanes = [0; MAX_LANES];
                V::store_u8(searched[j * SUBS + i].trunc(), &mut lanes);
                *level = lanes[s];
            }
        } else {
            divide::<V>(&x[j * SUBS..][..SUBS], scale, 0.0, -4, 3, levels);
        }
    }
    pack_bit(&levels, 2, &mut out[..32]);
    pack_2_bits(&levels, &mut out[32..96]);
}

/// Packs scales of 6 bits into 12 bytes: the four low bits of scales `j` and `j + 8` in byte `j`, and the two high bits
/// of scales `j`, `j + 4`, `j + 8` and `j + 12` in byte `8 + j`, from the low bits up.
#[inline(always)]
fn pack_scales(scales: &[u8; SUBS]) -> [u8; 12] {
    let mut out = [0; 12];
    for j in 0..8 {
        out[j] = scales[j] & 15 | scales[j + 8] << 4;
    }
    for j in 0..4 {
        out[8 + j] =
            scales[j] >> 4 | scales[j + 4] >> 4 << 2 | scales[j + 8] >> 4 << 4 | scales[j + 12] >> 4 << 6;
    }
    out
}

/// Scale of sub-block `j`, of what [`pack_scales`] packed, with its sign.
#[inline(always)]
fn unpack_scale(packed: &[u8], j: usize) -> f32 {
    let low = packed[j % 8] >> (j / 8 * 4) & 15;
    let high = packed[8 + j % 4] >> (j / 4 * 2) & 3;
    (i32::from(low | high << 4) - 32) as f32
}

/// Decodes one block (`dequantize_row_q3_K`).
#[inline(always)]
pub(super) fn decode(src: &[u8], dst: &mut [f32]) {
    let scale = read_f16(&src[108..]);
    for (j, y) in dst.chunks_exact_mut(SUBS).enumerate() {
        let scale = scale * unpack_scale(&src[96..108], j);
        for (i, y) in y.iter_mut().enumerate() {
            let i = j * SUBS + i;
            let level = unpack_2_bits(&src[32..96], i) | unpack_bit(src, i) << 2;
            *y = scale * (i32::from(level) - 4) as f32;
        }
    }
}
