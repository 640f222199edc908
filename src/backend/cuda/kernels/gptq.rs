//! `kernels/gptq.cu`: the steps of GPTQ for some rows.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, PushKernelArg};

use super::teams::{PADDING, TEAM, Teams};
use super::{Kernels, Rows, grid, number};

const DOTS: &str = "gptq_dots";
const REFIT: &str = "gptq_refit";
const SOLVE_BLOCK: &str = "gptq_solve_block";
const DESCEND_BLOCK: &str = "gptq_descend_block";
pub(super) const NAMES: [&str; 4] = [DOTS, REFIT, SOLVE_BLOCK, DESCEND_BLOCK];

/// Threads of a block.
const THREADS: usize = 128;

/// Arrays of a row in shared memory.
const ARRAYS: usize = 3;

/// A block of steps or columns, with the product that belongs to it.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cuda) struct Block<'a> {
    /// `[padded, block]`.
    pub(in crate::backend::cuda) product: &'a CudaSlice<f32>,
    /// `[problems, size, size]`: the factors or the Hessians.
    pub(in crate::backend::cuda) matrix: &'a CudaSlice<f32>,
    /// First column.
    pub(in crate::backend::cuda) start: usize,
    /// Columns.
    pub(in crate::backend::cuda) length: usize,
}

impl Block<'_> {
    /// Whether the longest block of a problem can be worked on.
    pub(in crate::backend::cuda) fn can_be(length: usize) -> bool {
        Teams::of(length, ARRAYS).is_some()
    }

    fn fits(&self, rows: &Rows) -> bool {
        self.start + self.length <= rows.size
            && self.product.len() == rows.padded * self.length
            && self.matrix.len() == rows.problems * rows.size * rows.size
    }
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
    problem_rows: u32,
    size: u32,
    start: u32,
    length: u32,
    padding: u32,
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
    problem_rows: u32,
    size: u32,
    start: u32,
    length: u32,
    refit: u32,
    padding: u32,
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

impl ResultArguments {
    fn of(rows: &Rows, stream: &Arc<CudaStream>) -> ResultArguments {
        let address = |slice: &CudaSlice<f32>| slice.device_ptr(stream).0;
        ResultArguments {
            codes: address(&rows.codes),
            errors: address(&rows.errors),
            scales: address(&rows.scales),
            zeros: address(&rows.zeros),
        }
    }
}

// SAFETY: plain numbers, laid out as the kernels' structures are.
unsafe impl DeviceRepr for SolveArguments {}
// SAFETY: as above.
unsafe impl DeviceRepr for DescentArguments {}
// SAFETY: as above.
unsafe impl DeviceRepr for ResultArguments {}

