//! The hyperparameters that every family has, checked once.

use serde_json::Value;

use super::spec::{ArchSpec, HeadDim};
use crate::error::{Error, Kind, Result};
use crate::source::config::Config;

/// Sizes and constants of one model, from `config.json` with the family's defaults.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Hyper {
    pub layers: usize,
    pub hidden: usize,
    pub feed_forward: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Whether the head length stands in the configuration (and so in GGUF).
    pub head_dim_stated: bool,
    pub vocab: usize,
    pub context: Option<usize>,
    pub rms_epsilon: f64,
    pub tied: bool,
    pub experts: usize,
    pub experts_used: usize,
    pub expert_feed_forward: usize,
    pub sliding_window: Option<usize>,
    pub attn_softcap: Option<f64>,
    pub final_softcap: Option<f64>,
    pub rope: Rope,
    /// Base frequency of the layers with a sliding window, where it differs.
    pub rope_theta_swa: Option<f64>,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base frequency.
    pub theta: f64,
    /// Share of each head that is rotated.
    pub partial: f64,
    /// Scaling for longer contexts.
    pub scaling: RopeScaling,
}

/// How positions or frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum RopeScaling {
    None,
    Linear {
        factor: f64,
    },
    Yarn {
        factor: f64,
        original_context: usize,
        extrapolation_factor: Option<f64>,
        attention_factor: Option<f64>,
        beta_fast: Option<f64>,
        beta_slow: Option<f64>,
    },
    /// Llama 3.1's frequency bands.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: usize,
    },
    /// Phi-3's factors per frequency.
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        /// How much longer the context became, where it is stated.
        factor: Option<f64>,
        original_context: usize,
    },
}

/// Which scalings a family can express.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RopeKinds {
    pub llama3: bool,
    pub longrope: bool,
    pub partial: bool,
}

impl RopeKinds {
    /// Linear and YaRN, which every family can express.
    pub const COMMON: RopeKinds = RopeKinds { llama3: false, longrope: false, partial: false };
}

impl Hyper {
    /// Reads and checks the hyperparameters.
    pub fn read(config: &Config, spec: &ArchSpec) -> Result<Hyper> {
        let layers = config.usize("num_hidden_layers")?;
        if layers > 4096 {
            return Err(config.wrong("num_hidden_layers", "at most 4096"));
        }
        let hidden = config.usize("hidden_size")?;
        let heads = config.usize("num_attention_heads")?;
        let kv_heads = config.opt_usize("num_key_value_heads")?.unwrap_or(heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(
                config.wrong("num_key_value_heads", &format!("a divisor of num_attention_heads ({heads})"))
            );
        }
        let stated = config.opt_usize("head_dim")?;
        let head_dim = match stated {
            Some(0) => return Err(config.wrong("head_dim", "a whole number above 0")),
            Some(n) => n,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(
                    config.wrong("hidden_size", &format!("a multiple of num_attention_heads ({heads})"))
                );
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(config.wrong("head_dim", "even, for rotary embeddings"));
        }
        for key in ["hidden_act", "hidden_activation"] {
            if let Some(act) = config.opt_str(key)?
                && !spec.activations.contains(&act)
            {
                return Err(
                    config.unsupported(key, &format!("this family is computed with {}", spec.activations[0]))
                );
            }
        }
        if config.get("quantization_config").is_some() {
            return Err(Error::new(
                Kind::Unsupported,
                "the model is quantized already (`quantization_config` in config.json)",
            )
            .hint("Quantize from the original 16-bit checkpoint."));
        }
        if config.get("is_causal").is_some_and(|v| v != &Value::Bool(true)) {
            return Err(config.unsupported("is_causal", "only causal language models are supported"));
        }
        let experts = match config.opt_usize("num_local_experts")? {
            Some(n) => n,
            None => config.opt_usize("num_experts")?.unwrap_or(0),
        };
        let (rope, rope_theta_swa) = read_rope(config, spec)?;
        // These two steer training or tensor parallelism, or repeat what the tensors say themselves.
        for key in ["pretraining_tp", "attention_bias", "mlp_bias", "layer_types"] {
            config.get(key);
        }
        Ok(Hyper {
            layers,
            hidden,
            feed_forward: config.usize("intermediate_size")?,
            heads,
            kv_heads,
            head_dim,
            head_dim_stated: stated.is_some() || spec.head_dim == HeadDim::Stated,
            vocab: config.usize("vocab_size")?,
            context: config.opt_usize("max_position_embeddings")?,
            rms_epsilon: config.opt_f64("rms_norm_eps")?.unwrap_or(1e-6),
            tied: config.flag("tie_word_embeddings")?,
            experts,
            experts_used: config.opt_usize("num_experts_per_tok")?.unwrap_or(0),
            expert_feed_forward: config.opt_usize("moe_intermediate_size")?.unwrap_or(0),
            sliding_window: config.opt_usize("sliding_window")?,
            attn_softcap: config.opt_f64("attn_logit_softcapping")?,
            final_softcap: config.opt_f64("final_logit_softcapping")?,
            rope,
            rope_theta_swa,
        })
    }

    /// Number of rotated dimensions in each head.
    pub fn rope_dims(&self) -> usize {
        (self.rope.partial * self.head_dim as f64) as usize
    }
}

