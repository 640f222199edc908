//! `config.json` out of the metadata under the architecture's prefix: the way back from `convert_hf_to_gguf.py`.
//!
//! Defaults for keys that are absent are those of llama.cpp (`load_hparams` of `llama-model.cpp` and of `models/*.cpp`).

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value as Json, json};

use super::files::Files;
use crate::arch::spec::Key;
use crate::arch::{self, ArchSpec, llama3_rope};
use crate::error::{Error, Kind, Result};
use crate::format::gguf::{Array, GgmlType, Value, blocks};

/// Keys that are not part of what a model computes.
const BOOKKEEPING: &[&str] = &["vocab_size", "tensor_data_layout", "rope.scaling.finetuned"];

/// Rope factors that a file may hold as tensors.
pub(super) const ROPE_TENSORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// The configuration that a model of this metadata has.
///
/// Keys under the architecture's prefix that nobody here knows are kept under their own names, so that whoever reads the
/// configuration refuses or ignores them as it does for a checkpoint's.
///
/// # Errors
/// `Unsupported` for an architecture or value that is not supported, `Invalid` if a key is missing or of the wrong type.
pub(super) fn rebuild(files: &Files) -> Result<Json> {
    let Some(name) = files.metadata().get("general.architecture").and_then(Value::as_str) else {
        return Err(invalid(files, "the key general.architecture is missing"));
    };
    let keys = Keys { files, prefix: name, read: RefCell::default() };
    let experts = keys.count("expert_count")?.unwrap_or(0);
    let Some(spec) = arch::of_gguf(name, experts > 0) else {
        return Err(Error::new(
            Kind::Unsupported,
            format!("{}: architecture {name} is not supported", files.path().display()),
        )
        .hint(format!("Supported are: {}.", arch::supported_gguf().join(", "))));
    };
    let mut config = Map::new();
    config.insert("architectures".into(), json!([spec.classes[0]]));
    config.insert("model_type".into(), json!(spec.model_type));
    read_sizes(&keys, spec, &mut config)?;
    read_attention(&keys, spec, &mut config)?;
    if experts > 0 {
        read_experts(&keys, spec, experts, &mut config)?;
    }
    read_rope(&keys, spec, &mut config)?;
    read_special_tokens(&keys, &mut config);
    for (key, value) in keys.unread() {
        config.insert(key.into(), value);
    }
    Ok(Json::Object(config))
}

fn read_sizes(keys: &Keys<'_>, spec: &ArchSpec, config: &mut Map<String, Json>) -> Result<()> {
    for (name, key) in [
        ("hidden_size", "embedding_length"),
        ("num_hidden_layers", "block_count"),
        ("intermediate_size", "feed_forward_length"),
        ("max_position_embeddings", "context_length"),
    ] {
        config.insert(name.into(), json!(keys.need_count(key)?));
    }
    let epsilon = keys.need_number("attention.layer_norm_rms_epsilon")?;
    config.insert("rms_norm_eps".into(), json!(epsilon));
    let Some(embedding) = keys.files.tensor("token_embd.weight") else {
        return Err(invalid(keys.files, "tensor token_embd.weight is missing"));
    };
    config.insert("vocab_size".into(), json!(embedding.shape.get(1).copied().unwrap_or(1)));
    let has = |name: &str| keys.files.tensor(name).is_some();
    config.insert("tie_word_embeddings".into(), json!(!has("output.weight")));
    // A family whose layers may have these biases has a switch for them.
    for (name, tensor) in [("attention_bias", "attn_q"), ("mlp_bias", "ffn_up")] {
        let switched = spec.rule(&format!("blk.{{}}.{tensor}.bias")).is_some();
        if switched && has(&format!("blk.0.{tensor}.bias")) {
            config.insert(name.into(), json!(true));
        }
    }
    Ok(())
}

