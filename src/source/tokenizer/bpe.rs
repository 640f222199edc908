//! Vocabularies of byte-level BPE models.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{Decoder, DecoderWrapper};

use super::added::FullVocab;
use super::definition::{Definition, Entries, Merge};
use super::json::{invalid, read_json, read_text};
use super::pre;
use crate::error::{Error, Kind, Result};
use crate::source::vocab::TokenType;

/// Tokens, types and merge rules.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Bpe {
    pub(super) pre: String,
    pub(super) tokens: Vec<Vec<u8>>,
    pub(super) types: Vec<TokenType>,
    pub(super) merges: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Reads the vocabulary of `dir`, filled up to `vocab_size`.
pub(super) fn load(
    dir: &Path,
    definition: Option<&Definition>,
    config: Option<&Map<String, Value>>,
    vocab_size: Option<usize>,
) -> Result<Bpe> {
    let parts;
    let (definition, path) = match definition {
        Some(definition) => (definition, dir.join("tokenizer.json")),
        None => {
            parts = from_parts(dir, config)?;
            (&parts, dir.join("vocab.json"))
        }
    };
    if definition.model.vocab.0.is_empty() {
        return Err(invalid(&path, "the vocabulary is empty")
            .hint("Get the tokenizer's files of the model again; a model without tokens is useless."));
    }
    let full = FullVocab::load(dir, definition, config)?;
    if full.base_len() == 0 {
        return Err(invalid(&path, "the vocabulary is empty"));
    }
    let n = vocab_size.unwrap_or(full.len());
    super::check_size(n, &path)?;
    if let Some(max) = full.max_id().filter(|id| *id as usize >= n) {
        return Err(invalid(&path, format!("a token has the id {max}, but the model has {n} tokens"))
            .hint("Is this the tokenizer of this model? vocab_size in config.json must cover all tokens."));
    }
    let decoder = match &definition.decoder {
        None => None,
        Some(decoder) => Some(
            <DecoderWrapper as serde::Deserialize>::deserialize(decoder)
                .map_err(|e| invalid(&path, "the decoder is not understood").because(e))?,
        ),
    };

    let mut bpe = Bpe { warnings: full.warnings.clone(), ..Bpe::default() };
    for (id, text) in full.by_id(n).into_iter().enumerate() {
        let Some(text) = text else {
            bpe.tokens.push(format!("[PAD{id}]").into_bytes());
            bpe.types.push(TokenType::Unused);
            continue;
        };
        // An id fits u32: it is below MAX_VOCAB.
        let (text, kind) = match full.added(id as u32) {
            Some(token) if full.is_added(text) => {
                added(text, token.normalized, token.special, decoder.as_ref())
                    .map_err(|e| invalid(&path, format!("token {id} cannot be decoded: {e}")))?
            }
            _ => (text.to_owned(), TokenType::Normal),
        };
        bpe.tokens.push(text.into_bytes());
        bpe.types.push(kind);
    }
    bpe.merges = merges(dir, &definition.model.merges, &mut bpe.warnings)?;
    let choice = pre::recognize(definition, &full, config);
    bpe.pre = choice.name.to_owned();
    bpe.warnings.extend(choice.warning);
    Ok(bpe)
}

/// How an added token is written, and as what.
///
/// llama.cpp looks for these tokens in the text as it is, so one that is not to be normalized is encoded and
/// decoded. Encoding finds the token itself, as the longest match at the first place; what remains is decoding
/// its id, which is the decoder run over its text.
fn added(
    text: &str,
    normalized: bool,
    special: bool,
    decoder: Option<&DecoderWrapper>,
) -> tokenizers::Result<(String, TokenType)> {
    let mut text = text.to_owned();
    if !normalized && let Some(decoder) = decoder {
        text = decoder.decode(vec![text])?;
    }
    if special || super::looks_special(&text) {
        return Ok((text, TokenType::Control));
    }
    Ok((text.replace('\u{2581}', " "), TokenType::UserDefined))
}

/// The merge rules; those of `merges.txt` if `tokenizer.json` has none.
fn merges(dir: &Path, merges: &[Merge], warnings: &mut Vec<String>) -> Result<Vec<String>> {
    if !merges.is_empty() {
        if merges.iter().any(|m| m.escaped) {
            warnings.push("some merge rules hold spaces, which are written as \"Ġ\"".into());
        }
        return Ok(merges.iter().map(|m| m.text.clone()).collect());
    }
    let path = dir.join("merges.txt");
    let Some(text) = read_text(&path)? else {
        warnings.push("the tokenizer has no merge rules".into());
        return Ok(Vec::new());
    };
    let mut out = Vec::new();
    for (number, line) in text.split('\n').enumerate() {
        let parts: Vec<&str> = line.split_whitespace().collect();
        match parts[..] {
            [] => {}
            _ if number == 0 && line.trim().starts_with('#') => {}
            [left, right] => out.push(format!("{left} {right}")),
            _ => warnings.push(format!("{}: line {} is no merge rule", path.display(), number + 1)),
        }
    }
    Ok(out)
}

/// A definition out of `vocab.json`, where there is no `tokenizer.json`. The rest is what GPT-2's and Qwen2's
/// tokenizer classes build in code.
fn from_parts(dir: &Path, config: Option<&Map<String, Value>>) -> Result<Definition> {
    let Some(vocab) = read_json::<Entries>(&dir.join("vocab.json"))? else {
        return Err(Error::new(
            Kind::NotFound,
            format!("{}: neither tokenizer.json nor tokenizer.model nor vocab.json", dir.display()),
        )
        .hint("Get the tokenizer's files of the model too."));
    };
    let mut definition = Definition::default();
    definition.model.kind = Some("BPE".into());
    definition.model.vocab = vocab;
    definition.decoder = Some(serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}));
    let class = config.and_then(|c| c.get("tokenizer_class")).and_then(Value::as_str).unwrap_or_default();
    let byte_level = |regex: bool| {
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": regex})
    };
    definition.pre_tokenizer = Some(if class.starts_with("Qwen2") {
        definition.normalizer = Some(serde_json::json!({"type": "NFC"}));
        serde_json::json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pre::QWEN2}, "behavior": "Isolated", "invert": false},
            byte_level(false)]})
    } else {
        byte_level(true)
    });
    Ok(definition)
}
