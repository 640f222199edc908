//! Llama 1 to 3.x, and models that reuse its class.

use serde_json::json;

use super::hyper::RopeKinds;
use super::spec::{ArchSpec, Arithmetic, HeadDim, Key};
use super::tensors::*;
use crate::source::tokenizer::VocabScheme;

/// Metadata of every model in llama.cpp's `llama` architecture.
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
    Key::VocabSize,
    Key::RopeDimensionCount,
];

pub(super) const SPEC: ArchSpec = ArchSpec {
    classes: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    model_type: "llama",
    gguf: "llama",
    defaults: || json!({"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}),
    head_dim: HeadDim::Stated,
    activations: &["silu"],
    ropes: RopeKinds { llama3: true, longrope: false, partial: false },
    tensors: &[TRUNK, HEAD, PRE_NORMS, ATTENTION, QKV_BIAS, OTHER_BIAS, FEED_FORWARD],
    left_out: &[],
    norm_offset: 0.0,
    interleave_rope: true,
    arithmetic: Arithmetic::LLAMA,
    keys: KEYS,
    vocab: VocabScheme::Llama,
    check: |_, _| Ok(vec![]),
};
