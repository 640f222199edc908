//! Products of matrices in memory, whose sums go in one order on every processor and device (`matmul`).
//!
//! Gradients are such products too, so that their bits do not depend on the number of threads either.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

use super::rows;
use crate::error::Result;
use crate::matmul::{View, multiply_in_parallel};

/// `x * weight^T`: `[rows, in]` and `[out, in]` to `[rows, out]`. Gradients flow to both.
pub(super) fn times_transposed(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    of_two(x, weight, true)
}

/// `a * b`: `[rows, in]` and `[in, out]` to `[rows, out]`. Gradients flow to both.
pub(super) fn times(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    of_two(a, b, false)
}

fn of_two(a: &Tensor, b: &Tensor, transposed: bool) -> Result<Tensor> {
    let ((m, k), (rows, columns)) = (a.dims2()?, b.dims2()?);
    let b = b.reshape((1, rows, columns))?;
    let out = of_each(&a.contiguous()?.reshape((1, m, k))?, &b, transposed)?;
    Ok(out.reshape((m, if transposed { rows } else { columns }))?)
}

/// The product of each pair of matrices: `[count, m, k]` and `[count, k, n]`, or `[count, n, k]` if they are transposed, to
/// `[count, m, n]`. Gradients flow to both.
pub(super) fn of_each(a: &Tensor, b: &Tensor, transposed: bool) -> Result<Tensor> {
    Ok(a.apply_op2(b, Product { transposed: [false, transposed] })?)
}

/// The product of each pair of matrices, either of which may be transposed.
struct Product {
    transposed: [bool; 2],
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let ((count, a_rows, a_columns), (also, b_rows, b_columns)) =
            (a_layout.shape().dims3()?, b_layout.shape().dims3()?);
        let turned =
            |[rows, columns]: [usize; 2], turned| if turned { [columns, rows] } else { [rows, columns] };
        let [m, k] = turned([a_rows, a_columns], self.transposed[0]);
        let [inner, n] = turned([b_rows, b_columns], self.transposed[1]);
        if k != inner || count != also {
            candle_core::bail!("{count} matrices {m} x {k} cannot be multiplied by {also} of {inner} x {n}");
        }
        let (a, b) = (rows::slice(a, a_layout)?, rows::slice(b, b_layout)?);
        let mut out = vec![0.0; count * m * n];
        if !out.is_empty() && k > 0 {
            let pairs = a.chunks_exact(m * k).zip(b.chunks_exact(k * n));
            for (out, (a, b)) in out.chunks_exact_mut(m * n).zip(pairs) {
                let a = View::block(a, a_columns, 0..a_rows, 0..a_columns);
                let b = View::block(b, b_columns, 0..b_rows, 0..b_columns);
                let [a, b] = [(a, self.transposed[0]), (b, self.transposed[1])]
                    .map(|(view, turned)| if turned { view.t() } else { view });
                multiply_in_parallel(out, n, a, b);
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((count, m, n))))
    }

    /// Of `y = a b`, with `g` the gradient for `y`: `g b^T` for `a` and `a^T g` for `b`; of `y = a b^T`, `g b` and `g^T a`.
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [false, transposed] = self.transposed else {
            candle_core::bail!("there is no gradient of a product whose first factor is transposed");
        };
        let grad = grad.contiguous()?;
        let product = |a: &Tensor, b: &Tensor, transposed| a.apply_op2_no_bwd(b, &Product { transposed });
        let to_a = || product(&grad, b, [false, !transposed]);
        let to_b = || {
            if transposed { product(&grad, a, [true, false]) } else { product(a, &grad, [true, false]) }
        };
        // Each takes as long as the product itself, and weights that are not learned want none.
        Ok((a.track_op().then(to_a).transpose()?, b.track_op().then(to_b).transpose()?))
    }
}
