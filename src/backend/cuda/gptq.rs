//! GPTQ on the GPU: the launches in their order, which is that of `quant/gptq`.
//!
//! The Hessian is prepared on the CPU: ordered, damped and factored, partly in float64. Everything that is done for each row
//! runs on the GPU.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError};

use super::kernels::{Block, Factor, Rows};
use super::solver::OnGpu;
use crate::quant::gptq::Problem;
use crate::quant::gptq::descent::{GroupSums, blocks_of, is_whole_row};

/// What the matrices of weights share.
#[derive(Debug)]
pub(super) struct Matrices {
    /// `[size, size]`.
    pub(super) hessian: CudaSlice<f32>,
    factor: Option<CudaSlice<f32>>,
    /// `[size]`: the column and the importance of each step, the importance of each column.
    columns: CudaSlice<u32>,
    conditional: CudaSlice<f32>,
    pub(super) diagonal: CudaSlice<f32>,
    /// Number, first step and end of the groups of each block of steps; none if scales are chosen first.
    groups: Vec<Option<CudaSlice<u32>>>,
    /// Row sums and totals of each block of columns, where zero points are improved.
    sums: Vec<Option<[CudaSlice<f32>; 2]>>,
}

impl Matrices {
    pub(super) fn upload(stream: &Arc<CudaStream>, problem: &Problem) -> Result<Matrices, DriverError> {
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

impl OnGpu<'_> {
    /// Finds codes with error propagation, or by the search alone if there is no factor.
    pub(super) fn find_by_gptq(&self, rows: &mut Rows) -> Result<(), DriverError> {
        match &self.matrices.factor {
            Some(factor) => {
                self.solve(rows, factor)?;
                self.descend(rows)
            }
            None => self.search(rows),
        }
    }

    /// `Rows::search` of `rows.rs`: the best scales for the weights as they are, and the nearest codes.
    pub(super) fn search(&self, rows: &mut Rows) -> Result<(), DriverError> {
        self.gpu.kernels.choose_scales(&self.gpu.stream, rows, &self.matrices.diagonal)?;
        self.gpu.kernels.round(&self.gpu.stream, rows)
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
