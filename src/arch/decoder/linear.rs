//! A matrix with or without a bias.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use super::activations::{Activations, elsewhere};
use super::bf16::{self, Packed};
use super::product::times_transposed;
use super::rows;
use crate::backend::{Accelerator, DeviceMatrix};
use crate::error::{Error, Kind, Result};

/// `x * weight^T + bias`.
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    /// `[out]`.
    bias: Option<Activations>,
}

#[derive(Debug)]
enum Weight {
    /// `[out, in]`.
    F32(Tensor),
    /// The same in the memory of a device.
    Device(Arc<dyn Accelerator>, DeviceMatrix),
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
        Ok(Linear { weight, bias: bias.map(Activations::Memory) })
    }

    /// Weights and bias move to a device, where there is float32 alone.
    pub(super) fn move_to(&mut self, device: &Arc<dyn Accelerator>) -> Result<()> {
        self.weight = match &self.weight {
            Weight::F32(weight) => {
                let (_, inner) = weight.dims2()?;
                let moved = rows::with_slice(weight, |values| device.upload(values, inner))??;
                Weight::Device(device.clone(), moved)
            }
            Weight::Device(..) => return Ok(()),
            Weight::Rounded(_) | Weight::Bf16(_) => {
                return Err(Error::new(Kind::Other, "a device multiplies float32, not bfloat16"));
            }
        };
        if let Some(bias) = &mut self.bias {
            *bias = bias.clone().moved_to(Some(device))?;
        }
        Ok(())
    }

    /// Takes other weights, `[out, in]` in float32, through which gradients may flow. The bias stays.
    ///
    /// # Errors
    /// `Other` if they are not of this shape.
    pub(super) fn replace(&mut self, weights: Tensor) -> Result<()> {
        let shape = (self.outer()?, self.inner()?);
        if weights.dims() != [shape.0, shape.1] {
            return Err(Error::new(
                Kind::Other,
                format!("weights of {:?} for a matrix of {shape:?}", weights.dims()),
            ));
        }
        self.weight = match &self.weight {
            Weight::Device(device, _) => {
                let inner = shape.1;
                let moved = rows::with_slice(&weights, |values| device.upload(values, inner))??;
                Weight::Device(device.clone(), moved)
            }
            _ => Weight::F32(weights),
        };
        Ok(())
    }

    /// Its weights, `[out, in]`, if they are float32 in memory.
    pub(super) fn weight(&self) -> Option<&Tensor> {
        match &self.weight {
            Weight::F32(weight) => Some(weight),
            Weight::Device(..) | Weight::Rounded(_) | Weight::Bf16(_) => None,
        }
    }

    /// Number of outputs.
    pub(super) fn outer(&self) -> Result<usize> {
        Ok(match &self.weight {
            Weight::F32(weight) | Weight::Rounded(weight) => weight.dim(0)?,
            Weight::Device(_, weight) => weight.rows(),
            Weight::Bf16(packed) => packed.out(),
        })
    }

    /// Number of inputs.
    pub(super) fn inner(&self) -> Result<usize> {
        Ok(match &self.weight {
            Weight::F32(weight) | Weight::Rounded(weight) => weight.dim(1)?,
            Weight::Device(_, weight) => weight.columns(),
            Weight::Bf16(packed) => packed.inner(),
        })
    }

    /// `[tokens, in]` in, `[tokens, out]` out. Gradients flow through matrices in float32.
    ///
    /// # Errors
    /// Those of candle or of the device; `Other` if the inputs are not where the weights are.
    pub fn forward(&self, x: &Activations) -> Result<Activations> {
        let y = match (x, &self.weight) {
            (Activations::Device(device, x), Weight::Device(_, weight)) => {
                let bias = match &self.bias {
                    Some(Activations::Device(_, bias)) => Some(bias),
                    Some(Activations::Memory(_)) => return Err(elsewhere()),
                    None => None,
                };
                return Ok(Activations::Device(device.clone(), device.linear(x, weight, bias)?));
            }
            (Activations::Memory(x), Weight::F32(weight)) => times_transposed(x, weight)?,
            (Activations::Memory(x), Weight::Rounded(weight)) => {
                times_transposed(&x.contiguous()?.apply_op1_no_bwd(&Round)?, weight)?
            }
            (Activations::Memory(x), Weight::Bf16(packed)) => {
                x.contiguous()?.apply_op1_no_bwd(&Product(packed))?
            }
            _ => return Err(elsewhere()),
        };
        Ok(Activations::Memory(match &self.bias {
            Some(Activations::Memory(bias)) => y.broadcast_add(bias)?,
            Some(Activations::Device(..)) => return Err(elsewhere()),
            None => y,
        }))
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
    use candle_core::Device;

    use super::*;

    #[test]
    fn processors_with_and_without_bfloat16_compute_the_same() {
        let weight = Tensor::randn(0f32, 1.0, (70, 133), &Device::Cpu).unwrap();
        let x = Tensor::randn(0f32, 1.0, (31, 133), &Device::Cpu).unwrap();
        let linear = Linear::new(weight.clone(), None, true).unwrap();
        let portable =
            Linear { weight: Weight::Rounded(weight.apply_op1_no_bwd(&Round).unwrap()), bias: None };
        let x = Activations::Memory(x);
        let values = |linear: &Linear| {
            let y = linear.forward(&x).unwrap().tensor().unwrap();
            y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for (a, b) in values(&linear).iter().zip(values(&portable)) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}
