//! `kernels/gptq.cu`: the steps of GPTQ for some rows.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
};
use half::f16;

use super::teams::{PADDING, TEAM, TERMS, Teams};
use super::{Kernels, grid, number};

const CHOOSE_SCALES: &str = "gptq_choose_scales";
const ROUND: &str = "gptq_round";
const ERRORS: &str = "gptq_errors";
const DOTS: &str = "gptq_dots";
const REFIT: &str = "gptq_refit";
const FINISH: &str = "gptq_finish";
const SOLVE_BLOCK: &str = "gptq_solve_block";
const DESCEND_BLOCK: &str = "gptq_descend_block";
pub(super) const NAMES: [&str; 8] =
    [CHOOSE_SCALES, ROUND, ERRORS, DOTS, REFIT, FINISH, SOLVE_BLOCK, DESCEND_BLOCK];

/// Threads of a block.
const THREADS: usize = 128;

/// Arrays of a row in shared memory.
const ARRAYS: usize = 3;

/// Some rows of a matrix while they are quantized. All matrices are row-major, padded with rows of zeros.
#[derive(Debug)]
pub(in crate::backend::cuda) struct Rows {
    /// Rows, with those that pad them.
    pub(in crate::backend::cuda) padded: usize,
    rows: usize,
    pub(in crate::backend::cuda) size: usize,
    pub(super) groups: usize,
    /// Bits, group size, whether it is symmetric, lowest zero point: `Grid` in `team.cuh`.
    pub(super) grid: [u32; 4],
    /// `[padded, size]`.
    pub(in crate::backend::cuda) weights: CudaSlice<f32>,
    /// The same, less the zero points.
    pub(in crate::backend::cuda) codes: CudaSlice<f32>,
    /// The same, in the order that the stage of the work wants.
    pub(in crate::backend::cuda) errors: CudaSlice<f32>,
    /// `[padded, groups]`.
    pub(super) scales: CudaSlice<f32>,
    pub(super) zeros: CudaSlice<f32>,
}

/// A block of steps or columns, with the product that belongs to it.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cuda) struct Block<'a> {
    /// `[padded, block]`.
    pub(in crate::backend::cuda) product: &'a CudaSlice<f32>,
    /// `[size, size]`: the factor or the Hessian.
    pub(in crate::backend::cuda) matrix: &'a CudaSlice<f32>,
    /// First column.
    pub(in crate::backend::cuda) start: usize,
    /// Columns.
    pub(in crate::backend::cuda) length: usize,
}

/// `SolveBlock` in `solve.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct SolveArguments {
    weights: u64,
    product: u64,
    factor: u64,
    conditional: u64,
    columns: u64,
    groups: u64,
    group_count: u32,
    size: u32,
    start: u32,
    length: u32,
}

/// `DescentBlock` in `descent.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct DescentArguments {
    weights: u64,
    product: u64,
    hessian: u64,
    row_sums: u64,
    totals: u64,
    size: u32,
    start: u32,
    length: u32,
    refit: u32,
}

/// `Solved` in `solve.cuh` and `Improved` in `descent.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct ResultArguments {
    codes: u64,
    errors: u64,
    scales: u64,
    zeros: u64,
}

// SAFETY: plain numbers, laid out as the kernels' structures are.
unsafe impl DeviceRepr for SolveArguments {}
// SAFETY: as above.
unsafe impl DeviceRepr for DescentArguments {}
// SAFETY: as above.
unsafe impl DeviceRepr for ResultArguments {}

impl Rows {
    /// Copies whole rows of weights to the GPU. `grid` is bits, group size (at most `size`), whether it is symmetric, and the
    /// lowest zero point.
    pub(in crate::backend::cuda) fn upload(
        stream: &Arc<CudaStream>,
        weights: &[f32],
        size: usize,
        grid: [u32; 4],
    ) -> Result<Rows, DriverError> {
        let group_size = grid[1] as usize;
        assert!(weights.len().is_multiple_of(size) && (1..=size).contains(&group_size), "whole rows");
        let (rows, groups) = (weights.len() / size, size.div_ceil(group_size));
        let padded = rows.next_multiple_of(PADDING);
        let mut on_gpu = stream.alloc_zeros::<f32>(padded * size)?;
        stream.memcpy_htod(weights, &mut on_gpu.slice_mut(..weights.len()))?;
        let zeros = |values| stream.alloc_zeros::<f32>(values);
        let (codes, errors) = (zeros(padded * size)?, zeros(padded * size)?);
        let (scales, zeros) = (zeros(padded * groups)?, zeros(padded * groups)?);
        Ok(Rows { padded, rows, size, groups, grid, weights: on_gpu, codes, errors, scales, zeros })
    }

