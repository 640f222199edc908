//! Encoders and decoders of the GGML block types.
//!
//! The bytes are those of `ggml_quantize_chunk` in llama.cpp, for each type with and without importance. There is one
//! implementation of each type, generic over the number of lanes: searches run over many blocks at a time,
//! one block per lane, and the levels found are packed block by block. Each type's file describes its layout and holds
//! its encoder and decoder.

#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of lanes")]

mod affine32;
mod codebook;
#[cfg(test)]
pub(crate) mod corpus;
mod difference;
mod finite;
mod grids;
mod half_types;
mod iq1;
mod iq2;
mod iq3;
mod iq4;
mod lanes;
mod levels;
mod mxfp4;
mod nearest;
mod q2_k;
mod q3_k;
mod q4_k_q5_k;
mod q6_k;
mod q8_0;
mod rows;
mod search_q3;
mod search_qkx;
mod search_qp;
mod search_qx;
mod simd;
mod sub_blocks;
mod symmetric32;
#[cfg(test)]
mod tests;
mod tq;
mod wide;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use difference::difference;
pub use finite::is_finite;
pub use half_types::{bf16_to_f32, f16_to_f32, f32_from_le};
use lanes::Lanes;
use rows::Rows;
use simd::Kernel;
pub use simd::{Simd, Work};

use super::types::{self, GgmlType};

/// Encodes whole rows.
///
/// `src` holds rows of `n_per_row` weights, `weights` one importance per column (`n_per_row` of them, used for every
/// row), and `dst` takes exactly `ty.bytes_for(src.len())` bytes. The result is that of `ggml_quantize_chunk` and does
/// not depend on `simd`. Types that know no importance ignore it.
///
/// # Panics
///
/// If a size is wrong (a row must be whole blocks), the type is not writable, or the machine lacks the instruction set.
pub fn encode(
    ty: GgmlType,
    src: &[f32],
    n_per_row: usize,
    weights: Option<&[f32]>,
    dst: &mut [u8],
    simd: Simd,
) {
    assert!(n_per_row > 0 && n_per_row.is_multiple_of(ty.block_len()), "{n_per_row} columns in {ty}");
    assert!(src.len().is_multiple_of(n_per_row), "{} weights in rows of {n_per_row}", src.len());
    assert!(weights.is_none_or(|w| w.len() == n_per_row), "one importance for each of {n_per_row} columns");
    assert_eq!(dst.len(), src.len() / ty.block_len() * ty.block_bytes(), "bytes for {} weights", src.len());
    let rows = Rows { src, n_per_row, importance: weights };
    match ty {
        GgmlType::F32 => half_types::encode_f32(src, dst, simd),
        GgmlType::F16 => half_types::encode_f16(src, dst, simd),
        GgmlType::BF16 => half_types::encode_bf16(src, dst, simd),
        GgmlType::Q8_0 => q8_0::encode(src, dst, simd),
        GgmlType::Q4_0 => symmetric32::encode::<4>(rows, dst, simd),
        GgmlType::Q5_0 => symmetric32::encode::<5>(rows, dst, simd),
        GgmlType::Q4_1 => affine32::encode::<4>(rows, dst, simd),
        GgmlType::Q5_1 => affine32::encode::<5>(rows, dst, simd),
        GgmlType::Q2_K => q2_k::encode(rows, dst, simd),
        GgmlType::Q3_K => q3_k::encode(rows, dst, simd),
        GgmlType::Q4_K => q4_k_q5_k::encode::<4>(rows, dst, simd),
        GgmlType::Q5_K => q4_k_q5_k::encode::<5>(rows, dst, simd),
        GgmlType::Q6_K => q6_k::encode(rows, dst, simd),
        GgmlType::IQ4_NL => iq4::encode_nl(rows, dst, simd),
        GgmlType::IQ4_XS => iq4::encode_xs(rows, dst, simd),
        GgmlType::TQ1_0 => tq::encode::<1>(src, dst, simd),
        GgmlType::TQ2_0 => tq::encode::<2>(src, dst, simd),
        _ => panic!("{ty} is not a type that can be written"),
    }
}

