//! Some rows of a weight matrix while they are quantized.

use half::f16;

use super::Problem;
use crate::format::gguf::blocks::{Simd, Work};
use crate::quant::lanes::{LANES, Lanes};
use crate::quant::scale_search::{self, Scale};

/// Rows on their way to codes. Everything is transposed, so that the rows of one column lie side by side: `[columns, width]`.
/// Rows beyond the matrix are zeros.
pub(in crate::quant) struct Rows {
    /// Rows, rounded up to whole [`Lanes`].
    pub(in crate::quant) width: usize,
    /// The weights, in the original order of the columns.
    pub(in crate::quant) weights: Vec<f32>,
    /// Code minus zero point, in the original order.
    pub(in crate::quant) codes: Vec<f32>,
    /// Weight minus quantized weight, in the order that the stage of the work wants.
    pub(in crate::quant) errors: Vec<f32>,
    /// `[groups, width]`.
    pub(in crate::quant) scales: Vec<f32>,
    /// `[groups, width]`.
    pub(in crate::quant) zeros: Vec<f32>,
    /// `[longest block, width]` for what products of matrices give.
    pub(super) product: Vec<f32>,
}

impl Rows {
    /// Takes row-major weights.
    pub(super) fn new(problem: &Problem, weights: &[f32]) -> Rows {
        let size = problem.size;
        let width = (weights.len() / size).next_multiple_of(LANES);
        let mut transposed = vec![0.0; size * width];
        for (row, weights) in weights.chunks_exact(size).enumerate() {
            for (column, weight) in transposed.chunks_exact_mut(width).zip(weights) {
                column[row] = *weight;
            }
        }
        let groups = problem.grid.groups(size);
        Rows {
            width,
            weights: transposed,
            codes: vec![0.0; size * width],
            errors: vec![0.0; size * width],
            scales: vec![1.0; groups * width],
            zeros: vec![f32::from(problem.grid.middle()); groups * width],
            product: Vec::new(),
        }
    }

    /// Scale and zero point of a group for the rows from `lane` on.
    #[inline(always)]
    pub(super) fn scale(&self, problem: &Problem, group: usize, lane: usize) -> Scale {
        let at = group * self.width + lane;
        Scale::new(Lanes::load(&self.scales[at..]), Lanes::load(&self.zeros[at..]), problem.grid)
    }

    /// Keeps the scale and zero point of a group.
    #[inline(always)]
    pub(super) fn set_scale(&mut self, group: usize, lane: usize, scale: &Scale) {
        let at = group * self.width + lane;
        scale.scale.store(&mut self.scales[at..]);
        (-scale.low).store(&mut self.zeros[at..]);
    }

    /// Chooses the scales of all groups from the weights as they are.
    #[inline(always)]
    pub(super) fn choose_scales(&mut self, problem: &Problem) {
        let size = problem.size;
        let mut weights = vec![Lanes::ZERO; problem.grid.group_size.min(size)];
        for lane in (0..self.width).step_by(LANES) {
            for group in 0..problem.grid.groups(size) {
                let columns = problem.columns_of(group);
                let weights = &mut weights[..columns.len()];
                for (weight, column) in weights.iter_mut().zip(columns.clone()) {
                    *weight = Lanes::load(&self.weights[column * self.width + lane..]);
                }
                let scale = scale_search::search(
                    weights,
                    &problem.diagonal[columns],
                    problem.grid,
                    problem.lowest_zero,
                );
                self.set_scale(group, lane, &scale);
            }
        }
    }

    /// Rounds every weight to its nearest code.
    #[inline(always)]
    pub(super) fn round(&mut self, problem: &Problem) {
        for lane in (0..self.width).step_by(LANES) {
            for group in 0..problem.grid.groups(problem.size) {
                let scale = self.scale(problem, group, lane);
                for column in problem.columns_of(group) {
                    let at = column * self.width + lane;
                    scale.code(Lanes::load(&self.weights[at..])).store(&mut self.codes[at..]);
                }
            }
        }
    }

    /// Chooses scales from the weights as they are and rounds to the nearest codes.
    pub(in crate::quant) fn search(&mut self, problem: &Problem, simd: Simd) {
        simd.compile(Search { rows: self, problem });
    }

    /// Computes all errors anew, in the original order.
    pub(in crate::quant) fn find_errors(&mut self, problem: &Problem) {
        let width = self.width;
        for column in 0..problem.size {
            let scales = &self.scales[column / problem.grid.group_size * width..][..width];
            let at = column * width..(column + 1) * width;
            let known = self.weights[at.clone()].iter().zip(&self.codes[at.clone()]).zip(scales);
            for (error, ((weight, code), scale)) in self.errors[at].iter_mut().zip(known) {
                *error = weight - scale * code;
            }
        }
    }

    /// Writes the result for as many rows as `codes` (`[rows, columns]`) has.
    pub(super) fn finish(&self, codes: &mut [u8], scales: &mut [f16], zeros: &mut [u8], problem: &Problem) {
        let (size, groups) = (problem.size, problem.grid.groups(problem.size));
        for (row, codes) in codes.chunks_exact_mut(size).enumerate() {
            for (column, code) in codes.iter_mut().enumerate() {
                let group = column / problem.grid.group_size;
                let zero = self.zeros[group * self.width + row];
                *code = (self.codes[column * self.width + row] + zero) as u8;
            }
            for group in 0..groups {
                scales[row * groups + group] = f16::from_f32(self.scales[group * self.width + row]);
                zeros[row * groups + group] = self.zeros[group * self.width + row] as u8;
            }
        }
    }
}

struct Search<'a> {
    rows: &'a mut Rows,
    problem: &'a Problem,
}

impl Work for Search<'_> {
    #[inline(always)]
    fn run(self) {
        self.rows.choose_scales(self.problem);
        self.rows.round(self.problem);
    }
}
