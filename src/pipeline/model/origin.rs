//! What a model has beside its weights: configuration, tokenizer and the like, and where they are.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::format::gguf::Metadata;
use crate::source::SourceModel;
use crate::source::tokenizer::rebuild::Rebuilt;

/// Where a model's files come from.
#[derive(Debug)]
pub enum Origin {
    /// A directory in Hugging Face's format.
    Directory(SourceModel),
    /// A GGUF file.
    Gguf {
        /// Its key-value part.
        metadata: Metadata,
        /// The tokenizer that was rebuilt from it.
        tokenizer: Box<Rebuilt>,
    },
}

impl Origin {
    /// The directory whose files go along with a copy of the model.
    pub fn dir(&self) -> Option<&Path> {
        match self {
            Origin::Directory(source) => Some(source.dir()),
            Origin::Gguf { .. } => None,
        }
    }

    /// Writes into `dir` what a Hugging Face model has beside its weights and `config.json`, of a model that has no directory
    /// to copy it from: tokenizer, chat template and generation configuration.
    ///
    /// # Errors
    /// `Resources` if a file cannot be written.
    pub fn write_rebuilt(&self, dir: &Path) -> Result<()> {
        let Origin::Gguf { metadata, tokenizer } = self else { return Ok(()) };
        tokenizer.save(dir)?;
        let path = dir.join("generation_config.json");
        let text = format!("{:#}\n", generation(metadata));
        std::fs::write(&path, text).map_err(|e| Error::output(format!("cannot write {}", path.display()), e))
    }
}

/// `generation_config.json`: the tokens that begin and end a text, and recommended sampling.
fn generation(metadata: &Metadata) -> Value {
    let id = |role: &str| metadata.get(&format!("tokenizer.ggml.{role}_token_id")).and_then(|v| v.as_u64());
    let mut config = json!({"_from_model_config": true});
    for (name, role) in [("bos", "bos"), ("pad", "padding")] {
        if let Some(id) = id(role) {
            config[format!("{name}_token_id")] = json!(id);
        }
    }
    // A turn ends a generation as a text does.
    let mut ends: Vec<u64> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
    ends.dedup();
    match ends.as_slice() {
        [] => {}
        [one] => config["eos_token_id"] = json!(one),
        several => config["eos_token_id"] = json!(several),
    }
    for (name, key) in [
        ("temperature", "temp"),
        ("top_k", "top_k"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("repetition_penalty", "penalty_repeat"),
    ] {
        let value = metadata.get(&format!("general.sampling.{key}"));
        let number = value.and_then(|v| match (v.as_u64(), v.as_f64()) {
            (Some(whole), _) => Some(json!(whole)),
            // With the digits that were written: 0.7 and not 0.699999988079071.
            (None, Some(v)) => (v as f32).to_string().parse::<f64>().ok().map(|v| json!(v)),
            (None, None) => None,
        });
        if let Some(number) = number {
            config[name] = number;
            config["do_sample"] = json!(true);
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_ends_where_the_file_says() {
        let mut metadata = Metadata::new();
        assert_eq!(generation(&metadata), json!({"_from_model_config": true}));
        metadata.set("tokenizer.ggml.bos_token_id", 1u32);
        metadata.set("tokenizer.ggml.eos_token_id", 2u32);
        metadata.set("tokenizer.ggml.eot_token_id", 2u32);
        metadata.set("general.sampling.temp", 0.7f32);
        let found = generation(&metadata);
        assert_eq!(found["eos_token_id"], 2);
        assert_eq!((&found["temperature"], &found["do_sample"]), (&json!(0.7), &json!(true)));
        metadata.set("tokenizer.ggml.eot_token_id", 3u32);
        assert_eq!(generation(&metadata)["eos_token_id"], json!([2, 3]));
    }
}
