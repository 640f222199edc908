//! One layer: attention and feed-forward part, with their norms and residual sums.

use candle_core::Tensor;

use super::attention::Attention;
use super::experts::Experts;
use super::feed_forward::FeedForward;
use super::linear::Linear;
use super::norm::Norm;
use super::schedule::LayerKind;
use super::weights::{At, Weights};
use super::{Context, Input, Tap};
use crate::arch::Model;
use crate::error::{Error, Kind, Result};

/// The weights of one layer, in float32.
#[derive(Debug)]
pub struct Layer {
    index: usize,
    attention_norm: Norm,
    attention: Attention,
    /// After attention and before the sum, where the family has it.
    attention_post_norm: Option<Norm>,
    feed_forward_norm: Norm,
    feed_forward: Part,
    feed_forward_post_norm: Option<Norm>,
}

#[derive(Debug)]
enum Part {
    Dense(FeedForward),
    Experts(Experts),
}

impl Layer {
    pub(super) fn load(model: &Model, weights: &Weights<'_>, index: usize, kind: LayerKind) -> Result<Layer> {
        let at = At { layer: index, expert: 0 };
        Ok(Layer {
            index,
            attention_norm: weights.need_norm("blk.{}.attn_norm.weight", at)?,
            attention: Attention::load(model, weights, at, kind)?,
            attention_post_norm: weights.norm("blk.{}.post_attention_norm.weight", at)?,
            feed_forward_norm: weights.need_norm("blk.{}.ffn_norm.weight", at)?,
            feed_forward: if weights.has("ffn_gate_inp") {
                Part::Experts(Experts::load(model, weights, at)?)
            } else {
                Part::Dense(FeedForward::load(model, weights, at)?)
            },
            feed_forward_post_norm: weights.norm("blk.{}.post_ffw_norm.weight", at)?,
        })
    }

    /// The matrices that `input` goes into, under their names in GGUF without layer and ending (`attn_q`); none if the
    /// layer has no such input. Fused matrices come apart.
    pub fn linears(&self, input: Input) -> Vec<(&'static str, &Linear)> {
        match (input, &self.feed_forward) {
            (Input::Attention | Input::AttentionOutput, _) => self.attention.linears(input),
            (Input::FeedForward, Part::Dense(part)) => {
                let [gate, up, _] = part.linears();
                vec![("ffn_gate", gate), ("ffn_up", up)]
            }
            (Input::Down, Part::Dense(part)) => vec![("ffn_down", part.linears()[2])],
            (_, Part::Dense(_)) => Vec::new(),
            (_, Part::Experts(part)) => part.linears(input),
        }
    }

    /// The hidden states after this layer: `[sequences, tokens, hidden]` in and out. `tap` sees what goes into the
    /// matrices.
    ///
    /// # Errors
    /// `Usage` if the sequences are not those of `context`; else what `tap` returns.
    pub fn forward(&self, hidden: &Tensor, context: &Context, tap: &mut dyn Tap) -> Result<Tensor> {
        let (sequences, length, width) = hidden.dims3()?;
        if length != context.sequence() {
            return Err(Error::new(
                Kind::Usage,
                format!("sequences of {length} tokens in a context for {}", context.sequence()),
            ));
        }
        let hidden = hidden.reshape((sequences * length, width))?;
        let x = self.attention_norm.forward(&hidden)?;
        let x = self.attention.forward(&x, context, self.index, tap)?;
        let hidden = add(&hidden, x, self.attention_post_norm.as_ref())?;
        let x = self.feed_forward_norm.forward(&hidden)?;
        let x = match &self.feed_forward {
            Part::Dense(part) => part.forward(&x, self.index, [Input::FeedForward, Input::Down], tap)?,
            Part::Experts(part) => part.forward(&x, self.index, tap)?,
        };
        let hidden = add(&hidden, x, self.feed_forward_post_norm.as_ref())?;
        Ok(hidden.reshape((sequences, length, width))?)
    }
}

/// The residual sum.
fn add(hidden: &Tensor, x: Tensor, norm: Option<&Norm>) -> Result<Tensor> {
    let x = match norm {
        Some(norm) => norm.forward(&x)?,
        None => x,
    };
    Ok((hidden + x)?)
}
