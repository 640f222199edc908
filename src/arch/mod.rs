//! The model families, each as data in one file.

pub mod decoder;
pub mod fold;
mod gemma2;
mod gemma3;
pub mod hyper;
mod llama;
pub mod llama3_rope;
mod mistral;
mod mixtral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod smollm3;
pub mod spec;
mod tensors;

use crate::error::{Error, Kind, Result};
use crate::source::config::Config;
pub use fold::Fold;
pub use hyper::Hyper;
pub use spec::ArchSpec;

/// Every family. A new one is a file and a line here.
const FAMILIES: &[&ArchSpec] = &[
    &llama::SPEC,
    &mistral::SPEC,
    &mixtral::SPEC,
    &qwen2::SPEC,
    &qwen3::SPEC,
    &qwen3_moe::SPEC,
    &gemma2::SPEC,
    &gemma3::SPEC,
    &phi3::SPEC,
    &smollm3::SPEC,
];

/// The family that answers to a model class.
pub fn find(class: &str) -> Option<&'static ArchSpec> {
    FAMILIES.iter().find(|spec| spec.classes.contains(&class)).copied()
}

/// The family whose models are written as the architecture `name` in GGUF: where several share the name, the first with
/// or without experts.
pub fn of_gguf(name: &str, experts: bool) -> Option<&'static ArchSpec> {
    let mut named = FAMILIES.iter().copied().filter(|spec| spec.gguf == name);
    named.clone().find(|spec| spec.has_experts() == experts).or_else(|| named.next())
}

/// The architectures in GGUF that are supported.
pub fn supported_gguf() -> Vec<&'static str> {
    let mut names: Vec<&str> = FAMILIES.iter().map(|spec| spec.gguf).collect();
    names.sort();
    names.dedup();
    names
}

/// All class names that are supported.
pub fn supported() -> Vec<&'static str> {
    FAMILIES.iter().flat_map(|spec| spec.classes.iter().copied()).collect()
}

/// A configuration that has been understood completely.
#[derive(Debug)]
pub struct Model {
    /// The family.
    pub spec: &'static ArchSpec,
    /// Sizes and constants.
    pub hyper: Hyper,
    /// The configuration, with the family's defaults.
    pub config: Config,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl Model {
    /// Reads a configuration. Keys of `ignore` are accepted whatever they say.
    ///
    /// # Errors
    /// `Unsupported` for an unknown class, for a value that this program or llama.cpp would compute otherwise, and for
    /// keys that nobody here knows: they may change the arithmetic.
    pub fn read(config: Config, ignore: &[String]) -> Result<Model> {
        let class = config.architecture()?.to_owned();
        let spec = find(&class).ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("architecture {class} is not supported"))
                .hint(format!("Supported are: {}.", supported().join(", ")))
        })?;
        let config = config.with_defaults((spec.defaults)());
        for key in ignore {
            config.get(key);
        }
        let hyper = Hyper::read(&config, spec)?;
        let warnings = (spec.check)(&config, &hyper)?;
        let unread = config.unread();
        if !unread.is_empty() {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "{} has keys that are not understood and may change the arithmetic: {}",
                    config.origin(),
                    unread.join(", ")
                ),
            )
            .hint(format!(
                "If they do not matter, say so: {}",
                unread.iter().map(|k| format!("--ignore-config {k}")).collect::<Vec<_>>().join(" ")
            )));
        }
        Ok(Model { spec, hyper, config, warnings })
    }
}

impl std::fmt::Debug for ArchSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArchSpec")
            .field("gguf", &self.gguf)
            .field("classes", &self.classes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn llama() -> Value {
        json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
               "num_attention_heads": 4, "vocab_size": 100})
    }

    fn read(change: impl FnOnce(&mut Value)) -> Result<Model> {
        let mut config = llama();
        change(&mut config);
        Model::read(Config::from_json(config).unwrap(), &[])
    }

    #[test]
    fn classes_are_unique() {
        let mut all = supported();
        all.sort();
        assert!(all.windows(2).all(|w| w[0] != w[1]));
    }

    #[test]
    fn both_spellings_of_rope_mean_the_same() {
        let old = read(|c| {
            c["rope_theta"] = json!(5e5);
            c["rope_scaling"] = json!({"type": "linear", "factor": 2});
        });
        let new =
            read(|c| c["rope_parameters"] = json!({"rope_theta": 5e5, "rope_type": "linear", "factor": 2}));
        assert_eq!(old.unwrap().hyper.rope, new.unwrap().hyper.rope);
    }

    #[test]
    fn what_changes_the_arithmetic_and_is_not_known_is_refused() {
        for (key, value) in [
            ("hidden_act", json!("relu")),
            ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2})),
            ("rope_scaling", json!({"rope_type": "linear", "factor": 2, "mscale": 3})),
            ("partial_rotary_factor", json!(0.5)),
            ("logit_scale", json!(0.1)),
            ("residual_multiplier", json!(0.22)),
            ("quantization_config", json!({"quant_method": "awq"})),
            ("is_causal", json!(false)),
            ("architectures", json!(["FalconForCausalLM"])),
        ] {
            let e = read(|c| c[key] = value.clone()).map(|_| ()).expect_err(key);
            assert_eq!(e.kind(), Kind::Unsupported, "{key}: {e}");
        }
        let mut config = llama();
        config["logit_scale"] = json!(0.1);
        assert!(Model::read(Config::from_json(config).unwrap(), &["logit_scale".into()]).is_ok());
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (key, value) in [
            ("num_attention_heads", json!(0)),
            ("num_key_value_heads", json!(3)),
            ("hidden_size", json!(66)),
            ("head_dim", json!(0)),
            ("head_dim", json!(15)),
            ("num_hidden_layers", json!(1_000_000)),
            ("vocab_size", json!("many")),
            ("rope_scaling", json!([])),
        ] {
            let e = read(|c| c[key] = value.clone()).map(|_| ()).expect_err(key);
            assert_eq!(e.kind(), Kind::Invalid, "{key}: {e}");
        }
    }
}
