//! `config.json`, read strictly: what is asked for must have the right type, and what nobody asks for is reported.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use serde_json::{Map, Value};

use super::inside;
use crate::error::{Error, Kind, Result};

/// A model's configuration. Reading a key marks it as understood; [`Config::unread`] lists the rest.
#[derive(Debug)]
pub struct Config {
    keys: Map<String, Value>,
    raw: Value,
    origin: String,
    read: Mutex<BTreeSet<String>>,
}

/// Keys that say nothing of the arithmetic: bookkeeping, training, generation and Hub fields that transformers and
/// the usual training frameworks write.
const BOOKKEEPING: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "sep_token_id",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

impl Config {
    /// Reads `config.json` in `dir`. A `text_config` of a multimodal model is laid over the root.
    pub fn load(dir: &Path) -> Result<Config> {
        let path = dir.join("config.json");
        let bytes = inside::read(&path)?.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("{} holds no config.json", dir.display()))
                .hint("Pass the directory of a Hugging Face model, or its name on the Hub as org/name.")
        })?;
        let raw: Value = serde_json::from_slice(&bytes).map_err(|e| {
            Error::new(Kind::Invalid, format!("{} is not valid JSON", path.display())).because(e)
        })?;
        Config::from_json(raw)
    }

    /// A configuration that was put together from another file, which `origin` names.
    pub fn rebuilt(raw: Value, origin: impl Into<String>) -> Result<Config> {
        Ok(Config { origin: origin.into(), ..Config::from_json(raw)? })
    }

    /// The same from JSON at hand.
    pub fn from_json(raw: Value) -> Result<Config> {
        let Value::Object(mut keys) = raw.clone() else {
            return Err(Error::new(Kind::Invalid, "config.json is not a JSON object"));
        };
        let nested = match keys.remove("text_config") {
            Some(Value::Object(text)) => text,
            None | Some(Value::Null) => Map::new(),
            Some(_) => return Err(Error::new(Kind::Invalid, "config.json: text_config is not an object")),
        };
        let multimodal = !nested.is_empty();
        for (key, value) in nested {
            if key != "architectures" {
                keys.insert(key, value);
            }
        }
        if multimodal {
            // What describes the other modalities is left out together with their tensors.
            keys.retain(|key, _| !is_other_modality(key));
        }
        Ok(Config { keys, raw, origin: "config.json".into(), read: Mutex::default() })
    }

    /// Lays the family's defaults under the configuration, as transformers' config classes do.
    pub fn with_defaults(mut self, defaults: Value) -> Config {
        if let Value::Object(defaults) = defaults {
            for (key, value) in defaults {
                self.keys.entry(key).or_insert(value);
            }
        }
        self
    }

    /// The configuration without a key whose statement has been dealt with.
    pub fn without(mut self, key: &str) -> Config {
        self.keys.remove(key);
        self
    }

    /// What messages call it.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The file as it is.
    pub fn raw(&self) -> &Value {
        &self.raw
    }

    /// The file without what it says of a quantization, and without keys of GGUF that have no name in it.
    pub fn unquantized(&self) -> Value {
        let mut config = self.raw.clone();
        for place in ["", "/text_config"] {
            if let Some(keys) = config.pointer_mut(place).and_then(Value::as_object_mut) {
                keys.retain(|key, _| key != "quantization_config" && !key.contains('.'));
            }
        }
        config
    }

    /// The name of the model's class, for example `LlamaForCausalLM`.
    pub fn architecture(&self) -> Result<&str> {
        match self.keys.get("architectures") {
            Some(Value::Array(list)) if list.len() == 1 => list[0].as_str(),
            _ => None,
        }
        .ok_or_else(|| {
            let origin = &self.origin;
            Error::new(Kind::Invalid, format!("{origin}: `architectures` must name exactly one model class"))
        })
    }

    /// The value of `key`; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.reads().insert(key.to_owned());
        self.keys.get(key).filter(|v| !v.is_null())
    }

    fn reads(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.read.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A count or size, if the key is there.
    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // 2^31 bounds every size that llama.cpp can hold and keeps products of two within u64.
        match value
            .as_u64()
            .or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0).map(|f| f as u64))
        {
            Some(n) if n < 1 << 31 => Ok(Some(n as usize)),
            _ => Err(self.wrong(key, "a whole number from 0 to 2147483647")),
        }
    }

    /// A count or size that must be there and not be zero.
    pub fn usize(&self, key: &str) -> Result<usize> {
        match self.opt_usize(key)? {
            Some(0) => Err(self.wrong(key, "a whole number above 0")),
            Some(n) => Ok(n),
            None => Err(Error::new(Kind::Invalid, format!("{}: `{key}` is missing", self.origin))),
        }
    }

    /// A number, if the key is there.
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|v| v.as_f64().ok_or_else(|| self.wrong(key, "a number"))).transpose()
    }

    /// A switch; absent means false.
    pub fn flag(&self, key: &str) -> Result<bool> {
        self.get(key).map_or(Ok(false), |v| v.as_bool().ok_or_else(|| self.wrong(key, "true or false")))
    }

    /// A string, if the key is there.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.wrong(key, "a string"))).transpose()
    }

    /// An error about the value of `key`.
    pub fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.keys.get(key).map_or("nothing".into(), |v| shorten(&v.to_string()));
        Error::new(Kind::Invalid, format!("{}: `{key}` must be {expected}, found {found}", self.origin))
    }

    /// A refusal of the value of `key`, which changes the arithmetic in a way that is not supported.
    pub fn unsupported(&self, key: &str, supported: &str) -> Error {
        let found = self.keys.get(key).map_or("nothing".into(), |v| shorten(&v.to_string()));
        Error::new(Kind::Unsupported, format!("{}: `{key}` is {found}; {supported}", self.origin))
    }

    /// Keys with a value that nobody has read and that are not known bookkeeping: they may change the arithmetic.
    pub fn unread(&self) -> Vec<String> {
        let read = self.reads();
        self.keys
            .iter()
            .filter(|(key, value)| {
                let empty = match value {
                    Value::Null | Value::Bool(false) => true,
                    Value::String(s) => s.is_empty(),
                    Value::Array(a) => a.is_empty(),
                    Value::Object(o) => o.is_empty(),
                    Value::Number(n) => n.as_f64() == Some(0.0),
                    Value::Bool(true) => false,
                };
                !empty && !read.contains(*key) && BOOKKEEPING.binary_search(&key.as_str()).is_err()
            })
            .map(|(key, _)| key.clone())
            .collect()
    }
}

