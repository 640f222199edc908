//! Products of matrices in memory, whose sums go in one order on every processor and device (`matmul`).

use candle_core::{Device, Tensor};

use super::rows;
use crate::error::Result;
use crate::matmul::{View, multiply_in_parallel};

/// `x * weight^T`: `[rows, in]` and `[out, in]` to `[rows, out]`.
pub(super) fn times_transposed(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ((m, k), (n, inner)) = (x.dims2()?, weight.dims2()?);
    let x = x.contiguous()?;
    let mut out = vec![0.0; m * n];
    rows::with_slice(&x, |x| {
        rows::with_slice(weight, |weight| {
            let weight = View::block(weight, inner, 0..n, 0..inner);
            multiply_in_parallel(&mut out, n, View::block(x, k, 0..m, 0..k), weight.t());
        })
    })??;
    Ok(Tensor::from_vec(out, (m, n), &Device::Cpu)?)
}

/// The product of each pair of matrices: `[count, m, k]` and `[count, k, n]`, or `[count, n, k]` if they are transposed, to
/// `[count, m, n]`.
pub(super) fn of_each(a: &Tensor, b: &Tensor, transposed: bool) -> Result<Tensor> {
    let ((count, m, k), (_, rows, columns)) = (a.dims3()?, b.dims3()?);
    let n = if transposed { rows } else { columns };
    let mut out = vec![0.0; count * m * n];
    rows::with_slice(a, |a| {
        rows::with_slice(b, |b| {
            let pairs = a.chunks_exact(m * k).zip(b.chunks_exact(rows * columns));
            for (out, (a, b)) in out.chunks_exact_mut(m * n).zip(pairs) {
                let b = View::block(b, columns, 0..rows, 0..columns);
                let b = if transposed { b.t() } else { b };
                multiply_in_parallel(out, n, View::block(a, k, 0..m, 0..k), b);
            }
        })
    })??;
    Ok(Tensor::from_vec(out, (count, m, n), &Device::Cpu)?)
}
