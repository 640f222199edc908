//! Qwen3-MoE: Qwen3 attention, a mixture of experts in every layer.

use serde_json::json;

use super::hyper::{Hyper, RopeKinds};
use super::spec::Dim::*;
use super::spec::{ArchSpec, Arithmetic, HeadDim as HeadDimFrom, Key, Layers, TensorRule, Use, Window};
use super::{qwen2, tensors::*};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::tokenizer::VocabScheme;

const EXPERTS: &[TensorRule] = &[
    TensorRule::new(
        "model.layers.{}.mlp.gate.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Experts, Hidden],
        Use::Router,
    ),
    TensorRule::new(
        "model.layers.{}.mlp.experts.{e}.gate_proj.weight",
        "blk.{}.ffn_gate_exps.weight",
        &[ExpertFeedForward, Hidden],
        Use::Expert,
    ),
    TensorRule::new(
        "model.layers.{}.mlp.experts.{e}.up_proj.weight",
        "blk.{}.ffn_up_exps.weight",
        &[ExpertFeedForward, Hidden],
        Use::Expert,
    ),
    TensorRule::new(
        "model.layers.{}.mlp.experts.{e}.down_proj.weight",
        "blk.{}.ffn_down_exps.weight",
        &[Hidden, ExpertFeedForward],
        Use::Expert,
    ),
];

pub(super) const SPEC: ArchSpec = ArchSpec {
    classes: &["Qwen3MoeForCausalLM"],
    model_type: "qwen3_moe",
    gguf: "qwen3moe",
    defaults: || {
        json!({"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "num_key_value_heads": 4,
               "sliding_window": 4096, "moe_intermediate_size": 768, "num_experts_per_tok": 8, "norm_topk_prob": false})
    },
    head_dim: HeadDimFrom::Implied,
    activations: &["silu"],
    ropes: RopeKinds::COMMON,
    tensors: &[TRUNK, HEAD, PRE_NORMS, ATTENTION, QK_NORM, EXPERTS],
    left_out: &[],
    norm_offset: 0.0,
    interleave_rope: false,
    arithmetic: Arithmetic {
        window: Window { layers: Layers::All, listed: false, switch: Some("use_sliding_window") },
        normalise_experts: Some("norm_topk_prob"),
        ..Arithmetic::LLAMA
    },
    keys: &[
        Key::BlockCount,
        Key::ContextLength,
        Key::EmbeddingLength,
        Key::FeedForwardLength,
        Key::HeadCount,
        Key::HeadCountKv,
        Key::RopeScaling,
        Key::RopeFreqBase,
        Key::RmsEpsilon,
        Key::ExpertCount,
        Key::ExpertUsedCount,
        Key::KeyLength,
        Key::ValueLength,
        Key::FileType,
        Key::ExpertFeedForwardLength,
    ],
    vocab: VocabScheme::Bpe,
    check,
};

/// llama.cpp's `qwen3moe` has experts in every layer and normalises the weights of the chosen ones.
fn check(config: &Config, hyper: &Hyper) -> Result<Vec<String>> {
    if hyper.experts == 0 {
        return Err(config.wrong("num_experts", "a whole number above 0"));
    }
    if !config.flag("norm_topk_prob")? {
        return Err(
            config.unsupported("norm_topk_prob", "llama.cpp normalises the weights of the chosen experts")
        );
    }
    if config.opt_usize("decoder_sparse_step")?.unwrap_or(1) != 1 {
        return Err(config.unsupported("decoder_sparse_step", "llama.cpp expects experts in every layer"));
    }
    if config.get("mlp_only_layers").is_some_and(|v| v.as_array().is_none_or(|list| !list.is_empty())) {
        return Err(config.unsupported("mlp_only_layers", "llama.cpp expects experts in every layer"));
    }
    qwen2::window_is_off(config, hyper)
}
