//! What goes into the linear layers, for whoever wants to see it.

use super::Activations;
use crate::arch::spec::{ArchSpec, TensorRule};
use crate::error::Result;

/// Sees the inputs of linear layers.
pub trait Tap {
    /// `x` (`[tokens, in]`) is about to be multiplied by the matrices of `linear`. Called once for all matrices
    /// that share their input, and for each expert with the tokens that are routed to it.
    ///
    /// # Errors
    /// What stops the computation.
    fn input(&mut self, linear: LinearId, x: &Activations) -> Result<()>;
}

/// Looks away.
impl Tap for () {
    fn input(&mut self, _: LinearId, _: &Activations) -> Result<()> {
        Ok(())
    }
}

/// The matrices of a layer that share one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinearId {
    /// The layer, from 0.
    pub layer: usize,
    /// Which input it is.
    pub input: Input,
}

/// One of a layer's inputs to matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Input {
    /// Of query, key and value: `[tokens, hidden]`.
    Attention,
    /// Of the projection after attention: `[tokens, heads * head_dim]`.
    AttentionOutput,
    /// Of gate and up: `[tokens, hidden]`.
    FeedForward,
    /// Of down: `[tokens, feed_forward]`.
    Down,
    /// Of the router of a mixture of experts: `[tokens, hidden]`.
    Router,
    /// Of gate and up of one expert: `[tokens routed there, hidden]`.
    Expert(usize),
    /// Of down of one expert: `[tokens routed there, expert_feed_forward]`.
    ExpertDown(usize),
    /// Of the head, after the last norm: `[tokens, hidden]`. Its layer is the number of layers.
    Head,
}

impl LinearId {
    /// The matrices' names in GGUF. Those of one expert lie in the tensor of them all.
    pub fn tensors(self, spec: &ArchSpec) -> Vec<String> {
        self.rules(spec).map(|rule| rule.gguf.replace("{}", &self.layer.to_string())).collect()
    }

    /// The modules that they are in transformers, within the layer: `self_attn.q_proj`.
    pub fn modules(self, spec: &ArchSpec) -> Vec<String> {
        let expert = match self.input {
            Input::Expert(expert) | Input::ExpertDown(expert) => expert,
            _ => 0,
        };
        let within = |rule: &TensorRule| {
            let name = rule.hf.trim_start_matches("model.layers.{}.").trim_end_matches(".weight");
            name.replace("{e}", &expert.to_string())
        };
        self.rules(spec).map(within).collect()
    }

    /// The rules of the matrices, as far as the family has them: those of experts for any of them.
    pub fn rules(self, spec: &ArchSpec) -> impl Iterator<Item = &'static TensorRule> {
        let names: &[&str] = match self.input {
            Input::Attention => &[
                "blk.{}.attn_q.weight",
                "blk.{}.attn_k.weight",
                "blk.{}.attn_v.weight",
                "blk.{}.attn_qkv.weight",
            ],
            Input::AttentionOutput => &["blk.{}.attn_output.weight"],
            Input::FeedForward => &["blk.{}.ffn_gate.weight", "blk.{}.ffn_up.weight"],
            Input::Down => &["blk.{}.ffn_down.weight"],
            Input::Router => &["blk.{}.ffn_gate_inp.weight"],
            Input::Expert(_) => &["blk.{}.ffn_gate_exps.weight", "blk.{}.ffn_up_exps.weight"],
            Input::ExpertDown(_) => &["blk.{}.ffn_down_exps.weight"],
            Input::Head => &["output.weight"],
        };
        names.iter().filter_map(|name| spec.rule(name))
    }
}
