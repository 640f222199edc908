//! A matrix with or without a bias.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::rows;
use crate::error::Result;

/// Values that one thread rounds at a time.
const PIECE: usize = 1 << 14;

/// `x * weight^T + bias`.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub(super) weight: Tensor,
    /// `[out]`.
    pub(super) bias: Option<Tensor>,
    /// Whether the input is rounded to bfloat16.
    pub(super) rounds: bool,
}

impl Linear {
    /// `[tokens, in]` in, `[tokens, out]` out.
    ///
    /// # Errors
    /// Those of candle.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match self.rounds {
            true => x.contiguous()?.apply_op1_no_bwd(&Round)?.matmul(&self.weight.t()?)?,
            false => x.matmul(&self.weight.t()?)?,
        };
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

/// Rounds to bfloat16 and back, halves to even.
struct Round;

impl CustomOp1 for Round {
    fn name(&self) -> &'static str {
        "round-to-bfloat16"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = rows::slice(x, layout)?;
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(out, x)| {
            out.iter_mut().zip(x).for_each(|(out, x)| *out = round(*x));
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

fn round(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    // The sum would carry NaN into other numbers.
    f32::from_bits(if x.is_nan() { bits } else { rounded })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_bfloat16() {
        let bits = (0..1u32 << 16).map(|i| i.wrapping_mul(0x9e37_79b1));
        let halves =
            [0x3f80_8000, 0x3f81_8000, 0xbf80_8000, 0x7f7f_ffff, 0x0000_8000, 0x8000_0001, 0x7f80_0000];
        for x in bits.chain(halves).map(f32::from_bits) {
            let expected = half::bf16::from_f32(x).to_f32();
            assert!(round(x) == expected || x.is_nan() && round(x).is_nan(), "{x:e} becomes {:e}", round(x));
        }
    }
}
