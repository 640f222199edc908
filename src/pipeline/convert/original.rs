//! Which model a quantized one was made from, if it says so: quantizing that one loses less than converting.

use serde_json::Value;

use crate::format::gguf::Metadata;
use crate::pipeline::model::{OpenModel, Origin};
use crate::source::card::{ParamCounts, load_card};

/// The name on the Hub of the original of a model, as `org/name`.
pub(super) fn original(opened: &OpenModel) -> Option<String> {
    match &opened.origin {
        Origin::Gguf { metadata, .. } => of_gguf(metadata),
        Origin::Directory(source) => {
            let raw = opened.model.config.raw();
            let card = load_card(source.dir(), raw, &opened.name, ParamCounts::default()).ok();
            let stated = card.and_then(|(card, _)| card.base_models?.into_iter().find_map(|b| b.repo_url));
            let quantization = raw.get("quantization_config").and_then(|q| q.get("model_name_or_path"));
            let named = [quantization, raw.get("_name_or_path")];
            let named = named.into_iter().flatten().filter_map(Value::as_str).find_map(name_on_hub);
            stated.as_deref().and_then(name_on_hub).or(named)
        }
    }
}

/// Of a GGUF file: where it says that its weights come from. What a model was trained from is named in the same way as what
/// it was quantized from, so that a base model counts only if it has the model's own name.
fn of_gguf(metadata: &Metadata) -> Option<String> {
    let text = |key: &str| metadata.get(key).and_then(|value| value.as_str());
    let source = ["general.source.repo_url", "general.source.huggingface.repository", "general.source.url"];
    if let Some(name) = source.into_iter().filter_map(text).find_map(name_on_hub) {
        return Some(name);
    }
    let base = text("general.base_model.0.repo_url").and_then(name_on_hub)?;
    let plain = |name: &str| -> String {
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    let own = text("general.name").map(plain)?;
    let last = base.rsplit('/').next().map(plain)?;
    (own == last).then_some(base)
}

/// `org/name` out of that or an address on the Hub.
fn name_on_hub(text: &str) -> Option<String> {
    let text = text.trim().trim_end_matches('/');
    let path = text.strip_prefix("https://huggingface.co/").or_else(|| text.strip_prefix("https://hf.co/"));
    let name = path.unwrap_or(text);
    let (org, model) = name.split_once('/')?;
    let allowed = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    (allowed(org) && allowed(model)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_hub_are_told_from_paths() {
        for text in ["meta-llama/Llama-3.1-8B", "https://huggingface.co/meta-llama/Llama-3.1-8B/"] {
            assert_eq!(name_on_hub(text).unwrap(), "meta-llama/Llama-3.1-8B");
        }
        for text in ["model", "/data/model", "../x", "a/b/c", "https://example.com/a/b", "a/b;rm", "-a/b", ""]
        {
            assert_eq!(name_on_hub(text), None, "{text}");
        }
    }

    #[test]
    fn a_base_model_counts_if_it_is_the_model_itself() {
        let mut metadata = Metadata::new();
        metadata.set("general.name", "Smol LM2 Instruct");
        metadata.set("general.base_model.0.repo_url", "https://huggingface.co/org/SmolLM2");
        assert_eq!(of_gguf(&metadata), None);
        metadata.set("general.base_model.0.repo_url", "https://huggingface.co/org/SmolLM2-Instruct");
        assert_eq!(of_gguf(&metadata).unwrap(), "org/SmolLM2-Instruct");
        metadata.set("general.source.repo_url", "https://huggingface.co/org/other");
        assert_eq!(of_gguf(&metadata).unwrap(), "org/other");
    }
}
