//! One layer: attention and feed-forward part, with their norms and residual sums.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::activations::Activations;
use super::attention::Attention;
use super::experts::{self, Experts};
use super::feed_forward::FeedForward;
use super::linear::Linear;
use super::norm::Norm;
use super::schedule::LayerKind;
use super::weights::{At, Weights};
use super::{Context, Input, LinearId, Step, Tap};
use crate::arch::Model;
use crate::backend::Accelerator;
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
    /// What computes it, if that is not the processor.
    device: Option<Arc<dyn Accelerator>>,
}

#[derive(Debug)]
enum Part {
    Dense(Box<FeedForward>),
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
                Part::Dense(Box::new(FeedForward::load(model, weights, at)?))
            },
            feed_forward_post_norm: weights.norm("blk.{}.post_ffw_norm.weight", at)?,
            device: None,
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
        let rows = self.parts(stem, expert).last().map_or(0, |(_, rows)| rows.end);
        if rows == 0 || !weights.len().is_multiple_of(rows) {
            return Err(Error::new(
                Kind::Other,
                format!("the decoder has no matrix {stem} of {} weights", weights.len()),
            ));
        }
        let shape = (rows, weights.len() / rows);
        self.replace_by(stem, expert, &Tensor::from_slice(weights, shape, &Device::Cpu)?)
    }

    /// The same with a tensor, `[out, in]`; if it is a variable, [`Layer::forward`] makes gradients for it, as long as the layer
    /// is computed in memory.
    ///
    /// # Errors
    /// As [`Layer::replace`].
    pub fn replace_by(&mut self, stem: &str, expert: usize, weights: &Tensor) -> Result<()> {
        let parts = self.parts(stem, expert);
        if parts.last().map(|(_, rows)| rows.end) != weights.dims().first().copied() {
            return Err(Error::new(
                Kind::Other,
                format!("the decoder has no matrix {stem} of {:?}", weights.dims()),
            ));
        }
        parts
            .into_iter()
            .try_for_each(|(linear, rows)| linear.replace(weights.narrow(0, rows.start, rows.len())?))
    }

    fn parts(&mut self, stem: &str, expert: usize) -> Vec<(&mut Linear, Range<usize>)> {
        match (stem.starts_with("attn_"), &mut self.feed_forward) {
            (true, _) => self.attention.parts(stem),
            (false, Part::Dense(part)) => part.parts(stem),
            (false, Part::Experts(part)) => part.parts(stem, expert),
        }
    }

    /// Whether gradients flow through all of its operations: not through those of a mixture of experts.
    pub fn is_differentiable(&self) -> bool {
        matches!(self.feed_forward, Part::Dense(_))
    }

    /// Its norms, under their names in GGUF without layer and ending (`attn_norm`).
    pub fn norms(&self) -> Vec<(&'static str, &Norm)> {
        let own = [
            ("attn_norm", Some(&self.attention_norm)),
            ("post_attention_norm", self.attention_post_norm.as_ref()),
            ("ffn_norm", Some(&self.feed_forward_norm)),
            ("post_ffw_norm", self.feed_forward_post_norm.as_ref()),
        ];
        let [query, key] = self.attention.norms();
        let all = own.into_iter().chain([("attn_q_norm", query), ("attn_k_norm", key)]);
        all.filter_map(|(stem, norm)| Some((stem, norm?))).collect()
    }

    /// Computes with another norm from now on: that of this name in [`Layer::norms`].
    ///
    /// # Errors
    /// `Other` if the layer has no such norm of this size.
    pub fn replace_norm(&mut self, stem: &str, weight: &Tensor) -> Result<()> {
        let norm = match stem {
            "attn_norm" => Some(&mut self.attention_norm),
            "post_attention_norm" => self.attention_post_norm.as_mut(),
            "ffn_norm" => Some(&mut self.feed_forward_norm),
            "post_ffw_norm" => self.feed_forward_post_norm.as_mut(),
            _ => self.attention.norm_mut(stem),
        };
        match norm {
            Some(norm) => norm.replace(weight),
            None => Err(Error::new(Kind::Other, format!("the decoder has no norm {stem}"))),
        }
    }

    /// The hidden states after this layer: `[sequences, tokens, hidden]` in and out. `tap` sees what goes into the
    /// matrices. Gradients flow through it to whatever of `hidden`, matrices and norms is a variable.
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
        let hidden = Activations::Memory(hidden.reshape((sequences * length, width))?);
        let hidden = hidden.moved_to(self.device.as_ref())?;
        let x = self.attention_norm.forward(&hidden)?;
        let x = self.attention.forward(&x, context, self.index, tap)?;
        let hidden = add(&hidden, x, self.attention_post_norm.as_ref())?;
        let x = self.feed_forward_norm.forward(&hidden)?;
        let x = match &self.feed_forward {
            Part::Dense(part) => part.forward(&x, self.index, [Input::FeedForward, Input::Down], tap)?,
            Part::Experts(part) => part.forward(&x, self.index, tap)?,
        };
        let hidden = add(&hidden, x, self.feed_forward_post_norm.as_ref())?;
        Ok(hidden.tensor()?.reshape((sequences, length, width))?)
    }

    /// Has a device compute this layer from now on, in whose memory its weights are then. The results are the same to the bit;
    /// hidden states come from memory and go there.
    ///
    /// # Errors
    /// `Resources` if the weights do not fit; the layer is of no use then.
    pub fn move_to(&mut self, device: &Arc<dyn Accelerator>) -> Result<()> {
        self.device = Some(device.clone());
        self.attention_norm.move_to(device)?;
        self.attention.move_to(device)?;
        self.feed_forward_norm.move_to(device)?;
        match &mut self.feed_forward {
            Part::Dense(part) => part.move_to(device)?,
            Part::Experts(part) => part.move_to(device)?,
        }
        let norms = [&mut self.attention_post_norm, &mut self.feed_forward_post_norm];
        norms.into_iter().flatten().try_for_each(|norm| norm.move_to(device))
    }

    /// How many experts there are, and how many each token goes to.
    pub(super) fn experts(&self) -> (usize, usize) {
        match &self.feed_forward {
            Part::Dense(_) => (0, 0),
            Part::Experts(part) => part.count(),
        }
    }

    /// Heads of queries for each head of keys.
    pub(super) fn queries_of_a_key(&self) -> usize {
        self.attention.queries_of_a_key()
    }

    /// Does one step of the layer: from where the step before has stopped to the inputs of the next matrices, which `tap`
    /// sees. `states` are `[tokens, hidden]`, wherever they are; where the layer is computed, they and `held`, what the step
    /// leaves besides, are afterwards. What the step before has left may be dropped; it is computed again then.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub(super) fn step(
        &self,
        step: Step,
        states: &mut Activations,
        held: &mut Option<Held>,
        context: &Context,
        tap: &mut dyn Tap,
    ) -> Result<()> {
        let layer = self.index;
        let hidden = states.clone().moved_to(self.device.as_ref())?;
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
                    Some(Held::Mixed(mixed)) => mixed.moved_to(self.device.as_ref())?,
                    _ => self.mixed(&hidden, context)?,
                };
                let x = self.attention.output(&mixed)?;
                let hidden = add(&hidden, x, self.attention_post_norm.as_ref())?;
                let x = self.feed_forward_norm.forward(&hidden)?;
                match &self.feed_forward {
                    Part::Dense(_) => tap.input(LinearId { layer, input: Input::FeedForward }, &x)?,
                    Part::Experts(part) => part.show_inputs(&x, layer, tap)?,
                }
                *states = hidden;
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
                    Some(gated) => gated.moved_to(self.device.as_ref())?,
                    None => self.gated(&hidden)?,
                };
                let x = match (&self.feed_forward, &gated) {
                    (Part::Dense(part), Held::Gated(x)) => part.output(x)?,
                    (Part::Experts(part), Held::Experts(all)) => part.output(all, &hidden)?,
                    _ => return Err(Error::new(Kind::Usage, "the steps of a layer were taken out of order")),
                };
                *states = add(&hidden, x, self.feed_forward_post_norm.as_ref())?;
            }
        }
        Ok(())
    }

    /// What goes into the projection after attention.
    fn mixed(&self, hidden: &Activations, context: &Context) -> Result<Activations> {
        self.attention.mixed(&self.attention_norm.forward(hidden)?, context)
    }

    /// What goes into down.
    fn gated(&self, hidden: &Activations) -> Result<Held> {
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
    Mixed(Activations),
    /// The input of down.
    Gated(Activations),
    /// Those of the experts.
    Experts(Vec<experts::Gated>),
}

impl Held {
    /// The same in memory, where there is room for those of all batches.
    pub(super) fn into_memory(self) -> Result<Held> {
        self.each(Activations::into_memory)
    }

    fn moved_to(self, device: Option<&Arc<dyn Accelerator>>) -> Result<Held> {
        self.each(|x| x.moved_to(device))
    }

    fn each(self, change: impl Fn(Activations) -> Result<Activations>) -> Result<Held> {
        Ok(match self {
            Held::Mixed(x) => Held::Mixed(change(x)?),
            Held::Gated(x) => Held::Gated(change(x)?),
            Held::Experts(all) => {
                let one = |one: experts::Gated| Ok(experts::Gated { gated: change(one.gated)?, ..one });
                Held::Experts(all.into_iter().map(one).collect::<Result<_>>()?)
            }
        })
    }
}

/// The residual sum.
fn add(hidden: &Activations, x: Activations, norm: Option<&Norm>) -> Result<Activations> {
    let x = match norm {
        Some(norm) => norm.forward(&x)?,
        None => x,
    };
    hidden.plus(&x)
}
