//! Q6_K: 256 weights in 210 bytes, sixteen sub-blocks of 16.
//!
//! | bytes    | content |
//! |----------|---------|
//! | 0..128   | low four bits: of 128 levels, byte `i` holds level `i` and, in its upper half, level `i + 64` |
//! | 128..192 | high two bits: of 128 levels, byte `i` holds `i`, `i + 32`, `i + 64`, `i + 96` |
//! | 192..208 | a signed scale of 8 bits for each sub-block |
//! | 208..210 | scale of the scales, half precision |
//!
//! A weight is `scale * (level - 32)`.

use super::half_types::{f16_to_f32_one, f32_to_f16, read_f16};
use super::lanes::{Lanes, MAX_LANES};
use super::levels::{divide, multiply, pack_2_bits, unpack_2_bits};
use super::rows::Rows;
use super::search_qx::{ZERO_BELOW, extreme, search_symmetric};
use super::simd::{Kernel, Simd};
use super::types::QK_K;

const BYTES: usize = 210;
/// Sub-blocks of a block, and weights of a sub-block.
const SUBS: usize = 16;

/// Encodes blocks (`quantize_row_q6_K_ref`, and `quantize_row_q6_K_impl` with importance).
pub(super) fn encode(rows: Rows<'_>, dst: &mut [u8], simd: Simd) {
    simd.run(Encoder { rows, dst });
}

struct Encoder<'a> {
    rows: Rows<'a>,
    dst: &'a mut [u8],
}

/// Per sub-block and lane, what is needed to write the blocks.
struct Found {
    scale_levels: [[u8; MAX_LANES]; SUBS],
    factors: [[f32; MAX_LANES]; SUBS],
    scale: [f32; MAX_LANES],
    magnitude: [f32; MAX_LANES],
}

impl Kernel for Encoder<'_> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let zero = V::splat(0.0);
        let mut x = [zero; QK_K];
        let mut w = x;
        let mut found = Found {
            scale_levels: [[0; MAX_LANES]; SUBS],
            factors: [[0.0; MAX_LANES]; SUBS],
            scale: [0.0; MAX_LANES],
            magnitude: [0.0; MAX_LANES],
        };
        for (g, out) in self.dst.chunks_mut(V::N * BYTES).enumerate() {
            let group = self.rows.group(g * V::N, V::N, QK_K);
            V::transpose(self.rows.src, &group.starts, &mut x);
            if let Some(importance) = self.rows.importance {
                V::transpose(importance, &group.columns, &mut w);
            } else {
                for i in 0..QK_K {
                    w[i] = x[i] * x[i];
                }
            }
            let mut scales = [zero; SUBS];
            let subs = x.as_chunks::<SUBS>().0.iter().zip(w.as_chunks::<SUBS>().0);
            for (j, (x, w)) in subs.enumerate() {
                let symmetric = search_symmetric(x, w, 32);
                scales[j] = symmetric.scale;
                symmetric.factor.store(&mut found.factors[j]);
            }

            let (magnitude, max) = extreme(&scales);
            let factor = V::splat(-128.0) / max;
            for j in 0..SUBS {
                let level = V::int_min(V::int(127), (factor * scales[j]).nearest());
                V::store_u8(level, &mut found.scale_levels[j]);
            }
            (V::splat(1.0) / factor).store(&mut found.scale);
            magnitude.store(&mut found.magnitude);

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
    if found.magnitude[s] < ZERO_BELOW {
        out.fill(0);
        return;
    }
    let scale = f32_to_f16(found.scale[s]);
    out[208..210].copy_from_slice(&scale.to_le_bytes());
    let scale = f16_to_f32_one(scale);
    let mut levels = [0; QK_K];
    for (j, levels) in levels.as_chunks_mut::<SUBS>().0.iter_mut().enumerate() {
        let x = &x[j * SUBS..][..SUBS];
        let scale_level = found.scale_levels[j][s];
        out[192 + j] = scale_level;
        let scale = scale * f32::from(scale_level as i8);
        if scale == 0.0 {
            // Nothing to divide by: the levels of the search stay.
            multiply::<V>(x, found.factors[j][s], 0.0, -32, 31, levels);
        } else {
            divide::<V>(x, scale, 0.0, -32, 31, levels);
        }
    }
    for (levels, out) in levels.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<64>().0) {
        for i in 0..64 {
            out[i] = levels[i] & 15 | levels[i + 64] << 4;
        }
    }
    for level in &mut levels {
        *level >>= 4;
    }
    pack_2_bits(&levels, &mut out[128..192]);
}

/// Decodes one block (`dequantize_row_q6_K`).
#[inline(always)]
pub(super) fn decode(src: &[u8], dst: &mut [f32]) {
    let scale = read_f16(&src[208..]);
    for (j, y) in dst.chunks_exact_mut(SUBS).enumerate() {
        let scale = scale * f32::from(src[192 + j] as i8);
        for (i, y) in y.iter_mut().enumerate() {
            let i = j * SUBS + i;
            let low = src[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
            let level = low | unpack_2_bits(&src[128..192], i) << 4;
            *y = scale * (i32::from(level) - 32) as f32;
        }
    }
}
