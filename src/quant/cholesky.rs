//! The triangular factor that tells how an error in one weight is made good by those after it.

use rayon::prelude::*;

use crate::matmul::{View, multiply};

/// Columns that are factored at a time.
const BLOCK: usize = 128;

/// Rows that one thread updates at a time. Fixed, so that sums do not depend on the number of threads.
const PANEL: usize = 128;

/// Replaces the upper triangle of a symmetric matrix `a` (`[n, n]`) by the upper triangular `r` with `a = r * r^T`. What
/// lies below the diagonal is not read and loses its meaning.
///
/// The usual factor of GPTQ is the upper `u` with `u^T * u = a^-1`; it is the inverse of `r`. With `r` itself no inverse is
/// needed.
///
/// # Errors
/// The row of a pivot that is not above 0: `a` is not positive definite, as far as float32 can tell.
pub(super) fn factor(a: &mut [f32], n: usize) -> Result<(), usize> {
    assert_eq!(a.len(), n * n, "a square matrix");
    let mut panel = vec![0.0; n * BLOCK.min(n)];
    let mut end = n;
    while end > 0 {
        let start = (end - 1) / BLOCK * BLOCK;
        let width = end - start;
        let inverse = factor_corner(a, n, start, width)?;
        // Rows above the corner: r[above, block] = a[above, block] * corner^-T.
        let panel = &mut panel[..start * width];
        panel.par_chunks_mut(PANEL * width).enumerate().for_each(|(i, out)| {
            let rows = i * PANEL..i * PANEL + out.len() / width;
            let left = View::block(a, n, rows, start..end);
            multiply(out, width, 0.0, 1.0, left, View::block(&inverse, width, 0..width, 0..width).t());
        });
        let panel = &*panel;
        a[..start * n].par_chunks_mut(PANEL * n).enumerate().for_each(|(i, out)| {
            let (first, rows) = (i * PANEL, out.len() / n);
            for (out, row) in out.chunks_exact_mut(n).zip(panel[first * width..].chunks_exact(width)) {
                out[start..end].copy_from_slice(row);
            }
            let left = View::block(panel, width, first..first + rows, 0..width);
            let right = View::block(panel, width, first..start, 0..width).t();
            multiply(&mut out[first..], n, 1.0, -1.0, left, right);
        });
        end = start;
    }
    Ok(())
}

/// Factors the block of `width` rows and columns from `start` on, in float64, and returns the inverse of its factor.
fn factor_corner(a: &mut [f32], n: usize, start: usize, width: usize) -> Result<Vec<f32>, usize> {
    let at = |i: usize, j: usize| i * width + j;
    let mut r = vec![0.0f64; width * width];
    for j in (0..width).rev() {
        for i in (0..=j).rev() {
            let mut sum = f64::from(a[(start + i) * n + start + j]);
            for t in j + 1..width {
                sum -= r[at(i, t)] * r[at(j, t)];
            }
            r[at(i, j)] = if i < j {
                sum / r[at(j, j)]
            } else if sum > 0.0 && sum.is_finite() {
                sum.sqrt()
            } else {
                return Err(start + j);
            };
        }
    }
    let mut inverse = vec![0.0f64; width * width];
    for j in 0..width {
        inverse[at(j, j)] = 1.0 / r[at(j, j)];
        for i in (0..j).rev() {
            let sum: f64 = (i + 1..=j).map(|t| r[at(i, t)] * inverse[at(t, j)]).sum();
            inverse[at(i, j)] = -sum / r[at(i, i)];
        }
    }
    for i in 0..width {
        for j in i..width {
            a[(start + i) * n + start + j] = r[at(i, j)] as f32;
        }
    }
    Ok(inverse.into_iter().map(|v| v as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A positive definite matrix with correlated columns.
    fn matrix(n: usize) -> Vec<f32> {
        let value = |t: usize, i: usize| ((t * 37 + i * i * 11 + t * i * 3) % 101) as f32 / 50.0 - 1.0;
        (0..n * n)
            .map(|at| {
                let (i, j) = (at / n, at % n);
                let sum: f32 = (0..n / 2).map(|t| value(t, i) * value(t, j)).sum();
                if i == j { sum + 3.0 } else { sum }
            })
            .collect()
    }

    #[test]
    fn the_factor_times_its_transpose_is_the_matrix() {
        for n in [1, 5, 128, 129, 300] {
            let a = matrix(n);
            let mut r = a.clone();
            factor(&mut r, n).unwrap();
            let mut largest = 0.0f64;
            for i in 0..n {
                for j in i..n {
                    let product: f64 =
                        (j..n).map(|t| f64::from(r[i * n + t]) * f64::from(r[j * n + t])).sum();
                    largest = largest.max((product - f64::from(a[i * n + j])).abs());
                }
            }
            assert!(largest < 2e-4, "{n}: {largest}");
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_is_named() {
        let n = 200;
        for (row, value) in [(150, -1.0), (150, 0.0), (7, f32::NAN), (7, f32::INFINITY)] {
            let mut a = vec![0.0; n * n];
            a.iter_mut().step_by(n + 1).for_each(|v| *v = 2.0);
            a[row * n + row] = value;
            assert_eq!(factor(&mut a, n), Err(row), "{value}");
        }
    }

    #[test]
    fn it_does_not_depend_on_the_number_of_threads() {
        let on = |threads| {
            let mut a = matrix(400);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| factor(&mut a, 400)).unwrap();
            a.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert!(on(1) == on(2) && on(1) == on(7));
    }
}
