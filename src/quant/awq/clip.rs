//! The range of each group.

use std::ops::Range;

use crate::format::gguf::blocks::{Simd, Work};
use crate::matmul::{View, multiply};
use crate::quant::codes::{Grid, QuantizedLinear};
use crate::quant::gptq::descent::times_hessian;
use crate::quant::gptq::rows::Rows;
use crate::quant::gptq::{Loss, Problem};
use crate::quant::lanes::{LANES, Lanes};
use crate::quant::scale_search::{Scale, stored};

/// How often all groups are gone through.
pub(crate) const SWEEPS: usize = 3;

/// Ranges that are tried, as shares of the one that a group has.
const SHARES: Range<f32> = 0.88..1.12;
/// How many of them, with each of three zero points.
const CANDIDATES: usize = 40;
/// How often the best range for the codes and the codes for it are taken in turn.
const REFINEMENTS: usize = 2;

/// Quantizes a matrix, `[rows, channels]` row-major: every weight becomes the code nearest to it, and the range of each row and
/// group is the one whose roundings make the error of the row's outputs smallest.
///
/// The ranges start as those of the search that looks at each channel by itself. Then each group in turn takes, of many ranges
/// near its own, the one with the least error, all other groups being as they are. The error is `e H e^T` with the whole Hessian,
/// so that correlations count, those inside a group and those with the errors of other groups.
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
        let best = Best { scales: scales.clone(), zeros: zeros.clone(), costs };
        Scratch { pull, codes, errors, product, scales, zeros, best }
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
    for shift in [0.0, -1.0, 1.0] {
        for i in 0..CANDIDATES {
            let step = (SHARES.end - SHARES.start) / (CANDIDATES - 1) as f32;
            trial.try_share(
                &rows.scales[at.clone()],
                &rows.zeros[at.clone()],
                SHARES.end - step * i as f32,
                shift,
            );
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
        // Where no cost is a number, these stay.
        self.scratch.best.scales.copy_from_slice(scales);
        self.scratch.best.zeros.copy_from_slice(zeros);
        self.scratch.best.costs.fill(f32::INFINITY);
        self.judge();
    }

    /// Tries a share of scales, with zero points moved.
    fn try_share(&mut self, scales: &[f32], zeros: &[f32], share: f32, shift: f32) {
        let top = f32::from(self.problem.grid.max_code());
        let Scratch { scales: tried, zeros: tried_zeros, .. } = &mut *self.scratch;
        tried.iter_mut().zip(scales).for_each(|(tried, scale)| *tried = stored(scale * share));
        tried_zeros.iter_mut().zip(zeros).for_each(|(tried, zero)| *tried = (zero + shift).clamp(0.0, top));
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
        let scales = &mut scratch.scales;
        self.simd.compile(Refit { codes, product, errors, pull, scales });
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
        let (scales, zeros, best) = (&scratch.scales, &scratch.zeros, &mut scratch.best);
        self.simd.compile(Judge { errors, product, pull, scales, zeros, best });
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
        self.simd.compile(Round { weights, scales, zeros, grid, codes, errors });
    }
}

/// The nearest codes, less their zero points, and the errors that they leave.
struct Round<'a> {
    weights: &'a [f32],
    scales: &'a [f32],
    zeros: &'a [f32],
    grid: Grid,
    codes: &'a mut [f32],
    errors: &'a mut [f32],
}

impl Work for Round<'_> {
    #[inline(always)]
    fn run(self) {
        let width = self.scales.len();
        for lane in (0..width).step_by(LANES) {
            let (scale, zero) = (Lanes::load(&self.scales[lane..]), Lanes::load(&self.zeros[lane..]));
            let scale = Scale::new(scale, zero, self.grid);
            for at in (lane..self.weights.len()).step_by(width) {
                let weight = Lanes::load(&self.weights[at..]);
                let code = scale.code(weight);
                code.store(&mut self.codes[at..]);
                (weight - scale.scale * code).store(&mut self.errors[at..]);
            }
        }
    }
}

/// Keeps the candidate in the rows where `e (H e + 2 pull)` is least.
struct Judge<'a> {
    errors: &'a [f32],
    product: &'a [f32],
    pull: &'a [f32],
    scales: &'a [f32],
    zeros: &'a [f32],
    best: &'a mut Best,
}

