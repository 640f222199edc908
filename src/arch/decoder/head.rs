//! From hidden states to logits.

use candle_core::Tensor;

use super::activations::Activations;
use super::linear::Linear;
use crate::error::Result;

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
}
