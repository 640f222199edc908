//! Gemma 3, the text model: sandwich norms with `1 + w`, q/k norms, five layers with a window to one without.

use serde_json::json;

use super::gemma2::{arithmetic, check_attention};
use super::hyper::{Hyper, RopeKinds};
use super::spec::{ArchSpec, HeadDim, Key};
use super::tensors::*;
use crate::error::Result;
use crate::source::config::Config;
use crate::source::tokenizer::VocabScheme;

pub(super) const SPEC: ArchSpec = ArchSpec {
    classes: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    model_type: "gemma3_text",
    gguf: "gemma3",
    defaults: || {
        json!({"max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "num_attention_heads": 8,
               "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096,
               "vocab_size": 262208, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "tie_word_embeddings": true})
    },
    head_dim: HeadDim::Implied,
    activations: &["gelu_pytorch_tanh"],
    ropes: RopeKinds::COMMON,
    tensors: &[TRUNK, HEAD, SANDWICH_NORMS, ATTENTION, QK_NORM, FEED_FORWARD],
    left_out: &[
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ],
    norm_offset: 1.0,
    interleave_rope: false,
    arithmetic: arithmetic(6),
    keys: &[
        Key::BlockCount,
        Key::ContextLength,
        Key::EmbeddingLength,
        Key::FeedForwardLength,
        Key::HeadCount,
        Key::HeadCountKv,
        Key::RopeScaling,
        Key::RopeFreqBase,
        Key::RopeFreqBaseSwa,
        Key::RmsEpsilon,
        Key::KeyLength,
        Key::ValueLength,
        Key::FileType,
        Key::FinalSoftcap,
        Key::SlidingWindow,
    ],
    vocab: VocabScheme::Gemma3,
    check,
};

fn check(config: &Config, hyper: &Hyper) -> Result<Vec<String>> {
    if hyper.attn_softcap.is_some() {
        return Err(config.unsupported("attn_logit_softcapping", "Gemma 3 has no soft cap on its scores"));
    }
    check_attention(config, hyper, 6, 62)
}
