//! Mixtral: Mistral with a mixture of experts.

use serde_json::json;

use super::hyper::{Hyper, RopeKinds};
use super::spec::Dim::*;
use super::spec::{ArchSpec, Arithmetic, HeadDim, TensorRule, Use, Window};
use super::{llama, mistral, tensors::*};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::tokenizer::VocabScheme;

const EXPERTS: &[TensorRule] = &[
    TensorRule::new(
        "model.layers.{}.block_sparse_moe.gate.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Experts, Hidden],
        Use::Router,
    ),
    TensorRule::new(
        "model.layers.{}.block_sparse_moe.experts.{e}.w1.weight",
        "blk.{}.ffn_gate_exps.weight",
        &[FeedForward, Hidden],
        Use::Expert,
    ),
    TensorRule::new(
        "model.layers.{}.block_sparse_moe.experts.{e}.w2.weight",
        "blk.{}.ffn_down_exps.weight",
        &[Hidden, FeedForward],
        Use::Expert,
    ),
    TensorRule::new(
        "model.layers.{}.block_sparse_moe.experts.{e}.w3.weight",
        "blk.{}.ffn_up_exps.weight",
        &[FeedForward, Hidden],
        Use::Expert,
    ),
];

pub(super) const SPEC: ArchSpec = ArchSpec {
    classes: &["MixtralForCausalLM"],
    model_type: "mixtral",
    gguf: "llama",
    defaults: || {
        json!({"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "num_key_value_heads": 8,
               "num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6})
    },
    head_dim: HeadDim::Implied,
    activations: &["silu"],
    ropes: RopeKinds::COMMON,
    tensors: &[TRUNK, HEAD, PRE_NORMS, ATTENTION, EXPERTS],
    left_out: &[],
    norm_offset: 0.0,
    interleave_rope: true,
    arithmetic: Arithmetic { window: Window::ALL, ..Arithmetic::LLAMA },
    keys: llama::KEYS,
    vocab: VocabScheme::Llama,
    check,
};

fn check(config: &Config, hyper: &Hyper) -> Result<Vec<String>> {
    if hyper.experts == 0 {
        return Err(config.wrong("num_local_experts", "a whole number above 0"));
    }
    mistral::window_is_ignored(config, hyper)
}
