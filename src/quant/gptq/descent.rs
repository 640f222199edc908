//! Coordinate descent: codes, scales and zero points improved in turn, each with the whole Hessian.
//!
//! The solver decides each code once, knowing only the errors before it. With all codes at hand, the error of the output,
//! `e H e^T` for the error `e` of a row, is a quadratic function of each code, each scale and each zero point, whose minimum is
//! known in closed form when all others are held.

use std::ops::Range;

use super::Problem;
use super::rows::Rows;
use crate::format::gguf::blocks::{Simd, Work};
use crate::matmul::{View, multiply};
use crate::quant::lanes::{LANES, Lanes, add_multiples, sum_multiples};
use crate::quant::scale_search::{Scale, stored};

/// Columns that are improved before the products with the Hessian are computed anew; more if a group is longer.
const BLOCK: usize = 128;

/// How often the codes of a block, and then its scales, are gone through before the next block.
const TURNS: usize = 2;

/// Goes through all columns `sweeps` times.
pub(super) fn descend(rows: &mut Rows, problem: &Problem, sweeps: usize, simd: Simd) {
    let (whole_row, width) = (is_whole_row(problem), rows.width);
    let blocks = blocks_of(problem);
    let longest = blocks.iter().map(Range::len).max().unwrap_or(0);
    let mut scratch = Scratch::new(longest);
    rows.find_errors(problem);
    for _ in 0..sweeps {
        for columns in &blocks {
            if !problem.grid.symmetric && !whole_row {
                scratch.group_sums = GroupSums::new(problem, columns);
            }
            let mut product = std::mem::take(&mut rows.product);
            product.resize(columns.len() * width, 0.0);
            times_hessian(&mut product, problem, columns.clone(), &rows.errors, width);
            rows.product = product;
            simd.compile(DescendBlock {
                rows,
                problem,
                columns: columns.clone(),
                refit: !whole_row,
                scratch: &mut scratch,
            });
        }
        if whole_row {
            refit_row(rows, problem);
        }
    }
}

/// The error of the outputs, `e H e^T`, of each row.
pub(super) fn loss(rows: &mut Rows, problem: &Problem) -> Vec<f64> {
    rows.find_errors(problem);
    quadratic_form(&rows.errors, rows.width, problem)
}

/// `x H x^T` for rows `x` that lie in the columns of `[size, width]`, with the Hessian as it was measured.
pub(super) fn quadratic_form(x: &[f32], width: usize, problem: &Problem) -> Vec<f64> {
    let size = problem.size;
    let mut sums = vec![0.0f64; width];
    let mut product = vec![0.0; BLOCK.min(size) * width];
    for start in (0..size).step_by(BLOCK) {
        let columns = start..(start + BLOCK).min(size);
        times_hessian(&mut product, problem, columns.clone(), x, width);
        for (x, y) in
            x[start * width..columns.end * width].chunks_exact(width).zip(product.chunks_exact(width))
        {
            for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
                *sum += f64::from(*x) * f64::from(*y - problem.ridge * x);
            }
        }
    }
    sums
}

/// `out = H[columns, all] * x`, where `x` is `[size, width]` and `out` `[columns, width]`.
pub(in crate::quant) fn times_hessian(
    out: &mut [f32],
    problem: &Problem,
    columns: Range<usize>,
    x: &[f32],
    width: usize,
) {
    let size = problem.size;
    let left = View::block(&problem.hessian, size, columns, 0..size);
    multiply(out, width, 0.0, 1.0, left, View::block(x, width, 0..size, 0..width));
}

/// The blocks of columns that are improved together: whole groups, unless a row is one.
pub(crate) fn blocks_of(problem: &Problem) -> Vec<Range<usize>> {
    blocks(problem.size, if is_whole_row(problem) { 1 } else { problem.grid.group_size })
}

/// Whether rows are one group, longer than a block.
pub(crate) fn is_whole_row(problem: &Problem) -> bool {
    problem.grid.groups(problem.size) == 1
}

/// Ranges of whole groups.
fn blocks(size: usize, group_size: usize) -> Vec<Range<usize>> {
    let length = (BLOCK / group_size).max(1) * group_size;
    (0..size).step_by(length).map(|start| start..(start + length).min(size)).collect()
}

