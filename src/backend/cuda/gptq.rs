//! GPTQ on the GPU: the launches in their order, which is that of `quant/gptq`.
//!
//! The Hessian is prepared on the CPU: ordered, damped and factored, partly in float64. Everything that is done for each row
//! runs on the GPU.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError};
use half::f16;

use super::kernels::{Block, Factor, Rows, Teams};
use super::{Cuda, is_out_of_memory};
use crate::backend::Solver;
use crate::error::{Error, Kind, Result};
use crate::quant::QuantizedLinear;
use crate::quant::gptq::descent::{GroupSums, blocks_of, is_whole_row};
use crate::quant::gptq::{Loss, Problem, ROWS};

/// Columns of a product that is only summed up.
const BLOCK: usize = 128;

/// A problem whose matrices are on the GPU.
#[derive(Debug)]
pub(super) struct OnGpu<'a> {
    gpu: &'a Cuda,
    problem: &'a Problem,
    matrices: Matrices,
    longest: usize,
}

/// What the matrices of weights share.
#[derive(Debug)]
struct Matrices {
    /// `[size, size]`.
    hessian: CudaSlice<f32>,
    factor: Option<CudaSlice<f32>>,
    /// `[size]`: the column and the importance of each step, the importance of each column.
    columns: CudaSlice<u32>,
    conditional: CudaSlice<f32>,
    diagonal: CudaSlice<f32>,
    /// Number, first step and end of the groups of each block of steps; none if scales are chosen first.
    groups: Vec<Option<CudaSlice<u32>>>,
    /// Row sums and totals of each block of columns, where zero points are improved.
    sums: Vec<Option<[CudaSlice<f32>; 2]>>,
}

impl Matrices {
    fn upload(stream: &Arc<CudaStream>, problem: &Problem) -> Result<Matrices, DriverError> {
        let columns: Vec<u32> = problem.order.columns.iter().map(|column| *column as u32).collect();
        let groups = problem.order.blocks.iter().map(|block| {
            let flat: Vec<u32> = block
                .groups
                .iter()
                .flat_map(|(g, steps)| [*g, steps.start, steps.end])
                .map(|v| v as u32)
                .collect();
            if flat.is_empty() { Ok(None) } else { stream.clone_htod(&flat).map(Some) }
        });
        let improves_zeros = !problem.grid.symmetric && !is_whole_row(problem);
        let sums = blocks_of(problem).into_iter().map(|columns| {
            if !improves_zeros {
                return Ok(None);
            }
            let GroupSums { rows, totals } = GroupSums::new(problem, &columns);
            Ok(Some([stream.clone_htod(&rows)?, stream.clone_htod(&totals)?]))
        });
        let factor = problem.factor.as_ref().map(|(factor, _)| stream.clone_htod(factor));
        Ok(Matrices {
            hessian: stream.clone_htod(&problem.hessian)?,
            factor: factor.transpose()?,
            columns: stream.clone_htod(&columns)?,
            conditional: stream.clone_htod(&problem.conditional)?,
            diagonal: stream.clone_htod(&problem.diagonal)?,
            groups: groups.collect::<Result<_, _>>()?,
            sums: sums.collect::<Result<_, _>>()?,
        })
    }
}

/// Where the result of some rows goes.
struct Target<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [f16],
    zeros: &'a mut [u8],
    errors: &'a mut [f64],
    energies: &'a mut [f64],
}

impl<'a> Target<'a> {
    fn split(self, rows: usize) -> (Target<'a>, Target<'a>) {
        let all = self.errors.len();
        let (codes, scales) = (self.codes.len() / all * rows, self.scales.len() / all * rows);
        let (codes, more_codes) = self.codes.split_at_mut(codes);
        let (zeros, more_zeros) = self.zeros.split_at_mut(scales);
        let (scales, more_scales) = self.scales.split_at_mut(scales);
        let (errors, more_errors) = self.errors.split_at_mut(rows);
        let (energies, more_energies) = self.energies.split_at_mut(rows);
        let more = Target {
            codes: more_codes,
            scales: more_scales,
            zeros: more_zeros,
            errors: more_errors,
            energies: more_energies,
        };
        (Target { codes, scales, zeros, errors, energies }, more)
    }
}

