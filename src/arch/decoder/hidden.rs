//! The hidden states of all windows between two layers.

use candle_core::Tensor;

use super::layer::Held;
use super::{Context, Decoder, Layer, Tap};
use crate::cancel::Cancel;
use crate::error::Result;

/// Tokens that go through a layer at a time: enough for fast matrix products, and their activations are small beside the
/// layer's weights.
const BATCH_TOKENS: usize = 2048;

/// What the layers have made of some windows of tokens so far. Every window is a sequence of its own, from position 0;
/// windows are never padded.
#[derive(Debug)]
pub struct Hidden {
    batches: Vec<Batch>,
}

#[derive(Debug)]
struct Batch {
    /// `[windows, tokens, hidden]`.
    states: Tensor,
    context: Context,
    /// What a step of a layer has left for the next.
    held: Option<Held>,
}

/// How far into a layer. Each step computes what goes into the next matrices from what went into those before, so that a
/// method which changes matrices one after the other sees what the changed ones make, and computes each of them once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To the input of query, key and value. Needs no matrix.
    Attention,
    /// To the input of the projection after attention, through query, key and value.
    AttentionOutput,
    /// To the inputs of gate and up, through the projection after attention.
    FeedForward,
    /// To the inputs of down, through gate and up.
    Down,
    /// To the next layer, through down.
    End,
}

impl Step {
    /// All steps, in the order in which they must be taken.
    pub const ALL: [Step; 5] =
        [Step::Attention, Step::AttentionOutput, Step::FeedForward, Step::Down, Step::End];
}

impl Hidden {
    /// The embeddings of `windows`.
    ///
    /// # Errors
    /// As [`Decoder::embed`].
    pub fn embed(decoder: &Decoder<'_>, windows: &[Vec<u32>]) -> Result<Hidden> {
        let mut batches = Vec::new();
        for equal in windows.chunk_by(|a, b| a.len() == b.len()) {
            let length = equal[0].len();
            for batch in equal.chunks((BATCH_TOKENS / length.max(1)).max(1)) {
                batches.push(Batch {
                    states: decoder.embed(batch)?,
                    context: decoder.context(length),
                    held: None,
                });
            }
        }
        Ok(Hidden { batches })
    }

    /// Takes all windows through one layer, in order; `tap` sees what goes into its matrices, batch by batch.
    ///
    /// # Errors
    /// `Interrupted`, or what `tap` returns.
    pub fn advance(&mut self, layer: &Layer, tap: &mut dyn Tap, cancel: &Cancel) -> Result<()> {
        for Batch { states, context, .. } in &mut self.batches {
            cancel.check()?;
            *states = layer.forward(states, context, tap)?;
        }
        Ok(())
    }

    /// Takes all windows one step further into a layer, in order; `tap` sees the inputs at which the step stops, batch by
    /// batch. The matrices of `layer` may be others at each step.
    ///
    /// Between [`Step::Down`] and [`Step::End`] the inputs of down are kept, which are several times as large as the states;
    /// with `keep` off they are computed a second time instead.
    ///
    /// # Errors
    /// As [`Hidden::advance`].
    pub fn step(
        &mut self,
        step: Step,
        layer: &Layer,
        keep: bool,
        tap: &mut dyn Tap,
        cancel: &Cancel,
    ) -> Result<()> {
        for Batch { states, context, held } in &mut self.batches {
            cancel.check()?;
            layer.step(step, states, held, context, tap)?;
            if !keep {
                *held = None;
            }
        }
        Ok(())
    }

    /// The states of one window: `[tokens, hidden]`.
    ///
    /// # Errors
    /// Those of candle.
    ///
    /// # Panics
    /// If there is no such window.
    pub fn window(&self, mut i: usize) -> Result<Tensor> {
        for batch in &self.batches {
            let here = batch.states.dims()[0];
            if i < here {
                return Ok(batch.states.get(i)?);
            }
            i -= here;
        }
        panic!("there is no such window");
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.batches.iter().map(|b| b.states.dims()[0]).sum()
    }

    /// Number of tokens of all windows.
    pub fn tokens(&self) -> usize {
        self.batches.iter().map(|b| b.states.dims()[0] * b.states.dims()[1]).sum()
    }
}
