//! A matrix with or without a bias.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};

use super::bf16::{self, Packed};
use super::rows;
use crate::error::{Error, Kind, Result};

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
    /// Values of bfloat16 in float32, for processors that cannot multiply them as they are; the inputs are rounded too.
    Rounded(Tensor),
    Bf16(Packed),
}

impl Linear {
    /// From weights `[out, in]` and a bias `[out]`. If `rounds`, weights and inputs are rounded to bfloat16.
    pub(super) fn new(weight: Tensor, bias: Option<Tensor>, rounds: bool) -> Result<Linear> {
        let weight = if !rounds {
            Weight::F32(weight)
        } else if bf16::is_available() {
            let (_, inner) = weight.dims2()?;
            Weight::Bf16(rows::with_slice(&weight, |values| Packed::new(values, inner))?)
        } else {
            Weight::Rounded(weight.apply_op1_no_bwd(&Round)?)
        };
        Ok(Linear { weight, bias })
    }

    /// Takes other weights, `[out, in]` row-major in float32. The bias stays.
    ///
    /// # Errors
    /// `Other` if there are more or fewer of them.
    pub(super) fn replace(&mut self, weights: Vec<f32>) -> Result<()> {
        let inner = self.inner()?;
        let shape = (weights.len() / inner.max(1), inner);
        if shape.0 != self.outer()? {
            return Err(Error::new(
                Kind::Other,
                format!("{} weights for a matrix of {shape:?}", weights.len()),
            ));
        }
        self.weight = Weight::F32(Tensor::from_vec(weights, shape, &Device::Cpu)?);
        Ok(())
    }

    /// Number of outputs.
    fn outer(&self) -> Result<usize> {
        Ok(match &self.weight {
            Weight::F32(weight) | Weight::Rounded(weight) => weight.dim(0)?,
            Weight::Bf16(packed) => packed.out(),
        })
    }

    /// Number of inputs.
    pub(super) fn inner(&self) -> Result<usize> {
        Ok(match &self.weight {
            Weight::F32(weight) | Weight::Rounded(weight) => weight.dim(1)?,
            Weight::Bf16(packed) => packed.inner(),
        })
    }

    /// `[tokens, in]` in, `[tokens, out]` out.
    ///
    /// # Errors
    /// Those of candle.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::F32(weight) => x.matmul(&weight.t()?)?,
            Weight::Rounded(weight) => x.contiguous()?.apply_op1_no_bwd(&Round)?.matmul(&weight.t()?)?,
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
        Ok((CpuStorage::F32(y), Shape::from((tokens, self.0.out()))))
    }
}

/// Rounds to bfloat16 and back.
struct Round;

impl CustomOp1 for Round {
    fn name(&self) -> &'static str {
        "round-to-bfloat16"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut out = rows::slice(x, layout)?.to_vec();
        bf16::round_in_place(&mut out);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_with_and_without_bfloat16_compute_the_same() {
        let weight = Tensor::randn(0f32, 1.0, (70, 133), &Device::Cpu).unwrap();
        let x = Tensor::randn(0f32, 1.0, (31, 133), &Device::Cpu).unwrap();
        let linear = Linear::new(weight.clone(), None, true).unwrap();
        let portable =
            Linear { weight: Weight::Rounded(weight.apply_op1_no_bwd(&Round).unwrap()), bias: None };
        let values =
            |linear: &Linear| linear.forward(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, b) in values(&linear).iter().zip(values(&portable)) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}
