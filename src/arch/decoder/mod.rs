//! One decoder for every family, one layer in memory at a time, in float32 or with its matrices in bfloat16.
//!
//! It computes what transformers 5 computes (`models/*/modeling_*.py`): the same hidden states after each layer and the
//! same logits. Where families differ, [`Arithmetic`](super::spec::Arithmetic) and the tensors that are there say how;
//! there is no code for a single family. Tensors are candle's; matrix products sum in one order on every processor, and what
//! lies between them are operations that go over each row once. A device that has the same operations computes a layer
//! that is moved there, to the same bits.

mod activations;
mod attention;
mod bf16;
mod compute;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;
mod exp;
mod experts;
mod feed_forward;
mod footprint;
#[cfg(test)]
mod gradients;
mod head;
mod hidden;
mod layer;
mod linear;
mod norm;
mod product;
mod rope;
mod rows;
mod schedule;
mod softmax;
mod spill;
mod tap;
mod weights;

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::Model;
use crate::error::{Error, Kind, Result};
use crate::source::dense::Dense;
pub use activations::Activations;
pub use compute::Compute;
pub use footprint::Footprint;
pub use head::Head;
pub use hidden::{BATCH_TOKENS, Hidden, Residency, Step};
pub use layer::Layer;
pub use linear::Linear;
pub use norm::Norm;
use rope::Table;
use schedule::{LayerKind, RopeKind};
pub use spill::Spill;
pub use tap::{Input, LinearId, Tap};
use weights::{At, Weights};

/// Rows of the head that are in memory at a time.
const HEAD_ROWS: usize = 8192;

/// A model that computes from its checkpoint, which stays where it is: each layer is read when it is asked for.
#[derive(Debug)]
pub struct Decoder<'a> {
    model: &'a Model,
    weights: Weights<'a>,
    schedule: Vec<LayerKind>,
}

/// What all layers need to know of sequences of one length.
#[derive(Clone, Debug)]
pub struct Context {
    sequence: usize,
    rope: Table,
    rope_swa: Table,
}

impl Context {
    /// Tokens in each sequence.
    pub fn sequence(&self) -> usize {
        self.sequence
    }

    fn table(&self, kind: RopeKind) -> &Table {
        match kind {
            RopeKind::Global => &self.rope,
            RopeKind::Window => &self.rope_swa,
        }
    }
}

impl<'a> Decoder<'a> {
    /// Prepares to compute `model` from `tensors`.
    ///
    /// # Errors
    /// `Invalid` if the configuration contradicts itself.
    pub fn new(model: &'a Model, tensors: &'a dyn Dense) -> Result<Decoder<'a>> {
        Ok(Decoder { model, weights: Weights::new(model, tensors), schedule: schedule::read(model)? })
    }

    /// The same decoder, with its matrices multiplied in `compute`; float32 unless said otherwise.
    pub fn compute_in(mut self, compute: Compute) -> Decoder<'a> {
        self.weights.compute = compute;
        self
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.schedule.len()
    }

    /// What layers need to compute sequences of `sequence` tokens, at positions from 0.
    pub fn context(&self, sequence: usize) -> Context {
        let hyper = &self.model.hyper;
        Context {
            sequence,
            rope: Table::new(&hyper.rope, hyper, sequence),
            rope_swa: Table::new(&rope::of_window(hyper), hyper, sequence),
        }
    }

    /// The embeddings of sequences of equal length: `[sequences, tokens, hidden]`.
    ///
    /// # Errors
    /// `Invalid` for a token that the model does not have, `Usage` for sequences of different length.
    pub fn embed<S: AsRef<[u32]>>(&self, sequences: &[S]) -> Result<Tensor> {
        let length = sequences.first().map_or(0, |s| s.as_ref().len());
        if length == 0 || sequences.iter().any(|s| s.as_ref().len() != length) {
            return Err(Error::new(Kind::Usage, "sequences must be of one length, and not empty"));
        }
        let hyper = &self.model.hyper;
        let embedding = self.weights.need("token_embd.weight", At::default())?;
        let mut values = vec![0.0; sequences.len() * length * hyper.hidden];
        let tokens = sequences.iter().flat_map(AsRef::as_ref);
        for (&token, row) in tokens.zip(values.chunks_exact_mut(hyper.hidden)) {
            let token = token as usize;
            if token >= hyper.vocab {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("token {token} is not in the model's vocabulary of {}", hyper.vocab),
                ));
            }
            self.weights.read(&embedding, token..token + 1, row)?;
        }
        if self.model.spec.arithmetic.scale_embedding {
            // transformers keeps the root in the type of the weights, here float32.
            let scale = (hyper.hidden as f64).sqrt() as f32;
            values.iter_mut().for_each(|v| *v *= scale);
        }
        Ok(Tensor::from_vec(values, (sequences.len(), length, hyper.hidden), &Device::Cpu)?)
    }

    /// Loads the weights of layer `i` as float32.
    ///
    /// # Errors
    /// `Invalid` if a weight is missing, has the wrong shape, or is not finite.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer(&self, i: usize) -> Result<Layer> {
        Layer::load(self.model, &self.weights, i, self.schedule[i])
    }

    /// The norm after the last layer: `[.., hidden]` in and out.
    ///
    /// # Errors
    /// As [`Decoder::layer`].
    pub fn norm(&self, hidden: &Tensor) -> Result<Tensor> {
        self.output_norm()?.forward(&Activations::Memory(hidden.clone()))?.tensor()
    }

    /// Loads the norm after the last layer.
    ///
    /// # Errors
    /// As [`Decoder::layer`].
    pub fn output_norm(&self) -> Result<Norm> {
        self.weights.need_norm("output_norm.weight", At::default())
    }

    /// The logits of the last layer's output: `[.., hidden]` in, `[.., vocabulary]` out. The head is read in pieces, so
    /// that it is never in memory as a whole; the logits are.
    ///
    /// # Errors
    /// As [`Decoder::layer`].
    pub fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        let hidden = self.norm(hidden)?;
        let pieces = (0..self.vocab())
            .step_by(HEAD_ROWS)
            .map(|start| self.head_rows(start..(start + HEAD_ROWS).min(self.vocab()))?.forward(&hidden))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&pieces, hidden.rank() - 1)?)
    }

    /// Loads the head's rows for some tokens of the vocabulary.
    ///
    /// # Errors
    /// As [`Decoder::layer`].
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn head_rows(&self, tokens: Range<usize>) -> Result<Head> {
        let hyper = &self.model.hyper;
        // transformers computes a tied head from the embedding, whatever else the checkpoint holds.
        let name = if hyper.tied { "token_embd.weight" } else { "output.weight" };
        let found = self.weights.need(name, At::default())?;
        Ok(Head {
            linear: Linear::new(
                self.weights.load(&found, tokens)?,
                None,
                self.weights.rounds(&found, "output"),
            )?,
            soft_cap: hyper.final_softcap.filter(|_| self.model.spec.arithmetic.soft_caps),
        })
    }

    /// Tokens that the head has logits for.
    pub fn vocab(&self) -> usize {
        self.model.hyper.vocab
    }

    /// Width of the hidden states.
    pub fn hidden(&self) -> usize {
        self.model.hyper.hidden
    }
}

impl From<candle_core::Error> for Error {
    fn from(e: candle_core::Error) -> Error {
        Error::new(Kind::Other, "the model cannot be computed").because(e)
    }
}
