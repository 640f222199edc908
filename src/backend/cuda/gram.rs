//! Gram matrices, summed up on the GPU.

use cudarc::driver::{CudaSlice, DriverError};

use super::{Cuda, decoder};
use crate::backend::{Accelerator, DeviceMatrix, GramSum};
use crate::error::Result;
use crate::matmul::CHUNK;
use crate::quant::gram::Gram;

/// One that stays on the GPU until all inputs are added.
#[derive(Debug)]
pub(super) struct OnGpu<'a> {
    gpu: &'a Cuda,
    size: usize,
    tokens: usize,
    values: CudaSlice<f32>,
}

impl<'a> OnGpu<'a> {
    pub(super) fn new(gpu: &'a Cuda, size: usize) -> Result<OnGpu<'a>> {
        let values = gpu.stream.alloc_zeros(size * size).map_err(|e| {
            let what = format!("the Gram matrix of {size} inputs");
            gpu.failed_to_hold(&what, 4 * size * size, "sum up inputs", &e)
        })?;
        Ok(OnGpu { gpu, size, tokens: 0, values })
    }
}

impl GramSum for OnGpu<'_> {
    fn add(&mut self, x: &[f32]) -> Result<()> {
        let OnGpu { gpu, size, .. } = *self;
        assert!(x.len().is_multiple_of(size), "{} values in rows of {size}", x.len());
        self.tokens += x.len() / size;
        let _turn = gpu.turn();
        // As many tokens at a time as are summed before the others: a call's last may be fewer.
        for x in x.chunks(CHUNK * size) {
            let mut add = || -> Result<(), DriverError> {
                let x = gpu.stream.clone_htod(x)?;
                gpu.kernels.add_to_gram(&gpu.stream, &x, size, &mut self.values)
            };
            add().map_err(|e| {
                let what = format!("{} inputs of {size} channels", x.len() / size);
                gpu.failed_to_hold(&what, 4 * x.len(), "sum up inputs", &e)
            })?;
        }
        Ok(())
    }

    fn add_from(&mut self, device: &dyn Accelerator, x: &DeviceMatrix) -> Result<()> {
        let OnGpu { gpu, size, .. } = *self;
        let Ok(values) = decoder::values(x) else { return self.add(&device.fetch(x)?) };
        if values.context() != gpu.stream.context() {
            return self.add(&device.fetch(x)?);
        }
        assert_eq!(x.columns(), size, "rows of {size}");
        self.tokens += x.rows();
        let _turn = gpu.turn();
        let added = gpu.kernels.add_to_gram(&gpu.stream, values, size, &mut self.values);
        added.map_err(|e| super::failed("sum up inputs", &e))
    }

    fn finish(self: Box<Self>) -> Result<Gram> {
        let _turn = self.gpu.turn();
        let values =
            self.gpu.stream.clone_dtoh(&self.values).map_err(|e| super::failed("fetch a Gram matrix", &e))?;
        Ok(Gram::of_sums(self.size, self.tokens, values))
    }
}