fn read_attention(keys: &Keys<'_>, spec: &ArchSpec, config: &mut Map<String, Json>) -> Result<()> {
    let heads = keys.need_count("attention.head_count")?;
    config.insert("num_attention_heads".into(), json!(heads));
    let kv_heads = keys.count("attention.head_count_kv")?.unwrap_or(heads);
    config.insert("num_key_value_heads".into(), json!(kv_heads));
    let (key, value) = (keys.count("attention.key_length")?, keys.count("attention.value_length")?);
    if key != value {
        return Err(keys.unsupported("attention.value_length", "it must be that of the keys"));
    }
    if let Some(length) = key {
        config.insert("head_dim".into(), json!(length));
    }
    if let Some(scalar) = spec.arithmetic.query_scalar {
        // llama.cpp tells the models with another scale by their number of layers.
        let hidden = keys.need_count("embedding_length")?;
        let implied = hidden.checked_div(heads).unwrap_or(0);
        let layers = keys.need_count("block_count")?;
        let is_27b = matches!((spec.gguf, layers), ("gemma2", 46) | ("gemma3", 62));
        config.insert(scalar.into(), json!(key.filter(|_| !is_27b).unwrap_or(implied)));
    }
    for (name, key) in [
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ] {
        if let Some(cap) = keys.number(key)? {
            config.insert(name.into(), json!(cap));
        }
    }
    if let Some(period) = keys.count("attention.sliding_window_pattern")? {
        config.insert("_sliding_window_pattern".into(), json!(period));
    }
    let has_key = |key: Key| spec.keys.contains(&key);
    if has_key(Key::SlidingWindow) || has_key(Key::SlidingWindowOrZero) {
        match keys.count("attention.sliding_window")? {
            Some(window) => {
                config.insert("sliding_window".into(), json!(Some(window).filter(|n| *n > 0)));
            }
            // Gemma 2 has one window in all its sizes, which the family's defaults know.
            None if has_key(Key::AttnSoftcap) => {}
            None if has_key(Key::SlidingWindow) => {
                let key = format!("{}.attention.sliding_window", spec.gguf);
                let message = format!(
                    "{}: {key} is missing; this family is computed with a sliding window",
                    keys.files.path().display()
                );
                return Err(Error::new(Kind::Unsupported, message));
            }
            None => {
                config.insert("sliding_window".into(), Json::Null);
            }
        }
    } else {
        // llama.cpp attends to the whole context here.
        config.insert("sliding_window".into(), Json::Null);
    }
    Ok(())
}

fn read_experts(
    keys: &Keys<'_>,
    spec: &ArchSpec,
    experts: u64,
    config: &mut Map<String, Json>,
) -> Result<()> {
    config.insert("num_experts_per_tok".into(), json!(keys.need_count("expert_used_count")?));
    if spec.keys.contains(&Key::ExpertFeedForwardLength) {
        config.insert("num_experts".into(), json!(experts));
        config.insert("moe_intermediate_size".into(), json!(keys.need_count("expert_feed_forward_length")?));
    } else {
        config.insert("num_local_experts".into(), json!(experts));
    }
    if let Some(switch) = spec.arithmetic.normalise_experts {
        // llama.cpp always does.
        config.insert(switch.into(), json!(true));
    }
    Ok(())
}

fn read_rope(keys: &Keys<'_>, spec: &ArchSpec, config: &mut Map<String, Json>) -> Result<()> {
    let theta = keys.number("rope.freq_base")?.unwrap_or(10000.0);
    config.insert("rope_theta".into(), json!(theta));
    if let Some(local) = keys.number("rope.freq_base_swa")? {
        config.insert("rope_local_base_freq".into(), json!(local));
    }
    if let Some(dims) = keys.count("rope.dimension_count")? {
        let heads = keys.need_count("attention.head_count")?;
        let implied = keys.need_count("embedding_length")?.checked_div(heads).unwrap_or(0);
        let head_dim = keys.count("attention.key_length")?.unwrap_or(implied);
        if dims != head_dim {
            config.insert("partial_rotary_factor".into(), json!(share(dims, head_dim)));
        }
    }
    let original = keys.count("rope.scaling.original_context_length")?;
    if let (Some(original), true) = (original, spec.ropes.longrope) {
        config.insert("original_max_position_embeddings".into(), json!(original));
    }
    let scaling = match (llama3(keys, theta)?, longrope(keys, config)?) {
        (None, None) => scaling(keys, original)?,
        (one, other) => {
            if scaling(keys, original)?.is_some() {
                return Err(keys.unsupported("rope.scaling.type", "the file has rope factors as well"));
            }
            one.or(other)
        }
    };
    if let Some(scaling) = scaling {
        config.insert("rope_scaling".into(), scaling);
    }
    Ok(())
}

