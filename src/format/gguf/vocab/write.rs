//! Writes a vocabulary, with keys in the order in which llama.cpp's converter writes them.

use super::super::metadata::{Array, Metadata, Value};
use crate::source::vocab::{ChatTemplate, Late, Vocab, VocabModel};

/// Sets all keys of the tokenizer.
pub fn write_vocab(vocab: &Vocab, meta: &mut Metadata) {
    if !vocab.late.contains(&Late::SpacePrefix) {
        write_space_prefix(vocab, meta);
    }
    let tokens = Value::Array(Array::Str(vocab.tokens.clone()));
    let types = Value::Array(Array::I32(vocab.types.iter().map(|t| *t as i32).collect()));
    let model = match &vocab.model {
        VocabModel::ByteLevelBpe { .. } => "gpt2",
        VocabModel::SentencePiece { .. } => "llama",
    };
    meta.set("tokenizer.ggml.model", model);
    meta.set("tokenizer.ggml.pre", vocab.pre.as_str());
    meta.set("tokenizer.ggml.tokens", tokens);
    if let VocabModel::SentencePiece { scores } = &vocab.model {
        meta.set("tokenizer.ggml.scores", Value::Array(Array::F32(scores.clone())));
    }
    meta.set("tokenizer.ggml.token_type", types);
    if let VocabModel::ByteLevelBpe { merges } = &vocab.model
        && !merges.is_empty()
    {
        let merges = merges.iter().map(|m| m.clone().into_bytes()).collect();
        meta.set("tokenizer.ggml.merges", Value::Array(Array::Str(merges)));
    }
    for (role, id) in &vocab.special {
        if !vocab.late.contains(&Late::Special(role.clone())) {
            write_special(role, *id, meta);
        }
    }
    for (role, add) in &vocab.add {
        if !vocab.late.contains(&Late::Add(role.clone())) {
            write_add(role, *add, meta);
        }
    }
    match &vocab.chat_template {
        None => {}
        Some(ChatTemplate::One(text)) => write_text("tokenizer.chat_template", text, meta),
        Some(ChatTemplate::Named(list)) => write_templates(list, meta),
    }
    if let Some(v) = vocab.lowercase {
        meta.set("tokenizer.ggml.normalizer.lowercase", v);
    }
    if let Some(v) = vocab.strip_accents {
        meta.set("tokenizer.ggml.normalizer.strip_accents", v);
    }
    for late in &vocab.late {
        match late {
            Late::SpacePrefix => write_space_prefix(vocab, meta),
            Late::Special(role) => {
                if let Some((_, id)) = vocab.special.iter().find(|(r, _)| r == role) {
                    write_special(role, *id, meta);
                }
            }
            Late::Add(role) => {
                if let Some((_, add)) = vocab.add.iter().find(|(r, _)| r == role) {
                    write_add(role, *add, meta);
                }
            }
        }
    }
}

fn write_space_prefix(vocab: &Vocab, meta: &mut Metadata) {
    if let Some(v) = vocab.add_space_prefix {
        meta.set("tokenizer.ggml.add_space_prefix", v);
    }
}

/// Roles without a key, such as `cls`, are passed over.
fn write_special(role: &str, id: u32, meta: &mut Metadata) {
    let name = match role {
        "bos" | "eos" | "mask" | "eot" | "eom" => role,
        "unk" => "unknown",
        // Misspelt since the first version of the format.
        "sep" => "seperator",
        "pad" => "padding",
        _ => return,
    };
    meta.set(format!("tokenizer.ggml.{name}_token_id"), id);
}

fn write_add(role: &str, add: bool, meta: &mut Metadata) {
    if ["bos", "eos", "sep"].contains(&role) {
        meta.set(format!("tokenizer.ggml.add_{role}_token"), add);
    }
}

/// Each template but the default under its name, the list of those names, then the default.
///
/// The converter lists the names in the order of a Python set, which changes from run to run; here it is theirs.
fn write_templates(list: &[(String, String)], meta: &mut Metadata) {
    let mut default = None;
    let mut names: Vec<Vec<u8>> = Vec::new();
    for (name, text) in list {
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if name == "default" {
            default = Some(text);
        } else if !name.is_empty() {
            write_text(&format!("tokenizer.chat_template.{name}"), text, meta);
            if !names.contains(&name.clone().into_bytes()) {
                names.push(name.into_bytes());
            }
        }
    }
    if !names.is_empty() {
        meta.set("tokenizer.chat_templates", Value::Array(Array::Str(names)));
    }
    if let Some(text) = default {
        write_text("tokenizer.chat_template", text, meta);
    }
}

/// Empty text is left out.
fn write_text(key: &str, text: &str, meta: &mut Metadata) {
    if !text.is_empty() {
        meta.set(key, text);
    }
}
