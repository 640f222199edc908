//! Products of float32 matrices.
//!
//! [`multiply`] runs on the thread that asks for it, [`multiply_in_parallel`] on all threads of its pool.
//!
//! The order of a sum is part of the result: each value is the sum over [`CHUNK`]s of products, the chunks one after the
//! other, and within a chunk one product after the other is added to zero, each with a single rounding (a fused
//! multiply-add). So the bits are the same for all sizes of caches and vectors, and those of `kernels/gemm.cu`; only
//! processors that have no fused multiply-add, x86 from before 2013, give others.

use std::ops::Range;

use gemm::Parallelism;

/// Products that are summed before they are added to the others. The library does not divide so few any further.
pub(crate) const CHUNK: usize = 512;

/// Values of a product below which the library may sum in another order.
const FEW: usize = 16 * 16;

/// A matrix in memory: value `(i, j)` lies at `i * strides[0] + j * strides[1]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    values: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> View<'a> {
    /// A block of a row-major matrix whose rows are `stride` long.
    pub(crate) fn block(values: &'a [f32], stride: usize, rows: Range<usize>, columns: Range<usize>) -> Self {
        let shape = [rows.len(), columns.len()];
        View { values: &values[rows.start * stride + columns.start..], shape, strides: [stride, 1] }
    }

    /// The same, transposed.
    pub(crate) fn t(self) -> Self {
        let ([m, n], [row, column]) = (self.shape, self.strides);
        View { values: self.values, shape: [n, m], strides: [column, row] }
    }

    /// Some of the columns.
    fn columns(self, columns: &Range<usize>) -> Self {
        let skipped = (columns.start * self.strides[1]).min(self.values.len());
        View { values: &self.values[skipped..], shape: [self.shape[0], columns.len()], ..self }
    }

    fn at(&self, i: usize, j: usize) -> f32 {
        self.values[i * self.strides[0] + j * self.strides[1]]
    }

    fn fits(&self) -> bool {
        let [m, n] = self.shape;
        m == 0 || n == 0 || (m - 1) * self.strides[0] + (n - 1) * self.strides[1] < self.values.len()
    }
}

/// `out = keep * out + factor * a * b`, where `out` is row-major with rows `stride` apart. With `keep` 0 what was there is
/// not read.
///
/// # Panics
/// If the sizes do not fit together.
pub(crate) fn multiply(out: &mut [f32], stride: usize, keep: f32, factor: f32, a: View<'_>, b: View<'_>) {
    Sum { out, stride, keep, factor, parallelism: Parallelism::None }.add(a, b);
}

/// `out = a * b` on all threads of the pool that it is called in; the bits are those of [`multiply`].
///
/// # Panics
/// If the sizes do not fit together.
pub(crate) fn multiply_in_parallel(out: &mut [f32], stride: usize, a: View<'_>, b: View<'_>) {
    let parallelism = Parallelism::Rayon(0);
    let ([m, k], n) = (a.shape, b.shape[1]);
    if m == 1 && n > FEW {
        // The library sums up a single row in another order, and two rows as it should.
        let twice = View { shape: [2, k], strides: [0, a.strides[1]], ..a };
        let mut rows = vec![0.0; 2 * n];
        Sum { out: &mut rows, stride: n, keep: 0.0, factor: 1.0, parallelism }.add(twice, b);
        out[..n].copy_from_slice(&rows[..n]);
    } else {
        Sum { out, stride, keep: 0.0, factor: 1.0, parallelism }.add(a, b);
    }
}

/// Where a product goes: `out = keep * out + factor * a * b`.
struct Sum<'a> {
    out: &'a mut [f32],
    stride: usize,
    keep: f32,
    factor: f32,
    parallelism: Parallelism,
}

