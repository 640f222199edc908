//! Products of float32 matrices.
//!
//! Each product runs on the thread that asks for it, so its bits depend on its sizes alone. Whoever wants several threads
//! divides the output in a way that does not depend on their number.

use std::ops::Range;

use gemm::Parallelism;

/// A matrix in memory: value `(i, j)` lies at `i * strides[0] + j * strides[1]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    values: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> View<'a> {
    /// A block of a row-major matrix whose rows are `stride` long.
    pub(super) fn block(values: &'a [f32], stride: usize, rows: Range<usize>, columns: Range<usize>) -> Self {
        let shape = [rows.len(), columns.len()];
        View { values: &values[rows.start * stride + columns.start..], shape, strides: [stride, 1] }
    }

    /// The same, transposed.
    pub(super) fn t(self) -> Self {
        let ([m, n], [row, column]) = (self.shape, self.strides);
        View { values: self.values, shape: [n, m], strides: [column, row] }
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
pub(super) fn multiply(out: &mut [f32], stride: usize, keep: f32, factor: f32, a: View<'_>, b: View<'_>) {
    let ([m, k], [also_k, n]) = (a.shape, b.shape);
    assert_eq!(k, also_k, "inner dimensions");
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= stride && (m - 1) * stride + n <= out.len(), "{m} x {n} values with rows {stride} apart");
    assert!(a.fits() && b.fits(), "a factor lies in its slice");
    // SAFETY: all values of the three matrices lie in their slices, as was just asserted; rows of `out` do not overlap each
    // other, and `out` is borrowed for this call alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            keep != 0.0,
            a.values.as_ptr(),
            a.strides[1] as isize,
            a.strides[0] as isize,
            b.values.as_ptr(),
            b.strides[1] as isize,
            b.strides[0] as isize,
            keep,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
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

    #[test]
    #[should_panic(expected = "a factor lies in its slice")]
    fn a_block_beyond_the_matrix_is_refused() {
        let (a, mut out) = ([0.0; 9], [0.0; 16]);
        multiply(&mut out, 4, 0.0, 1.0, View::block(&a, 3, 0..4, 0..3), View::block(&a, 3, 0..3, 0..3));
    }
}
