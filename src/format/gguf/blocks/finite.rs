//! Finds NaN and infinity in raw weights.

use super::lanes::Lanes;
use super::simd::{Kernel, Simd};
use crate::format::gguf::types::GgmlType;

/// Whether none of some little-endian weights of type F32, F16 or BF16 is NaN or infinite: has all bits of its exponent
/// set.
///
/// # Panics
///
/// If the type is another one.
pub fn is_finite(ty: GgmlType, bytes: &[u8]) -> bool {
    let mut finite = true;
    Simd::best().run(Search { ty, bytes, finite: &mut finite });
    finite
}

struct Search<'a> {
    ty: GgmlType,
    bytes: &'a [u8],
    finite: &'a mut bool,
}

impl Kernel for Search<'_> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        *self.finite = match self.ty {
            GgmlType::F32 => none::<4>(self.bytes, |w| u32::from_le_bytes(w) & 0x7f80_0000 == 0x7f80_0000),
            GgmlType::F16 => none::<2>(self.bytes, |w| u16::from_le_bytes(w) & 0x7c00 == 0x7c00),
            GgmlType::BF16 => none::<2>(self.bytes, |w| u16::from_le_bytes(w) & 0x7f80 == 0x7f80),
            other => panic!("{other} is not a type of source weights"),
        };
    }
}

/// Counts over pieces rather than stopping at the first: without branches the loop is vectorised.
#[inline(always)]
fn none<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> bool {
    const PIECE: usize = 4096;
    bytes
        .chunks(PIECE)
        .all(|piece| piece.as_chunks::<N>().0.iter().map(|w| u16::from(bad(*w))).sum::<u16>() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_weight_anywhere_is_found() {
        for at in [0, 1, 2047, 2048, 4999] {
            let mut f32s = vec![1.5f32; 5000];
            f32s[at] = f32::NAN;
            assert!(!is_finite(GgmlType::F32, bytemuck::cast_slice(&f32s)));
            let mut bf16s = vec![half::bf16::MAX; 5000];
            assert!(is_finite(
                GgmlType::BF16,
                bytemuck::cast_slice(&bf16s.iter().map(|h| h.to_bits()).collect::<Vec<_>>())
            ));
            bf16s[at] = half::bf16::NEG_INFINITY;
            assert!(!is_finite(
                GgmlType::BF16,
                bytemuck::cast_slice(&bf16s.iter().map(|h| h.to_bits()).collect::<Vec<_>>())
            ));
            let mut f16s = vec![half::f16::MAX.to_bits(); 5000];
            assert!(is_finite(GgmlType::F16, bytemuck::cast_slice(&f16s)));
            f16s[at] = half::f16::INFINITY.to_bits();
            assert!(!is_finite(GgmlType::F16, bytemuck::cast_slice(&f16s)));
        }
    }
}
