//! From a [`Vocab`] to `tokenizer.json` and `tokenizer_config.json`: a tokenizer that gives the ids that llama.cpp gives
//! with the same vocabulary.

mod byte_level;
mod patterns;
mod sentence_piece;

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::encoder::{Encoder, SpecialTokens};
use crate::error::{Error, Kind, Result};
use crate::source::vocab::{ChatTemplate, TokenType, Vocab, VocabModel};

/// A tokenizer in Hugging Face's format.
#[derive(Clone, Debug, PartialEq)]
pub struct Rebuilt {
    /// `tokenizer.json`.
    pub definition: Value,
    /// `tokenizer_config.json`.
    pub config: Value,
    /// `tokenizer.model` of SentencePiece, which alone holds the scores.
    pub model: Option<Vec<u8>>,
    /// What is known of special tokens.
    pub special: SpecialTokens,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What byte-level BPE and SentencePiece differ in.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    /// Where no special tokens are added.
    post_processor: Value,
    decoder: Value,
    unk_token: Value,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    /// Best first.
    merges: Vec<Value>,
}

/// Builds the tokenizer of a vocabulary.
///
/// # Errors
/// `Unsupported` for a pre-tokenizer or a vocabulary that the `tokenizers` library cannot express, `Invalid` if two
/// tokens are alike.
pub fn rebuild(vocab: &Vocab) -> Result<Rebuilt> {
    let mut ids = HashMap::with_capacity(vocab.tokens.len());
    let mut texts = Vec::with_capacity(vocab.tokens.len());
    for id in 0..vocab.tokens.len() {
        if is_filler(vocab, id) {
            continue;
        }
        let text = text(vocab, id)?;
        if let Some(other) = ids.insert(text, id as u32) {
            return Err(Error::new(Kind::Invalid, format!("tokens {other} and {id} are both {text:?}")));
        }
        texts.push((id, text));
    }
    let mut warnings = vocab.warnings.clone();
    let parts = match &vocab.model {
        VocabModel::ByteLevelBpe { merges } => byte_level::parts(&vocab.pre, merges, &ids, &mut warnings)?,
        VocabModel::SentencePiece { scores } => sentence_piece::parts(vocab, scores, &ids, &mut warnings)?,
    };
    let special = special(vocab);
    let definition = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added(vocab, &texts),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": template(vocab)?.unwrap_or(parts.post_processor),
        "decoder": parts.decoder,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": parts.unk_token,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": parts.fuse_unk,
            "byte_fallback": parts.byte_fallback,
            "ignore_merges": parts.ignore_merges,
            "vocab": texts.iter().map(|(id, text)| ((*text).to_owned(), json!(id))).collect::<Map<_, _>>(),
            "merges": parts.merges,
        },
    });
    let model = match &vocab.model {
        VocabModel::ByteLevelBpe { .. } => None,
        VocabModel::SentencePiece { scores } => Some(sentence_piece::model(vocab, scores)),
    };
    Ok(Rebuilt { definition, config: config(vocab)?, model, special, warnings })
}

impl Rebuilt {
    /// The tokenizer, ready to encode.
    ///
    /// # Errors
    /// `Invalid` if the library does not take the definition.
    pub fn encoder(&self) -> Result<Encoder> {
        let definition = self.definition.to_string();
        let what = || "the vocabulary does not make a usable tokenizer".to_owned();
        Encoder::of_definition(definition.as_bytes(), self.special.clone(), what)
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and, of SentencePiece, `tokenizer.model` into `dir`.
    ///
    /// # Errors
    /// `Resources` if they cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        for (name, value) in [("tokenizer.json", &self.definition), ("tokenizer_config.json", &self.config)] {
            write(&dir.join(name), format!("{value:#}\n").as_bytes())?;
        }
        self.model.as_ref().map_or(Ok(()), |model| write(&dir.join("tokenizer.model"), model))
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| Error::output(format!("cannot write {}", path.display()), e))
}