impl Work for Judge<'_> {
    #[inline(always)]
    fn run(self) {
        let width = self.scales.len();
        for lane in (0..width).step_by(LANES) {
            let mut cost = Lanes::ZERO;
            for at in (lane..self.errors.len()).step_by(width) {
                let pull = Lanes::load(&self.pull[at..]);
                let slope = Lanes::load(&self.product[at..]) + pull + pull;
                cost = cost + Lanes::load(&self.errors[at..]) * slope;
            }
            let least = Lanes::load(&self.best.costs[lane..]);
            keep(Lanes::load(&self.scales[lane..]), &mut self.best.scales[lane..], least, cost);
            keep(Lanes::load(&self.zeros[lane..]), &mut self.best.zeros[lane..], least, cost);
            keep(cost, &mut self.best.costs[lane..], least, cost);
        }
    }
}

/// Takes `new` where the cost is below the least so far.
#[inline(always)]
fn keep(new: Lanes, kept: &mut [f32], least: Lanes, cost: Lanes) {
    new.where_greater(least, cost, Lanes::load(kept)).store(kept);
}

/// Changes scales to those that are best for codes `c`, whose product with the Hessian is known. The scale `s + d` has the
/// error `d^2 c H c - 2 d c (H e + pull)` more than `s`.
struct Refit<'a> {
    codes: &'a [f32],
    product: &'a [f32],
    errors: &'a [f32],
    pull: &'a [f32],
    scales: &'a mut [f32],
}

impl Work for Refit<'_> {
    #[inline(always)]
    fn run(self) {
        let width = self.scales.len();
        for lane in (0..width).step_by(LANES) {
            let (mut slope, mut bend) = (Lanes::ZERO, Lanes::ZERO);
            for at in (lane..self.codes.len()).step_by(width) {
                let (code, product) = (Lanes::load(&self.codes[at..]), Lanes::load(&self.product[at..]));
                let error = Lanes::load(&self.errors[at..]);
                slope = slope + error * product + code * Lanes::load(&self.pull[at..]);
                bend = bend + code * product;
            }
            let scale = Lanes::load(&self.scales[lane..]);
            let better = (scale + slope / bend).where_greater(bend, Lanes::ZERO, scale);
            better.map(stored).store(&mut self.scales[lane..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;
    use crate::quant::gptq::Settings;
    use crate::quant::gram::Gram;

    const GRID: Grid = Grid { bits: 4, group_size: 32, symmetric: false };

    /// Inputs whose neighbours are alike.
    fn problem(size: usize, grid: Grid) -> Problem {
        let mut x = noise(1, 300 * size);
        for row in x.chunks_exact_mut(size) {
            (1..size).for_each(|i| row[i] += 0.8 * row[i - 1]);
        }
        let mut gram = Gram::new(size);
        gram.add(&x);
        Problem::new(gram, &Settings::new(grid), false)
    }

    #[test]
    fn every_weight_becomes_the_nearest_code() {
        let weights = noise(2, 100 * 96);
        let (linear, _) = quantize(&problem(96, GRID), &weights, Simd::best());
        for (at, (weight, code)) in weights.iter().zip(linear.codes()).enumerate() {
            let group = at / 32;
            let (scale, zero) = (linear.scales()[group].to_f32(), f32::from(linear.zeros()[group]));
            let nearest = (weight / scale + zero).clamp(0.0, 15.0);
            assert!((f32::from(*code) - nearest).abs() <= 0.5 + 1e-4, "{at}");
        }
        let covered = covered(&linear, &weights);
        assert!((0.6..1.2).contains(&covered), "{covered}");
    }

    #[test]
    fn correlations_lower_the_error() {
        let weights = noise(2, 100 * 96);
        let problem = problem(96, GRID);
        let (_, alone) = problem.quantize(&weights, Simd::best());
        let (_, together) = quantize(&problem, &weights, Simd::best());
        assert!(together.error < 0.8 * alone.error, "{} and {}", together.error, alone.error);
        assert_eq!(together.energy, alone.energy);
    }

    #[test]
    fn rows_of_one_group_and_weights_of_zero_are_quantized() {
        let grid = Grid { group_size: Grid::WHOLE_ROW, ..GRID };
        let weights = noise(2, 20 * 48);
        let (linear, loss) = quantize(&problem(48, grid), &weights, Simd::best());
        assert!(linear.groups() == 1 && loss.relative() < 0.01, "{loss:?}");
        let (linear, loss) = quantize(&problem(48, GRID), &vec![0.0; 20 * 48], Simd::best());
        assert!(linear.dequantize().iter().all(|w| *w == 0.0) && loss.error == 0.0);
    }

    #[test]
    fn neither_threads_nor_instructions_change_the_result() {
        let (weights, problem) = (noise(2, 200 * 96), problem(96, GRID));
        let on = |threads, simd| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| quantize(&problem, &weights, simd))
        };
        let first = on(1, Simd::best());
        assert!(first == on(2, Simd::best()) && first == on(7, Simd::best()));
        for simd in Simd::available() {
            assert!(first == on(2, simd), "{simd:?}");
        }
    }
}
