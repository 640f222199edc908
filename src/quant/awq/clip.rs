//! The range of each group.

use std::ops::Range;

use crate::format::gguf::blocks::Simd;
use crate::quant::codes::{Grid, QuantizedLinear};
use crate::quant::gemm::{View, multiply};
use crate::quant::gptq::descent::times_hessian;
use crate::quant::gptq::rows::Rows;
use crate::quant::gptq::{Loss, Problem};
use crate::quant::lanes::{LANES, Lanes};
use crate::quant::scale_search::{Scale, stored};

/// How often all groups are gone through.
const SWEEPS: usize = 2;

/// Ranges that are tried, as shares of the one that just covers the group.
const SHARES: Range<f32> = 0.55..1.05;
/// How many.
const CANDIDATES: usize = 24;
/// How often the best range for the codes and the codes for it are taken in turn.
const REFINEMENTS: usize = 2;

/// Quantizes a matrix, `[rows, channels]` row-major: every weight becomes the code nearest to it, and the range of each row and
/// group is the one whose roundings make the error of the row's outputs smallest.
///
/// The ranges start as those of the search that looks at each channel by itself. Then each group in turn takes, of many ranges,
/// the one with the least error, all other groups being as they are. The error is `e H e^T` with the whole Hessian, so that
/// correlations count, those inside a group and those with the errors of other groups.
///
/// # Panics
/// If the weights are not whole rows.
pub fn quantize(problem: &Problem, weights: &[f32], simd: Simd) -> (QuantizedLinear, Loss) {
    problem.quantize_by(weights, |rows| {
        rows.search(problem, simd);
        rows.find_errors(problem);
        let mut scratch = Scratch::new(problem.grid.group_size * rows.width, rows.width);
        for _ in 0..SWEEPS {
            for group in 0..problem.grid.groups(problem.size) {
                clip_group(rows, problem, group, &mut scratch, simd);
            }
        }
    })
}

/// The part of the weights' range that the grid covers, on average over all rows and groups; `weights` are those that were
/// quantized. 0 lies in every range.
pub fn covered(linear: &QuantizedLinear, weights: &[f32]) -> f64 {
    let (size, groups) = (linear.in_features(), linear.groups());
    let codes = f64::from(linear.grid().max_code());
    let mut sum = 0.0;
    for (row, scales) in weights.chunks_exact(size).zip(linear.scales().chunks_exact(groups)) {
        for (weights, scale) in row.chunks(linear.group_size()).zip(scales) {
            let (low, high) =
                weights.iter().fold((0.0f32, 0.0f32), |(low, high), w| (low.min(*w), high.max(*w)));
            let width = f64::from(high - low);
            sum += if width > 0.0 { scale.to_f64().abs() * codes / width } else { 1.0 };
        }
    }
    sum / linear.scales().len() as f64
}

/// Values of one group, `[columns, width]`, and of its rows.
struct Scratch {
    /// The errors of all other groups times the Hessian.
    pull: Vec<f32>,
    /// The candidate's codes, less their zero points, and the errors that they leave.
    codes: Vec<f32>,
    errors: Vec<f32>,
    /// Errors, or codes, times the Hessian within the group.
    product: Vec<f32>,
    /// `[width]`: the candidate.
    scales: Vec<f32>,
    zeros: Vec<f32>,
    costs: Vec<f32>,
    /// `[width]`: the best so far.
    best: Best,
}

struct Best {
    scales: Vec<f32>,
    zeros: Vec<f32>,
    costs: Vec<f32>,
}

impl Scratch {
    fn new(values: usize, width: usize) -> Scratch {
        let [pull, codes, errors, product] = std::array::from_fn(|_| vec![0.0; values]);
        let [scales, zeros, costs] = std::array::from_fn(|_| vec![0.0; width]);
        let best = Best { scales: scales.clone(), zeros: zeros.clone(), costs: costs.clone() };
        Scratch { pull, codes, errors, product, scales, zeros, costs, best }
    }
}

