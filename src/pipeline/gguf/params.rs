//! The metadata under the architecture's prefix: hyperparameters as `convert_hf_to_gguf.py` writes them.

use crate::arch::Model;
use crate::arch::hyper::RopeScaling;
use crate::arch::spec::Key;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::Metadata;

/// Keys that the converter writes before everything else but the architecture: those that come with extra tensors.
pub(crate) fn write_early(model: &Model, meta: &mut Metadata) {
    let hyper = &model.hyper;
    if let (RopeScaling::LongRope { original_context, .. }, Some(context)) =
        (&hyper.rope.scaling, hyper.context)
    {
        // Phi3MiniModel.generate_extra_tensors
        let original = *original_context as f64;
        let scale = context as f64 / original;
        let factor = if scale > 1.0 { (1.0 + scale.ln() / original.ln()).sqrt() } else { 1.0 };
        meta.set(format!("{}.rope.scaling.attn_factor", model.spec.gguf), factor as f32);
    }
}

/// Writes the keys that the family has, in its order.
pub(crate) fn write(model: &Model, file_type: u32, meta: &mut Metadata) -> Result<()> {
    for key in model.spec.keys {
        write_key(*key, model, file_type, meta)?;
    }
    Ok(())
}

fn write_key(key: Key, model: &Model, file_type: u32, meta: &mut Metadata) -> Result<()> {
    let (h, arch) = (&model.hyper, model.spec.gguf);
    let mut count = |name: &str, n: usize| -> Result<()> {
        let n = u32::try_from(n)
            .map_err(|_| Error::new(Kind::Invalid, format!("{name} {n} does not fit GGUF")))?;
        meta.set(format!("{arch}.{name}"), n);
        Ok(())
    };
    match key {
        Key::BlockCount => count("block_count", h.layers)?,
        Key::ContextLength => h.context.map_or(Ok(()), |n| count("context_length", n))?,
        Key::EmbeddingLength => count("embedding_length", h.hidden)?,
        Key::FeedForwardLength => count("feed_forward_length", h.feed_forward)?,
        Key::HeadCount => count("attention.head_count", h.heads)?,
        Key::HeadCountKv => count("attention.head_count_kv", h.kv_heads)?,
        Key::RopeScaling => write_scaling(model, meta),
        Key::RopeOriginalContext => {
            let config = &model.config;
            let original = match (&h.rope.scaling, config.opt_usize("original_max_position_embeddings")?) {
                (RopeScaling::LongRope { original_context, .. }, _) => *original_context,
                (_, Some(n)) => n,
                (_, None) => config.usize("max_position_embeddings")?,
            };
            count("rope.scaling.original_context_length", original)?;
        }
        Key::RopeDimensionCount => count("rope.dimension_count", h.rope_dims())?,
        Key::ExpertCount if h.experts > 0 => count("expert_count", h.experts)?,
        Key::ExpertUsedCount if h.experts_used > 0 => count("expert_used_count", h.experts_used)?,
        Key::ExpertCount | Key::ExpertUsedCount => {}
        Key::ExpertFeedForwardLength => count("expert_feed_forward_length", h.expert_feed_forward)?,
        Key::KeyLength if h.head_dim_stated => count("attention.key_length", h.head_dim)?,
        Key::ValueLength if h.head_dim_stated => count("attention.value_length", h.head_dim)?,
        Key::KeyLength | Key::ValueLength => {}
        Key::VocabSize => count("vocab_size", h.vocab)?,
        Key::SlidingWindow => h.sliding_window.map_or(Ok(()), |n| count("attention.sliding_window", n))?,
        Key::SlidingWindowOrZero => count("attention.sliding_window", h.sliding_window.unwrap_or(0))?,
        Key::FileType => meta.set("general.file_type", file_type),
        Key::RopeFreqBase => meta.set(format!("{arch}.rope.freq_base"), h.rope.theta as f32),
        Key::RopeFreqBaseSwa => {
            if let Some(theta) = h.rope_theta_swa {
                meta.set(format!("{arch}.rope.freq_base_swa"), theta as f32);
            }
        }
        Key::RmsEpsilon => meta.set(format!("{arch}.attention.layer_norm_rms_epsilon"), h.rms_epsilon as f32),
        Key::AttnSoftcap => {
            if let Some(cap) = h.attn_softcap {
                meta.set(format!("{arch}.attn_logit_softcapping"), cap as f32);
            }
        }
        Key::FinalSoftcap => {
            if let Some(cap) = h.final_softcap {
                meta.set(format!("{arch}.final_logit_softcapping"), cap as f32);
            }
        }
    }
    Ok(())
}

fn write_scaling(model: &Model, meta: &mut Metadata) {
    let prefix = format!("{}.rope.scaling", model.spec.gguf);
    match &model.hyper.rope.scaling {
        RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::LongRope { .. } => {}
        RopeScaling::Linear { factor } => {
            meta.set(format!("{prefix}.type"), "linear");
            meta.set(format!("{prefix}.factor"), *factor as f32);
        }
        RopeScaling::Yarn {
            factor,
            original_context,
            extrapolation_factor,
            attention_factor,
            beta_fast,
            beta_slow,
        } => {
            meta.set(format!("{prefix}.type"), "yarn");
            meta.set(format!("{prefix}.factor"), *factor as f32);
            meta.set(format!("{prefix}.original_context_length"), *original_context as u32);
            for (name, value) in [
                ("yarn_ext_factor", extrapolation_factor),
                ("yarn_attn_factor", attention_factor),
                ("yarn_beta_fast", beta_fast),
                ("yarn_beta_slow", beta_slow),
            ] {
                if let Some(value) = value {
                    meta.set(format!("{prefix}.{name}"), *value as f32);
                }
            }
        }
    }
}