/// Sums over the Hessian of a block, for the groups in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupSums {
    /// `[groups, columns]`: the sum of each of the block's rows over the columns of a group.
    pub(crate) rows: Vec<f32>,
    /// `[groups]`: the sum of all that both rows and columns of a group share.
    pub(crate) totals: Vec<f32>,
}

impl GroupSums {
    /// Those of a block of whole groups.
    pub(crate) fn new(problem: &Problem, columns: &Range<usize>) -> GroupSums {
        let mut sums = GroupSums::default();
        for start in columns.clone().step_by(problem.grid.group_size) {
            let end = (start + problem.grid.group_size).min(columns.end);
            let first = sums.rows.len();
            sums.rows.extend(
                columns.clone().map(|i| problem.hessian[i * problem.size..][start..end].iter().sum::<f32>()),
            );
            let of_group = &sums.rows[first..][start - columns.start..end - columns.start];
            sums.totals.push(of_group.iter().sum());
        }
        sums
    }

    /// The row sums of a group.
    #[inline(always)]
    fn of(&self, group: usize) -> &[f32] {
        let columns = self.rows.len() / self.totals.len();
        &self.rows[group * columns..][..columns]
    }
}

/// One value per column of a block.
struct Scratch {
    codes: Vec<Lanes>,
    /// The errors times the Hessian.
    gradient: Vec<Lanes>,
    /// The codes of one group times the Hessian.
    curvature: Vec<Lanes>,
    /// For grids with zero points.
    group_sums: GroupSums,
}

impl Scratch {
    fn new(columns: usize) -> Scratch {
        let lanes = || vec![Lanes::ZERO; columns];
        Scratch { codes: lanes(), gradient: lanes(), curvature: lanes(), group_sums: GroupSums::default() }
    }
}

struct DescendBlock<'a> {
    rows: &'a mut Rows,
    problem: &'a Problem,
    columns: Range<usize>,
    /// Whether the scales of the block's groups are improved too.
    refit: bool,
    scratch: &'a mut Scratch,
}

impl Work for DescendBlock<'_> {
    #[inline(always)]
    fn run(self) {
        let DescendBlock { rows, problem, columns, refit, scratch } = self;
        let (width, start, group_size) = (rows.width, columns.start, problem.grid.group_size);
        let groups = start / group_size..columns.end.div_ceil(group_size);
        for lane in (0..width).step_by(LANES) {
            for i in 0..columns.len() {
                scratch.codes[i] = Lanes::load(&rows.codes[(start + i) * width + lane..]);
                scratch.gradient[i] = Lanes::load(&rows.product[i * width + lane..]);
            }
            for _ in 0..TURNS {
                for group in groups.clone() {
                    let all = problem.columns_of(group);
                    let range = all.start.max(start) - start..all.end.min(columns.end) - start;
                    let mut scale = rows.scale(problem, group, lane);
                    scratch.improve_codes(problem, &columns, range.clone(), &scale);
                    if refit {
                        scale = scratch.improve_scale(problem, &columns, range.clone(), scale);
                        if !problem.grid.symmetric {
                            scale = scratch.improve_zero(problem, group - groups.start, range, scale);
                        }
                        rows.set_scale(group, lane, &scale);
                    }
                }
            }
            for i in 0..columns.len() {
                let scale = rows.scale(problem, (start + i) / group_size, lane).scale;
                let at = (start + i) * width + lane;
                scratch.codes[i].store(&mut rows.codes[at..]);
                let error = Lanes::load(&rows.weights[at..]) - scale * scratch.codes[i];
                error.store(&mut rows.errors[at..]);
            }
        }
    }
}

/// Row `i` of the Hessian, counted from the start of a block, within the block's columns.
#[inline(always)]
fn hessian_row<'a>(problem: &'a Problem, columns: &Range<usize>, i: usize) -> &'a [f32] {
    &problem.hessian[(columns.start + i) * problem.size..][columns.clone()]
}

impl Scratch {
    /// Gives each code of a group the value that is best while all others are held.
    #[inline(always)]
    fn improve_codes(
        &mut self,
        problem: &Problem,
        columns: &Range<usize>,
        range: Range<usize>,
        scale: &Scale,
    ) {
        for i in range {
            let row = hessian_row(problem, columns, i);
            let steepness = scale.scale * Lanes::splat(row[i]);
            let code = scale.code_of_ratio(self.codes[i] + self.gradient[i] / steepness);
            let change = code - self.codes[i];
            if !change.any() {
                continue;
            }
            self.codes[i] = code;
            let error = scale.scale * change;
            add_multiples(&mut self.gradient, -error, row);
        }
    }

