//! Sets of tensors that several families share.
//!
//! Names in GGUF: `gguf-py/gguf/tensor_mapping.py` of llama.cpp.

use super::spec::Dim::*;
use super::spec::{Heads, Need, TensorRule, Use};

const fn rule(
    hf: &'static str,
    gguf: &'static str,
    shape: &'static [super::spec::Dim],
    usage: Use,
) -> TensorRule {
    TensorRule::new(hf, gguf, shape, usage)
}

const fn bias(
    hf: &'static str,
    gguf: &'static str,
    shape: &'static [super::spec::Dim],
    usage: Use,
) -> TensorRule {
    TensorRule::optional(hf, gguf, shape, usage)
}

/// Embedding and final norm.
pub(super) const TRUNK: &[TensorRule] = &[
    rule("model.embed_tokens.weight", "token_embd.weight", &[Vocab, Hidden], Use::Embedding),
    rule("model.norm.weight", "output_norm.weight", &[Hidden], Use::Norm),
];

/// The head; a model that has one keeps it, also when it is said to be tied.
pub(super) const HEAD: &[TensorRule] = &[TensorRule {
    hf: "lm_head.weight",
    gguf: "output.weight",
    shape: &[Vocab, Hidden],
    usage: Use::Linear,
    need: Need::UnlessTied,
}];

/// One norm before attention and one before the feed-forward part.
pub(super) const PRE_NORMS: &[TensorRule] = &[
    rule("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", &[Hidden], Use::Norm),
    rule("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", &[Hidden], Use::Norm),
];

/// Gemma's norms before and after both parts.
pub(super) const SANDWICH_NORMS: &[TensorRule] = &[
    rule("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", &[Hidden], Use::Norm),
    rule(
        "model.layers.{}.post_attention_layernorm.weight",
        "blk.{}.post_attention_norm.weight",
        &[Hidden],
        Use::Norm,
    ),
    rule("model.layers.{}.pre_feedforward_layernorm.weight", "blk.{}.ffn_norm.weight", &[Hidden], Use::Norm),
    rule(
        "model.layers.{}.post_feedforward_layernorm.weight",
        "blk.{}.post_ffw_norm.weight",
        &[Hidden],
        Use::Norm,
    ),
];

/// Separate query, key, value and output projections.
pub(super) const ATTENTION: &[TensorRule] = &[
    rule(
        "model.layers.{}.self_attn.q_proj.weight",
        "blk.{}.attn_q.weight",
        &[Query, Hidden],
        Use::Rope(Heads::Query),
    ),
    rule(
        "model.layers.{}.self_attn.k_proj.weight",
        "blk.{}.attn_k.weight",
        &[KeyValue, Hidden],
        Use::Rope(Heads::KeyValue),
    ),
    rule("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", &[KeyValue, Hidden], Use::Linear),
    rule(
        "model.layers.{}.self_attn.o_proj.weight",
        "blk.{}.attn_output.weight",
        &[Hidden, Query],
        Use::Linear,
    ),
];

/// Biases of query, key and value.
pub(super) const QKV_BIAS: &[TensorRule] = &[
    bias("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", &[Query], Use::Rope(Heads::Query)),
    bias(
        "model.layers.{}.self_attn.k_proj.bias",
        "blk.{}.attn_k.bias",
        &[KeyValue],
        Use::Rope(Heads::KeyValue),
    ),
    bias("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias", &[KeyValue], Use::Linear),
];

/// Biases that Llama models may have elsewhere.
pub(super) const OTHER_BIAS: &[TensorRule] = &[
    bias("model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias", &[Hidden], Use::Linear),
    bias("model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias", &[FeedForward], Use::Linear),
    bias("model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias", &[FeedForward], Use::Linear),
    bias("model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias", &[Hidden], Use::Linear),
];

/// A norm over each head of query and key.
pub(super) const QK_NORM: &[TensorRule] = &[
    rule("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", &[HeadDim], Use::Norm),
    rule("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", &[HeadDim], Use::Norm),
];

/// The gated feed-forward part.
pub(super) const FEED_FORWARD: &[TensorRule] = &[
    rule(
        "model.layers.{}.mlp.gate_proj.weight",
        "blk.{}.ffn_gate.weight",
        &[FeedForward, Hidden],
        Use::Linear,
    ),
    rule("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", &[FeedForward, Hidden], Use::Linear),
    rule(
        "model.layers.{}.mlp.down_proj.weight",
        "blk.{}.ffn_down.weight",
        &[Hidden, FeedForward],
        Use::Linear,
    ),
];
