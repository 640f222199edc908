//! Phi-3, Phi-3.5 and Phi-4: query, key and value in one matrix, gate and up in another.

use serde_json::json;

use super::hyper::{Hyper, RopeKinds, RopeScaling};
use super::spec::Dim::*;
use super::spec::{ArchSpec, Arithmetic, HeadDim, Key, TensorRule, Use, Window};
use super::tensors::*;
use crate::error::{Error, Kind, Result};
use crate::source::config::Config;
use crate::source::tokenizer::VocabScheme;

const FUSED: &[TensorRule] = &[
    TensorRule::new(
        "model.layers.{}.self_attn.qkv_proj.weight",
        "blk.{}.attn_qkv.weight",
        &[QueryKeyValue, Hidden],
        Use::Linear,
    ),
    TensorRule::new(
        "model.layers.{}.self_attn.o_proj.weight",
        "blk.{}.attn_output.weight",
        &[Hidden, Query],
        Use::Linear,
    ),
    TensorRule::new(
        "model.layers.{}.mlp.gate_up_proj.weight",
        "blk.{}.ffn_up.weight",
        &[GateUp, Hidden],
        Use::Linear,
    ),
    TensorRule::new(
        "model.layers.{}.mlp.down_proj.weight",
        "blk.{}.ffn_down.weight",
        &[Hidden, FeedForward],
        Use::Linear,
    ),
];

pub(super) const SPEC: ArchSpec = ArchSpec {
    classes: &["Phi3ForCausalLM"],
    model_type: "phi3",
    gguf: "phi3",
    defaults: || json!({"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5}),
    head_dim: HeadDim::Implied,
    activations: &["silu"],
    ropes: RopeKinds { llama3: false, longrope: true, partial: true },
    tensors: &[TRUNK, HEAD, PRE_NORMS, FUSED],
    left_out: &[],
    norm_offset: 0.0,
    interleave_rope: false,
    arithmetic: Arithmetic { window: Window::ALL, ..Arithmetic::LLAMA },
    keys: &[
        Key::ContextLength,
        Key::RopeOriginalContext,
        Key::EmbeddingLength,
        Key::FeedForwardLength,
        Key::BlockCount,
        Key::HeadCount,
        Key::HeadCountKv,
        Key::RmsEpsilon,
        Key::RopeDimensionCount,
        Key::RopeFreqBase,
        Key::FileType,
        Key::SlidingWindowOrZero,
    ],
    vocab: VocabScheme::Phi3,
    check,
};

fn check(config: &Config, hyper: &Hyper) -> Result<Vec<String>> {
    // Phi-4-mini states these two; they are of no effect at 1.
    for key in ["interpolate_factor", "full_attn_mod"] {
        if config.opt_f64(key)?.is_some_and(|v| v != 1.0) {
            return Err(config.unsupported(key, "only 1 is known"));
        }
    }
    match &hyper.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::LongRope { short, long, .. } => {
            let expected = hyper.rope_dims() / 2;
            if short.len() != expected || long.len() != expected {
                return Err(Error::new(
                    Kind::Invalid,
                    format!(
                        "config.json: the rope factors must be {expected} numbers each, found {} short and {} long",
                        short.len(),
                        long.len()
                    ),
                ));
            }
        }
        _ => return Err(config.unsupported("rope_scaling", "Phi-3 has either no rope scaling or longrope")),
    }
    Ok(vec![])
}
