//! Qwen3: no biases, a norm over each head of query and key.

use serde_json::json;

use super::hyper::RopeKinds;
use super::spec::{ArchSpec, Arithmetic, HeadDim, Window};
use super::{qwen2, tensors::*};
use crate::source::tokenizer::VocabScheme;

pub(super) const SPEC: ArchSpec = ArchSpec {
    classes: &["Qwen3ForCausalLM"],
    model_type: "qwen3",
    gguf: "qwen3",
    defaults: || json!({"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128}),
    head_dim: HeadDim::Implied,
    activations: &["silu"],
    ropes: RopeKinds::COMMON,
    tensors: &[TRUNK, HEAD, PRE_NORMS, ATTENTION, QK_NORM, FEED_FORWARD],
    left_out: &[],
    norm_offset: 0.0,
    interleave_rope: false,
    arithmetic: Arithmetic { window: Window::QWEN, ..Arithmetic::LLAMA },
    keys: qwen2::KEYS,
    vocab: VocabScheme::Qwen,
    check: qwen2::window_is_off,
};