/// `dims / head_dim` as a number from which the product with `head_dim`, cut to a whole number, is `dims` again.
fn share(dims: u64, head_dim: u64) -> f64 {
    let share = dims as f64 / head_dim as f64;
    if (share * head_dim as f64) as u64 == dims { share } else { share.next_up() }
}

/// The scaling that keys describe.
fn scaling(keys: &Keys<'_>, original: Option<u64>) -> Result<Option<Json>> {
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.number("rope.scale_linear")?,
    };
    // Zero stands for none.
    let factor = factor.filter(|f| *f != 0.0 && *f != 1.0);
    let kind = keys.text("rope.scaling.type")?.unwrap_or("linear");
    Ok(match (kind, factor) {
        ("none", _) | ("linear", None) => None,
        ("linear", Some(factor)) => Some(json!({"rope_type": "linear", "factor": factor})),
        ("yarn", factor) => {
            let mut scaling = Map::new();
            scaling.insert("rope_type".into(), json!("yarn"));
            scaling.insert("factor".into(), json!(factor.unwrap_or(1.0)));
            if let Some(original) = original {
                scaling.insert("original_max_position_embeddings".into(), json!(original));
            }
            for (name, key) in [
                ("extrapolation_factor", "yarn_ext_factor"),
                ("attention_factor", "yarn_attn_factor"),
                ("beta_fast", "yarn_beta_fast"),
                ("beta_slow", "yarn_beta_slow"),
            ] {
                if let Some(value) = keys.number(&format!("rope.scaling.{key}"))? {
                    scaling.insert(name.into(), json!(value));
                }
            }
            Some(Json::Object(scaling))
        }
        _ => return Err(keys.unsupported("rope.scaling.type", "`none`, `linear` and `yarn` are known")),
    })
}

/// Llama 3.1's scaling, if the file has its factors.
fn llama3(keys: &Keys<'_>, theta: f64) -> Result<Option<Json>> {
    let Some(factors) = read_factors(keys.files, ROPE_TENSORS[0])? else { return Ok(None) };
    let Some(arch::hyper::RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_context,
    }) = llama3_rope::recover(theta, &factors)
    else {
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "{}: {} holds factors that are not of Llama 3.1's scaling",
                keys.files.path().display(),
                ROPE_TENSORS[0]
            ),
        ));
    };
    Ok(Some(json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
        "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_context})))
}

/// Phi-3's scaling, if the file has its factors.
fn longrope(keys: &Keys<'_>, config: &Map<String, Json>) -> Result<Option<Json>> {
    let stated = keys.number("rope.scaling.attn_factor")?;
    let [long, short] = [ROPE_TENSORS[1], ROPE_TENSORS[2]].map(|name| read_factors(keys.files, name));
    let (long, short) = match (long?, short?) {
        (None, None) => return Ok(None),
        (Some(long), Some(short)) => (long, short),
        _ => {
            return Err(invalid(keys.files, "of the two tensors with rope factors there is only one"));
        }
    };
    let context = keys.need_count("context_length")? as f64;
    let original = config.get("original_max_position_embeddings").and_then(Json::as_f64).unwrap_or(context);
    let scale = context / original;
    let implied = if scale > 1.0 { (1.0 + scale.ln() / original.ln()).sqrt() } else { 1.0 };
    if stated.is_some_and(|stated| (stated / implied - 1.0).abs() > 1e-5) {
        return Err(
            keys.unsupported("rope.scaling.attn_factor", &format!("the context's length implies {implied}"))
        );
    }
    let list = |factors: Vec<f32>| factors.into_iter().map(shortest).collect::<Vec<f64>>();
    Ok(Some(json!({"rope_type": "longrope", "short_factor": list(short), "long_factor": list(long)})))
}

/// The values of a small float32 tensor.
fn read_factors(files: &Files, name: &str) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = files.tensor(name) else { return Ok(None) };
    if tensor.ty != GgmlType::F32 {
        return Err(invalid(files, &format!("tensor {name} is {}, not F32", tensor.ty)));
    }
    let mut values = vec![0.0; tensor.len() as usize];
    blocks::decode(GgmlType::F32, files.data(name), &mut values);
    Ok(Some(values))
}

/// Which tokens begin and end a text; null where the file does not say.
fn read_special_tokens(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
        let id = keys.files.metadata().get(&format!("tokenizer.ggml.{key}_token_id")).and_then(Value::as_u64);
        config.insert(format!("{name}_token_id"), json!(id));
    }
}

