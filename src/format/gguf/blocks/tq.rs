//! TQ1_0 and TQ2_0: 256 ternary weights in 54 or 66 bytes.
//!
//! | TQ1_0  | TQ2_0  | content |
//! |--------|--------|---------|
//! | 0..48  |        | weights 0..240, five to a byte: base 3, the first one most significant, as a fraction of 256 |
//! | 48..52 |        | weights 240..256, four to a byte |
//! |        | 0..64  | two bits a weight: of 128 weights, byte `i` holds `i`, `i + 32`, `i + 64`, `i + 96` |
//! | 52..54 | 64..66 | scale, half precision |
//!
//! A weight is `scale * (level - 1)`. Of the first 160 weights of TQ1_0 byte `i` holds `i + 32 * n`, of the next 80
//! byte `32 + i` holds `i + 16 * n`, and of the last 16 byte `48 + i` holds `i + 4 * n`.

use super::half_types::{f32_to_f16, read_f16};
use super::lanes::Lanes;
use super::levels::{pack_2_bits, unpack_2_bits};
use super::q8_0::largest_magnitude;
use super::simd::{Kernel, Simd};
use super::types::QK_K;

/// (first byte, bytes, first weight, weights per byte) of the parts of a TQ1_0 block.
const PARTS: [(usize, usize, usize, usize); 3] = [(0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4)];

/// Encodes blocks of TQ1_0 (`T` = 1, `quantize_row_tq1_0_ref`) or TQ2_0 (`T` = 2, `quantize_row_tq2_0_ref`); importance
/// has no part in it.
pub(super) fn encode<const T: u32>(src: &[f32], dst: &mut [u8], simd: Simd) {
    simd.run(Encoder::<T> { src, dst });
}

struct Encoder<'a, const T: u32> {
    src: &'a [f32],
    dst: &'a mut [u8],
}

impl<const T: u32> Kernel for Encoder<'_, T> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let level_bytes = if T == 1 { 52 } else { 64 };
        let dst = self.dst.chunks_exact_mut(level_bytes + 2);
        for (x, out) in self.src.as_chunks::<QK_K>().0.iter().zip(dst) {
            let scale = largest_magnitude::<V>(x);
            let factor = V::splat(if scale != 0.0 { 1.0 / scale } else { 0.0 });
            let mut levels = [0; QK_K];
            for i in (0..QK_K).step_by(V::N) {
                let l = (V::load(&x[i..]) * factor).round_away();
                V::store_u8(V::int_sub(l, V::int(-1)), &mut levels[i..]);
            }
            let (out, out_scale) = out.split_at_mut(level_bytes);
            if T == 1 {
                for (byte, bytes, weight, per_byte) in PARTS {
                    pack_base_3(&levels[weight..], per_byte, &mut out[byte..byte + bytes]);
                }
            } else {
                pack_2_bits(&levels, out);
            }
            out_scale.copy_from_slice(&f32_to_f16(scale).to_le_bytes());
        }
    }
}

/// Packs `per_byte` levels to a byte, the `n`-th of byte `i` being `levels[i + n * out.len()]`.
#[inline(always)]
fn pack_base_3(levels: &[u8], per_byte: usize, out: &mut [u8]) {
    let bytes = out.len();
    let levels = &levels[..per_byte * bytes];
    for (i, out) in out.iter_mut().enumerate() {
        let mut q = 0u8;
        for n in 0..5 {
            let level = if n < per_byte { levels[i + n * bytes] } else { 0 };
            q = q.wrapping_mul(3).wrapping_add(level);
        }
        // As a fraction of 3^5, rounded up, so that multiplying by 3 brings one level after the other to the top.
        *out = ((u16::from(q) * 256 + 242) / 243) as u8;
    }
}

/// Decodes one block of TQ1_0 (`dequantize_row_tq1_0`).
#[inline(always)]
pub(super) fn decode_tq1(src: &[u8], dst: &mut [f32]) {
    let scale = read_f16(&src[52..]);
    for (byte, bytes, weight, per_byte) in PARTS {
        for n in 0..per_byte {
            for i in 0..bytes {
                let q = src[byte + i].wrapping_mul([1, 3, 9, 27, 81][n]);
                let level = (u16::from(q) * 3) >> 8;
                dst[weight + n * bytes + i] = (f32::from(level) - 1.0) * scale;
            }
        }
    }
}

/// Decodes one block of TQ2_0 (`dequantize_row_tq2_0`).
#[inline(always)]
pub(super) fn decode_tq2(src: &[u8], dst: &mut [f32]) {
    let scale = read_f16(&src[64..]);
    for (i, y) in dst.iter_mut().enumerate() {
        *y = (f32::from(unpack_2_bits(src, i)) - 1.0) * scale;
    }
}
