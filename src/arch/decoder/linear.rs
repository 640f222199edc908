//! A matrix with or without a bias.

use candle_core::Tensor;

use crate::error::Result;

/// `x * weight^T + bias`.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub(super) weight: Tensor,
    /// `[out]`.
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    /// `[tokens, in]` in, `[tokens, out]` out.
    ///
    /// # Errors
    /// Those of candle.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}
