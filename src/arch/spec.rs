//! What an architecture is, as data: its tensors, its configuration and its facts in GGUF.

use serde_json::Value;

use super::hyper::{Hyper, RopeKinds};
use crate::error::Result;
use crate::source::config::Config;
use crate::source::tokenizer::VocabScheme;

/// One model family.
pub struct ArchSpec {
    /// Class names in `config.json` that this family answers to.
    pub classes: &'static [&'static str],
    /// The name by which transformers finds the first of these classes.
    pub model_type: &'static str,
    /// The architecture's name in GGUF.
    pub gguf: &'static str,
    /// The values that transformers' config class has where `config.json` is silent.
    pub defaults: fn() -> Value,
    /// Where the length of a head comes from.
    pub head_dim: HeadDim,
    /// Accepted values of the activation function.
    pub activations: &'static [&'static str],
    /// Rope scalings that can be expressed.
    pub ropes: RopeKinds,
    /// The tensors, as sets that families share.
    pub tensors: &'static [&'static [TensorRule]],
    /// Prefixes of source tensors that are left out on purpose (another modality, a head that is not used).
    pub left_out: &'static [&'static str],
    /// Added to every norm weight: 1 where the model computes `x * (1 + w)`.
    pub norm_offset: f32,
    /// Whether rows of q and k go from the half-split order of transformers to the interleaved one of ggml's rope.
    pub interleave_rope: bool,
    /// What the decoder computes where families differ.
    pub arithmetic: Arithmetic,
    /// Metadata keys after the general ones, in order.
    pub keys: &'static [Key],
    /// How the vocabulary is found and written.
    pub vocab: VocabScheme,
    /// Further rules on the configuration. Returns warnings; refuses what cannot be expressed.
    pub check: fn(&Config, &Hyper) -> Result<Vec<String>>,
}

impl ArchSpec {
    /// The name that the rules use for a tensor of the checkpoint; none for a tensor that is left out.
    pub fn canonical(&self, name: &str) -> Option<String> {
        let skipped = |name: &str| {
            self.left_out.iter().any(|prefix| name.starts_with(prefix))
                // Buffers that old checkpoints carry; they follow from the configuration.
                || [".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"].iter().any(|s| name.ends_with(s))
        };
        let canonical = name.replace("language_model.", "");
        (!skipped(&canonical) && !skipped(name)).then_some(canonical)
    }

    /// Whether the family's layers are mixtures of experts.
    pub fn has_experts(&self) -> bool {
        self.tensors.iter().copied().flatten().any(|rule| rule.usage == Use::Expert)
    }

    /// The rule for the tensor of this name in GGUF, with `{}` for the layer.
    pub fn rule(&self, gguf: &str) -> Option<&'static TensorRule> {
        self.tensors.iter().copied().flatten().find(|rule| rule.gguf == gguf)
    }
}

/// What the decoder of a family computes, as far as its tensors do not say it themselves: biases, norms of query and
/// key, norms after each part, fused matrices and experts are there if their tensors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arithmetic {
    /// Between the gate and the product with `up`.
    pub activation: Activation,
    /// Which layers attend within a sliding window.
    pub window: Window,
    /// Layers whose queries and keys are rotated.
    pub rope: Layers,
    /// Whether embeddings are multiplied by the root of the hidden size.
    pub scale_embedding: bool,
    /// Whether scores and logits have the soft caps of the configuration.
    pub soft_caps: bool,
    /// The key whose value's inverse root scales the scores; else it is the head length.
    pub query_scalar: Option<&'static str>,
    /// The switch that makes the weights of the chosen experts add up to 1; without one they always do.
    pub normalise_experts: Option<&'static str>,
}

impl Arithmetic {
    /// Llama's.
    pub const LLAMA: Arithmetic = Arithmetic {
        activation: Activation::Silu,
        window: Window::NONE,
        rope: Layers::All,
        scale_embedding: false,
        soft_caps: false,
        query_scalar: None,
        normalise_experts: None,
    };
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU in its approximation by tanh, PyTorch's `gelu_pytorch_tanh`.
    GeluTanh,
}

/// The layers with a sliding window, if the configuration has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The layers, where `layer_types` does not say it.
    pub layers: Layers,
    /// Whether `layer_types` decides where it is present.
    pub listed: bool,
    /// The switch without which there is no window.
    pub switch: Option<&'static str>,
}

impl Window {
    /// No layer has one.
    pub const NONE: Window = Window { layers: Layers::None, listed: false, switch: None };
    /// Every layer has it.
    pub const ALL: Window = Window { layers: Layers::All, listed: false, switch: None };
    /// Qwen's: the upper layers, if it is switched on.
    pub const QWEN: Window = Window {
        layers: Layers::From("max_window_layers"),
        listed: true,
        switch: Some("use_sliding_window"),
    };
}

