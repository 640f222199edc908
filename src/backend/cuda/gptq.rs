//! GPTQ on the GPU: the launches in their order, which is that of `quant/gptq`.
//!
//! The Hessian is prepared on the CPU: ordered, damped and factored, partly in float64. Everything that is done for each row
//! runs on the GPU.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError};

use super::kernels::{self, Block, Rows};
use super::solver::OnGpu;
use crate::quant::gptq::Problem;
use crate::quant::gptq::descent::{GroupSums, blocks_of, is_whole_row};

/// What belongs to problems, one after the other.
#[derive(Debug)]
pub(super) struct Matrices {
    /// `[problems, size, size]`.
    pub(super) hessian: CudaSlice<f32>,
    /// `[problems]`: what was added to its diagonal.
    pub(super) ridges: CudaSlice<f32>,
    factor: Option<CudaSlice<f32>>,
    /// `[problems, size]`: the column and the importance of each step, the importance of each column.
    columns: CudaSlice<u32>,
    conditional: CudaSlice<f32>,
    pub(super) diagonal: CudaSlice<f32>,
    /// `[problems, groups, 3]`: number, first step and end of the groups of each block of steps; none if scales are chosen
    /// first.
    groups: Vec<Option<CudaSlice<u32>>>,
    /// Row sums and totals of each block of columns, where zero points are improved: `[problems, groups, block]` and
    /// `[problems, groups]`.
    sums: Vec<Option<[CudaSlice<f32>; 2]>>,
}

/// The values of all problems, one after the other.
fn stacked(
    stream: &Arc<CudaStream>,
    problems: &[Problem],
    of: impl Fn(&Problem) -> &[f32],
) -> Result<CudaSlice<f32>, DriverError> {
    let values: Vec<&[f32]> = problems.iter().map(of).collect();
    let mut all = stream.alloc_zeros::<f32>(values.iter().map(|v| v.len()).sum())?;
    let mut start = 0;
    for values in values {
        stream.memcpy_htod(values, &mut all.slice_mut(start..start + values.len()))?;
        start += values.len();
    }
    Ok(all)
}

/// The factor of a problem that is like one that has a factor.
fn factor_of(problem: &Problem) -> &[f32] {
    problem.factor.as_ref().map(|(factor, _)| &factor[..]).expect("as the first has one")
}

impl Matrices {
    /// Copies what belongs to problems that are like each other.
    pub(super) fn upload(stream: &Arc<CudaStream>, problems: &[Problem]) -> Result<Matrices, DriverError> {
        let first = &problems[0];
        let columns: Vec<u32> =
            problems.iter().flat_map(|p| &p.order.columns).map(|column| *column as u32).collect();
        let groups = (0..first.order.blocks.len()).map(|block| {
            let groups = problems.iter().flat_map(|p| &p.order.blocks[block].groups);
            let flat: Vec<u32> =
                groups.flat_map(|(g, steps)| [*g, steps.start, steps.end]).map(|v| v as u32).collect();
            if flat.is_empty() { Ok(None) } else { stream.clone_htod(&flat).map(Some) }
        });
        let improves_zeros = !first.grid.symmetric && !is_whole_row(first);
        let sums = blocks_of(first).into_iter().map(|columns| {
            if !improves_zeros {
                return Ok(None);
            }
            let of_problems: Vec<GroupSums> = problems.iter().map(|p| GroupSums::new(p, &columns)).collect();
            let rows: Vec<f32> = of_problems.iter().flat_map(|sums| &sums.rows).copied().collect();
            let totals: Vec<f32> = of_problems.iter().flat_map(|sums| &sums.totals).copied().collect();
            Ok(Some([stream.clone_htod(&rows)?, stream.clone_htod(&totals)?]))
        });
        let ridges: Vec<f32> = problems.iter().map(|p| p.ridge).collect();
        Ok(Matrices {
            hessian: stacked(stream, problems, |p| &p.hessian)?,
            ridges: stream.clone_htod(&ridges)?,
            factor: first.factor.is_some().then(|| stacked(stream, problems, factor_of)).transpose()?,
            columns: stream.clone_htod(&columns)?,
            conditional: stacked(stream, problems, |p| &p.conditional)?,
            diagonal: stacked(stream, problems, |p| &p.diagonal)?,
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
        let order = &self.problems[0].order;
        if order.scales_first {
            kernels.choose_scales(stream, rows, &matrices.diagonal)?;
        }
        for (block, groups) in order.blocks.iter().zip(&matrices.groups) {
            let (size, steps) = (rows.size, block.steps.clone());
            let shape = (rows.problems, [rows.each, steps.len(), steps.start]);
            let earlier = kernels::Matrices::stacked(&rows.errors, [rows.each, size], 0);
            let factors = kernels::Matrices::stacked(factor, [size, size], steps.start);
            let product = kernels.few_columns(stream, shape, earlier, factors)?;
            let block = Block { product: &product, matrix: factor, start: steps.start, length: steps.len() };
            let order = (&matrices.columns, &matrices.conditional);
            kernels.solve_block(stream, rows, block, order, groups.as_ref())?;
        }
        Ok(())
    }

    /// `descend` of `descent.rs`.
    fn descend(&self, rows: &mut Rows) -> Result<(), DriverError> {
        let (stream, kernels, matrices) = (&self.gpu.stream, &self.gpu.kernels, &self.matrices);
        let whole_row = is_whole_row(&self.problems[0]);
        kernels.errors(stream, rows)?;
        for _ in 0..self.problems[0].sweeps {
            for (columns, sums) in blocks_of(&self.problems[0]).into_iter().zip(&matrices.sums) {
                let product = self.times_hessian(&rows.errors, rows.each, columns.clone())?;
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
        for columns in blocks_of(&self.problems[0]) {
            for (x, sums) in [&rows.errors, &rows.codes].into_iter().zip(&mut sums) {
                let product = self.times_hessian(x, rows.each, columns.clone())?;
                kernels.dots(stream, (&rows.codes, &product), (rows.each, None), columns.clone(), sums)?;
            }
        }
        kernels.refit(stream, rows, &sums)?;
        kernels.errors(stream, rows)
    }
}
