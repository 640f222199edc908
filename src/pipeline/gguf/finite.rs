//! Finds NaN and infinity in raw weights.

use crate::source::safetensors::FloatType;

/// Whether no weight is NaN or infinite: none has all bits of its exponent set. `bytes` are whole little-endian weights.
pub(crate) fn is_finite(dtype: FloatType, bytes: &[u8]) -> bool {
    // A sum over a whole piece keeps the loop free of branches, so that it is vectorised.
    const PIECE: usize = 4096;
    let none = |bad: fn(&[u8]) -> u32| bytes.chunks(PIECE).all(|piece| bad(piece) == 0);
    match dtype {
        FloatType::F32 => none(|p| count::<4>(p, |w| u32::from_le_bytes(w) & 0x7f80_0000 == 0x7f80_0000)),
        FloatType::F16 => none(|p| count::<2>(p, |w| u16::from_le_bytes(w) & 0x7c00 == 0x7c00)),
        FloatType::BF16 => none(|p| count::<2>(p, |w| u16::from_le_bytes(w) & 0x7f80 == 0x7f80)),
    }
}

#[inline(always)]
fn count<const N: usize>(piece: &[u8], bad: impl Fn([u8; N]) -> bool) -> u32 {
    piece.as_chunks::<N>().0.iter().map(|w| u32::from(bad(*w))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_weight_anywhere_is_found() {
        for at in [0, 1, 2047, 2048, 4999] {
            let mut f32s = vec![1.5f32; 5000];
            f32s[at] = f32::NAN;
            assert!(!is_finite(FloatType::F32, bytemuck::cast_slice(&f32s)));
            let mut bf16s = vec![half::bf16::MAX; 5000];
            assert!(is_finite(
                FloatType::BF16,
                bytemuck::cast_slice(&bf16s.iter().map(|h| h.to_bits()).collect::<Vec<_>>())
            ));
            bf16s[at] = half::bf16::NEG_INFINITY;
            assert!(!is_finite(
                FloatType::BF16,
                bytemuck::cast_slice(&bf16s.iter().map(|h| h.to_bits()).collect::<Vec<_>>())
            ));
            let mut f16s = vec![half::f16::MAX.to_bits(); 5000];
            assert!(is_finite(FloatType::F16, bytemuck::cast_slice(&f16s)));
            f16s[at] = half::f16::INFINITY.to_bits();
            assert!(!is_finite(FloatType::F16, bytemuck::cast_slice(&f16s)));
        }
    }
}