/// Whether a token only fills the vocabulary up to the size of the embedding.
fn is_filler(vocab: &Vocab, id: usize) -> bool {
    vocab.types[id] == TokenType::Unused && vocab.tokens[id] == format!("[PAD{id}]").as_bytes()
}

fn text(vocab: &Vocab, id: usize) -> Result<&str> {
    std::str::from_utf8(&vocab.tokens[id]).map_err(|_| {
        Error::new(
            Kind::Unsupported,
            format!("token {id} is not valid UTF-8; the tokenizers library has no such tokens"),
        )
    })
}

/// The tokens that are found before the model sees a text.
fn added(vocab: &Vocab, texts: &[(usize, &str)]) -> Vec<Value> {
    let entry = |(id, text): &(usize, &str)| {
        let special = match vocab.types[*id] {
            TokenType::Control | TokenType::Unknown => true,
            TokenType::UserDefined => false,
            _ => return None,
        };
        let strips = vocab.strip_after.contains(&(*id as u32));
        Some(json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": strips,
            "normalized": false, "special": special}))
    };
    texts.iter().filter_map(entry).collect()
}

fn role(vocab: &Vocab, role: &str) -> Option<u32> {
    vocab.special.iter().find(|(r, _)| r == role).map(|(_, id)| *id)
}

fn adds(vocab: &Vocab, role: &str) -> bool {
    vocab.add.iter().any(|(r, add)| r == role && *add)
}

fn special(vocab: &Vocab) -> SpecialTokens {
    SpecialTokens {
        bos: role(vocab, "bos"),
        eos: role(vocab, "eos"),
        add_bos: adds(vocab, "bos"),
        chat_template: vocab.chat_template.clone(),
    }
}

/// The post-processor that adds special tokens, if some are to be added.
fn template(vocab: &Vocab) -> Result<Option<Value>> {
    let mut tokens = Map::new();
    let mut place = |name: &str| -> Result<Option<String>> {
        let Some(id) = role(vocab, name).filter(|_| adds(vocab, name)) else { return Ok(None) };
        let text = text(vocab, id as usize)?.to_owned();
        tokens.insert(text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
        Ok(Some(text))
    };
    let (bos, eos) = (place("bos")?, place("eos")?);
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let around = |sequence: &str, kind: u32| {
        let token = |text: &Option<String>| {
            text.iter().map(|t| json!({"SpecialToken": {"id": t, "type_id": kind}})).collect::<Vec<_>>()
        };
        let own = vec![json!({"Sequence": {"id": sequence, "type_id": kind}})];
        [token(&bos), own, token(&eos)].concat()
    };
    let pair = [around("A", 0), around("B", 1)].concat();
    Ok(Some(
        json!({"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": tokens}),
    ))
}

/// `tokenizer_config.json`.
fn config(vocab: &Vocab) -> Result<Value> {
    let mut config = Map::new();
    for name in ["bos", "eos", "unk", "sep", "pad", "mask"] {
        if let Some(id) = role(vocab, name) {
            config.insert(format!("{name}_token"), json!(text(vocab, id as usize)?));
        }
    }
    for name in ["bos", "eos"] {
        config.insert(format!("add_{name}_token"), json!(adds(vocab, name)));
    }
    match &vocab.chat_template {
        None => {}
        Some(ChatTemplate::One(text)) => {
            config.insert("chat_template".into(), json!(text));
        }
        Some(ChatTemplate::Named(list)) => {
            let list: Vec<Value> =
                list.iter().map(|(name, text)| json!({"name": name, "template": text})).collect();
            config.insert("chat_template".into(), json!(list));
        }
    }
    if let VocabModel::SentencePiece { scores } = &vocab.model {
        config.insert("added_tokens_decoder".into(), sentence_piece::added(vocab, scores)?);
        if vocab.add_space_prefix == Some(false) {
            config.insert("add_prefix_space".into(), json!(false));
        }
    }
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    Ok(Value::Object(config))
}

#[cfg(test)]
mod tests;
