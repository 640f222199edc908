//! Causal attention with grouped queries, `LlamaAttention` and its kin in transformers.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::activations::{Activations, elsewhere};
use super::linear::Linear;
use super::norm::Norm;
use super::product;
use super::rope::Table;
use super::schedule::{LayerKind, RopeKind};
use super::softmax::CausalSoftmax;
use super::weights::{At, Weights};
use super::{Context, Input, LinearId, Tap};
use crate::arch::Model;
use crate::backend::{self, Accelerator};
use crate::error::Result;

/// The attention of one layer.
#[derive(Debug)]
pub(super) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    query_norm: Option<Norm>,
    key_norm: Option<Norm>,
    rope: Option<RopeKind>,
    softmax: CausalSoftmax,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    hidden: usize,
}

impl Attention {
    pub(super) fn load(model: &Model, weights: &Weights<'_>, at: At, kind: LayerKind) -> Result<Attention> {
        let hyper = &model.hyper;
        let arithmetic = &model.spec.arithmetic;
        let (q, kv) = (hyper.heads * hyper.head_dim, hyper.kv_heads * hyper.head_dim);
        let scalar = match arithmetic.query_scalar {
            Some(key) => model.config.opt_f64(key)?,
            None => None,
        };
        let [query, key, value] = if weights.has("attn_qkv") {
            let rows = |rows| weights.need_rows("attn_qkv", rows, at);
            [rows(0..q)?, rows(q..q + kv)?, rows(q + kv..q + 2 * kv)?]
        } else {
            let matrix = |stem| weights.need_linear(stem, at);
            [matrix("attn_q")?, matrix("attn_k")?, matrix("attn_v")?]
        };
        Ok(Attention {
            query,
            key,
            value,
            output: weights.need_linear("attn_output", at)?,
            query_norm: weights.norm("blk.{}.attn_q_norm.weight", at)?,
            key_norm: weights.norm("blk.{}.attn_k_norm.weight", at)?,
            rope: kind.rope,
            softmax: CausalSoftmax {
                scale: scalar.unwrap_or(hyper.head_dim as f64).powf(-0.5) as f32,
                soft_cap: hyper.attn_softcap.filter(|_| arithmetic.soft_caps).map(|cap| cap as f32),
                window: kind.window,
            },
            heads: hyper.heads,
            kv_heads: hyper.kv_heads,
            head_dim: hyper.head_dim,
            hidden: hyper.hidden,
        })
    }