/// The number with the fewest digits among those that are this one in float32: 1e-6 for 9.999999974752427e-07.
fn shortest(value: f32) -> f64 {
    // Both directions are exact for every finite number; others are refused by those who read the configuration.
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn invalid(files: &Files, what: &str) -> Error {
    Error::new(Kind::Invalid, format!("{}: {what}", files.path().display()))
}

/// The keys under an architecture's prefix. Those that nobody asks for are remembered.
struct Keys<'a> {
    files: &'a Files,
    prefix: &'a str,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        let key = format!("{}.{name}", self.prefix);
        let value = self.files.metadata().get(&key);
        self.read.borrow_mut().insert(key);
        value
    }

    fn wrong(&self, name: &str, expected: &str) -> Error {
        invalid(self.files, &format!("{}.{name} must be {expected}", self.prefix))
    }

    fn unsupported(&self, name: &str, why: &str) -> Error {
        let value = self.get(name).map_or(Json::Null, to_json);
        let path = self.files.path().display();
        Error::new(
            Kind::Unsupported,
            format!("{path}: {}.{name} is {value}, which is not supported: {why}", self.prefix),
        )
    }

    /// A whole number, which a file may also give for each layer if all layers agree.
    fn count(&self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let list: Option<Vec<u64>> = match value {
            Value::Array(Array::U32(list)) => Some(list.iter().map(|n| u64::from(*n)).collect()),
            Value::Array(Array::I32(list)) => list.iter().map(|n| u64::try_from(*n).ok()).collect(),
            Value::Array(_) => None,
            one => one.as_u64().map(|n| vec![n]),
        };
        match list.as_deref() {
            Some([first, rest @ ..]) if rest.iter().all(|n| n == first) => Ok(Some(*first)),
            Some([_, ..]) => Err(self.unsupported(name, "it must be the same in all layers")),
            _ => Err(self.wrong(name, "a whole number")),
        }
    }

    fn need_count(&self, name: &str) -> Result<u64> {
        self.count(name)?.ok_or_else(|| self.missing(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::F32(v)) if v.is_finite() => Ok(Some(shortest(*v))),
            Some(Value::F64(v)) if v.is_finite() => Ok(Some(*v)),
            Some(_) => Err(self.wrong(name, "a finite number")),
        }
    }

    fn need_number(&self, name: &str) -> Result<f64> {
        self.number(name)?.ok_or_else(|| self.missing(name))
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.get(name).map(|v| v.as_str().ok_or_else(|| self.wrong(name, "text"))).transpose()
    }

    fn missing(&self, name: &str) -> Error {
        invalid(self.files, &format!("the key {}.{name} is missing", self.prefix))
    }

    /// What nobody has asked for, with values as JSON has them.
    fn unread(&self) -> Vec<(&'a str, Json)> {
        let read = self.read.borrow();
        let own = format!("{}.", self.prefix);
        let is_unread = |key: &str| {
            key.strip_prefix(&own).is_some_and(|name| !BOOKKEEPING.contains(&name)) && !read.contains(key)
        };
        let entries = self.files.metadata().iter().filter(|(key, _)| is_unread(key));
        entries.map(|(key, value)| (key, to_json(value))).collect()
    }
}

/// A value as JSON; of a list only whether it is empty.
fn to_json(value: &Value) -> Json {
    match value {
        Value::Bool(v) => json!(v),
        Value::F32(_) | Value::F64(_) => json!(value.as_f64()),
        Value::Str(bytes) => json!(String::from_utf8_lossy(bytes)),
        Value::Array(list) if list.is_empty() => json!([]),
        Value::Array(list) => json!(format!("a list of {}", list.len())),
        Value::I8(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::I64(v) => json!(v),
        whole => json!(whole.as_u64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_with_the_digits_that_were_written() {
        for number in [1e-6, 1e-5, 5e5, 0.1, 1.190238, 50.0, 1e16, 1e-45] {
            assert_eq!(shortest(number as f32), number);
        }
        for (dims, head_dim) in [(96, 128), (1, 3), (29, 57), (64, 96)] {
            assert_eq!((share(dims, head_dim) * head_dim as f64) as u64, dims);
        }
    }
}