/// Gives each row the best range for one group.
fn clip_group(rows: &mut Rows, problem: &Problem, group: usize, scratch: &mut Scratch, simd: Simd) {
    let width = rows.width;
    let columns = problem.columns_of(group);
    let values = columns.start * width..columns.end * width;
    let length = values.len();
    let pull = &mut scratch.pull[..length];
    times_hessian(pull, problem, columns.clone(), &rows.errors, width);
    let product = &mut scratch.product[..length];
    times_block(product, problem, columns.clone(), &rows.errors[values.clone()], width);
    // The error is a constant and `e (H e + 2 pull)` of the group's own errors `e`.
    pull.iter_mut().zip(&*product).for_each(|(pull, own)| *pull -= own);
    let at = group * width..(group + 1) * width;
    let mut trial = Trial { weights: &rows.weights[values.clone()], problem, columns, scratch, simd };
    trial.start_from(&rows.scales[at.clone()], &rows.zeros[at.clone()]);
    let ranges = trial.ranges();
    for shift in [0.0, -1.0, 1.0] {
        for i in 0..CANDIDATES {
            let step = (SHARES.end - SHARES.start) / (CANDIDATES - 1) as f32;
            trial.try_share(&ranges, SHARES.end - step * i as f32, shift);
        }
    }
    for _ in 0..REFINEMENTS {
        trial.refine();
    }
    trial.take_best();
    rows.scales[at.clone()].copy_from_slice(&scratch.best.scales);
    rows.zeros[at].copy_from_slice(&scratch.best.zeros);
    rows.codes[values.clone()].copy_from_slice(&scratch.codes[..length]);
    rows.errors[values].copy_from_slice(&scratch.errors[..length]);
}

/// `out = H[columns, columns] * x`, both `[columns, width]`.
fn times_block(out: &mut [f32], problem: &Problem, columns: Range<usize>, x: &[f32], width: usize) {
    let length = columns.len();
    let block = View::block(&problem.hessian, problem.size, columns.clone(), columns);
    multiply(out, width, 0.0, 1.0, block, View::block(x, width, 0..length, 0..width));
}

/// One group on its way to its best ranges.
struct Trial<'a> {
    /// `[columns, width]`.
    weights: &'a [f32],
    problem: &'a Problem,
    columns: Range<usize>,
    scratch: &'a mut Scratch,
    simd: Simd,
}

impl Trial<'_> {
    fn width(&self) -> usize {
        self.scratch.scales.len()
    }

    /// Takes the present ranges for the best.
    fn start_from(&mut self, scales: &[f32], zeros: &[f32]) {
        self.scratch.scales.copy_from_slice(scales);
        self.scratch.zeros.copy_from_slice(zeros);
        self.scratch.best.costs.fill(f32::INFINITY);
        self.judge();
    }

    /// Scale and zero point that just cover the weights of each row.
    fn ranges(&self) -> [Vec<f32>; 2] {
        let (width, grid) = (self.width(), self.problem.grid);
        let mut ranges = [vec![0.0; width], vec![0.0; width]];
        let weights = self.weights;
        let [scales, zeros] = &mut ranges;
        self.simd.compile(|| cover(weights, width, grid, scales, zeros));
        ranges
    }

    /// Tries the ranges, shrunk, with zero points moved.
    fn try_share(&mut self, [scales, zeros]: &[Vec<f32>; 2], share: f32, shift: f32) {
        let top = f32::from(self.problem.grid.max_code());
        let scratch = &mut *self.scratch;
        for ((scale, zero), (out, out_zero)) in
            scales.iter().zip(zeros).zip(scratch.scales.iter_mut().zip(&mut scratch.zeros))
        {
            (*out, *out_zero) = (stored(scale * share), (zero + shift).clamp(0.0, top));
        }
        self.judge();
    }

    /// Tries the scales that would be best for the codes of the best ranges so far.
    fn refine(&mut self) {
        self.take_best();
        let width = self.width();
        let scratch = &mut *self.scratch;
        let length = self.weights.len();
        let (codes, product) = (&scratch.codes[..length], &mut scratch.product[..length]);
        times_block(product, self.problem, self.columns.clone(), codes, width);
        let (errors, pull) = (&scratch.errors[..length], &scratch.pull[..length]);
        let (scales, best) = (&mut scratch.scales, &scratch.best);
        self.simd.compile(|| best_scales(codes, product, errors, pull, &best.scales, scales));
        scratch.zeros.copy_from_slice(&scratch.best.zeros);
        self.judge();
    }

    /// Rounds with the candidate, and keeps it where it has the least error.
    fn judge(&mut self) {
        self.round();
        let (width, length) = (self.width(), self.weights.len());
        let scratch = &mut *self.scratch;
        let errors = &scratch.errors[..length];
        times_block(&mut scratch.product[..length], self.problem, self.columns.clone(), errors, width);
        let (product, pull) = (&scratch.product[..length], &scratch.pull[..length]);
        let (scales, zeros, costs, best) =
            (&scratch.scales, &scratch.zeros, &mut scratch.costs, &mut scratch.best);
        self.simd.compile(|| {
            cost(errors, product, pull, costs);
            best.update(scales, zeros, costs);
        });
    }

    /// The codes and errors of the best ranges.
    fn take_best(&mut self) {
        self.scratch.scales.copy_from_slice(&self.scratch.best.scales);
        self.scratch.zeros.copy_from_slice(&self.scratch.best.zeros);
        self.round();
    }

    fn round(&mut self) {
        let (weights, grid, length) = (self.weights, self.problem.grid, self.weights.len());
        let Scratch { codes, errors, scales, zeros, .. } = &mut *self.scratch;
        let (codes, errors) = (&mut codes[..length], &mut errors[..length]);
        self.simd.compile(|| round(weights, scales, zeros, grid, codes, errors));
    }
}