impl Sum<'_> {
    fn add(mut self, a: View<'_>, b: View<'_>) {
        let ([m, k], [also_k, n]) = (a.shape, b.shape);
        let stride = self.stride;
        assert_eq!(k, also_k, "inner dimensions");
        if m == 0 || n == 0 {
            return;
        }
        assert!(
            n <= stride && (m - 1) * stride + n <= self.out.len(),
            "{m} x {n} values with rows {stride} apart"
        );
        assert!(a.fits() && b.fits(), "a factor lies in its slice");
        for start in (0..k.max(1)).step_by(CHUNK) {
            let depth = start..(start + CHUNK).min(k);
            let (a, b) = (a.columns(&depth), b.t().columns(&depth).t());
            if m == 1 || n == 1 || m * n <= FEW || depth.len() <= 2 {
                self.add_few(a, b);
            } else {
                self.add_many(a, b);
            }
            self.keep = 1.0;
        }
    }

    /// One chunk, value by value.
    fn add_few(&mut self, a: View<'_>, b: View<'_>) {
        let (keep, factor) = (self.keep, self.factor);
        let ([m, k], n) = (a.shape, b.shape[1]);
        for i in 0..m {
            for j in 0..n {
                let sum = (0..k).fold(0.0f32, |sum, t| a.at(i, t).mul_add(b.at(t, j), sum));
                let out = &mut self.out[i * self.stride + j];
                *out = if keep == 0.0 { factor * sum } else { factor.mul_add(sum, keep * *out) };
            }
        }
    }

    /// One chunk of a product whose sizes were checked.
    fn add_many(&mut self, a: View<'_>, b: View<'_>) {
        let ([m, k], n) = (a.shape, b.shape[1]);
        // SAFETY: all values of the three matrices lie in their slices, as was just asserted; rows of `out` do not overlap each
        // other, and `out` is borrowed for this call alone.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                self.out.as_mut_ptr(),
                1,
                self.stride as isize,
                self.keep != 0.0,
                a.values.as_ptr(),
                a.strides[1] as isize,
                a.strides[0] as isize,
                b.values.as_ptr(),
                b.strides[1] as isize,
                b.strides[0] as isize,
                self.keep,
                self.factor,
                false,
                false,
                false,
                self.parallelism,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
        [m, k, n]: [usize; 3],
    ) -> Vec<f32> {
        (0..m * n).map(|at| (0..k).map(|t| a(at / n, t) * b(t, at % n)).sum()).collect()
    }

    #[test]
    fn blocks_and_transposes_are_multiplied() {
        // Small whole numbers, so that sums are exact in any order.
        let a: Vec<f32> = (0..7 * 9).map(|i| ((i * 5) % 11) as f32 - 5.0).collect();
        let b: Vec<f32> = (0..8 * 9).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
        let mut out = vec![1.0; 4 * 6];
        multiply(&mut out, 6, 1.0, 2.0, View::block(&a, 9, 2..6, 1..8), View::block(&b, 9, 3..8, 2..9).t());
        let expected = naive(|i, t| a[(i + 2) * 9 + t + 1], |t, j| b[(j + 3) * 9 + t + 2], [4, 7, 5]);
        for i in 0..4 {
            for j in 0..5 {
                assert_eq!(out[i * 6 + j], 1.0 + 2.0 * expected[i * 5 + j]);
            }
            assert_eq!(out[i * 6 + 5], 1.0, "beyond the block");
        }
        multiply(&mut out, 6, 0.0, -1.0, View::block(&a, 9, 0..7, 0..4).t(), View::block(&b, 9, 0..7, 0..5));
        let expected = naive(|i, t| a[t * 9 + i], |t, j| b[t * 9 + j], [4, 7, 5]);
        assert_eq!(out[7], -expected[6]);
    }

    /// Fused multiply-adds are in all processors that tests run on.
    #[test]
    fn sums_go_in_order_whatever_the_sizes() {
        let value = |i: usize| ((i * 7919 + i * i * 31) % 1009) as f32 / 500.0 - 1.0;
        for [m, k, n] in [
            [1, 700, 96],
            [128, 1, 96],
            [128, 2, 96],
            [128, 513, 96],
            [128, 514, 16],
            [16, 600, 16],
            [16, 1100, 17],
            [17, 5, 1],
            [100, 1536, 128],
            [5, 512, 160],
            [70, 1025, 96],
            [96, 0, 96],
            [1, 1030, 700],
        ] {
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..k * n).map(|i| value(i + 5)).collect();
            let (rows, turned) = (View::block(&a, k, 0..m, 0..k), View::block(&a, m, 0..k, 0..m).t());
            for (keep, factor, a) in [(0.0, 1.0, rows), (1.0, -1.0, rows), (0.0, 1.0, turned)] {
                let mut out = vec![0.25; m * n];
                multiply(&mut out, n, keep, factor, a, View::block(&b, n, 0..k, 0..n));
                for (at, found) in out.iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let mut expected = keep * 0.25;
                    for start in (0..k).step_by(CHUNK) {
                        let chunk = start..(start + CHUNK).min(k);
                        let sum = chunk.fold(0.0f32, |sum, t| a.at(i, t).mul_add(b[t * n + j], sum));
                        expected += factor * sum;
                    }
                    assert_eq!(*found, expected, "{m} x {k} x {n}, value {i} {j}");
                }
                let (mut alone, mut together) = (vec![0.25; m * n], vec![0.25; m * n]);
                multiply(&mut alone, n, 0.0, 1.0, a, View::block(&b, n, 0..k, 0..n));
                multiply_in_parallel(&mut together, n, a, View::block(&b, n, 0..k, 0..n));
                assert!(alone == together, "{m} x {k} x {n} in parallel");
            }
        }
    }

    #[test]
    #[should_panic(expected = "a factor lies in its slice")]
    fn a_block_beyond_the_matrix_is_refused() {
        let (a, mut out) = ([0.0; 9], [0.0; 16]);
        multiply(&mut out, 4, 0.0, 1.0, View::block(&a, 3, 0..4, 0..3), View::block(&a, 3, 0..3, 0..3));
    }
}
