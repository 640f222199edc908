//! SmolLM3: Llama whose every fourth layer has no position embedding.

use serde_json::{Value, json};

use super::hyper::{Hyper, RopeKinds};
use super::spec::{ArchSpec, Arithmetic, HeadDim, Layers, Window};
use super::{llama, qwen2, tensors::*};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::tokenizer::VocabScheme;

pub(super) const SPEC: ArchSpec = ArchSpec {
    classes: &["SmolLM3ForCausalLM"],
    model_type: "smollm3",
    gguf: "smollm3",
    defaults: || {
        json!({"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "num_key_value_heads": 4,
               "rope_theta": 2e6, "no_rope_layer_interval": 4, "tie_word_embeddings": true})
    },
    head_dim: HeadDim::Implied,
    activations: &["silu"],
    ropes: RopeKinds { llama3: true, longrope: false, partial: false },
    tensors: &[TRUNK, HEAD, PRE_NORMS, ATTENTION, QKV_BIAS, OTHER_BIAS, FEED_FORWARD],
    left_out: &[],
    norm_offset: 0.0,
    interleave_rope: true,
    arithmetic: Arithmetic {
        window: Window { layers: Layers::Every(4), listed: true, switch: Some("use_sliding_window") },
        rope: Layers::AllButEvery(4),
        ..Arithmetic::LLAMA
    },
    keys: llama::KEYS,
    vocab: VocabScheme::Llama,
    check,
};

/// llama.cpp leaves out rope in layers 3, 7, 11, ... whatever the file says.
fn check(config: &Config, hyper: &Hyper) -> Result<Vec<String>> {
    let fixed = "llama.cpp leaves out the position embedding in every fourth layer";
    let interval = config.opt_usize("no_rope_layer_interval")?;
    match config.get("no_rope_layers") {
        Some(Value::Array(list)) => {
            let expected = |(i, v): (usize, &Value)| v.as_u64() == Some(u64::from((i + 1) % 4 != 0));
            if list.len() != hyper.layers || !list.iter().enumerate().all(expected) {
                return Err(config.unsupported("no_rope_layers", fixed));
            }
        }
        Some(_) => return Err(config.wrong("no_rope_layers", "a list")),
        None if interval == Some(4) => {}
        None => return Err(config.unsupported("no_rope_layer_interval", fixed)),
    }
    qwen2::window_is_off(config, hyper)
}
