//! The matrices that share an input, or those of several inputs that are like each other, quantized on GPUs: copied there, some
//! rows at a time, and fetched.

use std::ops::Range;

use cudarc::driver::{CudaSlice, DriverError};
use half::f16;

use super::gptq::Matrices;
use super::kernels::{self, Block, Grams, Rows};
use super::{Cuda, is_out_of_memory};
use crate::backend::Solver;
use crate::error::{Kind, Result};
use crate::quant::QuantizedLinear;
use crate::quant::gptq::descent::blocks_of;
use crate::quant::gptq::{Loss, Problem, ROWS};

/// Columns of a product that is only summed up.
const BLOCK: usize = 128;

/// Rows that keep a large GPU busy: 16 in each of six thread blocks on each of an H100's 132 multiprocessors.
const BUSY: usize = 16 * 6 * 132;

/// How many problems of so many rows keep so many GPUs busy.
pub(super) fn problems_at_once(rows: usize, gpus: usize) -> usize {
    (gpus * BUSY / rows.max(1)).max(1)
}

/// Problems that are being solved on GPUs, among which the rows of each are divided.
#[derive(Debug)]
pub(super) enum OnGpus<'a> {
    /// Their matrices are on each of the GPUs.
    Placed(Vec<OnGpu<'a>>),
    /// The memory of a GPU is too small for the matrices of all: they come in halves, one after the other.
    Halves(&'a [Cuda], [&'a [Problem]; 2]),
}

/// A way to quantize one matrix of each problem.
type Way = fn(&[OnGpu<'_>], &[&[f32]]) -> Result<Vec<(QuantizedLinear, Loss)>>;

impl<'a> OnGpus<'a> {
    /// Copies what belongs to the problems to the GPUs.
    pub(super) fn new(gpus: &'a [Cuda], problems: &'a [Problem]) -> Result<OnGpus<'a>> {
        assert!(problems.windows(2).all(|pair| pair[0].is_like(&pair[1])), "problems like each other");
        let placed: Result<Vec<OnGpu<'_>>> = gpus.iter().map(|gpu| OnGpu::new(gpu, problems)).collect();
        match placed {
            Err(e) if e.kind() == Kind::Resources && problems.len() > 1 => {
                Ok(OnGpus::Halves(gpus, problems.split_at(problems.len() / 2).into()))
            }
            placed => Ok(OnGpus::Placed(placed?)),
        }
    }

    fn quantize(&self, weights: &[&[f32]], by: Way) -> Result<Vec<(QuantizedLinear, Loss)>> {
        match self {
            OnGpus::Placed(parts) => by(parts, weights),
            OnGpus::Halves(gpus, [first, second]) => {
                let (of_first, of_second) = weights.split_at(first.len());
                let mut all = OnGpus::new(gpus, first)?.quantize(of_first, by)?;
                all.extend(OnGpus::new(gpus, second)?.quantize(of_second, by)?);
                Ok(all)
            }
        }
    }
}

impl Solver for OnGpus<'_> {
    fn gptq(&self, weights: &[&[f32]]) -> Result<Vec<(QuantizedLinear, Loss)>> {
        self.quantize(weights, |parts, weights| {
            quantize(parts, weights, &|part, rows| part.find_by_gptq(rows))
        })
    }

    fn awq(&self, weights: &[&[f32]]) -> Result<Vec<(QuantizedLinear, Loss)>> {
        self.quantize(weights, |parts, weights| {
            let grams: Vec<Grams> = parts.iter().map(OnGpu::grams).collect::<Result<_>>()?;
            quantize(parts, weights, &|part, rows| {
                let at = parts.iter().position(|p| std::ptr::eq(p, part)).expect("one of the parts");
                part.find_by_awq(rows, &grams[at])
            })
        })
    }
}

/// Problems whose matrices are on a GPU.
#[derive(Debug)]
pub(super) struct OnGpu<'a> {
    pub(super) gpu: &'a Cuda,
    pub(super) problems: &'a [Problem],
    pub(super) matrices: Matrices,
    /// Columns of the longest block.
    longest: usize,
}

