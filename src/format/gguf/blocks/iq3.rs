//! IQ3_XXS and IQ3_S: 256 weights in 98 or 110 bytes, four weights to a code. Only read.
//!
//! | IQ3_XXS | IQ3_S    | content |
//! |---------|----------|---------|
//! | 0..2    | 0..2     | scale of the scales, half precision |
//! | 2..66   | 2..66    | low eight bits of the codes |
//! |         | 66..74   | ninth bit of the codes, from the low bit up |
//! |         | 74..106  | signs, a bit to a weight |
//! | 66..98  |          | for each 32 weights a word: four times seven bits of signs, and in its upper four bits the scale |
//! |         | 106..110 | scales of 32 weights, four bits each |
//!
//! A weight of IQ3_XXS is `scale of the scales * (scale + 0.5) / 2` times the value of the grid, one of IQ3_S
//! `scale of the scales * (2 * scale + 1)` times it.

use super::codebook::{even_signs, put_four};
use super::grids;
use super::half_types::read_f16;

const XXS_VALUES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
const S_VALUES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

/// Decodes one block of IQ3_XXS (`dequantize_row_iq3_xxs`).
#[inline(always)]
pub(super) fn decode_xxs(src: &[u8], dst: &mut [f32]) {
    let d = read_f16(src);
    for (i, out) in dst.chunks_exact_mut(4).enumerate() {
        let at = 66 + i / 8 * 4;
        let rest = u32::from_le_bytes([src[at], src[at + 1], src[at + 2], src[at + 3]]);
        let scale = d * (0.5 + (rest >> 28) as f32) * 0.5;
        let signs = even_signs(rest >> (7 * (i / 2 % 4))) >> (i % 2 * 4);
        put_four(grids::IQ3_XXS[usize::from(src[2 + i])], &XXS_VALUES, scale, signs, out);
    }
}

/// Decodes one block of IQ3_S (`dequantize_row_iq3_s`).
#[inline(always)]
pub(super) fn decode_s(src: &[u8], dst: &mut [f32]) {
    let d = read_f16(src);
    for (i, out) in dst.chunks_exact_mut(4).enumerate() {
        let four = src[106 + i / 16] >> (i / 8 % 2 * 4) & 15;
        let scale = d * (1 + 2 * i32::from(four)) as f32;
        let high = usize::from(src[66 + i / 8] >> (i % 8) & 1);
        let code = usize::from(src[2 + i]) | high << 8;
        let signs = u32::from(src[74 + i / 2] >> (i % 2 * 4));
        put_four(grids::IQ3_S[code], &S_VALUES, scale, signs, out);
    }
}
