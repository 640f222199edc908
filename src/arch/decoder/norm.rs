//! The norm by the root of the mean square, `LlamaRMSNorm` and `Gemma3RMSNorm` of transformers.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::activations::{Activations, elsewhere};
use super::rows;
use crate::backend::Accelerator;
use crate::error::Result;

/// A norm over each piece of a row that is as long as its weight.
#[derive(Debug)]
pub(super) struct Norm {
    /// `[width]`, with the family's offset added.
    pub(super) weight: Activations,
    pub(super) epsilon: f32,
}

impl Norm {
    pub(super) fn new(weight: Tensor, epsilon: f32) -> Norm {
        Norm { weight: Activations::Memory(weight), epsilon }
    }

    /// The weight moves to a device.
    pub(super) fn move_to(&mut self, device: &Arc<dyn Accelerator>) -> Result<()> {
        self.weight = self.weight.clone().moved_to(Some(device))?;
        Ok(())
    }

    /// `[.., a multiple of width]` in and out.
    pub(super) fn forward(&self, x: &Activations) -> Result<Activations> {
        let epsilon = self.epsilon;
        match (x, &self.weight) {
            (Activations::Memory(x), Activations::Memory(weight)) => {
                let x = x.contiguous()?.apply_op2_no_bwd(weight, &RootMeanSquare { epsilon })?;
                Ok(Activations::Memory(x))
            }
            (Activations::Device(device, x), Activations::Device(_, weight)) => {
                Ok(Activations::Device(device.clone(), device.norm(x, weight, epsilon)?))
            }
            _ => Err(elsewhere()),
        }
    }
}

struct RootMeanSquare {
    epsilon: f32,
}

impl CustomOp2 for RootMeanSquare {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, weight) = (rows::slice(x, x_layout)?, rows::slice(weight, weight_layout)?);
        let width = weight.len();
        if width == 0 || !x_layout.dims().last().is_some_and(|columns| columns.is_multiple_of(width)) {
            candle_core::bail!("a norm of {width} weights cannot be applied to {:?}", x_layout.dims());
        }
        let mut out = vec![0.0; x.len()];
        out.par_chunks_exact_mut(width).zip(x.par_chunks_exact(width)).for_each(|(out, x)| {
            let factor = (sum_of_squares(x) / width as f32 + self.epsilon).sqrt().recip();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * factor * weight;
            }
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// In several sums, which is faster and more exact than one.
fn sum_of_squares(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += v * v;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| v * v).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rows_have_a_mean_square_of_one_times_the_weight() {
        let weight = Tensor::new(&[1.0f32, 2.0, 3.0, 0.5], &Device::Cpu).unwrap();
        let x = Tensor::new(&[[1.0f32, -1.0, 1.0, -1.0], [2.0, 0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        let y = Norm::new(weight, 0.0).forward(&Activations::Memory(x)).unwrap().tensor().unwrap();
        let y = y.to_vec2::<f32>().unwrap();
        assert_eq!(y, [[1.0, -2.0, 3.0, -0.5], [2.0, 0.0, 0.0, 0.0]]);
        let long: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(sum_of_squares(&long), 16206.0);
    }
}