    /// Whether `gptq_solve_block` and `gptq_descend_block` can work on blocks of this length.
    pub(in crate::backend::cuda) fn fits(length: usize) -> bool {
        Teams::of(length, ARRAYS).is_some()
    }

    /// The fewest rows that the GPU works on; more are padded to a multiple of them.
    pub(in crate::backend::cuda) const LEAST: usize = PADDING;

    /// Bytes that these need, with their part of a product of `longest` columns.
    pub(in crate::backend::cuda) fn least_bytes(size: usize, longest: usize) -> usize {
        let chunks = size.div_ceil(crate::quant::gemm::CHUNK);
        PADDING * 4 * (4 * size + (1 + chunks) * longest)
    }

    fn results(&self, stream: &Arc<CudaStream>) -> ResultArguments {
        let address = |slice: &CudaSlice<f32>| slice.device_ptr(stream).0;
        ResultArguments {
            codes: address(&self.codes),
            errors: address(&self.errors),
            scales: address(&self.scales),
            zeros: address(&self.zeros),
        }
    }

    fn holds(&self, block: &Block<'_>) -> bool {
        block.start + block.length <= self.size
            && block.product.len() == self.padded * block.length
            && block.matrix.len() == self.size * self.size
    }

    /// A thread block for each row.
    fn launch(&self) -> LaunchConfig {
        grid(self.padded * THREADS, THREADS)
    }
}

impl Kernels {
    /// Chooses the scales of all groups from the weights: `gptq_choose_scales`. `importance` is one for each column.
    pub(in crate::backend::cuda) fn choose_scales(
        &self,
        stream: &Arc<CudaStream>,
        rows: &mut Rows,
        importance: &CudaSlice<f32>,
    ) -> Result<(), DriverError> {
        assert_eq!(importance.len(), rows.size, "one importance for each column");
        let size = number(rows.size);
        let mut launch = stream.launch_builder(self.named(CHOOSE_SCALES));
        launch.arg(&rows.weights).arg(importance).arg(&size).arg(&rows.grid);
        launch.arg(&mut rows.scales).arg(&mut rows.zeros);
        let blocks = LaunchConfig {
            grid_dim: (number(rows.padded / PADDING), number(rows.groups), 1),
            block_dim: (THREADS as u32, 1, 1),
            shared_mem_bytes: number(PADDING * 4 * TERMS),
        };
        // SAFETY: the arguments are the kernel's, in its order; matrices are as large as `Rows` has them, and each of the 16
        // rows of a thread block has its part of shared memory.
        unsafe { launch.launch(blocks)? };
        Ok(())
    }

    /// Rounds all weights with the scales as they are: `gptq_round`.
    pub(in crate::backend::cuda) fn round(
        &self,
        stream: &Arc<CudaStream>,
        rows: &mut Rows,
    ) -> Result<(), DriverError> {
        let (size, groups) = (number(rows.size), number(rows.groups));
        let blocks = rows.launch();
        let mut launch = stream.launch_builder(self.named(ROUND));
        launch.arg(&rows.weights).arg(&rows.scales).arg(&rows.zeros).arg(&size).arg(&groups).arg(&rows.grid);
        launch.arg(&mut rows.codes);
        // SAFETY: the arguments are the kernel's, in its order; matrices are as large as `Rows` has them.
        unsafe { launch.launch(blocks)? };
        Ok(())
    }

    /// Computes all errors anew, in the order of columns: `gptq_errors`.
    pub(in crate::backend::cuda) fn errors(
        &self,
        stream: &Arc<CudaStream>,
        rows: &mut Rows,
    ) -> Result<(), DriverError> {
        let (size, groups, group_size) = (number(rows.size), number(rows.groups), rows.grid[1]);
        let blocks = rows.launch();
        let mut launch = stream.launch_builder(self.named(ERRORS));
        launch.arg(&rows.weights).arg(&rows.codes).arg(&rows.scales).arg(&size).arg(&groups).arg(&group_size);
        launch.arg(&mut rows.errors);
        // SAFETY: as for `round`.
        unsafe { launch.launch(blocks)? };
        Ok(())
    }

