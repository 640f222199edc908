//! Q2_K: 256 weights in 84 bytes, sixteen sub-blocks of 16.
//!
//! | bytes  | content |
//! |--------|---------|
//! | 0..16  | a scale (low four bits) and a minimum (high four bits) for each sub-block |
//! | 16..80 | levels of two bits: of 128 levels, byte `i` holds `i`, `i + 32`, `i + 64`, `i + 96` |
//! | 80..82 | scale of the scales, half precision |
//! | 82..84 | scale of the minimums, half precision |
//!
//! A weight is `scale * level - minimum`.

use super::half_types::{f16_to_f32_one, f32_to_f16, read_f16};
use super::lanes::Lanes;
use super::levels::{pack_2_bits, unpack_2_bits};
use super::rows::{Rows, scale_importance, sum_of_squares};
use super::search_qkx::AffineSearch;
use super::simd::{Kernel, Simd};
use super::sub_blocks::{ScaleLevels, SubBlocks};
use super::types::QK_K;

const BYTES: usize = 84;
/// Sub-blocks of a block, and weights of a sub-block.
const SUBS: usize = 16;

/// Encodes blocks (`quantize_row_q2_K_ref`, and `quantize_row_q2_K_impl` with importance).
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
        let search = if IMPORTANCE {
            AffineSearch::with_importance(3)
        } else {
            AffineSearch { max_level: 3, first: -0.5, step: 0.1, steps: 15, magnitude: true }
        };
        let mut x = [zero; QK_K];
        let mut w = x;
        let levels = ScaleLevels { max: 15, limit: 255, searched: IMPORTANCE };
        let mut found = SubBlocks::<SUBS>::new();
        for (g, out) in self.dst.chunks_mut(V::N * BYTES).enumerate() {
            let group = self.rows.group(g * V::N, V::N, QK_K);
            V::transpose(self.rows.src, &group.starts, &mut x);
            if IMPORTANCE {
                V::transpose(self.rows.importance.unwrap_or_default(), &group.columns, &mut w);
                let sigma2 = sum_of_squares(&x) / V::splat(QK_K as f32);
                scale_importance(&mut w, &x, sigma2);
            } else {
                for i in 0..QK_K {
                    w[i] = x[i].abs();
                }
            }

            found.search::<V, SUBS>(&x, &w, search, levels);
            for (s, out) in out.chunks_exact_mut(BYTES).enumerate() {
                let x = &self.rows.src[group.starts[s]..][..QK_K];
                write::<V>(x, &found, s, out);
            }
        }
    }
}

/// Writes the block of lane `s`.
#[inline(always)]
fn write<V: Lanes>(x: &[f32], found: &SubBlocks<SUBS>, s: usize, out: &mut [u8]) {
    let (scale, min) = (f32_to_f16(found.scale[s]), f32_to_f16(found.min[s]));
    out[80..82].copy_from_slice(&scale.to_le_bytes());
    out[82..84].copy_from_slice(&min.to_le_bytes());
    let (scale, min) = (f16_to_f32_one(scale), f16_to_f32_one(min));
    let mut levels = [0; QK_K];
    for (j, levels) in levels.as_chunks_mut::<SUBS>().0.iter_mut().enumerate() {
        let x = &x[j * SUBS..][..SUBS];
        let byte = found.scale_levels[j][s] | found.min_levels[j][s] << 4;
        out[j] = byte;
        let scale_and_min = (scale * f32::from(byte & 15), min * f32::from(byte >> 4));
        found.levels::<V>((j, s), x, scale_and_min, 3, levels);
    }
    pack_2_bits(&levels, &mut out[16..80]);
}

/// Decodes one block (`dequantize_row_q2_K`).
#[inline(always)]
pub(super) fn decode(src: &[u8], dst: &mut [f32]) {
    let (scale, min) = (read_f16(&src[80..]), read_f16(&src[82..]));
    for (j, y) in dst.chunks_exact_mut(SUBS).enumerate() {
        let (scale, min) = (scale * f32::from(src[j] & 15), min * f32::from(src[j] >> 4));
        for (i, y) in y.iter_mut().enumerate() {
            *y = scale * f32::from(unpack_2_bits(&src[16..80], j * SUBS + i)) - min;
        }
    }
}