/// What finds scales, zero points and codes of rows whose weights are on the GPU.
type Method<'a> = dyn Fn(&OnGpu<'_>, &mut Rows) -> Result<(), DriverError> + Sync + 'a;

/// Quantizes a matrix of each problem by a method, its rows divided among the GPUs that `parts` are on.
fn quantize(
    parts: &[OnGpu<'_>],
    weights: &[&[f32]],
    method: &Method<'_>,
) -> Result<Vec<(QuantizedLinear, Loss)>> {
    let problems = parts[0].problems;
    let Problem { size, grid, .. } = problems[0];
    let values = weights.first().map_or(0, |matrix| matrix.len());
    assert!(
        weights.len() == problems.len()
            && values.is_multiple_of(size)
            && weights.iter().all(|matrix| matrix.len() == values),
        "a matrix for each problem, in as many rows of {size}"
    );
    let (rows, groups) = (values / size, grid.groups(size));
    let mut found: Vec<Found> = problems.iter().map(|_| Found::new(rows, size, groups)).collect();
    let mut rest: Vec<Target<'_>> = found.iter_mut().map(Found::target).collect();
    let each = rows.div_ceil(parts.len()).next_multiple_of(Rows::LEAST);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (part, start) in parts.iter().zip((0..rows).step_by(each)) {
            let count = each.min(rows - start);
            let weights =
                weights.iter().map(|matrix| &matrix[start * size..(start + count) * size]).collect();
            let (targets, more) = split(std::mem::take(&mut rest), count);
            rest = more;
            threads.push(scope.spawn(move || {
                let _turn = part.gpu.turn();
                part.rows(weights, targets, method)
            }));
        }
        threads.into_iter().try_for_each(|thread| thread.join().expect("a GPU's thread does not panic"))
    })?;
    let quantized = found.into_iter().map(|found| {
        let Found { codes, scales, zeros, errors, energies } = found;
        let linear = QuantizedLinear::new([rows, size], grid, codes, scales, zeros, None)
            .expect("the solver keeps to the grid");
        (linear, Loss::sum(errors.chunks(ROWS).zip(energies.chunks(ROWS)).map(|(a, b)| [a, b])))
    });
    Ok(quantized.collect())
}

/// The result for one matrix.
struct Found {
    codes: Vec<u8>,
    scales: Vec<f16>,
    zeros: Vec<u8>,
    errors: Vec<f64>,
    energies: Vec<f64>,
}

impl Found {
    fn new(rows: usize, size: usize, groups: usize) -> Found {
        Found {
            codes: vec![0; rows * size],
            scales: vec![f16::ZERO; rows * groups],
            zeros: vec![0; rows * groups],
            errors: vec![0.0; rows],
            energies: vec![0.0; rows],
        }
    }

    fn target(&mut self) -> Target<'_> {
        let Found { codes, scales, zeros, errors, energies } = self;
        Target { codes, scales, zeros, errors, energies }
    }
}

/// Where the result of some rows of a matrix goes.
struct Target<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [f16],
    zeros: &'a mut [u8],
    errors: &'a mut [f64],
    energies: &'a mut [f64],
}

