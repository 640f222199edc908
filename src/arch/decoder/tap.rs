//! What goes into the linear layers, for whoever wants to see it.

use candle_core::Tensor;

use crate::arch::spec::ArchSpec;
use crate::error::Result;

/// Sees the inputs of linear layers.
pub trait Tap {
    /// `x` (`[tokens, in]`, float32) is about to be multiplied by the matrices of `linear`. Called once for all matrices
    /// that share their input, and for each expert with the tokens that are routed to it.
    ///
    /// # Errors
    /// What stops the computation.
    fn input(&mut self, linear: LinearId, x: &Tensor) -> Result<()>;
}

/// Looks away.
impl Tap for () {
    fn input(&mut self, _: LinearId, _: &Tensor) -> Result<()> {
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
}

impl LinearId {
    /// The matrices' names in GGUF. Those of one expert lie in the tensor of them all.
    pub fn tensors(self, spec: &ArchSpec) -> Vec<String> {
        let all: &[&str] = match self.input {
            Input::Attention => &["attn_q", "attn_k", "attn_v", "attn_qkv"],
            Input::AttentionOutput => &["attn_output"],
            Input::FeedForward => &["ffn_gate", "ffn_up"],
            Input::Down => &["ffn_down"],
            Input::Router => &["ffn_gate_inp"],
            Input::Expert(_) => &["ffn_gate_exps", "ffn_up_exps"],
            Input::ExpertDown(_) => &["ffn_down_exps"],
        };
        all.iter()
            .filter(|stem| spec.rule(&format!("blk.{{}}.{stem}.weight")).is_some())
            .map(|stem| format!("blk.{}.{stem}.weight", self.layer))
            .collect()
    }
}
