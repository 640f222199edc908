//! `kernels/gemm.cu`: products of matrices.

use std::sync::Arc;

use cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
};

use super::{Kernels, grid, number};
use crate::matmul::CHUNK;

const CHUNKS: &str = "gemm_chunks";
const SUM: &str = "gemm_sum";
const ALONG: &str = "gemm_along";
const ACROSS: &str = "gemm_across";
pub(super) const NAMES: [&str; 4] = [CHUNKS, SUM, ALONG, ACROSS];

/// Rows and columns of the result that a thread block computes.
const TILE: usize = 64;

/// Matrices of one shape in a factor or result of several products.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cuda) struct Matrices<'a> {
    /// Where they lie.
    pub(in crate::backend::cuda) values: &'a CudaSlice<f32>,
    /// The first value of the first.
    pub(in crate::backend::cuda) start: usize,
    /// Values from one matrix to the next.
    pub(in crate::backend::cuda) step: usize,
    /// Values from one row to the next.
    pub(in crate::backend::cuda) stride: usize,
}

impl<'a> Matrices<'a> {
    /// A single one, which is all there is, in rows of `columns`.
    pub(in crate::backend::cuda) fn one(values: &'a CudaSlice<f32>, columns: usize) -> Matrices<'a> {
        Matrices { values, start: 0, step: 0, stride: columns }
    }

    /// Columns from `start` on of matrices of `rows` and `columns`, one after the other.
    pub(in crate::backend::cuda) fn stacked(
        values: &'a CudaSlice<f32>,
        [rows, columns]: [usize; 2],
        start: usize,
    ) -> Matrices<'a> {
        Matrices { values, start, step: rows * columns, stride: columns }
    }

    /// Whether `count` matrices of this shape lie there.
    fn fits(&self, count: usize, [rows, columns]: [usize; 2]) -> bool {
        let last = (count - 1) * self.step + (rows - 1) * self.stride + columns;
        columns <= self.stride && self.start + last <= self.values.len()
    }

    fn address(&self, stream: &Arc<CudaStream>) -> u64 {
        self.values.device_ptr(stream).0 + 4 * self.start as u64
    }
}

/// Products of matrices of one shape.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cuda) struct Products<'a> {
    /// How many.
    pub(in crate::backend::cuda) count: usize,
    /// Rows and columns of each result, and the length of its sums.
    pub(in crate::backend::cuda) shape: [usize; 3],
    /// The left factors.
    pub(in crate::backend::cuda) a: Matrices<'a>,
    /// The right factors, of which each serves `share` left ones.
    pub(in crate::backend::cuda) b: Matrices<'a>,
    /// How many left factors in a row have the same right one.
    pub(in crate::backend::cuda) share: usize,
    /// Whether the right factors are transposed: `[columns, length]` instead of `[length, columns]`.
    pub(in crate::backend::cuda) transposed: bool,
    /// What is added to every row, `[columns]`.
    pub(in crate::backend::cuda) bias: Option<&'a CudaSlice<f32>>,
}

/// `Products` in `gemm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct ProductsArguments {
    addresses: [u64; 4],
    steps: [u64; 3],
    strides: [u32; 3],
    share: u32,
    m: u32,
    n: u32,
    start: u32,
    end: u32,
}

// SAFETY: plain numbers, laid out as the kernel's structure is.
unsafe impl DeviceRepr for ProductsArguments {}

