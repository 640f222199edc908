//! `kernels/affine.cu`: weights on a grid with scales and zero points.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg};
use half::f16;

use super::teams::{PADDING, TERMS};
use super::{Kernels, grid, number};
use crate::matmul::CHUNK;

const CHOOSE_SCALES: &str = "affine_choose_scales";
const ROUND: &str = "affine_round";
const ERRORS: &str = "affine_errors";
const FINISH: &str = "affine_finish";
pub(super) const NAMES: [&str; 4] = [CHOOSE_SCALES, ROUND, ERRORS, FINISH];

/// Threads of a block.
const THREADS: usize = 128;

/// Some rows of a matrix, or as many of each of several, while they are quantized. All are row-major, padded with rows of zeros
/// and one after the other.
#[derive(Debug)]
pub(in crate::backend::cuda) struct Rows {
    /// Matrices.
    pub(in crate::backend::cuda) problems: usize,
    /// Rows of a matrix, with those that pad them.
    pub(in crate::backend::cuda) each: usize,
    /// Rows of all.
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

impl Rows {
    /// Copies whole rows of weights to the GPU, as many of each matrix. `grid` is bits, group size (at most `size`), whether it
    /// is symmetric, and the lowest zero point.
    pub(in crate::backend::cuda) fn upload(
        stream: &Arc<CudaStream>,
        weights: &[&[f32]],
        size: usize,
        grid: [u32; 4],
    ) -> Result<Rows, DriverError> {
        let group_size = grid[1] as usize;
        let values = weights.first().map_or(0, |matrix| matrix.len());
        assert!(
            values > 0
                && values.is_multiple_of(size)
                && weights.iter().all(|matrix| matrix.len() == values)
                && (1..=size).contains(&group_size),
            "whole rows, as many of each matrix"
        );
        let (problems, rows, groups) = (weights.len(), values / size, size.div_ceil(group_size));
        let each = rows.next_multiple_of(PADDING);
        let padded = problems * each;
        let mut on_gpu = stream.alloc_zeros::<f32>(padded * size)?;
        for (problem, matrix) in weights.iter().enumerate() {
            stream
                .memcpy_htod(*matrix, &mut on_gpu.slice_mut(problem * each * size..).slice_mut(..values))?;
        }
        let zeros = |values| stream.alloc_zeros::<f32>(values);
        let (codes, errors) = (zeros(padded * size)?, zeros(padded * size)?);
        let (scales, zeros) = (zeros(padded * groups)?, zeros(padded * groups)?);
        Ok(Rows {
            problems,
            each,
            padded,
            rows,
            size,
            groups,
            grid,
            weights: on_gpu,
            codes,
            errors,
            scales,
            zeros,
        })
    }

    /// The fewest rows that the GPU works on; more are padded to a multiple of them.
    pub(in crate::backend::cuda) const LEAST: usize = PADDING;

    /// Bytes that these need of each of so many matrices, with their part of a product of `longest` columns.
    pub(in crate::backend::cuda) fn least_bytes(problems: usize, size: usize, longest: usize) -> usize {
        let chunks = size.div_ceil(CHUNK);
        problems * PADDING * 4 * (4 * size + (1 + chunks) * longest)
    }

    /// A thread block for each row.
    fn launch(&self) -> LaunchConfig {
        grid(self.padded * THREADS, THREADS)
    }
}

impl Kernels {
    /// Chooses the scales of all groups from the weights: `affine_choose_scales`. `importance` is one for each column of each
    /// matrix.
    pub(in crate::backend::cuda) fn choose_scales(
        &self,
        stream: &Arc<CudaStream>,
        rows: &mut Rows,
        importance: &CudaSlice<f32>,
    ) -> Result<(), DriverError> {
        assert_eq!(importance.len(), rows.problems * rows.size, "one importance for each column");
        let (size, each) = (number(rows.size), number(rows.each));
        let mut launch = stream.launch_builder(self.named(CHOOSE_SCALES));
        launch.arg(&rows.weights).arg(importance).arg(&size).arg(&each).arg(&rows.grid);
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

    /// Rounds all weights with the scales as they are: `affine_round`.
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

    /// Computes all errors anew, in the order of columns: `affine_errors`.
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

    /// Makes the result what is stored: `affine_finish`.
    pub(in crate::backend::cuda) fn finish(
        &self,
        stream: &Arc<CudaStream>,
        rows: &Rows,
    ) -> Result<Finished, DriverError> {
        let (size, groups, group_size) = (number(rows.size), number(rows.groups), rows.grid[1]);
        // SAFETY: the kernel below writes every element of the three before any is read.
        let mut codes = unsafe { stream.alloc::<u8>(rows.padded * rows.size)? };
        // SAFETY: as above.
        let mut scales = unsafe { stream.alloc::<u16>(rows.padded * rows.groups)? };
        // SAFETY: as above.
        let mut zeros = unsafe { stream.alloc::<u8>(rows.padded * rows.groups)? };
        let mut launch = stream.launch_builder(self.named(FINISH));
        launch.arg(&rows.codes).arg(&rows.scales).arg(&rows.zeros).arg(&size).arg(&groups).arg(&group_size);
        launch.arg(&mut codes).arg(&mut scales).arg(&mut zeros);
        // SAFETY: the arguments are the kernel's, in its order; matrices are as large as `Rows` has them.
        unsafe { launch.launch(rows.launch())? };
        let Rows { each, rows, size, groups, .. } = *rows;
        Ok(Finished { each, rows, size, groups, codes, scales, zeros })
    }
}

/// The result for some rows, as it is stored.
#[derive(Debug)]
pub(in crate::backend::cuda) struct Finished {
    each: usize,
    rows: usize,
    size: usize,
    groups: usize,
    /// `[padded, size]`.
    codes: CudaSlice<u8>,
    /// `[padded, groups]`.
    scales: CudaSlice<u16>,
    zeros: CudaSlice<u8>,
}

impl Finished {
    /// Fetches that of one matrix, and waits for it: codes `[rows, size]`, scales and zero points `[rows, groups]`.
    pub(in crate::backend::cuda) fn fetch(
        &self,
        stream: &Arc<CudaStream>,
        problem: usize,
        codes: &mut [u8],
        scales: &mut [f16],
        zeros: &mut [u8],
    ) -> Result<(), DriverError> {
        assert!(
            codes.len() == self.rows * self.size
                && scales.len() == self.rows * self.groups
                && zeros.len() == scales.len(),
            "room for the result"
        );
        let first = problem * self.each;
        let (code, scale) = (first * self.size, first * self.groups);
        let mut bits = vec![0; scales.len()];
        stream.memcpy_dtoh(&self.codes.slice(code..code + codes.len()), codes)?;
        stream.memcpy_dtoh(&self.zeros.slice(scale..scale + zeros.len()), zeros)?;
        stream.memcpy_dtoh(&self.scales.slice(scale..scale + bits.len()), &mut bits)?;
        stream.synchronize()?;
        scales.iter_mut().zip(bits).for_each(|(scale, bits)| *scale = f16::from_bits(bits));
        Ok(())
    }
}
