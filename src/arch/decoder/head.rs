//! From hidden states to logits.

use candle_core::Tensor;

use super::activations::Activations;
use super::linear::Linear;
use super::product;
use crate::error::{Error, Kind, Result};

/// The head's rows for some tokens of the vocabulary.
#[derive(Debug)]
pub struct Head {
    /// `[tokens of the vocabulary, hidden]`.
    pub(super) linear: Linear,
    pub(super) soft_cap: Option<f64>,
}

impl Head {
    /// The logits of these tokens: `[.., hidden]` after the last norm in, `[.., tokens of the vocabulary]` out.
    ///
    /// # Errors
    /// Those of candle.
    pub fn forward(&self, normed: &Tensor) -> Result<Tensor> {
        let mut shape = normed.dims().to_vec();
        let normed = Activations::Memory(normed.flatten_to(normed.rank().saturating_sub(2))?);
        let logits = self.linear.forward(&normed)?.tensor()?;
        let logits = match self.soft_cap {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        };
        if let Some(last) = shape.last_mut() {
            *last = logits.dim(1)?;
        }
        Ok(logits.reshape(shape)?)
    }

    /// From the gradient of logits to that of the normed hidden states: `[tokens, tokens of the vocabulary]` of both in,
    /// `[tokens, hidden]` out.
    ///
    /// # Errors
    /// `Other` if the matrix is not in float32.
    pub fn backward(&self, logits: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let weight = self
            .linear
            .weight()
            .ok_or_else(|| Error::new(Kind::Other, "gradients are computed in float32 alone"))?;
        let grad = match self.soft_cap {
            Some(cap) => (grad * (1.0 - (logits / cap)?.sqr()?)?)?,
            None => grad.clone(),
        };
        product::times(&grad, weight)
    }
}