    /// Adds `x * (y - ridge * x)` over some columns to the sum of each row: `gptq_dots`. `x` is `[padded, size]`, `y` is
    /// `[padded, columns]`.
    pub(in crate::backend::cuda) fn dots(
        &self,
        stream: &Arc<CudaStream>,
        (x, y): (&CudaSlice<f32>, &CudaSlice<f32>),
        ridge: f32,
        columns: Range<usize>,
        sums: &mut CudaSlice<f64>,
    ) -> Result<(), DriverError> {
        let rows = sums.len();
        let all = x.len() / rows;
        assert!(
            rows.is_multiple_of(PADDING)
                && x.len() == rows * all
                && columns.end <= all
                && y.len() == rows * columns.len(),
            "padded rows of the same matrix"
        );
        let (size, start, length) = (number(all), number(columns.start), number(columns.len()));
        let mut launch = stream.launch_builder(self.named(DOTS));
        launch.arg(x).arg(y).arg(&ridge).arg(&size).arg(&start).arg(&length).arg(sums);
        // SAFETY: the arguments are the kernel's, in its order; sizes were asserted, and a thread block has 16 rows.
        unsafe { launch.launch(grid(rows * TEAM, THREADS))? };
        Ok(())
    }

    /// Gives each row, which is one group, a better scale if there is one: `gptq_refit`.
    pub(in crate::backend::cuda) fn refit(
        &self,
        stream: &Arc<CudaStream>,
        rows: &mut Rows,
        [slopes, bends]: &[CudaSlice<f64>; 2],
    ) -> Result<(), DriverError> {
        assert!(
            rows.groups == 1 && slopes.len() == rows.padded && bends.len() == rows.padded,
            "sums of each row"
        );
        let count = number(rows.padded);
        let mut launch = stream.launch_builder(self.named(REFIT));
        launch.arg(slopes).arg(bends).arg(&count).arg(&mut rows.scales);
        // SAFETY: the arguments are the kernel's, in its order; each row has one scale and its sums.
        unsafe { launch.launch(grid(rows.padded, THREADS))? };
        Ok(())
    }

    /// Quantizes a block of steps: `gptq_solve_block`. `columns` and `conditional` are those of all steps, `groups` the number,
    /// first step and end of each group of the block, or nothing if all scales are chosen.
    pub(in crate::backend::cuda) fn solve_block(
        &self,
        stream: &Arc<CudaStream>,
        rows: &mut Rows,
        block: Block<'_>,
        (columns, conditional): (&CudaSlice<u32>, &CudaSlice<f32>),
        groups: Option<&CudaSlice<u32>>,
    ) -> Result<(), DriverError> {
        assert!(
            rows.holds(&block) && columns.len() == rows.size && conditional.len() == rows.size,
            "a block of the matrix"
        );
        let teams = Teams::of(block.length, ARRAYS).expect("the longest block was found to fit");
        let arguments = SolveArguments {
            weights: rows.weights.device_ptr(stream).0,
            product: block.product.device_ptr(stream).0,
            factor: block.matrix.device_ptr(stream).0,
            conditional: conditional.device_ptr(stream).0,
            columns: columns.device_ptr(stream).0,
            groups: groups.map_or(0, |groups| groups.device_ptr(stream).0),
            group_count: number(groups.map_or(0, |groups| groups.len() / 3)),
            size: number(rows.size),
            start: number(block.start),
            length: number(block.length),
        };
        let (stride, results) = (number(teams.stride), rows.results(stream));
        let mut launch = stream.launch_builder(self.named(SOLVE_BLOCK));
        launch.arg(&arguments).arg(&stride).arg(&rows.grid).arg(&results);
        // SAFETY: the arguments are the kernel's, in its order. Matrices are as large as was asserted and as `Rows` has them;
        // the caller's columns are those of the matrix and its groups those of the block's steps, as the host's `Order` has
        // them; `Teams` gives each row the shared memory that it needs.
        unsafe { launch.launch(teams.launch(rows.padded, [1, 1]))? };
        Ok(())
    }

