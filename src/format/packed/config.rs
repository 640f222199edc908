//! What a directory says of its own quantization: `quantization_config` in `config.json`, or a file beside it.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::source::inside;

/// Files that older tools write, in the order of GPTQModel.
const FILES: [&str; 2] = ["quantize_config.json", "quant_config.json"];

/// The keys that say how codes are to be read; two places that both state one must agree. Each with its synonyms.
const DECISIVE: [&[&str]; 4] = [BITS, GROUP_SIZE, &["sym"], CHECKPOINT_FORMAT];

/// Bits per code.
pub const BITS: &[&str] = &["bits", "w_bit", "wbits"];
/// Inputs per group; -1 is a whole row.
pub const GROUP_SIZE: &[&str] = &["group_size", "q_group_size"];
/// The variant of the container.
pub const CHECKPOINT_FORMAT: &[&str] = &["checkpoint_format", "format", "version"];

/// The tool's family, which decides how the rest is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// GPTQ.
    Gptq,
    /// AWQ.
    Awq,
    /// AutoRound's own configuration over one of the two.
    AutoRound,
    /// Another one, by its name.
    Other(String),
}

/// The statements of one directory.
#[derive(Clone, Debug)]
pub struct Stated {
    keys: Map<String, Value>,
    /// Where they are, for messages.
    place: String,
}

impl Stated {
    /// Looks for a quantization. `config` is the whole `config.json`; the first place that is not empty counts, and what it
    /// leaves out is taken from the next.
    ///
    /// # Errors
    /// `Invalid` if a file is no JSON object or two places contradict each other.
    pub fn find(dir: &Path, config: &Value) -> Result<Option<Stated>> {
        let nested = config.get("text_config").and_then(|text| text.get("quantization_config"));
        let mut found: Option<Stated> = None;
        for value in [config.get("quantization_config"), nested].into_iter().flatten() {
            Stated::add(&mut found, value, "config.json: quantization_config")?;
        }
        for file in FILES {
            let path = dir.join(file);
            let Some(bytes) = inside::read(&path)? else { continue };
            let value = serde_json::from_slice(&bytes).map_err(|e| {
                Error::new(Kind::Invalid, format!("{} is not valid JSON", path.display())).because(e)
            })?;
            Stated::add(&mut found, &value, file)?;
        }
        Ok(found)
    }