impl<'a> OnGpu<'a> {
    /// Copies what the matrices share to the GPU.
    pub(super) fn new(gpu: &'a Cuda, problem: &'a Problem) -> Result<OnGpu<'a>> {
        let blocks = blocks_of(problem);
        let descent = blocks.iter().map(Range::len).max().unwrap_or(0);
        let longest = problem.order.longest().max(descent);
        if Teams::of(longest).is_none() {
            return Err(Error::new(
                Kind::Unsupported,
                format!("{}: groups of {longest} columns do not fit the GPU's shared memory", gpu.name),
            )
            .hint("Pass a smaller --group-size, -1 for whole rows, or --device cpu."));
        }
        let matrices = Matrices::upload(&gpu.stream, problem).map_err(|e| {
            let factors = 1 + usize::from(problem.factor.is_some());
            let what = format!("the Hessian of {} inputs", problem.size);
            gpu.failed_to_hold(&what, 4 * factors * problem.size * problem.size, "copy the Hessian", &e)
        })?;
        Ok(OnGpu { gpu, problem, matrices, longest })
    }

    /// Quantizes rows, in halves if the GPU's memory is too small for all at once.
    fn quantize(&self, weights: &[f32], mut target: Target<'_>) -> Result<()> {
        let count = target.errors.len();
        match self.some_rows(weights, &mut target) {
            Err(e) if is_out_of_memory(&e) && count > 1 => {
                let half = count / 2;
                let (first, second) = weights.split_at(half * self.problem.size);
                let (first_target, second_target) = target.split(half);
                self.quantize(first, first_target)?;
                self.quantize(second, second_target)
            }
            done => done.map_err(|e| {
                let bytes = Rows::bytes(self.problem.size, self.longest);
                self.gpu.failed_to_hold(
                    &format!("a row of {} weights", self.problem.size),
                    bytes,
                    "quantize",
                    &e,
                )
            }),
        }
    }

    fn some_rows(&self, weights: &[f32], target: &mut Target<'_>) -> Result<(), DriverError> {
        let Problem { size, grid, lowest_zero, .. } = *self.problem;
        let grid = [grid.bits, grid.group_size as u32, grid.symmetric.into(), lowest_zero.into()];
        let (stream, kernels) = (&self.gpu.stream, &self.gpu.kernels);
        let mut rows = Rows::upload(stream, weights, size, grid)?;
        self.quadratic_form(&rows.weights, rows.padded, target.energies)?;
        match &self.matrices.factor {
            Some(factor) => {
                self.solve(&mut rows, factor)?;
                self.descend(&mut rows)?;
            }
            None => {
                kernels.choose_scales(stream, &mut rows, &self.matrices.diagonal)?;
                kernels.round(stream, &mut rows)?;
            }
        }
        kernels.errors(stream, &mut rows)?;
        self.quadratic_form(&rows.errors, rows.padded, target.errors)?;
        kernels.finish(stream, &rows, target.codes, target.scales, target.zeros)
    }

    /// `quadratic_form` of `descent.rs`, of `x` (`[padded, size]`).
    fn quadratic_form(&self, x: &CudaSlice<f32>, padded: usize, out: &mut [f64]) -> Result<(), DriverError> {
        let stream = &self.gpu.stream;
        let mut sums = stream.alloc_zeros::<f64>(padded)?;
        for columns in (0..self.problem.size).step_by(BLOCK) {
            let columns = columns..(columns + BLOCK).min(self.problem.size);
            let product = self.times_hessian(x, padded, columns.clone())?;
            self.gpu.kernels.dots(stream, (x, &product), self.problem.ridge, columns, &mut sums)?;
        }
        stream.memcpy_dtoh(&sums.slice(..out.len()), out)
    }

    /// `x * H[all, columns]`.
    fn times_hessian(
        &self,
        x: &CudaSlice<f32>,
        padded: usize,
        columns: Range<usize>,
    ) -> Result<CudaSlice<f32>, DriverError> {
        let size = self.problem.size;
        let x = Factor { values: x, stride: size, rows: 0..padded, columns: 0..size };
        let hessian = Factor { values: &self.matrices.hessian, stride: size, rows: 0..size, columns };
        self.gpu.kernels.product(&self.gpu.stream, &x, &hessian)
    }

    /// `solve` of `solve.rs`.
    fn solve(&self, rows: &mut Rows, factor: &CudaSlice<f32>) -> Result<(), DriverError> {
        let (stream, kernels, matrices) = (&self.gpu.stream, &self.gpu.kernels, &self.matrices);
        if self.problem.order.scales_first {
            kernels.choose_scales(stream, rows, &matrices.diagonal)?;
        }
        for (block, groups) in self.problem.order.blocks.iter().zip(&matrices.groups) {
            let (size, steps) = (rows.size, block.steps.clone());
            let earlier =
                Factor { values: &rows.errors, stride: size, rows: 0..rows.padded, columns: 0..steps.start };
            let factors =
                Factor { values: factor, stride: size, rows: 0..steps.start, columns: steps.clone() };
            let product = kernels.product(stream, &earlier, &factors)?;
            let block = Block { product: &product, matrix: factor, start: steps.start, length: steps.len() };
            let order = (&matrices.columns, &matrices.conditional);
            kernels.solve_block(stream, rows, block, order, groups.as_ref())?;
        }
        Ok(())
    }

    /// `descend` of `descent.rs`.
    fn descend(&self, rows: &mut Rows) -> Result<(), DriverError> {
        let (stream, kernels, matrices) = (&self.gpu.stream, &self.gpu.kernels, &self.matrices);
        let whole_row = is_whole_row(self.problem);
        kernels.errors(stream, rows)?;
        for _ in 0..self.problem.sweeps {
            for (columns, sums) in blocks_of(self.problem).into_iter().zip(&matrices.sums) {
                let product = self.times_hessian(&rows.errors, rows.padded, columns.clone())?;
                let (start, length) = (columns.start, columns.len());
                let block = Block { product: &product, matrix: &matrices.hessian, start, length };
                let sums = sums.as_ref().map(|[row_sums, totals]| (row_sums, totals));
                kernels.descend_block(stream, rows, block, sums, !whole_row)?;
            }
            if whole_row {
                self.refit_row(rows)?;
            }
        }
        Ok(())
    }

    /// `refit_row` of `descent.rs`.
    fn refit_row(&self, rows: &mut Rows) -> Result<(), DriverError> {
        let (stream, kernels) = (&self.gpu.stream, &self.gpu.kernels);
        let mut sums = [stream.alloc_zeros::<f64>(rows.padded)?, stream.alloc_zeros::<f64>(rows.padded)?];
        for columns in blocks_of(self.problem) {
            for (x, sums) in [&rows.errors, &rows.codes].into_iter().zip(&mut sums) {
                let product = self.times_hessian(x, rows.padded, columns.clone())?;
                kernels.dots(stream, (&rows.codes, &product), 0.0, columns.clone(), sums)?;
            }
        }
        kernels.refit(stream, rows, &sums)?;
        kernels.errors(stream, rows)
    }
}

impl Solver for OnGpu<'_> {
    fn gptq(&self, weights: &[f32]) -> Result<(QuantizedLinear, Loss)> {
        let Problem { size, grid, .. } = *self.problem;
        assert!(weights.len().is_multiple_of(size), "{} weights in rows of {size}", weights.len());
        let (rows, groups) = (weights.len() / size, grid.groups(size));
        let mut codes = vec![0; rows * size];
        let mut scales = vec![f16::ZERO; rows * groups];
        let mut zeros = vec![0; rows * groups];
        let (mut errors, mut energies) = (vec![0.0; rows], vec![0.0; rows]);
        {
            let _turn = self.gpu.turn();
            let (codes, scales, zeros) = (&mut codes[..], &mut scales[..], &mut zeros[..]);
            let target = Target { codes, scales, zeros, errors: &mut errors, energies: &mut energies };
            self.quantize(weights, target)?;
        }
        let linear = QuantizedLinear::new([rows, size], grid, codes, scales, zeros, None)
            .expect("the solver keeps to the grid");
        Ok((linear, Loss::sum(errors.chunks(ROWS).zip(energies.chunks(ROWS)).map(|(a, b)| [a, b]))))
    }
}