fn is_other_modality(key: &str) -> bool {
    ["vision", "image", "audio", "mm_", "boi_", "eoi_", "video"].iter().any(|part| key.contains(part))
}

fn shorten(text: &str) -> String {
    if text.chars().count() > 80 {
        format!("{}...", text.chars().take(77).collect::<String>())
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bookkeeping_is_sorted_for_the_search() {
        assert!(BOOKKEEPING.is_sorted());
    }

    #[test]
    fn a_key_that_nobody_reads_is_reported_unless_it_is_off() {
        let c = Config::from_json(
            json!({"hidden_size": 8, "logit_scale": 0.5, "alibi": false, "use_cache": true}),
        )
        .unwrap();
        assert_eq!(c.usize("hidden_size").unwrap(), 8);
        assert_eq!(c.unread(), ["logit_scale"]);
    }

    #[test]
    fn a_quantization_can_be_left_out() {
        let c = Config::from_json(
            json!({"hidden_size": 8, "quantization_config": {"bits": 4}, "transformers.js_config": {},
            "text_config": {"vocab_size": 3, "quantization_config": {}}}),
        );
        let expected = json!({"hidden_size": 8, "text_config": {"vocab_size": 3}});
        assert_eq!(c.unwrap().unquantized(), expected);
    }

    #[test]
    fn values_are_typed_and_bounded() {
        let c = Config::from_json(json!({"a": -1, "b": 4e9, "c": "x", "d": 0, "e": 7.0})).unwrap();
        for key in ["a", "b", "c", "d", "missing"] {
            let e = c.usize(key).unwrap_err();
            assert_eq!(e.kind(), Kind::Invalid);
            assert!(e.to_string().contains(&format!("`{key}`")), "{e}");
        }
        assert_eq!(c.usize("e").unwrap(), 7);
    }

    #[test]
    fn text_config_wins_and_other_modalities_go() {
        let c = Config::from_json(
            json!({"hidden_size": 1, "vision_config": {"x": 1}, "mm_tokens_per_image": 256,
            "text_config": {"hidden_size": 2}}),
        )
        .unwrap();
        assert_eq!(c.usize("hidden_size").unwrap(), 2);
        assert!(c.unread().is_empty());
    }
}