    /// Improves a block of columns: `gptq_descend_block`. `sums` are row sums `[groups, block]` and totals `[groups]` over the
    /// Hessian, needed for grids with zero points where scales are improved.
    pub(in crate::backend::cuda) fn descend_block(
        &self,
        stream: &Arc<CudaStream>,
        rows: &mut Rows,
        block: Block<'_>,
        sums: Option<(&CudaSlice<f32>, &CudaSlice<f32>)>,
        refit: bool,
    ) -> Result<(), DriverError> {
        let groups = block.length.div_ceil(rows.grid[1] as usize);
        let has_sums = sums.is_some_and(|(row_sums, totals)| {
            row_sums.len() == groups * block.length && totals.len() == groups
        });
        assert!(rows.holds(&block) && (has_sums || !refit || rows.grid[2] != 0), "a block of the matrix");
        let teams = Teams::of(block.length, ARRAYS).expect("the longest block was found to fit");
        let arguments = DescentArguments {
            weights: rows.weights.device_ptr(stream).0,
            product: block.product.device_ptr(stream).0,
            hessian: block.matrix.device_ptr(stream).0,
            row_sums: sums.map_or(0, |(row_sums, _)| row_sums.device_ptr(stream).0),
            totals: sums.map_or(0, |(_, totals)| totals.device_ptr(stream).0),
            size: number(rows.size),
            start: number(block.start),
            length: number(block.length),
            refit: refit.into(),
        };
        let (stride, results) = (number(teams.stride), rows.results(stream));
        let mut launch = stream.launch_builder(self.named(DESCEND_BLOCK));
        launch.arg(&arguments).arg(&stride).arg(&rows.grid).arg(&results);
        // SAFETY: the arguments are the kernel's, in its order. Matrices are as large as was asserted and as `Rows` has them;
        // a block in which scales are improved begins with a group, as `descent::blocks_of` has it, so that it has as many
        // groups as there are sums; `Teams` gives each row the shared memory that it needs.
        unsafe { launch.launch(teams.launch(rows.padded, [1, 1]))? };
        Ok(())
    }

    /// Fetches the result, and waits for it: codes `[rows, size]`, scales and zero points `[rows, groups]`.
    pub(in crate::backend::cuda) fn finish(
        &self,
        stream: &Arc<CudaStream>,
        rows: &Rows,
        codes: &mut [u8],
        scales: &mut [f16],
        zeros: &mut [u8],
    ) -> Result<(), DriverError> {
        assert!(
            codes.len() == rows.rows * rows.size
                && scales.len() == rows.rows * rows.groups
                && zeros.len() == scales.len(),
            "room for the result"
        );
        let (size, groups, group_size) = (number(rows.size), number(rows.groups), rows.grid[1]);
        // SAFETY: the kernel below writes every element of the three before any is read.
        let mut out_codes = unsafe { stream.alloc::<u8>(rows.padded * rows.size)? };
        // SAFETY: as above.
        let mut out_scales = unsafe { stream.alloc::<u16>(rows.padded * rows.groups)? };
        // SAFETY: as above.
        let mut out_zeros = unsafe { stream.alloc::<u8>(rows.padded * rows.groups)? };
        let mut launch = stream.launch_builder(self.named(FINISH));
        launch.arg(&rows.codes).arg(&rows.scales).arg(&rows.zeros).arg(&size).arg(&groups).arg(&group_size);
        launch.arg(&mut out_codes).arg(&mut out_scales).arg(&mut out_zeros);
        // SAFETY: the arguments are the kernel's, in its order; matrices are as large as `Rows` has them.
        unsafe { launch.launch(rows.launch())? };
        stream.memcpy_dtoh(&out_codes.slice(..codes.len()), codes)?;
        stream.memcpy_dtoh(&out_zeros.slice(..zeros.len()), zeros)?;
        let mut bits = vec![0; scales.len()];
        stream.memcpy_dtoh(&out_scales.slice(..scales.len()), &mut bits)?;
        stream.synchronize()?;
        scales.iter_mut().zip(bits).for_each(|(scale, bits)| *scale = f16::from_bits(bits));
        Ok(())
    }
}
