//! Q8_0: 32 weights in 34 bytes.
//!
//! | bytes | content |
//! |-------|---------|
//! | 0..2  | scale, half precision |
//! | 2..34 | levels, -127..=127 |
//!
//! A weight is `scale * level`.

use super::half_types::{f32_to_f16, read_f16};
use super::lanes::Lanes;
use super::simd::{Kernel, Simd};

const BYTES: usize = 34;
/// Blocks whose scales are found together.
const GROUP: usize = 16;

/// Encodes blocks (`quantize_row_q8_0_ref`; importance has no part in it).
pub(super) fn encode(src: &[f32], dst: &mut [u8], simd: Simd) {
    simd.run(Encoder { src, dst });
}

struct Encoder<'a> {
    src: &'a [f32],
    dst: &'a mut [u8],
}

impl Kernel for Encoder<'_> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let dst = self.dst.as_chunks_mut::<BYTES>().0;
        // Scales of many blocks at once are found in vector registers; one at a time they take as long as the levels.
        for (group, out) in self.src.as_chunks::<32>().0.chunks(GROUP).zip(dst.chunks_mut(GROUP)) {
            let mut scales = [0.0; GROUP];
            for (x, scale) in group.iter().zip(&mut scales) {
                *scale = largest_magnitude::<V>(x) / 127.0;
            }
            let (mut factors, mut halves) = ([0.0; GROUP], [0; GROUP]);
            for b in 0..GROUP {
                factors[b] = if scales[b] != 0.0 { 1.0 / scales[b] } else { 0.0 };
                halves[b] = f32_to_f16(scales[b]);
            }
            for (b, (x, out)) in group.iter().zip(out).enumerate() {
                let factor = V::splat(factors[b]);
                out[..2].copy_from_slice(&halves[b].to_le_bytes());
                for i in (0..32).step_by(V::N) {
                    V::store_u8((V::load(&x[i..]) * factor).round_away(), &mut out[2 + i..]);
                }
            }
        }
    }
}

/// The largest magnitude of some numbers.
#[inline(always)]
pub(super) fn largest_magnitude<V: Lanes>(x: &[f32]) -> f32 {
    let mut largest = V::splat(0.0);
    for i in (0..x.len()).step_by(V::N) {
        largest = V::load(&x[i..]).abs().max(largest);
    }
    largest.largest()
}

/// Decodes one block (`dequantize_row_q8_0`).
#[inline(always)]
pub(super) fn decode(src: &[u8], dst: &mut [f32]) {
    let scale = read_f16(src);
    for (y, &level) in dst.iter_mut().zip(&src[2..]) {
        *y = f32::from(level as i8) * scale;
    }
}
