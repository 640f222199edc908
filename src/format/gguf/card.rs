//! A model card as GGUF keys, in the order in which llama.cpp's converter writes them.

use super::metadata::{Array, Metadata, Value};
use crate::source::card::{Card, Origin, Sampling};

/// Sets the `general.*` keys of a card.
///
/// The converter writes `general.architecture` and `general.type` before them. It leaves empty text out.
pub fn write_card(card: &Card, meta: &mut Metadata) {
    write_sampling(&card.sampling, meta);
    if !card.name.is_empty() {
        meta.set("general.name", card.name.as_str());
    }
    for (key, value) in [
        ("author", &card.author),
        ("version", &card.version),
        ("organization", &card.organization),
        ("finetune", &card.finetune),
        ("basename", &card.basename),
        ("description", &card.description),
        ("size_label", &card.size_label),
        ("license", &card.license),
        ("license.name", &card.license_name),
        ("license.link", &card.license_link),
        ("source.url", &card.source_url),
        ("source.doi", &card.source_doi),
        ("source.uuid", &card.source_uuid),
        ("source.repo_url", &card.source_repo_url),
    ] {
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            meta.set(format!("general.{key}"), value);
        }
    }
    write_origins("general.base_model", card.base_models.as_deref(), meta);
    write_origins("general.dataset", card.datasets.as_deref(), meta);
    write_list("general.tags", card.tags.as_deref(), meta);
    write_list("general.languages", card.languages.as_deref(), meta);
}

fn write_sampling(sampling: &Sampling, meta: &mut Metadata) {
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            meta.set(format!("general.sampling.{key}"), value);
        }
    };
    set("sequence", sampling.sequence.as_deref().filter(|s| !s.is_empty()).map(Value::from));
    set("top_k", sampling.top_k.map(Value::I32));
    set("top_p", sampling.top_p.map(Value::F32));
    set("min_p", sampling.min_p.map(Value::F32));
    set("xtc_probability", sampling.xtc_probability.map(Value::F32));
    set("xtc_threshold", sampling.xtc_threshold.map(Value::F32));
    set("temp", sampling.temp.map(Value::F32));
    set("penalty_last_n", sampling.penalty_last_n.map(Value::I32));
    set("penalty_repeat", sampling.penalty_repeat.map(Value::F32));
    set("mirostat", sampling.mirostat.map(Value::I32));
    set("mirostat_tau", sampling.mirostat_tau.map(Value::F32));
    set("mirostat_eta", sampling.mirostat_eta.map(Value::F32));
}

fn write_origins(prefix: &str, origins: Option<&[Origin]>, meta: &mut Metadata) {
    let Some(origins) = origins else { return };
    meta.set(format!("{prefix}.count"), u32::try_from(origins.len()).unwrap_or(u32::MAX));
    for (i, origin) in origins.iter().enumerate() {
        for (key, value) in [
            ("name", &origin.name),
            ("author", &origin.author),
            ("version", &origin.version),
            ("organization", &origin.organization),
            ("description", &origin.description),
            ("url", &origin.url),
            ("doi", &origin.doi),
            ("uuid", &origin.uuid),
            ("repo_url", &origin.repo_url),
        ] {
            if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
                // Not `Metadata::set`, whose search would make a long list slow.
                meta.push_unchecked(format!("{prefix}.{i}.{key}"), value.into());
            }
        }
    }
}

fn write_list(key: &str, list: Option<&[String]>, meta: &mut Metadata) {
    // An empty array has no type and is left out.
    if let Some(list) = list.filter(|l| !l.is_empty()) {
        let list = list.iter().map(|t| t.clone().into_bytes()).collect();
        meta.set(key, Value::Array(Array::Str(list)));
    }
}
