//! The solver of GPTQ: column by column, each error made good by the columns that follow.

use super::Problem;
use super::order::Block;
use super::rows::Rows;
use crate::format::gguf::blocks::{Simd, Work};
use crate::matmul::{View, multiply};
use crate::quant::lanes::{LANES, Lanes, add_multiples};
use crate::quant::scale_search;

/// Quantizes rows in the order of the problem, with error propagation.
///
/// Frantar et al. (arXiv 2210.17323, algorithm 1) update all remaining weights after each column. With `H = R R^T`, `R` upper
/// triangular, the updated weight of column `j` is `w_j + sum_{i<j} e_i R_ij / R_jj`, where `e_i` are the errors against the
/// *original* weights (LDLQ; Chee et al., arXiv 2307.13304, theorem 6, show that both are the same). So nothing is updated: the
/// sum over earlier blocks is one product of matrices for each block.
pub(super) fn solve(rows: &mut Rows, problem: &Problem, factor: &[f32], simd: Simd) {
    let (size, width) = (problem.size, rows.width);
    if problem.order.scales_first {
        simd.compile(ChooseScales { rows, problem });
    }
    let mut scratch = Scratch::new(problem.order.longest());
    for block in &problem.order.blocks {
        let steps = block.steps.clone();
        let mut product = std::mem::take(&mut rows.product);
        product.resize(steps.len() * width, 0.0);
        let earlier = View::block(factor, size, 0..steps.start, steps.clone()).t();
        multiply(
            &mut product,
            width,
            0.0,
            1.0,
            earlier,
            View::block(&rows.errors, width, 0..steps.start, 0..width),
        );
        rows.product = product;
        simd.compile(SolveBlock { rows, problem, factor, block, scratch: &mut scratch });
    }
}

struct ChooseScales<'a> {
    rows: &'a mut Rows,
    problem: &'a Problem,
}

impl Work for ChooseScales<'_> {
    #[inline(always)]
    fn run(self) {
        self.rows.choose_scales(self.problem);
    }
}

/// One value per step of a block.
struct Scratch {
    weights: Vec<Lanes>,
    /// Sum of the earlier errors, each times its factor.
    pull: Vec<Lanes>,
    free: Vec<Lanes>,
    updated: Vec<Lanes>,
}

impl Scratch {
    fn new(steps: usize) -> Scratch {
        let lanes = || vec![Lanes::ZERO; steps];
        Scratch { weights: lanes(), pull: lanes(), free: lanes(), updated: lanes() }
    }
}

struct SolveBlock<'a> {
    rows: &'a mut Rows,
    problem: &'a Problem,
    factor: &'a [f32],
    block: &'a Block,
    scratch: &'a mut Scratch,
}

impl Work for SolveBlock<'_> {
    #[inline(always)]
    fn run(self) {
        let SolveBlock { rows, problem, factor, block, scratch } = self;
        let (size, width) = (problem.size, rows.width);
        let (start, end) = (block.steps.start, block.steps.end);
        let columns = &problem.order.columns[start..end];
        // Row `i` of the factor, from its diagonal to the end of the block.
        let factor_row = |i: usize| &factor[(start + i) * size + start + i..(start + i) * size + end];
        for lane in (0..width).step_by(LANES) {
            for (i, column) in columns.iter().enumerate() {
                scratch.weights[i] = Lanes::load(&rows.weights[column * width + lane..]);
                scratch.pull[i] = Lanes::load(&rows.product[i * width + lane..]);
            }
            for (group, steps) in &block.groups {
                let range = steps.start - start..steps.end - start;
                // What the weights of the group would best be, were they not rounded.
                scratch.free[range.clone()].copy_from_slice(&scratch.pull[range.clone()]);
                for i in range.clone() {
                    let row = &factor_row(i)[..range.end - i];
                    let shift = scratch.free[i] / Lanes::splat(row[0]);
                    scratch.updated[i] = scratch.weights[i] + shift;
                    add_multiples(&mut scratch.free[i + 1..range.end], -shift, &row[1..]);
                }
                let importance = &problem.conditional[steps.clone()];
                let scale = scale_search::search(
                    &scratch.updated[range.clone()],
                    importance,
                    problem.grid,
                    problem.lowest_zero,
                );
                rows.set_scale(*group, lane, &scale);
                for i in range {
                    step(rows, scratch, factor_row(i), i, start + i, columns[i], lane, &scale);
                }
            }
            if problem.order.scales_first {
                for (i, column) in columns.iter().enumerate() {
                    let scale = rows.scale(problem, column / problem.grid.group_size, lane);
                    step(rows, scratch, factor_row(i), i, start + i, *column, lane, &scale);
                }
            }
        }
    }
}

/// Quantizes one column and notes its error. `factor` is its row, from the diagonal to the end of the block.
#[allow(clippy::too_many_arguments, reason = "one place in the block, the order and the matrix each")]
#[inline(always)]
fn step(
    rows: &mut Rows,
    scratch: &mut Scratch,
    factor: &[f32],
    i: usize,
    at_step: usize,
    column: usize,
    lane: usize,
    scale: &scale_search::Scale,
) {
    let weight = scratch.weights[i];
    let code = scale.code(weight + scratch.pull[i] / Lanes::splat(factor[0]));
    let error = weight - scale.scale * code;
    code.store(&mut rows.codes[column * rows.width + lane..]);
    error.store(&mut rows.errors[at_step * rows.width + lane..]);
    add_multiples(&mut scratch.pull[i + 1..], error, &factor[1..]);
}
