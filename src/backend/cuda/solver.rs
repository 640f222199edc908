//! The matrices that share an input, quantized on the GPU: copied there, some rows at a time, and fetched.

use std::ops::Range;

use cudarc::driver::{CudaSlice, DriverError};
use half::f16;

use super::gptq::Matrices;
use super::kernels::{Block, Factor, Grams, Rows};
use super::{Cuda, is_out_of_memory};
use crate::backend::Solver;
use crate::error::Result;
use crate::quant::QuantizedLinear;
use crate::quant::gptq::descent::blocks_of;
use crate::quant::gptq::{Loss, Problem, ROWS};

/// Columns of a product that is only summed up.
const BLOCK: usize = 128;

/// A problem whose matrices are on the GPU.
#[derive(Debug)]
pub(super) struct OnGpu<'a> {
    pub(super) gpu: &'a Cuda,
    pub(super) problem: &'a Problem,
    pub(super) matrices: Matrices,
    /// Columns of the longest block.
    longest: usize,
}

/// What finds scales, zero points and codes of rows whose weights are on the GPU.
type Method<'a> = dyn Fn(&OnGpu<'_>, &mut Rows) -> Result<(), DriverError> + Sync + 'a;

/// Quantizes a matrix by a method, its rows spread over the GPUs that `parts` are on.
pub(super) fn quantize(
    parts: &[OnGpu<'_>],
    weights: &[f32],
    method: &Method<'_>,
) -> Result<(QuantizedLinear, Loss)> {
    let Problem { size, grid, .. } = *parts[0].problem;
    assert!(weights.len().is_multiple_of(size), "{} weights in rows of {size}", weights.len());
    let (rows, groups) = (weights.len() / size, grid.groups(size));
    let mut codes = vec![0; rows * size];
    let mut scales = vec![f16::ZERO; rows * groups];
    let mut zeros = vec![0; rows * groups];
    let (mut errors, mut energies) = (vec![0.0; rows], vec![0.0; rows]);
    let target = Target {
        codes: &mut codes,
        scales: &mut scales,
        zeros: &mut zeros,
        errors: &mut errors,
        energies: &mut energies,
    };
    let each = rows.div_ceil(parts.len()).next_multiple_of(Rows::LEAST);
    std::thread::scope(|scope| {
        let mut rest = Some(target);
        let mut threads = Vec::new();
        for (part, weights) in parts.iter().zip(weights.chunks(each * size)) {
            let (target, more) = rest.take().expect("rows are left").split(weights.len() / size);
            rest = Some(more);
            threads.push(scope.spawn(move || {
                let _turn = part.gpu.turn();
                part.rows(weights, target, method)
            }));
        }
        threads.into_iter().try_for_each(|thread| thread.join().expect("a GPU's thread does not panic"))
    })?;
    let linear = QuantizedLinear::new([rows, size], grid, codes, scales, zeros, None)
        .expect("the solver keeps to the grid");
    Ok((linear, Loss::sum(errors.chunks(ROWS).zip(energies.chunks(ROWS)).map(|(a, b)| [a, b]))))
}

/// Where the result of some rows goes.
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

impl<'a> OnGpu<'a> {
    /// Copies what the matrices share to the GPU.
    pub(super) fn new(gpu: &'a Cuda, problem: &'a Problem) -> Result<OnGpu<'a>> {
        let blocks = blocks_of(problem);
        let descent = blocks.iter().map(Range::len).max().unwrap_or(0);
        let longest = problem.order.longest().max(descent);
        if !Block::can_be(longest) {
            return Err(gpu.too_long(longest));
        }
        let matrices = Matrices::upload(&gpu.stream, problem).map_err(|e| {
            let matrices = 1 + usize::from(problem.factor.is_some());
            let what = format!("the Hessian of {} inputs", problem.size);
            gpu.failed_to_hold(&what, 4 * matrices * problem.size * problem.size, "copy the Hessian", &e)
        })?;
        Ok(OnGpu { gpu, problem, matrices, longest })
    }

    /// The grid as kernels have it.
    pub(super) fn grid(&self) -> [u32; 4] {
        let Problem { grid, lowest_zero, .. } = *self.problem;
        [grid.bits, grid.group_size as u32, grid.symmetric.into(), lowest_zero.into()]
    }

    /// Quantizes rows, in halves if the GPU's memory is too small for all at once.
    fn rows(&self, weights: &[f32], mut target: Target<'_>, method: &Method<'_>) -> Result<()> {
        let count = target.errors.len();
        match self.rows_at_once(weights, &mut target, method) {
            Err(e) if is_out_of_memory(&e) && count > Rows::LEAST => {
                let half = (count / 2).next_multiple_of(Rows::LEAST);
                let (first, second) = weights.split_at(half * self.problem.size);
                let (first_target, second_target) = target.split(half);
                self.rows(first, first_target, method)?;
                self.rows(second, second_target, method)
            }
            done => done.map_err(|e| {
                let bytes = Rows::least_bytes(self.problem.size, self.longest);
                let what = format!("work on {} rows of {} weights", Rows::LEAST, self.problem.size);
                self.gpu.failed_to_hold(&what, bytes, "quantize", &e)
            }),
        }
    }

    fn rows_at_once(
        &self,
        weights: &[f32],
        target: &mut Target<'_>,
        method: &Method<'_>,
    ) -> Result<(), DriverError> {
        let (stream, kernels) = (&self.gpu.stream, &self.gpu.kernels);
        let mut rows = Rows::upload(stream, weights, self.problem.size, self.grid())?;
        self.quadratic_form(&rows.weights, rows.padded, target.energies)?;
        method(self, &mut rows)?;
        kernels.errors(stream, &mut rows)?;
        self.quadratic_form(&rows.errors, rows.padded, target.errors)?;
        kernels.finish(stream, &rows, target.codes, target.scales, target.zeros)
    }

    /// `quadratic_form` of `descent.rs`, of `x` (`[padded, size]`).
    fn quadratic_form(&self, x: &CudaSlice<f32>, padded: usize, out: &mut [f64]) -> Result<(), DriverError> {
        let stream = &self.gpu.stream;
        let mut sums = stream.alloc_zeros::<f64>(padded)?;
        for columns in (0..self.problem.size).step_by(BLOCK) {
            let columns = columns..(columns + BLOCK).min(self.problem.size);
            let product = self.times_hessian(x, padded, columns.clone())?;
            self.gpu.kernels.dots(stream, (x, &product), self.problem.ridge, columns, &mut sums)?;
        }
        stream.memcpy_dtoh(&sums.slice(..out.len()), out)
    }

    /// `x * H[all, columns]`.
    pub(super) fn times_hessian(
        &self,
        x: &CudaSlice<f32>,
        padded: usize,
        columns: Range<usize>,
    ) -> Result<CudaSlice<f32>, DriverError> {
        let size = self.problem.size;
        let x = Factor { values: x, stride: size, rows: 0..padded, columns: 0..size };
        let hessian = Factor { values: &self.matrices.hessian, stride: size, rows: 0..size, columns };
        self.gpu.kernels.product(&self.gpu.stream, &x, &hessian)
    }
}

impl Solver for OnGpu<'_> {
    fn gptq(&self, weights: &[f32]) -> Result<(QuantizedLinear, Loss)> {
        quantize(std::slice::from_ref(self), weights, &|part, rows| part.find_by_gptq(rows))
    }

    fn awq(&self, weights: &[f32]) -> Result<(QuantizedLinear, Loss)> {
        by_awq(std::slice::from_ref(self), weights)
    }
}

/// AWQ's ranges, the rows spread over GPUs.
pub(super) fn by_awq(parts: &[OnGpu<'_>], weights: &[f32]) -> Result<(QuantizedLinear, Loss)> {
    let grams: Vec<Grams> = parts.iter().map(OnGpu::grams).collect::<Result<_>>()?;
    let method = |part: &OnGpu<'_>, rows: &mut Rows| {
        let at = parts.iter().position(|p| std::ptr::eq(p, part)).expect("one of the parts");
        part.find_by_awq(rows, &grams[at])
    };
    quantize(parts, weights, &method)
}
