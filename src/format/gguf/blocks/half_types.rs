//! The 16-bit floats: conversions of single values and of rows, and the types F32, F16 and BF16.
//!
//! A row of one of these types has no blocks: each weight is 4 or 2 bytes, little-endian.

use super::lanes::Lanes;
use super::simd::{Kernel, Simd};

/// Rounds to half precision, to nearest with ties to even (`ggml_compute_fp32_to_fp16`). Every NaN becomes the same
/// quiet NaN with its sign kept.
#[inline(always)]
pub(super) fn f32_to_f16(v: f32) -> u16 {
    // Scaling up and down again turns what is too large for half precision into infinity.
    let base = (v.abs() * f32::from_bits(0x7780_0000)) * f32::from_bits(0x0880_0000);
    let bits = v.to_bits();
    let twice = bits << 1;
    let exponent = (twice & 0xff00_0000).max(0x7100_0000);
    // The sum has the half's mantissa in its low bits, rounded by the addition.
    let sum = (f32::from_bits((exponent >> 1) + 0x0780_0000) + base).to_bits();
    let magnitude = ((sum >> 13) & 0x7c00) + (sum & 0x0fff);
    let magnitude = if twice > 0xff00_0000 { 0x7e00 } else { magnitude };
    ((bits >> 16) & 0x8000 | magnitude) as u16
}

/// Widens half precision (`ggml_compute_fp16_to_fp32`); exact.
#[inline(always)]
pub(super) fn f16_to_f32_one(h: u16) -> f32 {
    let shifted = u32::from(h) << 16;
    let twice = shifted << 1;
    let normal = f32::from_bits((twice >> 4) + (0xe0 << 23)) * f32::from_bits(0x0780_0000);
    let subnormal = f32::from_bits((twice >> 17) | (126 << 23)) - 0.5;
    let magnitude = if twice < 1 << 27 { subnormal } else { normal };
    f32::from_bits(shifted & 0x8000_0000 | magnitude.to_bits())
}

/// Rounds to bfloat16, to nearest with ties to even; a NaN is made quiet (`ggml_compute_fp32_to_bf16`).
#[inline(always)]
fn f32_to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 64;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

/// Reads the half at the start of a slice.
#[inline(always)]
pub(super) fn read_f16(src: &[u8]) -> f32 {
    f16_to_f32_one(u16::from_le_bytes([src[0], src[1]]))
}

macro_rules! widenings {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($from:ty) |$v:ident| $e:expr;)*) => {$(
        $(#[$doc])*
        /// Returns whether all values are finite; looking for that in the same pass costs next to nothing.
        ///
        /// # Panics
        ///
        /// If the slices do not hold the same number of values.
        $vis fn $name(src: &[u8], dst: &mut [f32], simd: Simd) -> bool {
            struct Each<'a>(&'a [$from], &'a mut [f32], &'a mut u32);
            impl Kernel for Each<'_> {
                #[inline(always)]
                fn run<V: Lanes>(self) {
                    let mut largest = 0;
                    for (&$v, out) in self.0.iter().zip(self.1) {
                        *out = $e;
                        // Magnitudes have the order of their bits, with infinity and NaN on top.
                        largest = largest.max(out.to_bits() & 0x7fff_ffff);
                    }
                    *self.2 = largest;
                }
            }
            assert!(src.len() == dst.len() * size_of::<$from>(), "sizes do not match");
            let mut largest = 0;
            simd.run(Each(bytemuck::cast_slice(src), dst, &mut largest));
            largest < f32::INFINITY.to_bits()
        }
    )*};
}

widenings! {
    /// Widens half precision, little-endian as safetensors files hold it.
    pub fn f16_to_f32([u8; 2]) |v| f16_to_f32_one(u16::from_le_bytes(v));
    /// Widens bfloat16, little-endian as safetensors files hold it.
    pub fn bf16_to_f32([u8; 2]) |v| f32::from_bits(u32::from(u16::from_le_bytes(v)) << 16);
    /// Reads little-endian floats at any alignment.
    pub fn f32_from_le([u8; 4]) |v| f32::from_le_bytes(v);
}

macro_rules! narrowings {
    ($($(#[$doc:meta])* fn $name:ident($to:ty) |$v:ident| $e:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Panics
        ///
        /// If the slices do not hold the same number of values.
        pub(super) fn $name(src: &[f32], dst: &mut [u8], simd: Simd) {
            struct Each<'a>(&'a [f32], &'a mut [$to]);
            impl Kernel for Each<'_> {
                #[inline(always)]
                fn run<V: Lanes>(self) {
                    for (&$v, out) in self.0.iter().zip(self.1) {
                        *out = $e;
                    }
                }
            }
            assert!(src.len() * size_of::<$to>() == dst.len(), "sizes do not match");
            simd.run(Each(src, bytemuck::cast_slice_mut(dst)));
        }
    )*};
}

narrowings! {
    /// Writes little-endian floats.
    fn encode_f32([u8; 4]) |v| v.to_le_bytes();
    /// Rounds to half precision.
    fn encode_f16([u8; 2]) |v| f32_to_f16(v).to_le_bytes();
    /// Rounds to bfloat16.
    fn encode_bf16([u8; 2]) |v| f32_to_bf16(v).to_le_bytes();
}
