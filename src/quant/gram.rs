//! The Gram matrix of what goes into a linear layer: all that second-order methods need to know of calibration.

use std::ops::Range;

use rayon::prelude::*;

use crate::matmul::{View, multiply};

/// Rows of the matrix that one thread computes at a time. Fixed, so that sums do not depend on the number of threads.
const PANEL: usize = 192;

/// `X^T X` in float32, for all inputs `X` (`[tokens, size]`) that a linear layer has seen: half the Hessian of the squared
/// error of its outputs with respect to any row of its weights (Frantar et al., arXiv 2210.17323, section 3).
#[derive(Clone, Debug)]
pub struct Gram {
    size: usize,
    tokens: usize,
    /// Row-major; until it is mirrored only the upper triangle (and what panels have beyond it) counts.
    values: Vec<f32>,
}

impl Gram {
    /// That of no inputs.
    pub fn new(size: usize) -> Gram {
        Gram { size, tokens: 0, values: vec![0.0; size * size] }
    }

    /// That whose upper triangle was summed up elsewhere, in the order of [`Gram::add`].
    #[cfg(feature = "cuda")]
    pub(crate) fn of_sums(size: usize, tokens: usize, values: Vec<f32>) -> Gram {
        assert_eq!(values.len(), size * size, "a square matrix");
        Gram { size, tokens, values }
    }

    /// Adds inputs, `[tokens, size]` row-major.
    ///
    /// # Panics
    /// If `x` is not whole rows.
    pub fn add(&mut self, x: &[f32]) {
        let size = self.size;
        assert!(x.len().is_multiple_of(size), "{} values in rows of {size}", x.len());
        let tokens = x.len() / size;
        self.tokens += tokens;
        self.values.par_chunks_mut(PANEL * size).enumerate().for_each(|(panel, out)| {
            let (first, rows) = (panel * PANEL, out.len() / size);
            let left = View::block(x, size, 0..tokens, first..first + rows).t();
            multiply(&mut out[first..], size, 1.0, 1.0, left, View::block(x, size, 0..tokens, first..size));
        });
    }

    /// Channels of the inputs.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many inputs were added.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The sum of squares of each channel.
    pub fn diagonal(&self) -> Vec<f32> {
        self.values.iter().step_by(self.size + 1).copied().collect()
    }

    /// Whether all sums are numbers: neither an input was NaN or infinite, nor did a sum overflow.
    pub fn is_finite(&self) -> bool {
        // A value that is not finite also makes the sum of its channel's squares so.
        self.diagonal().iter().all(|v| v.is_finite())
    }

    /// That of the inputs divided by one number per channel.
    ///
    /// # Panics
    /// If there are more or fewer divisors than channels.
    pub fn divided(mut self, divisors: &[f32]) -> Gram {
        assert_eq!(divisors.len(), self.size, "one divisor per channel");
        let factors: Vec<f32> = divisors.iter().map(|d| d.recip()).collect();
        self.values.par_chunks_exact_mut(self.size).zip(&factors).for_each(|(row, factor)| {
            row.iter_mut().zip(&factors).for_each(|(v, other)| *v *= factor * other);
        });
        self
    }

