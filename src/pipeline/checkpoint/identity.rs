//! What a job is, so that its checkpoint is never mistaken for another's.

use std::fmt::Display;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::arch::Model;
use crate::error::Result;
use crate::source::dense::Dense;

/// Digits of a hash that are shown.
const SHOWN: usize = 12;

/// Everything that decides a job's result, under names that a user understands. Large things are there as their SHA-256.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity(Map<String, Value>);

impl Identity {
    /// The job of this command, by this version of the program.
    pub fn new(command: &str) -> Identity {
        Identity(Map::new()).with("command", command).with("program version", env!("CARGO_PKG_VERSION"))
    }

    /// With one more fact.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Identity {
        self.0.insert(name.into(), value.into());
        self
    }

    /// With the model: its configuration, and names, shapes and first rows of all tensors. A row of each is read rather
    /// than all weights, which would take as long as a part of the work; every training step changes all of them.
    ///
    /// # Errors
    /// `Invalid` if such a row holds NaN or infinity.
    pub fn with_model(self, model: &Model, weights: &dyn Dense) -> Result<Identity> {
        let (config, weights) = of_model(model, weights)?;
        Ok(self.with("config.json", config).with("weights", weights))
    }

    /// The same with a second model, with which the first is compared.
    ///
    /// # Errors
    /// As [`Identity::with_model`].
    pub fn with_reference(self, model: &Model, weights: &dyn Dense) -> Result<Identity> {
        let (config, weights) = of_model(model, weights)?;
        Ok(self.with("reference's config.json", config).with("reference's weights", weights))
    }

    /// With token ids.
    pub fn with_tokens(self, windows: &[Vec<u32>]) -> Identity {
        let mut hash = Sha256::new();
        for window in windows {
            hash.update((window.len() as u64).to_le_bytes());
            window.iter().for_each(|token| hash.update(token.to_le_bytes()));
        }
        self.with("tokens", hex(&hash.finalize()))
    }

    /// What differs between this job and `other`, which has left a checkpoint; nothing if they are the same.
    pub(super) fn differences(&self, other: &Identity) -> Vec<String> {
        let mut names: Vec<&String> = self.0.keys().collect();
        names.extend(other.0.keys().filter(|name| !self.0.contains_key(*name)));
        let differs = names.into_iter().filter(|name| self.0.get(*name) != other.0.get(*name));
        differs
            .map(|name| format!("{name} is {}, was {}", shown(self.0.get(name)), shown(other.0.get(name))))
            .collect()
    }
}

/// Hashes of a model's configuration, and of names, shapes and first rows of its tensors.
fn of_model(model: &Model, weights: &dyn Dense) -> Result<(String, String)> {
    let mut hash = Sha256::new();
    let mut row = Vec::new();
    for name in weights.names() {
        let (Some(_), Some(shape)) = (model.spec.canonical(name), weights.shape(name)) else { continue };
        hash.update(format!("{name} {shape:?}\n"));
        if shape.iter().all(|size| *size > 0) && !shape.is_empty() {
            row.resize(shape[1..].iter().product(), 0.0);
            weights.read(name, 0..1, &mut row)?;
            row.iter().for_each(|weight| hash.update(weight.to_le_bytes()));
        }
    }
    let config = Sha256::digest(model.config.raw().to_string());
    Ok((hex(&config), hex(&hash.finalize())))
}

/// SHA-256 of some bytes, in hexadecimal.
pub fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A hash in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shown(value: Option<&Value>) -> impl Display {
    match value {
        None => "not set".to_owned(),
        Some(Value::String(text)) if text.len() == 64 => {
            format!("{}…", text.chars().take(SHOWN).collect::<String>())
        }
        Some(value) => json!(value).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::source::config::Config;
    use crate::source::safetensors::Tensors;

    #[test]
    fn differences_are_named() {
        let one = Identity::new("test").with("ctx", 512).with("chunks", 3);
        let other = Identity::new("test").with("ctx", 256).with("data", "a".repeat(64));
        assert_eq!(one.differences(&one.clone()), [""; 0]);
        assert_eq!(
            one.differences(&other),
            ["ctx is 512, was 256", "chunks is 3, was not set", "data is not set, was aaaaaaaaaaaa…"]
        );
    }

    #[test]
    fn another_model_or_text_is_another_job() {
        let job = |name: &str, tokens: &[Vec<u32>]| {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name);
            let model = Model::read(Config::load(&dir).unwrap(), &[]).unwrap();
            let tensors = Tensors::open(&dir).unwrap();
            Identity::new("test").with_model(&model, &tensors).unwrap().with_tokens(tokens)
        };
        let one = job("llama", &[vec![1, 2], vec![3]]);
        assert_eq!(one, job("llama", &[vec![1, 2], vec![3]]));
        assert_eq!(one.differences(&job("llama", &[vec![1], vec![2, 3]])).len(), 1);
        assert_eq!(one.differences(&job("qwen3", &[vec![1, 2], vec![3]])).len(), 2);
    }
}