    /// Heads of queries for each head of keys.
    pub(super) fn queries_of_a_key(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The matrices that one of its inputs goes into.
    pub(super) fn linears(&self, input: Input) -> Vec<(&'static str, &Linear)> {
        match input {
            Input::Attention => {
                vec![("attn_q", &self.query), ("attn_k", &self.key), ("attn_v", &self.value)]
            }
            Input::AttentionOutput => vec![("attn_output", &self.output)],
            _ => Vec::new(),
        }
    }

    /// The matrices that the weights of a name in GGUF (`attn_q`) are, with their rows of it.
    pub(super) fn parts(&mut self, stem: &str) -> Vec<(&mut Linear, Range<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match stem {
            "attn_q" => vec![(&mut self.query, 0..q)],
            "attn_k" => vec![(&mut self.key, 0..kv)],
            "attn_v" => vec![(&mut self.value, 0..kv)],
            "attn_qkv" => vec![
                (&mut self.query, 0..q),
                (&mut self.key, q..q + kv),
                (&mut self.value, q + kv..q + 2 * kv),
            ],
            "attn_output" => vec![(&mut self.output, 0..self.hidden)],
            _ => Vec::new(),
        }
    }

    /// The norms of queries and keys.
    pub(super) fn norms(&self) -> [Option<&Norm>; 2] {
        [self.query_norm.as_ref(), self.key_norm.as_ref()]
    }

    /// The norm of a name in GGUF (`attn_q_norm`).
    pub(super) fn norm_mut(&mut self, stem: &str) -> Option<&mut Norm> {
        match stem {
            "attn_q_norm" => self.query_norm.as_mut(),
            "attn_k_norm" => self.key_norm.as_mut(),
            _ => None,
        }
    }

    /// `[tokens, hidden]` in and out; the tokens are those of sequences one after the other.
    pub(super) fn forward(
        &self,
        x: &Activations,
        context: &Context,
        layer: usize,
        tap: &mut dyn Tap,
    ) -> Result<Activations> {
        tap.input(LinearId { layer, input: Input::Attention }, x)?;
        let mixed = self.mixed(x, context)?;
        tap.input(LinearId { layer, input: Input::AttentionOutput }, &mixed)?;
        self.output(&mixed)
    }

    /// What goes into the output projection: `[tokens, hidden]` in, `[tokens, heads * head_dim]` out.
    pub(super) fn mixed(&self, x: &Activations, context: &Context) -> Result<Activations> {
        let table = self.rope.map(|kind| context.table(kind));
        let query = self.prepare(self.query.forward(x)?, self.query_norm.as_ref(), table)?;
        let key = self.prepare(self.key.forward(x)?, self.key_norm.as_ref(), table)?;
        match (&query, &key, &self.value.forward(x)?) {
            (Activations::Memory(query), Activations::Memory(key), Activations::Memory(value)) => {
                Ok(Activations::Memory(self.attend(query, key, value, context.sequence())?))
            }
            (
                Activations::Device(device, query),
                Activations::Device(_, key),
                Activations::Device(_, value),
            ) => {
                let attention = backend::Attention {
                    sequence: context.sequence(),
                    heads: self.heads,
                    kv_heads: self.kv_heads,
                    head_dim: self.head_dim,
                    scale: self.softmax.scale,
                    soft_cap: self.softmax.soft_cap,
                    window: self.softmax.window,
                };
                let mixed = device.attend(&attention, query, key, value)?;
                Ok(Activations::Device(device.clone(), mixed))
            }
            _ => Err(elsewhere()),
        }
    }

    /// Its matrices and norms move to a device.
    pub(super) fn move_to(&mut self, device: &Arc<dyn Accelerator>) -> Result<()> {
        let matrices = [&mut self.query, &mut self.key, &mut self.value, &mut self.output];
        matrices.into_iter().try_for_each(|matrix| matrix.move_to(device))?;
        let norms = [&mut self.query_norm, &mut self.key_norm];
        norms.into_iter().flatten().try_for_each(|norm| norm.move_to(device))
    }

    /// What comes out of the output projection: `[tokens, heads * head_dim]` in, `[tokens, hidden]` out.
    pub(super) fn output(&self, mixed: &Activations) -> Result<Activations> {
        self.output.forward(mixed)
    }

    /// Norms and rotates heads, `[tokens, heads * head_dim]`.
    fn prepare(&self, x: Activations, norm: Option<&Norm>, table: Option<&Table>) -> Result<Activations> {
        let x = match norm {
            Some(norm) => norm.forward(&x)?,
            None => x,
        };
        match table {
            Some(table) => table.rotate(x, self.head_dim),
            None => Ok(x),
        }
    }

    /// Sequences of `length` tokens, one after the other: queries, keys and values to `[tokens, heads * head_dim]`.
    fn attend(&self, query: &Tensor, key: &Tensor, value: &Tensor, length: usize) -> Result<Tensor> {
        if [query, key, value].into_iter().any(Tensor::track_op) {
            // The gradient of a part of a tensor has the size of the whole.
            return self.attend_at_once(query, key, value, length);
        }
        // One sequence at a time: the scores of all would take much memory.
        let joined = (0..query.dim(0)? / length)
            .map(|i| {
                let part = |t: &Tensor| t.narrow(0, i * length, length);
                self.attend_at_once(&part(query)?, &part(key)?, &part(value)?, length)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&joined, 0)?)
    }

    /// The same, with the scores of all in memory.
    fn attend_at_once(&self, query: &Tensor, key: &Tensor, value: &Tensor, length: usize) -> Result<Tensor> {
        let (tokens, width) = (query.dim(0)?, self.head_dim);
        let sequences = tokens / length;
        let part = |t: &Tensor, heads: usize| {
            let t = t.reshape((sequences, length, heads, width))?.transpose(1, 2)?.contiguous()?;
            t.reshape((sequences * heads, length, width))
        };
        let (key, value) = (part(key, self.kv_heads)?, part(value, self.kv_heads)?);
        // The queries that share a key are rows of one matrix, so that keys need not be repeated.
        let rows = self.heads / self.kv_heads * length;
        let query = part(query, self.heads)?.reshape((sequences * self.kv_heads, rows, width))?;
        let scores = product::of_each(&query, &key, true)?;
        let scores = scores.reshape((sequences * self.heads, length, length))?;
        let weights = self.softmax.forward(scores)?.reshape((sequences * self.kv_heads, rows, length))?;
        let mixed = product::of_each(&weights, &value, false)?;
        let mixed = mixed.reshape((sequences, self.heads, length, width))?.transpose(1, 2)?;
        Ok(mixed.reshape((tokens, self.heads * width))?)
    }
}
