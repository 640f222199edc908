//! Mistral 7B to Nemo and Small, in Hugging Face's layout.

use serde_json::json;

use super::hyper::{Hyper, RopeKinds};
use super::spec::{ArchSpec, Arithmetic, HeadDim, Window};
use super::{llama, tensors::*};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::tokenizer::VocabScheme;

pub(super) const SPEC: ArchSpec = ArchSpec {
    classes: &["MistralForCausalLM"],
    model_type: "mistral",
    gguf: "llama",
    defaults: || json!({"max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096}),
    head_dim: HeadDim::Stated,
    activations: &["silu"],
    ropes: RopeKinds { llama3: true, longrope: false, partial: false },
    tensors: &[TRUNK, HEAD, PRE_NORMS, ATTENTION, FEED_FORWARD],
    left_out: &[],
    norm_offset: 0.0,
    interleave_rope: true,
    arithmetic: Arithmetic { window: Window::ALL, ..Arithmetic::LLAMA },
    keys: llama::KEYS,
    vocab: VocabScheme::Llama,
    check: window_is_ignored,
};

/// llama.cpp's `llama` architecture has no sliding window; its converter drops it silently, we say so.
pub(super) fn window_is_ignored(_: &Config, hyper: &Hyper) -> Result<Vec<String>> {
    Ok(match hyper.sliding_window {
        Some(window) if hyper.context.is_none_or(|context| window < context) => vec![format!(
            "the model attends within a sliding window of {window} tokens; llama.cpp attends to the whole context here, \
             so results differ beyond {window} tokens"
        )],
        _ => vec![],
    })
}
