//! GPTQ (Frantar et al., arXiv 2210.17323) and what lowers its loss at the same size.
//!
//! The weights of a linear layer are rounded column by column; the error of each column is made good by those after it, as far
//! as the layer's inputs are correlated. Beyond the paper: scales are searched at the start of each group on the weights as they
//! then are, weighted with how much each column still matters, from both ends of the grid, and as float16 stores them; columns
//! are reordered inside groups and groups among themselves; and once all codes are known, codes, scales and zero points are
//! improved in turn by coordinate descent on the same objective.
//!
//! The rows of a matrix do not depend on each other. They are divided in a fixed way, so that the result is the same on any
//! number of threads.

pub(crate) mod descent;
pub(crate) mod order;
pub(super) mod rows;
mod solve;
#[cfg(test)]
mod tests;

use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::cholesky;
use super::codes::{Grid, QuantizedLinear};
use super::gram::Gram;
use crate::format::gguf::blocks::Simd;
use order::Order;
use rows::Rows;

/// Rows that one thread works on at a time.
pub(crate) const ROWS: usize = 96;

/// Damping unless asked otherwise, GPTQModel's.
pub const DAMP: f32 = 0.05;

/// By how much damping rises when the Hessian cannot be factored, and where it ends, as GPTQModel has it.
const DAMP_STEP: f32 = 0.01;
const DAMP_LIMIT: f32 = 1.0;

/// In which order columns are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordering {
    /// The most important columns of each group first, the most important groups first. The groups themselves stay those
    /// of neighbouring columns (GPTQModel's `act_group_aware`).
    GroupAware,
    /// The most important columns first, whatever their group; scales are those of the original weights
    /// (`desc_act` with `static_groups`). The groups stay those of neighbouring columns here too.
    Descending,
}

/// How weights are quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The grid.
    pub grid: Grid,
    /// The lowest zero point of an asymmetric grid: 1 for containers that store it less 1, else 0.
    pub lowest_zero: u8,
    /// The order of columns.
    pub ordering: Ordering,
    /// Share of the mean of the Hessian's diagonal that is added to it for the solver.
    pub damp: f32,
    /// The same for the descent after it.
    pub ridge: f32,
    /// How often codes and scales are gone through after the solver; 0 leaves the solver's result.
    pub sweeps: usize,
}

impl Settings {
    /// The settings that gave the lowest loss.
    pub fn new(grid: Grid) -> Settings {
        // With few codes the solver's are further from the best; with more, three sweeps find nearly all there is.
        let sweeps = if grid.bits == 2 { 8 } else { 3 };
        Settings { grid, lowest_zero: 0, ordering: Ordering::GroupAware, damp: DAMP, ridge: 0.01, sweeps }
    }

    /// The same for another grid, with the sweeps that are best there.
    pub fn with_grid(self, grid: Grid) -> Settings {
        Settings { grid, sweeps: Settings::new(grid).sweeps, ..self }
    }
}

/// How the Hessian was made use of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// With error propagation; the share that was added to the diagonal.
    Propagated {
        /// Share of the diagonal's mean.
        damp: f32,
    },
    /// By the scale search alone: there is no Hessian that can be factored, or it was not wanted.
    Searched,
}

/// Squared error of the outputs over the calibration data, and their energy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// `tr(E H E^T)` with `E` the difference of the weights.
    pub error: f64,
    /// `tr(W H W^T)`.
    pub energy: f64,
}

impl Loss {
    /// The sum over rows, whose errors and energies come in parts of [`ROWS`] rows.
    pub(crate) fn sum<'a>(parts: impl Iterator<Item = [&'a [f64]; 2]>) -> Loss {
        parts.fold(Loss::default(), |sum, [error, energy]| Loss {
            error: sum.error + error.iter().sum::<f64>(),
            energy: sum.energy + energy.iter().sum::<f64>(),
        })
    }

    /// Error per energy; 0 if there is no energy.
    pub fn relative(self) -> f64 {
        if self.energy > 0.0 { self.error / self.energy } else { 0.0 }
    }
}

/// All that the matrices which share an input have in common.
#[derive(Debug)]
pub struct Problem {
    pub(crate) size: usize,
    pub(crate) grid: Grid,
    pub(crate) lowest_zero: u8,
    pub(crate) sweeps: usize,
    pub(crate) order: Order,
    /// The Hessian in the original order, with `ridge` added to its diagonal.
    pub(crate) hessian: Vec<f32>,
    pub(crate) ridge: f32,
    /// The damped diagonal in the original order.
    pub(crate) diagonal: Vec<f32>,
    /// For each step the share of its column's importance that later columns cannot make good.
    pub(crate) conditional: Vec<f32>,
    /// Upper triangular, in the order of the steps, with the damping that it took.
    pub(crate) factor: Option<(Vec<f32>, f32)>,
}