    fn add(found: &mut Option<Stated>, value: &Value, place: &str) -> Result<()> {
        let keys = match value {
            Value::Null => return Ok(()),
            Value::Object(keys) if keys.is_empty() => return Ok(()),
            Value::Object(keys) => keys.clone(),
            _ => return Err(Error::new(Kind::Invalid, format!("{place} is not a JSON object"))),
        };
        let Some(first) = found else {
            *found = Some(Stated { keys, place: place.to_owned() });
            return Ok(());
        };
        let second = Stated { keys, place: place.to_owned() };
        for names in DECISIVE {
            if let (Some((_, a)), Some((key, b))) = (first.get(names), second.get(names))
                && a.to_string().to_lowercase() != b.to_string().to_lowercase()
            {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("{} says {key} is {a}, {place} says {b}", first.place),
                )
                .hint("Correct the wrong one of the two; nobody else knows how the codes are packed."));
            }
        }
        for (key, value) in second.keys {
            first.keys.entry(key).or_insert(value);
        }
        Ok(())
    }

    /// The tool's family.
    ///
    /// # Errors
    /// `Invalid` if it is not stated and cannot be told from the rest.
    pub fn method(&self) -> Result<Method> {
        if let Some(name) = self.opt_str(&["quant_method", "method"])? {
            return Ok(match name.to_lowercase().as_str() {
                "gptq" => Method::Gptq,
                "awq" => Method::Awq,
                "auto-round" | "autoround" | "intel/auto-round" => Method::AutoRound,
                other => Method::Other(other.to_owned()),
            });
        }
        // The files of AutoGPTQ and AutoAWQ do not name their method.
        match (self.get(BITS), self.get(&["zero_point"])) {
            (Some(_), Some(_)) => Ok(Method::Awq),
            (Some(_), None) => Ok(Method::Gptq),
            (None, _) => {
                Err(Error::new(Kind::Invalid, format!("{} has neither quant_method nor bits", self.place)))
            }
        }
    }

    /// The first of these keys that has a value, and the key.
    pub fn get<'a>(&self, names: &[&'a str]) -> Option<(&'a str, &Value)> {
        names.iter().find_map(|name| Some((*name, self.keys.get(*name).filter(|v| !v.is_null())?)))
    }

    /// A whole number.
    pub fn opt_i64(&self, names: &[&str]) -> Result<Option<i64>> {
        self.get(names)
            .map(|(key, v)| v.as_i64().ok_or_else(|| self.wrong(key, "a whole number", v)))
            .transpose()
    }

    /// A switch.
    pub fn opt_flag(&self, names: &[&str]) -> Result<Option<bool>> {
        self.get(names)
            .map(|(key, v)| v.as_bool().ok_or_else(|| self.wrong(key, "true or false", v)))
            .transpose()
    }

    /// A string.
    pub fn opt_str(&self, names: &[&str]) -> Result<Option<&str>> {
        self.get(names).map(|(key, v)| v.as_str().ok_or_else(|| self.wrong(key, "a string", v))).transpose()
    }

    /// An object; one that is not there is empty.
    pub fn object(&self, key: &str) -> Result<Map<String, Value>> {
        match self.get(&[key]) {
            None => Ok(Map::new()),
            Some((_, Value::Object(map))) => Ok(map.clone()),
            Some((_, v)) => Err(self.wrong(key, "an object", v)),
        }
    }

    /// The same statements with those of `over` laid over them.
    pub fn with(&self, over: &Map<String, Value>, place: &str) -> Stated {
        let mut keys = self.keys.clone();
        keys.extend(over.iter().map(|(key, value)| (key.clone(), value.clone())));
        Stated { keys, place: format!("{}: {place}", self.place) }
    }

    /// An error about a key.
    pub fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        let found = found.to_string().chars().take(80).collect::<String>();
        Error::new(Kind::Invalid, format!("{}: `{key}` must be {expected}, found {found}", self.place))
    }

    /// A refusal of what is stated.
    pub fn unsupported(&self, what: impl std::fmt::Display) -> Error {
        Error::new(Kind::Unsupported, format!("{}: {what}", self.place))
    }

    /// The tool that made the codes, as far as it says so.
    pub fn quantizer(&self) -> Option<String> {
        let meta = self.keys.get("meta").and_then(|meta| meta.get("quantizer"));
        let named = match meta {
            Some(Value::String(name)) => Some(name.clone()),
            Some(Value::Array(names)) => {
                let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
                (!names.is_empty()).then(|| names.join(", "))
            }
            _ => None,
        };
        named.or_else(|| {
            let version = self.keys.get("autoround_version")?.as_str()?;
            Some(format!("auto-round:{version}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn find(config: Value, file: Option<Value>) -> Result<Option<Stated>> {
        let dir = tempfile::tempdir().unwrap();
        if let Some(file) = file {
            std::fs::write(dir.path().join("quantize_config.json"), file.to_string()).unwrap();
        }
        Stated::find(dir.path(), &config)
    }

    #[test]
    fn a_file_completes_the_configuration() {
        let config = json!({"quantization_config": {"quant_method": "gptq", "bits": 4}});
        let file = json!({"bits": 4, "group_size": 64, "checkpoint_format": "gptq_v2"});
        let stated = find(config, Some(file)).unwrap().unwrap();
        assert_eq!(stated.method().unwrap(), Method::Gptq);
        assert_eq!(stated.opt_i64(GROUP_SIZE).unwrap(), Some(64));
        assert_eq!(stated.opt_str(CHECKPOINT_FORMAT).unwrap(), Some("gptq_v2"));
        assert!(find(json!({}), None).unwrap().is_none());
        assert!(find(json!({"quantization_config": null}), None).unwrap().is_none());
    }

    #[test]
    fn a_contradiction_is_an_error() {
        let config = json!({"quantization_config": {"quant_method": "gptq", "bits": 4}});
        let e = find(config, Some(json!({"bits": 8}))).unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid);
        assert!(e.to_string().contains("bits is 4") && e.to_string().contains("quantize_config.json"), "{e}");
    }

    #[test]
    fn the_method_is_told_from_the_keys_if_need_be() {
        let of = |file: Value| find(json!({}), Some(file)).unwrap().unwrap().method();
        assert_eq!(of(json!({"bits": 4, "group_size": 128, "desc_act": false})).unwrap(), Method::Gptq);
        assert_eq!(of(json!({"w_bit": 4, "q_group_size": 128, "zero_point": true})).unwrap(), Method::Awq);
        assert_eq!(of(json!({"quant_method": "fp8"})).unwrap(), Method::Other("fp8".into()));
        assert_eq!(of(json!({"x": 1})).unwrap_err().kind(), Kind::Invalid);
    }
}
