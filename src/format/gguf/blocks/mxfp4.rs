//! MXFP4: 32 weights in 17 bytes, the OCP microscaling format. Only read.
//!
//! | bytes | content |
//! |-------|---------|
//! | 0     | scale as a power of two, biased by 127 |
//! | 1..17 | byte `i`: weight `i`, and weight `i + 16` in the upper half, as 4-bit floats (a sign, two bits of exponent, one of fraction) |

/// Twice what the 4-bit floats stand for (`kvalues_mxfp4`).
const VALUES: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// Decodes one block (`dequantize_row_mxfp4`).
#[inline(always)]
pub(super) fn decode(src: &[u8], dst: &mut [f32]) {
    let scale = half_power(src[0]);
    let (low, high) = dst.split_at_mut(16);
    for ((&byte, low), high) in src[1..17].iter().zip(low).zip(high) {
        *low = VALUES[usize::from(byte & 15)] * scale;
        *high = VALUES[usize::from(byte >> 4)] * scale;
    }
}

/// Half of the power of two; the two smallest are subnormal.
#[inline(always)]
fn half_power(biased: u8) -> f32 {
    f32::from_bits(match biased {
        0 | 1 => 0x0020_0000 << biased,
        more => u32::from(more - 1) << 23,
    })
}