impl<'a> Target<'a> {
    fn split(self, rows: usize) -> (Target<'a>, Target<'a>) {
        let all = self.errors.len().max(1);
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

/// The first rows of each matrix, and the others.
fn split(targets: Vec<Target<'_>>, rows: usize) -> (Vec<Target<'_>>, Vec<Target<'_>>) {
    targets.into_iter().map(|target| target.split(rows)).unzip()
}

impl<'a> OnGpu<'a> {
    /// Copies what belongs to the problems to the GPU.
    fn new(gpu: &'a Cuda, problems: &'a [Problem]) -> Result<OnGpu<'a>> {
        let first = &problems[0];
        let descent = blocks_of(first).iter().map(Range::len).max().unwrap_or(0);
        let longest = first.order.longest().max(descent);
        if !Block::can_be(longest) {
            return Err(gpu.too_long(longest));
        }
        let matrices = Matrices::upload(&gpu.stream, problems).map_err(|e| {
            let matrices = problems.len() * (1 + usize::from(first.factor.is_some()));
            let what = match problems.len() {
                1 => format!("the Hessian of {} inputs", first.size),
                count => format!("the Hessians of {count} times {} inputs", first.size),
            };
            gpu.failed_to_hold(&what, 4 * matrices * first.size * first.size, "copy the Hessian", &e)
        })?;
        Ok(OnGpu { gpu, problems, matrices, longest })
    }

    /// The grid as kernels have it.
    fn grid(&self) -> [u32; 4] {
        let Problem { grid, lowest_zero, .. } = self.problems[0];
        [grid.bits, grid.group_size as u32, grid.symmetric.into(), lowest_zero.into()]
    }

    /// Quantizes as many rows of each matrix, in halves if the GPU's memory is too small for all at once.
    fn rows(&self, weights: Vec<&[f32]>, mut targets: Vec<Target<'_>>, method: &Method<'_>) -> Result<()> {
        let size = self.problems[0].size;
        let count = weights[0].len() / size;
        match self.rows_at_once(&weights, &mut targets, method) {
            Err(e) if is_out_of_memory(&e) && count > Rows::LEAST => {
                let half = (count / 2).next_multiple_of(Rows::LEAST);
                let (first, second) = weights.iter().map(|matrix| matrix.split_at(half * size)).unzip();
                let (first_targets, second_targets) = split(targets, half);
                self.rows(first, first_targets, method)?;
                self.rows(second, second_targets, method)
            }
            done => done.map_err(|e| {
                let bytes = Rows::least_bytes(self.problems.len(), size, self.longest);
                let what = format!("work on {} rows of {size} weights", self.problems.len() * Rows::LEAST);
                self.gpu.failed_to_hold(&what, bytes, "quantize", &e)
            }),
        }
    }

    fn rows_at_once(
        &self,
        weights: &[&[f32]],
        targets: &mut [Target<'_>],
        method: &Method<'_>,
    ) -> Result<(), DriverError> {
        let (stream, kernels) = (&self.gpu.stream, &self.gpu.kernels);
        let mut rows = Rows::upload(stream, weights, self.problems[0].size, self.grid())?;
        let energies = self.quadratic_form(&rows.weights, rows.each)?;
        method(self, &mut rows)?;
        kernels.errors(stream, &mut rows)?;
        let errors = self.quadratic_form(&rows.errors, rows.each)?;
        let finished = kernels.finish(stream, &rows)?;
        for (problem, target) in targets.iter_mut().enumerate() {
            let those = problem * rows.each..problem * rows.each + target.errors.len();
            target.energies.copy_from_slice(&energies[those.clone()]);
            target.errors.copy_from_slice(&errors[those]);
            finished.fetch(stream, problem, target.codes, target.scales, target.zeros)?;
        }
        Ok(())
    }

    /// `quadratic_form` of `descent.rs`, of `x` (`[problems * each, size]`).
    fn quadratic_form(&self, x: &CudaSlice<f32>, each: usize) -> Result<Vec<f64>, DriverError> {
        let (stream, size) = (&self.gpu.stream, self.problems[0].size);
        let mut sums = stream.alloc_zeros::<f64>(self.problems.len() * each)?;
        let ridges = Some(&self.matrices.ridges);
        for columns in (0..size).step_by(BLOCK) {
            let columns = columns..(columns + BLOCK).min(size);
            let product = self.times_hessian(x, each, columns.clone())?;
            self.gpu.kernels.dots(stream, (x, &product), (each, ridges), columns, &mut sums)?;
        }
        stream.clone_dtoh(&sums)
    }

    /// `x * H[all, columns]` for each problem's rows of `x` (`[problems * each, size]`).
    pub(super) fn times_hessian(
        &self,
        x: &CudaSlice<f32>,
        each: usize,
        columns: Range<usize>,
    ) -> Result<CudaSlice<f32>, DriverError> {
        let size = self.problems[0].size;
        let shape = (self.problems.len(), [each, columns.len(), size]);
        let x = kernels::Matrices::stacked(x, [each, size], 0);
        let hessians = kernels::Matrices::stacked(&self.matrices.hessian, [size, size], columns.start);
        self.gpu.kernels.few_columns(&self.gpu.stream, shape, x, hessians)
    }
}
