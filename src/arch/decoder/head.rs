//! From hidden states to logits.

use candle_core::Tensor;

use crate::error::Result;

/// The head's rows for some tokens of the vocabulary.
#[derive(Debug)]
pub struct Head {
    /// `[tokens of the vocabulary, hidden]`.
    pub(super) weight: Tensor,
    pub(super) soft_cap: Option<f64>,
}

impl Head {
    /// The logits of these tokens: `[.., hidden]` after the last norm in, `[.., tokens of the vocabulary]` out.
    ///
    /// # Errors
    /// Those of candle.
    pub fn forward(&self, normed: &Tensor) -> Result<Tensor> {
        let (tokens, width) = self.weight.dims2()?;
        let mut shape = normed.dims().to_vec();
        let logits = normed.reshape(((), width))?.matmul(&self.weight.t()?)?;
        let logits = match self.soft_cap {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        };
        if let Some(last) = shape.last_mut() {
            *last = tokens;
        }
        Ok(logits.reshape(shape)?)
    }
}
