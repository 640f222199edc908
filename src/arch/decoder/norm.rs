//! The norm by the root of the mean square, `LlamaRMSNorm` and `Gemma3RMSNorm` of transformers.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::activations::{Activations, elsewhere};
use super::rows;
use crate::backend::Accelerator;
use crate::error::{Error, Kind, Result};

/// Rows whose gradients one thread sums up; fixed, so that sums do not depend on the number of threads.
const PIECE: usize = 64;

/// A norm over each piece of a row that is as long as its weight.
#[derive(Debug)]
pub struct Norm {
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

    /// Its weight, `[width]`, with the family's offset added; a copy if it is on a device.
    ///
    /// # Errors
    /// `Other` if the device fails.
    pub fn weight(&self) -> Result<Tensor> {
        Ok(self.weight.tensor()?.flatten_all()?)
    }

    /// Computes with another weight of the same size from now on, in memory, which may be a variable.
    ///
    /// # Errors
    /// `Other` if it has another size, or if the norm is on a device, where no gradients are.
    pub fn replace(&mut self, weight: &Tensor) -> Result<()> {
        let Activations::Memory(own) = &self.weight else { return Err(elsewhere()) };
        if weight.dims() != own.dims() {
            let message = format!("{:?} weights for a norm of {:?}", weight.dims(), own.dims());
            return Err(Error::new(Kind::Other, message));
        }
        self.weight = Activations::Memory(weight.clone());
        Ok(())
    }

    /// `[.., a multiple of width]` in and out. Gradients flow through it in memory.
    ///
    /// # Errors
    /// Those of candle or of the device; `Other` if the inputs are not where the weight is.
    pub fn forward(&self, x: &Activations) -> Result<Activations> {
        let epsilon = self.epsilon;
        match (x, &self.weight) {
            (Activations::Memory(x), Activations::Memory(weight)) => {
                let x = x.contiguous()?.apply_op2(weight, RootMeanSquare { epsilon })?;
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
            let factor = self.factor(x);
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * factor * weight;
            }
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    /// With `f` the reciprocal of a row's root mean square, `y = x f w` has the gradients `f (w g - x f^2 mean(x w g))` for the
    /// row and `sum(x f g)` for the weight.
    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let width = weight.elem_count();
        let grad = grad.contiguous()?;
        let (mut to_x, mut to_weight) = (vec![0.0; x.elem_count()], vec![0.0; width]);
        rows::with_slices([x, weight, &grad], |[x, weight, grad]| {
            let piece = PIECE * width;
            let pieces = to_x.par_chunks_mut(piece).zip(x.par_chunks(piece)).zip(grad.par_chunks(piece));
            let sums: Vec<Vec<f32>> = pieces
                .map(|((out, x), grad)| {
                    let mut sums = vec![0.0; width];
                    let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(width));
                    for ((out, x), grad) in rows.zip(grad.chunks_exact(width)) {
                        self.row_gradients([x, weight, grad], out, &mut sums);
                    }
                    sums
                })
                .collect();
            for sums in sums {
                to_weight.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
            }
        })?;
        let to_x = Tensor::from_vec(to_x, x.shape(), x.device())?;
        Ok((Some(to_x), Some(Tensor::from_vec(to_weight, width, x.device())?)))
    }
}

impl RootMeanSquare {
    /// The reciprocal of the root mean square.
    fn factor(&self, x: &[f32]) -> f32 {
        (sum_of_squares(x) / x.len() as f32 + self.epsilon).sqrt().recip()
    }

    /// The gradients of one row; those for the weight are added to `sums`.
    fn row_gradients(&self, [x, weight, grad]: [&[f32]; 3], out: &mut [f32], sums: &mut [f32]) {
        let factor = self.factor(x);
        for (((out, sum), (x, weight)), grad) in
            out.iter_mut().zip(sums.iter_mut()).zip(x.iter().zip(weight)).zip(grad)
        {
            *out = weight * grad;
            *sum += x * factor * grad;
        }
        let pull = x.iter().zip(&*out).map(|(x, g)| x * g).sum::<f32>() / x.len() as f32 * factor * factor;
        out.iter_mut().zip(x).for_each(|(out, x)| *out = factor * (*out - x * pull));
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
