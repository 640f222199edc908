//! Gemma 2: sandwich norms with `1 + w`, soft-capped logits, every other layer with a sliding window.

use serde_json::json;

use super::hyper::{Hyper, RopeKinds};
use super::spec::{Activation, ArchSpec, Arithmetic, HeadDim, Key, Layers, Window};
use super::tensors::*;
use crate::error::{Error, Kind, Result};
use crate::source::config::Config;
use crate::source::tokenizer::VocabScheme;

/// What Gemma 2 and 3 compute: they differ in how many layers with a window there are to one without.
pub(super) const fn arithmetic(period: usize) -> Arithmetic {
    Arithmetic {
        activation: Activation::GeluTanh,
        window: Window { layers: Layers::AllButEvery(period), listed: true, switch: None },
        scale_embedding: true,
        soft_caps: true,
        query_scalar: Some("query_pre_attn_scalar"),
        ..Arithmetic::LLAMA
    }
}

pub(super) const SPEC: ArchSpec = ArchSpec {
    classes: &["Gemma2ForCausalLM"],
    model_type: "gemma2",
    gguf: "gemma2",
    defaults: || {
        json!({"max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "num_key_value_heads": 4, "head_dim": 256,
               "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
               "final_logit_softcapping": 30.0, "tie_word_embeddings": true})
    },
    head_dim: HeadDim::Implied,
    activations: &["gelu_pytorch_tanh"],
    ropes: RopeKinds::COMMON,
    tensors: &[TRUNK, SANDWICH_NORMS, ATTENTION, FEED_FORWARD],
    left_out: &["lm_head."],
    norm_offset: 1.0,
    interleave_rope: false,
    arithmetic: arithmetic(2),
    keys: &[
        Key::ContextLength,
        Key::EmbeddingLength,
        Key::BlockCount,
        Key::FeedForwardLength,
        Key::HeadCount,
        Key::HeadCountKv,
        Key::RmsEpsilon,
        Key::KeyLength,
        Key::ValueLength,
        Key::FileType,
        Key::AttnSoftcap,
        Key::FinalSoftcap,
        Key::SlidingWindow,
    ],
    vocab: VocabScheme::Gemma2,
    check,
};

fn check(config: &Config, hyper: &Hyper) -> Result<Vec<String>> {
    if hyper.rope.scaling != super::hyper::RopeScaling::None || hyper.rope.theta != 10000.0 {
        return Err(config
            .unsupported("rope_theta", "llama.cpp computes Gemma 2 with a rope base of 10000, unscaled"));
    }
    if hyper.sliding_window.is_none() || hyper.attn_softcap.is_none() || hyper.final_softcap.is_none() {
        return Err(Error::new(
            Kind::Unsupported,
            "config.json: Gemma 2 needs sliding_window, attn_logit_softcapping and final_logit_softcapping",
        ));
    }
    check_attention(config, hyper, 2, 46)
}

/// What llama.cpp fixes for Gemma 2 and 3: the scale of the scores, and which layers have a window (all but the last of
/// every `period`). The 27B models, told by their number of layers, scale by `hidden / heads` instead of the head length.
pub(super) fn check_attention(
    config: &Config,
    hyper: &Hyper,
    period: usize,
    layers_27b: usize,
) -> Result<Vec<String>> {
    let scale = config.opt_usize("query_pre_attn_scalar")?.unwrap_or(hyper.head_dim);
    let expected = if hyper.layers == layers_27b { hyper.hidden / hyper.heads } else { hyper.head_dim };
    if scale != expected {
        return Err(config.unsupported(
            "query_pre_attn_scalar",
            &format!("llama.cpp scales the scores by {expected} here"),
        ));
    }
    if config.get("use_bidirectional_attention").is_some_and(|v| v.as_bool() != Some(false)) {
        return Err(config.unsupported("use_bidirectional_attention", "only causal attention is supported"));
    }
    for key in ["sliding_window_pattern", "_sliding_window_pattern"] {
        if config.opt_usize(key)?.is_some_and(|p| p != period) {
            return Err(
                config.unsupported(key, &format!("llama.cpp computes this family with a period of {period}"))
            );
        }
    }
    if let Some(list) = config.get("layer_types").and_then(|v| v.as_array()) {
        let fits = list.iter().enumerate().all(|(i, kind)| {
            kind.as_str() == Some(if (i + 1) % period == 0 { "full_attention" } else { "sliding_attention" })
        });
        if !fits {
            return Err(config.unsupported(
                "layer_types",
                &format!("llama.cpp expects full attention in every {period}th layer"),
            ));
        }
    }
    config.get("cache_implementation");
    Ok(vec![])
}
