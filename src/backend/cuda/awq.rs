//! AWQ on the GPU: the launches in their order, which is that of `quant/awq`.

use cudarc::driver::DriverError;

use super::kernels::{Grams, Rows, Scored};
use super::solver::OnGpu;
use super::{Cuda, is_out_of_memory};
use crate::error::Result;
use crate::quant::Grid;
use crate::quant::awq::clip::SWEEPS;
use crate::quant::awq::scales::Trial;
use crate::quant::gptq::Problem;

impl OnGpu<'_> {
    /// The parts of the Hessians that belong to the groups.
    pub(super) fn grams(&self) -> Result<Grams> {
        let Problem { size, grid, .. } = self.problems[0];
        let group_size = grid.group_size;
        if !Grams::fit(group_size) {
            return Err(self.gpu.too_long(group_size));
        }
        let blocks = self.problems.iter().flat_map(|problem| {
            (0..grid.groups(size)).map(|group| {
                let columns = problem.columns_of(group);
                let rows = columns.clone().map(|i| &problem.hessian[i * size..][columns.clone()]);
                rows.flatten().copied().collect()
            })
        });
        let blocks: Vec<Vec<f32>> = blocks.collect();
        self.gpu.upload_grams(size, group_size, &blocks)
    }

    /// `quantize` of `clip.rs`.
    pub(super) fn find_by_awq(&self, rows: &mut Rows, grams: &Grams) -> Result<(), DriverError> {
        let (stream, kernels, problem) = (&self.gpu.stream, &self.gpu.kernels, &self.problems[0]);
        self.search(rows)?;
        kernels.errors(stream, rows)?;
        for _ in 0..SWEEPS {
            for group in 0..problem.grid.groups(problem.size) {
                let product = self.times_hessian(&rows.errors, rows.each, problem.columns_of(group))?;
                kernels.clip_group(stream, rows, &product, grams, group)?;
            }
        }
        Ok(())
    }
}

impl Cuda {
    /// [`Trial::losses`].
    pub(super) fn losses(&self, trial: &Trial<'_>) -> Result<Vec<f64>> {
        let size = trial.consumer.gram.size();
        let grid = Grid { group_size: trial.grid.group_size.min(size), ..trial.grid };
        if !Grams::fit(grid.group_size) {
            return Err(self.too_long(grid.group_size));
        }
        let _turn = self.turn();
        let grams = self.upload_grams(size, grid.group_size, &trial.blocks())?;
        let (groups, candidates) = (grid.groups(size), trial.factors.len());
        let mut losses = vec![0.0; groups * candidates];
        self.score(trial.consumer.weights, trial, grid, &grams, &mut losses)?;
        Ok(losses)
    }

    /// Adds the losses of rows, in halves if the GPU's memory is too small for all at once.
    fn score(
        &self,
        weights: &[f32],
        trial: &Trial<'_>,
        grid: Grid,
        grams: &Grams,
        losses: &mut [f64],
    ) -> Result<()> {
        let size = trial.consumer.gram.size();
        let count = weights.len() / size;
        let scored = self.score_at_once(weights, trial, grid, grams);
        match scored {
            Err(e) if is_out_of_memory(&e) && count > Rows::LEAST => {
                let half = (count / 2).next_multiple_of(Rows::LEAST);
                let (first, second) = weights.split_at(half * size);
                self.score(first, trial, grid, grams, losses)?;
                self.score(second, trial, grid, grams, losses)
            }
            Err(e) => {
                let groups = grid.groups(size);
                let bytes = 4 * (trial.factors.len() * (size + groups * Rows::LEAST) + Rows::LEAST * size);
                let what = format!("work on {} rows of {size} weights", Rows::LEAST);
                Err(self.failed_to_hold(&what, bytes, "try factors", &e))
            }
            Ok(Scored { errors, padded }) => {
                let candidates = trial.factors.len();
                let groups = losses.len() / candidates;
                for (at, errors) in errors.chunks_exact(padded).enumerate() {
                    let (candidate, group) = (at / groups, at % groups);
                    let loss = &mut losses[group * candidates + candidate];
                    errors[..count].iter().for_each(|error| *loss += f64::from(*error));
                }
                Ok(())
            }
        }
    }

    fn score_at_once(
        &self,
        weights: &[f32],
        trial: &Trial<'_>,
        grid: Grid,
        grams: &Grams,
    ) -> Result<Scored, DriverError> {
        let factors = self.stream.clone_htod(&trial.factors.concat())?;
        let grid = [grid.bits, grid.group_size as u32, grid.symmetric.into(), 0];
        self.kernels.score(&self.stream, weights, &factors, grams, grid)
    }

    fn upload_grams(&self, size: usize, group_size: usize, blocks: &[Vec<f32>]) -> Result<Grams> {
        Grams::upload(&self.stream, size, group_size, blocks).map_err(|e| {
            let bytes = 4 * blocks.len() * group_size * group_size;
            self.failed_to_hold(
                &format!("the Gram matrix of {size} inputs"),
                bytes,
                "copy the Gram matrix",
                &e,
            )
        })
    }
}