/// Decodes blocks of `$bytes` bytes to `$len` weights, compiled for the best instruction set. A macro, because a function
/// that is passed as a value is compiled on its own, for the oldest processor.
macro_rules! each_block {
    ($src:expr, $dst:expr, $len:expr, $bytes:expr, $decode:expr) => {{
        struct Decoder<'a>(&'a [u8], &'a mut [f32]);
        impl Kernel for Decoder<'_> {
            #[inline(always)]
            fn run<V: Lanes>(self) {
                for (src, dst) in self.0.as_chunks::<$bytes>().0.iter().zip(self.1.as_chunks_mut::<$len>().0)
                {
                    $decode(src, dst);
                }
            }
        }
        Simd::best().run(Decoder($src, $dst))
    }};
}

/// Decodes whole blocks, with the arithmetic of `dequantize_row_*` in llama.cpp.
///
/// # Panics
///
/// If `src` is not exactly the bytes of `dst.len()` weights, or the type is not readable.
pub fn decode(ty: GgmlType, src: &[u8], dst: &mut [f32]) {
    assert!(dst.len().is_multiple_of(ty.block_len()), "{} weights in {ty}", dst.len());
    assert_eq!(src.len(), dst.len() / ty.block_len() * ty.block_bytes(), "bytes for {} weights", dst.len());
    match ty {
        GgmlType::F32 => drop(f32_from_le(src, dst, Simd::best())),
        GgmlType::F16 => drop(f16_to_f32(src, dst, Simd::best())),
        GgmlType::BF16 => drop(bf16_to_f32(src, dst, Simd::best())),
        GgmlType::Q8_0 => each_block!(src, dst, 32, 34, q8_0::decode),
        GgmlType::Q4_0 => each_block!(src, dst, 32, 18, symmetric32::decode::<4>),
        GgmlType::Q5_0 => each_block!(src, dst, 32, 22, symmetric32::decode::<5>),
        GgmlType::Q4_1 => each_block!(src, dst, 32, 20, affine32::decode::<4>),
        GgmlType::Q5_1 => each_block!(src, dst, 32, 24, affine32::decode::<5>),
        GgmlType::Q2_K => each_block!(src, dst, 256, 84, q2_k::decode),
        GgmlType::Q3_K => each_block!(src, dst, 256, 110, q3_k::decode),
        GgmlType::Q4_K => each_block!(src, dst, 256, 144, q4_k_q5_k::decode::<4>),
        GgmlType::Q5_K => each_block!(src, dst, 256, 176, q4_k_q5_k::decode::<5>),
        GgmlType::Q6_K => each_block!(src, dst, 256, 210, q6_k::decode),
        GgmlType::IQ4_NL => each_block!(src, dst, 32, 18, iq4::decode_nl),
        GgmlType::IQ4_XS => each_block!(src, dst, 256, 136, iq4::decode_xs),
        GgmlType::IQ1_S => each_block!(src, dst, 256, 50, iq1::decode_s),
        GgmlType::IQ1_M => each_block!(src, dst, 256, 56, iq1::decode_m),
        GgmlType::IQ2_XXS => each_block!(src, dst, 256, 66, iq2::decode_xxs),
        GgmlType::IQ2_XS => each_block!(src, dst, 256, 74, iq2::decode_xs),
        GgmlType::IQ2_S => each_block!(src, dst, 256, 82, iq2::decode_s),
        GgmlType::IQ3_XXS => each_block!(src, dst, 256, 98, iq3::decode_xxs),
        GgmlType::IQ3_S => each_block!(src, dst, 256, 110, iq3::decode_s),
        GgmlType::MXFP4 => each_block!(src, dst, 32, 17, mxfp4::decode),
        GgmlType::TQ1_0 => each_block!(src, dst, 256, 54, tq::decode_tq1),
        GgmlType::TQ2_0 => each_block!(src, dst, 256, 66, tq::decode_tq2),
        GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 | GgmlType::F64 => {
            panic!("{ty} is not a type of weights")
        }
    }
}
