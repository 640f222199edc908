//! A matrix with or without a bias.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use super::bf16::Packed;
use super::compute::Compute;
use super::rows;
use crate::error::Result;

/// `x * weight^T + bias`.
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    /// `[out]`.
    bias: Option<Tensor>,
}

#[derive(Debug)]
enum Weight {
    /// `[out, in]`.
    F32(Tensor),
    Bf16(Packed),
}

impl Linear {
    /// From weights `[out, in]` and a bias `[out]`.
    pub(super) fn new(weight: Tensor, bias: Option<Tensor>, compute: Compute) -> Result<Linear> {
        let weight = match compute {
            Compute::F32 => Weight::F32(weight),
            Compute::Bf16 => {
                let (_, inner) = weight.dims2()?;
                Weight::Bf16(rows::with_slice(&weight, |values| Packed::new(values, inner))?)
            }
        };
        Ok(Linear { weight, bias })
    }

    /// `[tokens, in]` in, `[tokens, out]` out.
    ///
    /// # Errors
    /// Those of candle.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::F32(weight) => x.matmul(&weight.t()?)?,
            Weight::Bf16(packed) => x.contiguous()?.apply_op1_no_bwd(&Product(packed))?,
        };
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

/// The product with a packed matrix.
struct Product<'a>(&'a Packed);

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "bf16-matmul"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (tokens, inner) = layout.shape().dims2()?;
        if inner != self.0.inner() {
            candle_core::bail!("rows of {inner} cannot be multiplied by a matrix of {}", self.0.inner());
        }
        let y = self.0.multiply(rows::slice(x, layout)?);
        let shape = Shape::from((tokens, self.0.out()));
        Ok((CpuStorage::F32(y), shape))
    }
}