impl Kernels {
    /// Computes products to where `out` says, of which every value is written, bit for bit those of [`crate::matmul`]
    /// with the bias added at the end: `gemm_along`, `gemm_across`.
    ///
    /// # Panics
    /// If sizes do not fit each other, or one is zero.
    pub(in crate::backend::cuda) fn products(
        &self,
        stream: &Arc<CudaStream>,
        products: &Products<'_>,
        out: &mut CudaSlice<f32>,
        [start, step, stride]: [usize; 3],
    ) -> Result<(), DriverError> {
        let Products { count, shape: [m, n, k], a, b, share, transposed, bias } = *products;
        let to = Matrices { values: out, start, step, stride };
        let right = if transposed { [n, k] } else { [k, n] };
        assert!(
            count * m * n * k * share > 0
                && a.fits(count, [m, k])
                && b.fits(count.div_ceil(share), right)
                && to.fits(count, [m, n])
                && bias.is_none_or(|bias| bias.len() == n),
            "{products:?}"
        );
        let bias = bias.map_or(0, |bias| bias.device_ptr(stream).0);
        let blocks = LaunchConfig {
            grid_dim: (number(n.div_ceil(TILE)), number(m.div_ceil(TILE)), number(count)),
            block_dim: (TILE as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        for first in (0..k).step_by(CHUNK) {
            let end = (first + CHUNK).min(k);
            let arguments = ProductsArguments {
                addresses: [
                    a.address(stream),
                    b.address(stream),
                    if end == k { bias } else { 0 },
                    to.address(stream),
                ],
                steps: [a.step as u64, b.step as u64, step as u64],
                strides: [number(a.stride), number(b.stride), number(stride)],
                share: number(share),
                m: number(m),
                n: number(n),
                start: number(first),
                end: number(end),
            };
            let mut launch = stream.launch_builder(self.named(if transposed { ALONG } else { ACROSS }));
            launch.arg(&arguments);
            // SAFETY: the argument is the kernel's. All matrices lie in theirs, as was asserted; `out` is borrowed for this
            // call, and its matrices do not overlap as far as the kernel writes them.
            unsafe { launch.launch(blocks)? };
        }
        Ok(())
    }

    /// Computes products of few columns, `[count, rows, columns]`, bit for bit those of [`crate::matmul`]: `gemm_chunks`. As in
    /// [`Products`], there are `count` of them, of rows, columns and lengths of sums; each has a right factor of its own.
    ///
    /// # Panics
    /// If sizes do not fit each other.
    pub(in crate::backend::cuda) fn few_columns(
        &self,
        stream: &Arc<CudaStream>,
        (count, [m, n, k]): (usize, [usize; 3]),
        a: Matrices<'_>,
        b: Matrices<'_>,
    ) -> Result<CudaSlice<f32>, DriverError> {
        let values = count * m * n;
        let chunks = k.div_ceil(CHUNK);
        if chunks == 0 || values == 0 {
            return stream.alloc_zeros::<f32>(values.max(1));
        }
        assert!(a.fits(count, [m, k]) && b.fits(count, [k, n]), "{a:?} times {b:?}");
        // SAFETY: the kernel below writes every element before any is read.
        let mut parts = unsafe { stream.alloc::<f32>(chunks * values)? };
        let (from_a, from_b) = (a.values.slice(a.start..), b.values.slice(b.start..));
        let (a_step, b_step) = (a.step as u64, b.step as u64);
        let (a_stride, b_stride) = (number(a.stride), number(b.stride));
        let [rows, columns, depth, chunk] = [m, n, k, CHUNK].map(number);
        let mut launch = stream.launch_builder(self.named(CHUNKS));
        launch.arg(&from_a).arg(&a_step).arg(&a_stride).arg(&from_b).arg(&b_step).arg(&b_stride);
        launch.arg(&rows).arg(&columns).arg(&depth).arg(&chunk).arg(&mut parts);
        let blocks = LaunchConfig {
            grid_dim: (number(n.div_ceil(TILE)), number(m.div_ceil(TILE)), number(count * chunks)),
            block_dim: (TILE as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are the kernel's, in its order. All factors lie in theirs, as was asserted, and there is room
        // for each chunk of each product.
        unsafe { launch.launch(blocks)? };
        if chunks == 1 {
            return Ok(parts);
        }
        // SAFETY: as above.
        let mut sums = unsafe { stream.alloc::<f32>(values)? };
        let chunks = number(chunks);
        let mut launch = stream.launch_builder(self.named(SUM));
        launch.arg(&parts).arg(&chunks).arg(&values).arg(&mut sums);
        // SAFETY: the arguments are the kernel's, in its order; there are `chunks` times `values` values to add up.
        unsafe { launch.launch(grid(values, 128))? };
        Ok(sums)
    }
}