impl Kernels {
    /// Adds `x * (y - ridge * x)` over some columns to the sum of each row: `gptq_dots`. `x` is `[padded, size]`, `y` is
    /// `[padded, columns]`, rows are those of problems of `each`, and the ridge is each problem's, or 0.
    pub(in crate::backend::cuda) fn dots(
        &self,
        stream: &Arc<CudaStream>,
        (x, y): (&CudaSlice<f32>, &CudaSlice<f32>),
        (each, ridges): (usize, Option<&CudaSlice<f32>>),
        columns: Range<usize>,
        sums: &mut CudaSlice<f64>,
    ) -> Result<(), DriverError> {
        let rows = sums.len();
        let all = x.len() / rows;
        assert!(
            rows.is_multiple_of(PADDING)
                && x.len() == rows * all
                && columns.end <= all
                && y.len() == rows * columns.len()
                && rows.is_multiple_of(each)
                && ridges.is_none_or(|ridges| ridges.len() == rows / each),
            "padded rows of the same matrices"
        );
        let (size, start, length) = (number(all), number(columns.start), number(columns.len()));
        let (ridges, each) = (ridges.map_or(0, |ridges| ridges.device_ptr(stream).0), number(each));
        let mut launch = stream.launch_builder(self.named(DOTS));
        launch.arg(x).arg(y).arg(&ridges).arg(&each).arg(&size).arg(&start).arg(&length).arg(sums);
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

    /// Quantizes a block of steps: `gptq_solve_block`. `columns` and `conditional` are those of all steps of each problem,
    /// `groups` the number, first step and end of each group of the block, or nothing if all scales are chosen.
    pub(in crate::backend::cuda) fn solve_block(
        &self,
        stream: &Arc<CudaStream>,
        rows: &mut Rows,
        block: Block<'_>,
        (columns, conditional): (&CudaSlice<u32>, &CudaSlice<f32>),
        groups: Option<&CudaSlice<u32>>,
    ) -> Result<(), DriverError> {
        assert!(
            block.fits(rows)
                && columns.len() == rows.problems * rows.size
                && conditional.len() == columns.len()
                && groups.is_none_or(|groups| groups.len().is_multiple_of(3 * rows.problems)),
            "a block of each matrix"
        );
        let teams = Teams::of(block.length, ARRAYS).expect("the longest block was found to fit");
        let arguments = SolveArguments {
            weights: rows.weights.device_ptr(stream).0,
            product: block.product.device_ptr(stream).0,
            factor: block.matrix.device_ptr(stream).0,
            conditional: conditional.device_ptr(stream).0,
            columns: columns.device_ptr(stream).0,
            groups: groups.map_or(0, |groups| groups.device_ptr(stream).0),
            group_count: number(groups.map_or(0, |groups| groups.len() / 3 / rows.problems)),
            problem_rows: number(rows.each),
            size: number(rows.size),
            start: number(block.start),
            length: number(block.length),
            padding: 0,
        };
        let (stride, results) = (number(teams.stride), ResultArguments::of(rows, stream));
        let mut launch = stream.launch_builder(self.named(SOLVE_BLOCK));
        launch.arg(&arguments).arg(&stride).arg(&rows.grid).arg(&results);
        // SAFETY: the arguments are the kernel's, in its order. Matrices are as large as was asserted and as `Rows` has them;
        // the caller's columns are those of the matrix and its groups those of the block's steps, as the host's `Order` has
        // them; `Teams` gives each row the shared memory that it needs.
        unsafe { launch.launch(teams.launch(rows.padded, [1, 1]))? };
        Ok(())
    }

    /// Improves a block of columns: `gptq_descend_block`. `sums` are row sums `[problems, groups, block]` and totals
    /// `[problems, groups]` over the Hessians, needed for grids with zero points where scales are improved.
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
            row_sums.len() == totals.len() * block.length && totals.len() == rows.problems * groups
        });
        assert!(block.fits(rows) && (has_sums || !refit || rows.grid[2] != 0), "a block of the matrix");
        let teams = Teams::of(block.length, ARRAYS).expect("the longest block was found to fit");
        let arguments = DescentArguments {
            weights: rows.weights.device_ptr(stream).0,
            product: block.product.device_ptr(stream).0,
            hessian: block.matrix.device_ptr(stream).0,
            row_sums: sums.map_or(0, |(row_sums, _)| row_sums.device_ptr(stream).0),
            totals: sums.map_or(0, |(_, totals)| totals.device_ptr(stream).0),
            problem_rows: number(rows.each),
            size: number(rows.size),
            start: number(block.start),
            length: number(block.length),
            refit: refit.into(),
            padding: 0,
        };
        let (stride, results) = (number(teams.stride), ResultArguments::of(rows, stream));
        let mut launch = stream.launch_builder(self.named(DESCEND_BLOCK));
        launch.arg(&arguments).arg(&stride).arg(&rows.grid).arg(&results);
        // SAFETY: the arguments are the kernel's, in its order. Matrices are as large as was asserted and as `Rows` has them;
        // a block in which scales are improved begins with a group, as `descent::blocks_of` has it, so that it has as many
        // groups as there are sums; `Teams` gives each row the shared memory that it needs.
        unsafe { launch.launch(teams.launch(rows.padded, [1, 1]))? };
        Ok(())
    }
}
