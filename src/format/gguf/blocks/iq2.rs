//! IQ2_XXS, IQ2_XS and IQ2_S: 256 weights in 66, 74 or 82 bytes, eight weights to a code. Only read.
//!
//! | IQ2_XXS | IQ2_XS | IQ2_S  | content |
//! |---------|--------|--------|---------|
//! | 0..2    | 0..2   | 0..2   | scale of the scales, half precision |
//! | 2..66   |        |        | for each 32 weights four codes of a byte, then a word: four times seven bits of signs, and in its upper four bits the scale |
//! |         | 2..66  |        | codes of two bytes: nine bits of the grid, seven of signs |
//! |         |        | 2..34  | low eight bits of the codes |
//! |         |        | 34..66 | signs, a byte to a code |
//! |         |        | 66..74 | high two bits of the codes, a byte to four of them |
//! |         | 66..74 | 74..82 | scales of 16 weights, four bits each |
//!
//! A weight is `scale of the scales * (scale + 0.5) / 4` times the value of the grid.

use super::codebook::{even_signs, put_eight};
use super::grids;
use super::half_types::read_f16;

#[inline(always)]
fn word(src: &[u8]) -> u32 {
    u32::from_le_bytes([src[0], src[1], src[2], src[3]])
}

/// Decodes one block of IQ2_XXS (`dequantize_row_iq2_xxs`).
#[inline(always)]
pub(super) fn decode_xxs(src: &[u8], dst: &mut [f32]) {
    let d = read_f16(src);
    for (part, out) in src[2..].chunks_exact(8).zip(dst.chunks_exact_mut(32)) {
        let rest = word(&part[4..]);
        let scale = d * (0.5 + (rest >> 28) as f32) * 0.25;
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            put_eight(grids::IQ2_XXS[usize::from(part[l])], scale, even_signs(rest >> (7 * l)), out);
        }
    }
}

/// Decodes one block of IQ2_XS (`dequantize_row_iq2_xs`).
#[inline(always)]
pub(super) fn decode_xs(src: &[u8], dst: &mut [f32]) {
    let d = read_f16(src);
    for (i, out) in dst.chunks_exact_mut(8).enumerate() {
        let code = u16::from_le_bytes([src[2 + 2 * i], src[3 + 2 * i]]);
        let scale = scale(d, &src[66..], i);
        put_eight(grids::IQ2_XS[usize::from(code & 511)], scale, even_signs(u32::from(code >> 9)), out);
    }
}

/// Decodes one block of IQ2_S (`dequantize_row_iq2_s`).
#[inline(always)]
pub(super) fn decode_s(src: &[u8], dst: &mut [f32]) {
    let d = read_f16(src);
    for (i, out) in dst.chunks_exact_mut(8).enumerate() {
        let high = usize::from(src[66 + i / 4] >> (2 * (i % 4)) & 3);
        let code = usize::from(src[2 + i]) | high << 8;
        put_eight(grids::IQ2_S[code], scale(d, &src[74..], i), u32::from(src[34 + i]), out);
    }
}

/// The scale of the `i`-th eight weights.
#[inline(always)]
fn scale(d: f32, scales: &[u8], i: usize) -> f32 {
    let four = scales[i / 4] >> (i / 2 % 2 * 4) & 15;
    d * (0.5 + f32::from(four)) * 0.25
}
