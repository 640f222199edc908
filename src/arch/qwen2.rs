//! Qwen2 and Qwen2.5: Llama with biases on query, key and value.

use serde_json::json;

use super::hyper::{Hyper, RopeKinds};
use super::spec::{ArchSpec, Arithmetic, HeadDim, Key, Window};
use super::tensors::*;
use crate::error::Result;
use crate::source::config::Config;
use crate::source::tokenizer::VocabScheme;

/// Metadata of the Qwen family.
pub(super) const KEYS: &[Key] = &[
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
];

pub(super) const SPEC: ArchSpec = ArchSpec {
    classes: &["Qwen2ForCausalLM"],
    model_type: "qwen2",
    gguf: "qwen2",
    defaults: || json!({"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "sliding_window": 4096, "max_window_layers": 28}),
    head_dim: HeadDim::Implied,
    activations: &["silu"],
    ropes: RopeKinds::COMMON,
    tensors: &[TRUNK, HEAD, PRE_NORMS, ATTENTION, QKV_BIAS, FEED_FORWARD],
    left_out: &[],
    norm_offset: 0.0,
    interleave_rope: false,
    arithmetic: Arithmetic { window: Window::QWEN, ..Arithmetic::LLAMA },
    keys: KEYS,
    vocab: VocabScheme::Qwen,
    check: window_is_off,
};

/// The window counts only where `use_sliding_window` is on, and then only from `max_window_layers` upwards. llama.cpp
/// attends to the whole context.
pub(super) fn window_is_off(config: &Config, hyper: &Hyper) -> Result<Vec<String>> {
    let from = config.opt_usize("max_window_layers")?.unwrap_or(0);
    Ok(match hyper.sliding_window {
        Some(window) if config.flag("use_sliding_window")? && from < hyper.layers => vec![format!(
            "layers from {from} on attend within a sliding window of {window} tokens; llama.cpp attends to the whole \
             context here, so results differ beyond {window} tokens"
        )],
        _ => vec![],
    })
}
