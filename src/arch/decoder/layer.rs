//! One layer: attention and feed-forward part, with their norms and residual sums.

use candle_core::Tensor;

use super::attention::Attention;
use super::experts::{self, Experts};
use super::feed_forward::FeedForward;
use super::linear::Linear;
use super::norm::Norm;
use super::schedule::LayerKind;
use super::weights::{At, Weights};
use super::{Context, Input, LinearId, Step, Tap};
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

    /// Computes with other weights from now on: those of the matrix `blk.{}.STEM.weight` in GGUF, of one expert where there are
    /// several, `[out, in]` row-major. Matrices that are joined in the checkpoint are replaced together.
    ///
    /// # Errors
    /// `Other` if the layer has no such matrix of this size.
    pub fn replace(&mut self, stem: &str, expert: usize, weights: &[f32]) -> Result<()> {
        let parts = match (stem.starts_with("attn_"), &mut self.feed_forward) {
            (true, _) => self.attention.parts(stem),
            (false, Part::Dense(part)) => part.parts(stem),
            (false, Part::Experts(part)) => part.parts(stem, expert),
        };
        let rows = parts.last().map_or(0, |(_, rows)| rows.end);
        if rows == 0 || !weights.len().is_multiple_of(rows) {
            return Err(Error::new(
                Kind::Other,
                format!("the decoder has no matrix {stem} of {} weights", weights.len()),
            ));
        }
        let width = weights.len() / rows;
        parts.into_iter().try_for_each(|(linear, rows)| {
            linear.replace(weights[rows.start * width..rows.end * width].to_vec())
        })
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

    /// Does one step of the layer: from where the step before has stopped to the inputs of the next matrices, which `tap`
    /// sees. `states` are `[sequences, tokens, hidden]`, `held` is what the step before has left besides; where that was
    /// dropped, it is computed again.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub(super) fn step(
        &self,
        step: Step,
        states: &mut Tensor,
        held: &mut Option<Held>,
        context: &Context,
        tap: &mut dyn Tap,
    ) -> Result<()> {
        let shape = states.dims3()?;
        let (tokens, layer) = (shape.0 * shape.1, self.index);
        let hidden = states.reshape((tokens, shape.2))?;
        match step {
            Step::Attention => {
                let x = self.attention_norm.forward(&hidden)?;
                tap.input(LinearId { layer, input: Input::Attention }, &x)?;
            }
            Step::AttentionOutput => {
                let mixed = self.mixed(&hidden, context)?;
                tap.input(LinearId { layer, input: Input::AttentionOutput }, &mixed)?;
                *held = Some(Held::Mixed(mixed));
            }
            Step::FeedForward => {
                let mixed = match held.take() {
                    Some(Held::Mixed(mixed)) => mixed,
                    _ => self.mixed(&hidden, context)?,
                };
                let x = self.attention.output(&mixed)?;
                let hidden = add(&hidden, x, self.attention_post_norm.as_ref())?;
                let x = self.feed_forward_norm.forward(&hidden)?;
                match &self.feed_forward {
                    Part::Dense(_) => tap.input(LinearId { layer, input: Input::FeedForward }, &x)?,
                    Part::Experts(part) => part.show_inputs(&x, layer, tap)?,
                }
                *states = hidden.reshape(shape)?;
            }
            Step::Down => {
                let gated = self.gated(&hidden)?;
                match &gated {
                    Held::Gated(x) => tap.input(LinearId { layer, input: Input::Down }, x)?,
                    Held::Experts(all) => {
                        for one in all {
                            tap.input(LinearId { layer, input: Input::ExpertDown(one.expert) }, &one.gated)?;
                        }
                    }
                    Held::Mixed(_) => {}
                }
                *held = Some(gated);
            }
            Step::End => {
                let gated = match held.take() {
                    Some(gated) => gated,
                    None => self.gated(&hidden)?,
                };
                let x = match (&self.feed_forward, &gated) {
                    (Part::Dense(part), Held::Gated(x)) => part.output(x)?,
                    (Part::Experts(part), Held::Experts(all)) => part.output(all, tokens)?,
                    _ => return Err(Error::new(Kind::Usage, "the steps of a layer were taken out of order")),
                };
                *states = add(&hidden, x, self.feed_forward_post_norm.as_ref())?.reshape(shape)?;
            }
        }
        Ok(())
    }

    /// What goes into the projection after attention.
    fn mixed(&self, hidden: &Tensor, context: &Context) -> Result<Tensor> {
        self.attention.mixed(&self.attention_norm.forward(hidden)?, context)
    }

    /// What goes into down.
    fn gated(&self, hidden: &Tensor) -> Result<Held> {
        let x = self.feed_forward_norm.forward(hidden)?;
        Ok(match &self.feed_forward {
            Part::Dense(part) => Held::Gated(part.gated(&x)?),
            Part::Experts(part) => Held::Experts(part.gated(&x)?),
        })
    }
}

/// What a step has computed besides the hidden states.
#[derive(Debug)]
pub(super) enum Held {
    /// The input of the projection after attention.
    Mixed(Tensor),
    /// The input of down.
    Gated(Tensor),
    /// Those of the experts.
    Experts(Vec<experts::Gated>),
}

/// The residual sum.
fn add(hidden: &Tensor, x: Tensor, norm: Option<&Norm>) -> Result<Tensor> {
    let x = match norm {
        Some(norm) => norm.forward(&x)?,
        None => x,
    };
    Ok((hidden + x)?)
}
