//! `kernels/gemm.cu`: products of matrices.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg};

use super::{Kernels, grid, number};
use crate::quant::gemm::CHUNK;

const CHUNKS: &str = "gemm_chunks";
const SUM: &str = "gemm_sum";
pub(super) const NAMES: [&str; 2] = [CHUNKS, SUM];

/// Rows and columns of the result that a thread block computes.
const TILE: usize = 64;

/// Some rows and columns of a row-major matrix on the GPU.
#[derive(Clone, Debug)]
pub(in crate::backend::cuda) struct Factor<'a> {
    /// All of the matrix.
    pub(in crate::backend::cuda) values: &'a CudaSlice<f32>,
    /// Columns of the matrix.
    pub(in crate::backend::cuda) stride: usize,
    /// The rows.
    pub(in crate::backend::cuda) rows: Range<usize>,
    /// The columns.
    pub(in crate::backend::cuda) columns: Range<usize>,
}

impl Factor<'_> {
    fn start(&self) -> usize {
        self.rows.start * self.stride + self.columns.start
    }

    fn fits(&self) -> bool {
        self.columns.end <= self.stride && self.rows.end * self.stride <= self.values.len()
    }
}

impl Kernels {
    /// `a * b`, row-major, bit for bit that of [`crate::quant::gemm`].
    ///
    /// # Panics
    /// If sizes do not fit each other.
    pub(in crate::backend::cuda) fn product(
        &self,
        stream: &Arc<CudaStream>,
        a: &Factor<'_>,
        b: &Factor<'_>,
    ) -> Result<CudaSlice<f32>, DriverError> {
        assert!(a.fits() && b.fits() && a.columns.len() == b.rows.len(), "{a:?} times {b:?}");
        let (rows, columns, depth) = (a.rows.len(), b.columns.len(), a.columns.len());
        let values = rows * columns;
        let count = depth.div_ceil(CHUNK);
        if count == 0 || values == 0 {
            return stream.alloc_zeros::<f32>(values.max(1));
        }
        // SAFETY: the kernel below writes every element before any is read.
        let mut chunks = unsafe { stream.alloc::<f32>(count * values)? };
        let (from_a, from_b) = (a.values.slice(a.start()..), b.values.slice(b.start()..));
        let (a_stride, b_stride) = (number(a.stride), number(b.stride));
        let (m, n, k, chunk) = (number(rows), number(columns), number(depth), number(CHUNK));
        let mut launch = stream.launch_builder(self.named(CHUNKS));
        launch.arg(&from_a).arg(&a_stride).arg(&from_b).arg(&b_stride);
        launch.arg(&m).arg(&n).arg(&k).arg(&chunk).arg(&mut chunks);
        let blocks = LaunchConfig {
            grid_dim: (number(columns.div_ceil(TILE)), number(rows.div_ceil(TILE)), number(count)),
            block_dim: (TILE as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are the kernel's, in its order. Rows and columns of both factors lie in their matrices, as
        // was asserted, and there is room for each chunk of the product.
        unsafe { launch.launch(blocks)? };
        if count == 1 {
            return Ok(chunks);
        }
        // SAFETY: as above.
        let mut sums = unsafe { stream.alloc::<f32>(values)? };
        let count = number(count);
        let mut launch = stream.launch_builder(self.named(SUM));
        launch.arg(&chunks).arg(&count).arg(&values).arg(&mut sums);
        // SAFETY: the arguments are the kernel's, in its order; there are `count` times `values` values to add up.
        unsafe { launch.launch(grid(values, 128))? };
        Ok(sums)
    }
}