impl Problem {
    /// Orders the columns and factors the Hessian, with more damping if it needs it. If none is enough, weights are searched
    /// without error propagation, as they are if `propagate` is off.
    pub fn new(gram: Gram, settings: &Settings, propagate: bool) -> Problem {
        let size = gram.size();
        let finite = gram.is_finite();
        let tokens = gram.tokens().max(1) as f32;
        let mut hessian = gram.into_symmetric();
        if finite {
            hessian.iter_mut().for_each(|h| *h /= tokens);
        } else {
            hessian.fill(0.0);
        }
        let mut diagonal: Vec<f32> = hessian.iter().step_by(size + 1).copied().collect();
        let mean = (diagonal.iter().map(|d| f64::from(*d)).sum::<f64>() / size as f64) as f32;
        let order = Order::new(&diagonal, settings.grid, settings.ordering);
        let factor =
            if propagate && mean > 0.0 { factor(&hessian, &order, settings.damp, mean) } else { None };
        let damp = factor.as_ref().map_or(settings.damp, |(_, damp)| *damp);
        // Columns without inputs still count a little: they are rounded to the nearest code.
        let least = if mean > 0.0 { damp.max(DAMP_STEP) * mean } else { 1.0 };
        diagonal.iter_mut().for_each(|d| *d += least);
        hessian.iter_mut().step_by(size + 1).for_each(|h| *h += settings.ridge * mean);
        let conditional = match &factor {
            Some((factor, _)) => factor.iter().step_by(size + 1).map(|r| r * r).collect(),
            None => order.columns.iter().map(|column| diagonal[*column]).collect(),
        };
        let Settings { grid, lowest_zero, sweeps, .. } = *settings;
        let grid = Grid { group_size: grid.group_size.min(size), ..grid };
        Problem {
            size,
            grid,
            lowest_zero,
            sweeps,
            order,
            hessian,
            ridge: settings.ridge * mean,
            diagonal,
            conditional,
            factor,
        }
    }

    /// Whether both go through the same steps, so that they can be solved together: they are of one size and grid, and differ
    /// in their Hessians alone.
    pub fn is_like(&self, other: &Problem) -> bool {
        let steps = |problem: &Problem| -> Vec<(Range<usize>, usize)> {
            problem.order.blocks.iter().map(|block| (block.steps.clone(), block.groups.len())).collect()
        };
        self.size == other.size
            && self.grid == other.grid
            && self.lowest_zero == other.lowest_zero
            && self.sweeps == other.sweeps
            && self.factor.is_some() == other.factor.is_some()
            && self.order.scales_first == other.order.scales_first
            && steps(self) == steps(other)
    }

    /// How weights are quantized here.
    pub fn method(&self) -> Method {
        self.factor.as_ref().map_or(Method::Searched, |(_, damp)| Method::Propagated { damp: *damp })
    }

    /// Quantizes a matrix, `[rows, size]` row-major.
    ///
    /// # Panics
    /// If the weights are not whole rows or are not finite.
    pub fn quantize(&self, weights: &[f32], simd: Simd) -> (QuantizedLinear, Loss) {
        self.quantize_by(weights, |rows| match &self.factor {
            Some((factor, _)) => {
                solve::solve(rows, self, factor, simd);
                descent::descend(rows, self, self.sweeps, simd);
            }
            None => rows.search(self, simd),
        })
    }

    /// Quantizes a matrix, some rows at a time, by `solve`, which is to find scales, zero points and codes.
    pub(in crate::quant) fn quantize_by(
        &self,
        weights: &[f32],
        solve: impl Fn(&mut Rows) + Sync,
    ) -> (QuantizedLinear, Loss) {
        let size = self.size;
        assert!(weights.len().is_multiple_of(size), "{} weights in rows of {size}", weights.len());
        let (rows, groups) = (weights.len() / size, self.grid.groups(size));
        let mut codes = vec![0; rows * size];
        let mut scales = vec![f16::ZERO; rows * groups];
        let mut zeros = vec![0; rows * groups];
        let losses: Vec<[Vec<f64>; 2]> = weights
            .par_chunks(ROWS * size)
            .zip(codes.par_chunks_mut(ROWS * size))
            .zip(scales.par_chunks_mut(ROWS * groups).zip(zeros.par_chunks_mut(ROWS * groups)))
            .map(|((weights, codes), (scales, zeros))| {
                let mut rows = Rows::new(self, weights);
                let energy = descent::quadratic_form(&rows.weights, rows.width, self);
                solve(&mut rows);
                let error = descent::loss(&mut rows, self);
                rows.finish(codes, scales, zeros, self);
                [error, energy]
            })
            .collect();
        let linear = QuantizedLinear::new([rows, size], self.grid, codes, scales, zeros, None)
            .expect("the solver keeps to the grid");
        let loss = Loss::sum(losses.iter().map(|[error, energy]| [&error[..], energy]));
        (linear, loss)
    }

    /// The columns of a group.
    pub(crate) fn columns_of(&self, group: usize) -> Range<usize> {
        let start = group * self.grid.group_size;
        start..(start + self.grid.group_size).min(self.size)
    }
}

/// The damped and reordered Hessian's factor, and the damping that it took.
fn factor(hessian: &[f32], order: &Order, damp: f32, mean: f32) -> Option<(Vec<f32>, f32)> {
    let size = order.columns.len();
    let mut damp = damp;
    let mut factor = vec![0.0; size * size];
    loop {
        factor.par_chunks_mut(size).zip(&order.columns).for_each(|(out, column)| {
            let row = &hessian[column * size..][..size];
            for (out, column) in out.iter_mut().zip(&order.columns) {
                *out = row[*column];
            }
        });
        factor.iter_mut().step_by(size + 1).for_each(|h| *h += damp * mean);
        if cholesky::factor(&mut factor, size).is_ok() {
            return Some((factor, damp));
        }
        damp += DAMP_STEP;
        if damp > DAMP_LIMIT {
            return None;
        }
    }
}