impl Best {
    #[inline(always)]
    fn update(&mut self, scales: &[f32], zeros: &[f32], costs: &[f32]) {
        for lane in (0..costs.len()).step_by(LANES) {
            let (new, old) = (Lanes::load(&costs[lane..]), Lanes::load(&self.costs[lane..]));
            let better = |new_value: &[f32], old_value: &mut [f32]| {
                let kept = Lanes::load(&old_value[lane..]);
                Lanes::load(&new_value[lane..]).where_greater(old, new, kept).store(&mut old_value[lane..]);
            };
            better(scales, &mut self.scales);
            better(zeros, &mut self.zeros);
            better(costs, &mut self.costs);
        }
    }
}

#[inline(always)]
fn cover(weights: &[f32], width: usize, grid: Grid, scales: &mut [f32], zeros: &mut [f32]) {
    let top = Lanes::splat(f32::from(grid.max_code()));
    for lane in (0..width).step_by(LANES) {
        let columns = weights[lane..].chunks(width);
        let (low, high) = columns.fold((Lanes::ZERO, Lanes::ZERO), |(low, high), column| {
            let weight = Lanes::load(column);
            (weight.min(low), weight.max(high))
        });
        let whole = (high - low) / top;
        let least = Lanes::splat(f32::MIN_POSITIVE);
        let ratio = Lanes::ZERO.where_greater(least, whole, -low / whole);
        // A group of zeros has no scale; any does.
        whole.where_greater(whole, least, Lanes::splat(1.0)).store(&mut scales[lane..]);
        ratio.round_within(Lanes::ZERO, top).store(&mut zeros[lane..]);
    }
}

#[inline(always)]
fn round(
    weights: &[f32],
    scales: &[f32],
    zeros: &[f32],
    grid: Grid,
    codes: &mut [f32],
    errors: &mut [f32],
) {
    let width = scales.len();
    for lane in (0..width).step_by(LANES) {
        let scale = Scale::new(Lanes::load(&scales[lane..]), Lanes::load(&zeros[lane..]), grid);
        for at in (lane..weights.len()).step_by(width) {
            let weight = Lanes::load(&weights[at..]);
            let code = scale.code(weight);
            code.store(&mut codes[at..]);
            (weight - scale.scale * code).store(&mut errors[at..]);
        }
    }
}

/// `e (H e + 2 pull)` of each row.
#[inline(always)]
fn cost(errors: &[f32], product: &[f32], pull: &[f32], costs: &mut [f32]) {
    let width = costs.len();
    for lane in (0..width).step_by(LANES) {
        let mut sum = Lanes::ZERO;
        for at in (lane..errors.len()).step_by(width) {
            let pull = Lanes::load(&pull[at..]);
            sum = sum + Lanes::load(&errors[at..]) * (Lanes::load(&product[at..]) + pull + pull);
        }
        sum.store(&mut costs[lane..]);
    }
}

/// The scales that are best for codes `c`, whose product with the Hessian is known. The scale `s + d` has the error
/// `d^2 c H c - 2 d c (H e + pull)` more than `s`.
#[inline(always)]
fn best_scales(
    codes: &[f32],
    product: &[f32],
    errors: &[f32],
    pull: &[f32],
    scales: &[f32],
    out: &mut [f32],
) {
    let width = scales.len();
    for lane in (0..width).step_by(LANES) {
        let (mut slope, mut bend) = (Lanes::ZERO, Lanes::ZERO);
        for at in (lane..codes.len()).step_by(width) {
            let (code, product) = (Lanes::load(&codes[at..]), Lanes::load(&product[at..]));
            slope = slope + Lanes::load(&errors[at..]) * product + code * Lanes::load(&pull[at..]);
            bend = bend + code * product;
        }
        let scale = Lanes::load(&scales[lane..]);
        let better = scale + slope / bend;
        better.where_greater(bend, Lanes::ZERO, scale).map(stored).store(&mut out[lane..]);
    }
}
