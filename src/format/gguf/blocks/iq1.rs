//! IQ1_S and IQ1_M: 256 weights in 50 or 56 bytes, eight weights to a code. Only read.
//!
//! | IQ1_S  | IQ1_M  | content |
//! |--------|--------|---------|
//! | 0..2   |        | scale of the scales, half precision |
//! | 2..34  | 0..32  | low eight bits of the codes |
//! | 34..50 |        | for each 32 weights a word: four times the high three bits of a code, three bits of the scale, and the sign of the shift |
//! |        | 32..48 | four bits to a code: its high three bits, and the sign of the shift |
//! |        | 48..56 | four words: four times three bits of the scale of 16 weights, and four bits of the scale of the scales |
//!
//! A weight is `scale of the scales * (2 * scale + 1) * (value of the grid + shift)`, where the shift is an eighth.

use super::grids;
use super::half_types::read_f16;

const VALUES: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];
/// `IQ1S_DELTA`.
const SHIFT: f32 = 0.125;

#[inline(always)]
fn put_eight(code: usize, scale: f32, negative: bool, out: &mut [f32]) {
    let shift = if negative { -SHIFT } else { SHIFT };
    let grid = grids::IQ1[code];
    for (j, y) in out[..8].iter_mut().enumerate() {
        *y = scale * (VALUES[usize::from(grid >> (2 * j) & 3)] + shift);
    }
}

/// Decodes one block of IQ1_S (`dequantize_row_iq1_s`).
#[inline(always)]
pub(super) fn decode_s(src: &[u8], dst: &mut [f32]) {
    let d = read_f16(src);
    for (i, out) in dst.chunks_exact_mut(8).enumerate() {
        let at = 34 + i / 4 * 2;
        let word = u16::from_le_bytes([src[at], src[at + 1]]);
        let scale = d * (2 * (word >> 12 & 7) + 1) as f32;
        let high = usize::from(word >> (3 * (i % 4)) & 7);
        put_eight(usize::from(src[2 + i]) | high << 8, scale, word & 0x8000 != 0, out);
    }
}

/// Decodes one block of IQ1_M (`dequantize_row_iq1_m`).
#[inline(always)]
pub(super) fn decode_m(src: &[u8], dst: &mut [f32]) {
    let word = |i: usize| u16::from_le_bytes([src[48 + 2 * i], src[49 + 2 * i]]);
    let bits = word(0) >> 12 | word(1) >> 8 & 0x00f0 | word(2) >> 4 & 0x0f00 | word(3) & 0xf000;
    let d = read_f16(&bits.to_le_bytes());
    for (i, out) in dst.chunks_exact_mut(8).enumerate() {
        let high = src[32 + i / 2] >> (i % 2 * 4) & 15;
        let three = word(i / 8) >> (i / 2 % 4 * 3) & 7;
        let scale = d * (2 * three + 1) as f32;
        put_eight(usize::from(src[i]) | usize::from(high & 7) << 8, scale, high & 8 != 0, out);
    }
}