    /// Gives a group the scale that is best for its codes, where float16 has a better one than the present.
    #[inline(always)]
    fn improve_scale(
        &mut self,
        problem: &Problem,
        columns: &Range<usize>,
        range: Range<usize>,
        scale: Scale,
    ) -> Scale {
        let curvature = &mut self.curvature[..columns.len()];
        let first = range.start;
        sum_multiples(curvature, &self.codes[range.clone()], |i| hessian_row(problem, columns, first + i));
        let (mut slope, mut bend) = (Lanes::ZERO, Lanes::ZERO);
        for i in range {
            slope = slope + self.codes[i] * self.gradient[i];
            bend = bend + self.codes[i] * curvature[i];
        }
        let (better, change) = better_scale(scale.scale, slope, bend);
        for (gradient, curvature) in self.gradient.iter_mut().zip(curvature) {
            *gradient = *gradient - change * *curvature;
        }
        Scale::new(better, -scale.low, problem.grid)
    }

    /// Gives a group, counted from the start of the block, the zero point that is best for its codes, which keep their place on
    /// the grid.
    #[inline(always)]
    fn improve_zero(&mut self, problem: &Problem, group: usize, range: Range<usize>, scale: Scale) -> Scale {
        let bend = Lanes::splat(self.group_sums.totals[group]);
        let slope = range.clone().fold(Lanes::ZERO, |sum, i| sum + self.gradient[i]);
        let zero = -scale.low;
        let lowest = Lanes::splat(f32::from(problem.lowest_zero));
        let highest = Lanes::splat(f32::from(problem.grid.max_code()));
        let better = (zero - slope / (scale.scale * bend)).round_within(lowest, highest);
        let change = better - zero;
        if !change.any() {
            return scale;
        }
        for i in range.clone() {
            self.codes[i] = self.codes[i] - change;
        }
        let error = scale.scale * change;
        for (gradient, row_sum) in self.gradient.iter_mut().zip(self.group_sums.of(group)) {
            *gradient = *gradient + error * Lanes::splat(*row_sum);
        }
        Scale::new(scale.scale, better, problem.grid)
    }
}

/// The stored scale nearest to the best one if that lowers the error, and by how much the scale changes. The error changes by
/// `change^2 * bend - 2 * change * slope`.
#[inline(always)]
fn better_scale(scale: Lanes, slope: Lanes, bend: Lanes) -> (Lanes, Lanes) {
    let better = (scale + slope / bend).map(stored);
    let change = better - scale;
    let gain = change * (slope + slope - change * bend);
    let change = change.where_greater(gain, Lanes::ZERO, Lanes::ZERO);
    (scale + change, change)
}

/// The same for rows that are one group, longer than a block.
fn refit_row(rows: &mut Rows, problem: &Problem) {
    let (size, width) = (problem.size, rows.width);
    let mut sums = [vec![0.0f64; width], vec![0.0f64; width]];
    let mut product = vec![0.0; BLOCK.min(size) * width];
    for start in (0..size).step_by(BLOCK) {
        let columns = start..(start + BLOCK).min(size);
        for (x, sums) in [&rows.errors, &rows.codes].into_iter().zip(&mut sums) {
            times_hessian(&mut product, problem, columns.clone(), x, width);
            let codes = rows.codes[start * width..columns.end * width].chunks_exact(width);
            for (codes, product) in codes.zip(product.chunks_exact(width)) {
                for (sum, (code, y)) in sums.iter_mut().zip(codes.iter().zip(product)) {
                    *sum += f64::from(*code) * f64::from(*y);
                }
            }
        }
    }
    let [slope, bend] = sums;
    for (scale, (slope, bend)) in rows.scales.iter_mut().zip(slope.into_iter().zip(bend)) {
        let better = stored((f64::from(*scale) + slope / bend) as f32);
        let change = f64::from(better) - f64::from(*scale);
        if change * (2.0 * slope - change * bend) > 0.0 {
            *scale = better;
        }
    }
    rows.find_errors(problem);
}
