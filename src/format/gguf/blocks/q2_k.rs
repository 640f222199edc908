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
use super::lanes::{Lanes, MAX_LANES};
use super::levels::{divide, multiply, pack_2_bits, unpack_2_bits};
use super::q4_k_q5_k::{quantize_by_largest, quantize_by_search};
use super::rows::{Rows, scale_importance, sum, sum_of_squares};
use super::search_qkx::{AffineSearch, points, search_affine};
use super::simd::{Kernel, Simd};
use super::types::QK_K;

const BYTES: usize = 84;
/// Sub-blocks of a block, and weights of a sub-block.
const SUBS: usize = 16;
/// Sub-blocks searched side by side.
const TOGETHER: usize = 2;

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

/// Per sub-block and lane, what is needed to write the blocks.
struct Found {
    scale_levels: [[u8; MAX_LANES]; SUBS],
    min_levels: [[u8; MAX_LANES]; SUBS],
    factors: [[f32; MAX_LANES]; SUBS],
    offsets: [[f32; MAX_LANES]; SUBS],
    scale: [f32; MAX_LANES],
    min: [f32; MAX_LANES],
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
        let mut found = Found {
            scale_levels: [[0; MAX_LANES]; SUBS],
            min_levels: [[0; MAX_LANES]; SUBS],
            factors: [[0.0; MAX_LANES]; SUBS],
            offsets: [[0.0; MAX_LANES]; SUBS],
            scale: [0.0; MAX_LANES],
            min: [0.0; MAX_LANES],
        };
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

            let (mut scales, mut mins, mut sums) = ([zero; SUBS], [zero; SUBS], [zero; SUBS]);
            let (subs, weights) = (x.as_chunks::<SUBS>().0, w.as_chunks::<SUBS>().0);
            let pairs = subs.as_chunks::<TOGETHER>().0.iter().zip(weights.as_chunks().0);
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
            let (scale, min) = if IMPORTANCE {
                (
                    quantize_by_search(&scales, &sums, 15, 255, scale_levels),
                    quantize_by_search(&mins, &sums, 15, 255, min_levels),
                )
            } else {
                (
                    quantize_by_largest(&scales, 15, 255, scale_levels),
                    quantize_by_largest(&mins, 15, 255, min_levels),
                )
            };
            scale.store(&mut found.scale);
            min.store(&mut found.min);

            for (s, out) in out.chunks_exact_mut(BYTES).enumerate() {
                let x = &self.rows.src[group.starts[s]..][..QK_K];
                write::<V>(x, &found, s, out);
            }
        }
    }
}

/// Writes the block of lane `s`.
#[inline(always)]
fn write<V: Lanes>(x: &[f32], found: &Found, s: usize, out: &mut [u8]) {
    let (scale, min) = (f32_to_f16(found.scale[s]), f32_to_f16(found.min[s]));
    out[80..82].copy_from_slice(&scale.to_le_bytes());
    out[82..84].copy_from_slice(&min.to_le_bytes());
    let (scale, min) = (f16_to_f32_one(scale), f16_to_f32_one(min));
    let mut levels = [0; QK_K];
    for (j, levels) in levels.as_chunks_mut::<SUBS>().0.iter_mut().enumerate() {
        let x = &x[j * SUBS..][..SUBS];
        let byte = found.scale_levels[j][s] | found.min_levels[j][s] << 4;
        out[j] = byte;
        let scale = scale * f32::from(byte & 15);
        if scale == 0.0 {
            // Nothing to divide by: the levels of the search stay.
            multiply::<V>(x, found.factors[j][s], found.offsets[j][s], 0, 3, levels);
        } else {
            divide::<V>(x, scale, min * f32::from(byte >> 4), 0, 3, levels);
        }
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