/// Rope in either of its spellings: `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters`, which for
/// models with two kinds of layers holds one object for each.
fn read_rope(config: &Config, spec: &ArchSpec) -> Result<(Rope, Option<f64>)> {
    let empty = Value::Object(Default::default());
    let key = if config.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    // Both are read, so that the one which is not used is not taken for an unknown key.
    config.get("rope_scaling");
    let all = config.get(key).unwrap_or(&empty);
    if !all.is_object() {
        return Err(config.wrong(key, "an object"));
    }
    let full = all.get("full_attention").unwrap_or(all);
    let sliding = all.get("sliding_attention");
    let number = |name: &str| -> Result<Option<f64>> {
        match full.get(name).filter(|v| !v.is_null()) {
            None => Ok(None),
            Some(v) => match v.as_f64() {
                Some(f) if f.is_finite() => Ok(Some(f)),
                _ => Err(config.wrong(key, &format!("an object whose `{name}` is a number"))),
            },
        }
    };
    let need =
        |name: &str| number(name)?.ok_or_else(|| config.wrong(key, &format!("an object with `{name}`")));

    let theta = match number("rope_theta")? {
        Some(theta) => theta,
        None => config.opt_f64("rope_theta")?.unwrap_or(10000.0),
    };
    config.get("rope_theta");
    let local = config.opt_f64("rope_local_base_freq")?;
    let theta_swa = sliding.and_then(|s| s.get("rope_theta")).and_then(Value::as_f64).or(local);
    if sliding.and_then(|s| s.get("rope_type")).and_then(Value::as_str).is_some_and(|kind| kind != "default")
    {
        return Err(config.unsupported(key, "layers with a sliding window are computed without rope scaling"));
    }
    let partial = match number("partial_rotary_factor")? {
        Some(p) => p,
        None => config.opt_f64("partial_rotary_factor")?.unwrap_or(1.0),
    };
    config.get("partial_rotary_factor");
    if partial != 1.0 && !spec.ropes.partial || !(partial > 0.0 && partial <= 1.0) {
        return Err(config.unsupported(key, "this family rotates whole heads (partial_rotary_factor 1)"));
    }
    let original = || -> Result<usize> {
        match number("original_max_position_embeddings")? {
            Some(n) if n >= 1.0 => Ok(n as usize),
            _ => match config.opt_usize("original_max_position_embeddings")? {
                Some(n) => Ok(n),
                None => config.usize("max_position_embeddings"),
            },
        }
    };
    config.get("original_max_position_embeddings");
    let kind =
        full.get("rope_type").or_else(|| full.get("type")).and_then(Value::as_str).unwrap_or("default");
    let known: &[&str] = match kind {
        "linear" => &["factor"],
        "yarn" => &[
            "factor",
            "extrapolation_factor",
            "attention_factor",
            "attn_factor",
            "beta_fast",
            "beta_slow",
            "finetuned",
        ],
        "llama3" => &["factor", "low_freq_factor", "high_freq_factor"],
        "longrope" | "su" => &["short_factor", "long_factor", "factor"],
        _ => &[],
    };
    let always =
        ["rope_theta", "rope_type", "type", "partial_rotary_factor", "original_max_position_embeddings"];
    if let Some(fields) = full.as_object() {
        let odd = |(name, v): &(&String, &Value)| {
            !v.is_null()
                && !v.is_object()
                && !always.contains(&name.as_str())
                && !known.contains(&name.as_str())
        };
        if let Some((name, _)) = fields.iter().find(odd) {
            return Err(
                config.unsupported(key, &format!("`{name}` is not understood for rope type '{kind}'"))
            );
        }
    }
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: need("factor")? },
        "yarn" => RopeScaling::Yarn {
            factor: need("factor")?,
            original_context: original()?,
            extrapolation_factor: number("extrapolation_factor")?,
            attention_factor: number("attention_factor")?.or(number("attn_factor")?),
            beta_fast: number("beta_fast")?,
            beta_slow: number("beta_slow")?,
        },
        "llama3" if spec.ropes.llama3 => RopeScaling::Llama3 {
            factor: number("factor")?.unwrap_or(8.0),
            low_freq_factor: number("low_freq_factor")?.unwrap_or(1.0),
            high_freq_factor: number("high_freq_factor")?.unwrap_or(4.0),
            original_context: number("original_max_position_embeddings")?.unwrap_or(8192.0) as usize,
        },
        "longrope" | "su" if spec.ropes.longrope => {
            let list = |name: &str| -> Result<Vec<f64>> {
                full.get(name)
                    .and_then(Value::as_array)
                    .and_then(|list| list.iter().map(Value::as_f64).collect())
                    .ok_or_else(|| {
                        config.wrong(key, &format!("an object whose `{name}` is a list of numbers"))
                    })
            };
            RopeScaling::LongRope {
                short: list("short_factor")?,
                long: list("long_factor")?,
                factor: number("factor")?,
                original_context: original()?,
            }
        }
        _ => {
            return Err(
                config.unsupported(key, &format!("rope type '{kind}' is not supported for this family"))
            );
        }
    };
    Ok((Rope { theta, partial, scaling }, theta_swa))
}