/// Some of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// None of them.
    None,
    /// All of them.
    All,
    /// The last of every so many.
    Every(usize),
    /// All but the last of every so many.
    AllButEvery(usize),
    /// From the one that this key names.
    From(&'static str),
}

/// Where the length of a head comes from when `config.json` does not say it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadDim {
    /// `hidden_size / num_attention_heads`, and the config class states it: it is written.
    Stated,
    /// `hidden_size / num_attention_heads`, unstated: written only if `config.json` has it.
    Implied,
}

/// A size that a tensor's shape is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Dim {
    Hidden,
    Vocab,
    /// Rows of the query projection: heads times head length.
    Query,
    /// Rows of the key or value projection.
    KeyValue,
    /// Rows of query, key and value in one.
    QueryKeyValue,
    FeedForward,
    /// Gate and up in one.
    GateUp,
    ExpertFeedForward,
    HeadDim,
    Experts,
}

impl Dim {
    /// The size in one model.
    pub fn size(self, h: &Hyper) -> usize {
        match self {
            Dim::Hidden => h.hidden,
            Dim::Vocab => h.vocab,
            Dim::Query => h.heads * h.head_dim,
            Dim::KeyValue => h.kv_heads * h.head_dim,
            Dim::QueryKeyValue => (h.heads + 2 * h.kv_heads) * h.head_dim,
            Dim::FeedForward => h.feed_forward,
            Dim::GateUp => 2 * h.feed_forward,
            Dim::ExpertFeedForward => h.expert_feed_forward,
            Dim::HeadDim => h.head_dim,
            Dim::Experts => h.experts,
        }
    }
}

/// What is done to a tensor on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A weight matrix that may be quantized, or its bias.
    Linear,
    /// As `Linear`, with the rows of this many heads reordered where the family interleaves rope.
    Rope(Heads),
    /// A norm: one dimension, float32.
    Norm,
    /// The router of a mixture of experts: float32.
    Router,
    /// One expert's matrix; all experts of a layer are stacked.
    Expert,
    /// The token embedding; rows beyond the vocabulary are cut off where the family says so.
    Embedding,
}

/// Whose heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Heads {
    Query,
    KeyValue,
}

/// Whether a model must have a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Need {
    Required,
    Optional,
    /// Required unless the head is tied to the embedding.
    UnlessTied,
}

/// One kind of tensor: its name in the checkpoint and in GGUF. `{}` stands for the layer, `{e}` for the expert.
#[derive(Clone, Copy, Debug)]
pub struct TensorRule {
    /// Name in the checkpoint.
    pub hf: &'static str,
    /// Name in GGUF.
    pub gguf: &'static str,
    /// Shape in the checkpoint, outermost dimension first.
    pub shape: &'static [Dim],
    /// What is done to it.
    pub usage: Use,
    /// Whether it must be there.
    pub need: Need,
}

impl TensorRule {
    /// A tensor that must be there.
    pub const fn new(hf: &'static str, gguf: &'static str, shape: &'static [Dim], usage: Use) -> Self {
        TensorRule { hf, gguf, shape, usage, need: Need::Required }
    }

    /// A tensor that may be there.
    pub const fn optional(hf: &'static str, gguf: &'static str, shape: &'static [Dim], usage: Use) -> Self {
        TensorRule { hf, gguf, shape, usage, need: Need::Optional }
    }

    /// Whether there is one per layer.
    pub fn per_layer(&self) -> bool {
        self.hf.contains("{}")
    }
}

/// One metadata key (or a group that belongs together) under the architecture's prefix, as llama.cpp's
/// `convert_hf_to_gguf.py` writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Key {
    BlockCount,
    ContextLength,
    EmbeddingLength,
    FeedForwardLength,
    HeadCount,
    HeadCountKv,
    /// Type, factor and the rest of a rope scaling.
    RopeScaling,
    /// `rope.scaling.original_context_length` alone, as Phi-3 has it.
    RopeOriginalContext,
    RopeFreqBase,
    RopeFreqBaseSwa,
    RopeDimensionCount,
    RmsEpsilon,
    ExpertCount,
    ExpertUsedCount,
    ExpertFeedForwardLength,
    KeyLength,
    ValueLength,
    FileType,
    VocabSize,
    AttnSoftcap,
    FinalSoftcap,
    SlidingWindow,
    /// The window, or 0 if there is none, as Phi-3 has it.
    SlidingWindowOrZero,
}