    /// The squares of the outputs that a matrix `[rows, size]` makes of the inputs, summed up: `tr(E G E^T)`. Of the
    /// difference of two matrices it is the squared error of their outputs.
    ///
    /// # Panics
    /// If `matrix` is not whole rows.
    pub fn energy(&self, matrix: &[f32]) -> f64 {
        let size = self.size;
        assert!(matrix.len().is_multiple_of(size), "{} values in rows of {size}", matrix.len());
        let whole = self.clone().into_symmetric();
        let of_rows = |rows: &[f32]| {
            let mut product = vec![0.0; rows.len()];
            let left = View::block(rows, size, 0..rows.len() / size, 0..size);
            multiply(&mut product, size, 0.0, 1.0, left, View::block(&whole, size, 0..size, 0..size));
            rows.iter().zip(&product).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        // Summed in a fixed order.
        matrix.par_chunks(PANEL * size).map(of_rows).collect::<Vec<f64>>().into_iter().sum()
    }

    /// The part of some neighbouring channels, `[channels, channels]`, symmetric to the bit.
    pub(crate) fn block(&self, channels: Range<usize>) -> Vec<f32> {
        let at = |i: usize, j: usize| self.values[i.min(j) * self.size + i.max(j)];
        channels.clone().flat_map(|i| channels.clone().map(move |j| at(i, j))).collect()
    }

    /// The whole matrix, `[size, size]`, symmetric to the bit.
    pub fn into_symmetric(self) -> Vec<f32> {
        let Gram { size, mut values, .. } = self;
        for i in 1..size {
            let (above, below) = values.split_at_mut(i * size);
            for j in 0..i {
                below[j] = above[j * size + i];
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(tokens: usize, size: usize) -> Vec<f32> {
        let mut state = 1u32;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / 16777216.0 - 0.5
        })
        .take(tokens * size)
        .collect()
    }

    fn on(threads: usize, x: &[f32], size: usize) -> Vec<u32> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut gram = Gram::new(size);
            x.chunks(100 * size).for_each(|x| gram.add(x));
            gram.into_symmetric().iter().map(|v| v.to_bits()).collect()
        })
    }

    #[test]
    fn it_is_the_sum_over_tokens() {
        let (tokens, size) = (70, 200);
        let x = inputs(tokens, size);
        let mut gram = Gram::new(size);
        gram.add(&x[..30 * size]);
        gram.add(&x[30 * size..]);
        assert_eq!((gram.tokens(), gram.size()), (tokens, size));
        let diagonal = gram.diagonal();
        let all = gram.into_symmetric();
        for (i, j) in [(0, 0), (3, 199), (199, 3), (191, 192), (192, 191), (199, 199)] {
            let expected: f64 =
                (0..tokens).map(|t| f64::from(x[t * size + i]) * f64::from(x[t * size + j])).sum();
            assert!((f64::from(all[i * size + j]) - expected).abs() < 1e-4, "{i} {j}");
            assert_eq!(all[i * size + j].to_bits(), all[j * size + i].to_bits());
        }
        assert_eq!(diagonal[199], all[199 * size + 199]);
    }

    #[test]
    fn the_energy_of_a_matrix_is_that_of_its_outputs() {
        let (tokens, size, rows) = (40, 24, 200);
        let (x, matrix) = (inputs(tokens, size), inputs(rows, size));
        let mut gram = Gram::new(size);
        gram.add(&x);
        let outputs = x.chunks(size).flat_map(|x| {
            matrix.chunks(size).map(move |row| row.iter().zip(x).map(|(a, b)| f64::from(a * b)).sum::<f64>())
        });
        let expected: f64 = outputs.map(|y| y * y).sum();
        let found = gram.energy(&matrix);
        // Sums of some thousand float32 products.
        assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
    }

    #[test]
    fn it_does_not_depend_on_the_number_of_threads() {
        let x = inputs(300, 500);
        let one = on(1, &x, 500);
        assert!(one == on(2, &x, 500) && one == on(7, &x, 500));
    }

    #[test]
    fn channels_can_be_divided_and_taken_apart() {
        let x = inputs(50, 30);
        let divisors: Vec<f32> = (1..=30).map(|i| i as f32 / 8.0).collect();
        let divided: Vec<f32> =
            x.chunks_exact(30).flat_map(|row| row.iter().zip(&divisors).map(|(x, d)| x / d)).collect();
        let gram = |x: &[f32]| {
            let mut gram = Gram::new(30);
            gram.add(x);
            gram
        };
        let (found, expected) = (gram(&x).divided(&divisors), gram(&divided).into_symmetric());
        let block = found.block(10..15);
        for (i, j) in [(0, 0), (1, 3), (3, 1), (4, 2)] {
            let expected = expected[(10 + i) * 30 + 10 + j];
            assert!((block[i * 5 + j] - expected).abs() < 1e-5, "{i} {j}");
        }
        assert_eq!(block[8].to_bits(), block[16].to_bits(), "symmetric");
    }

    #[test]
    fn what_is_not_a_number_shows() {
        for bad in [f32::NAN, f32::INFINITY, 1e30] {
            let mut x = inputs(4, 10);
            x[25] = bad;
            let mut gram = Gram::new(10);
            gram.add(&x);
            assert!(!gram.is_finite(), "{bad}");
        }
    }
}
