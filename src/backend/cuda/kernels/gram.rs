//! `kernels/gram.cu`: Gram matrices.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg};

use super::{Kernels, number};
use crate::matmul::CHUNK;

const ADD: &str = "gram_add";
pub(super) const NAMES: [&str; 1] = [ADD];

/// Rows and columns of the matrix that a thread block computes.
const TILE: usize = 64;

impl Kernels {
    /// `gram += x^T * x`, the upper triangle, for `x` (`[tokens, size]`): `gram_add`.
    ///
    /// # Panics
    /// If sizes do not fit each other.
    pub(in crate::backend::cuda) fn add_to_gram(
        &self,
        stream: &Arc<CudaStream>,
        x: &CudaSlice<f32>,
        size: usize,
        gram: &mut CudaSlice<f32>,
    ) -> Result<(), DriverError> {
        assert!(x.len().is_multiple_of(size) && gram.len() == size * size, "inputs of {size} channels");
        let (tokens, columns, tiles) = (x.len() / size, number(size), number(size.div_ceil(TILE)));
        for start in (0..tokens).step_by(CHUNK) {
            let (start, end) = (number(start), number((start + CHUNK).min(tokens)));
            let mut launch = stream.launch_builder(self.named(ADD));
            launch.arg(x).arg(&start).arg(&end).arg(&columns).arg(&mut *gram);
            let blocks = LaunchConfig {
                grid_dim: (tiles, tiles, 1),
                block_dim: (TILE as u32, 1, 1),
                shared_mem_bytes: 0,
            };
            // SAFETY: the arguments are the kernel's, in its order; sizes were asserted.
            unsafe { launch.launch(blocks)? };
        }
        Ok(())
    }
}
