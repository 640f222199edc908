//! Vocabularies of SentencePiece models, and of `tokenizer.json` files made from them.

use std::path::Path;

use serde_json::{Map, Value};

use super::added::{FullVocab, decoder_entry};
use super::definition::{AddedEntry, Definition};
use super::json::{invalid, read_bytes, read_json};
use super::proto::{PieceKind, pieces};
use crate::error::{Error, Kind, Result};
use crate::source::vocab::TokenType;

/// A vocabulary in the making: texts, scores and types by id.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Scored {
    pub(super) tokens: Vec<Vec<u8>>,
    pub(super) scores: Vec<f32>,
    pub(super) types: Vec<TokenType>,
    pub(super) warnings: Vec<String>,
}

/// How a family treats the tokens that are added to the model's pieces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Style {
    /// Those of `tokenizer_config.json`; some that don't say so are taken for special.
    Usual,
    /// Also those of `tokenizer.json`, and every flag is taken as it is.
    Phi3,
}

/// Reads `tokenizer.model` of `dir` and the tokens added to it, filled up to `vocab_size`.
pub(super) fn load(
    dir: &Path,
    style: Style,
    definition: Option<&Definition>,
    config: Option<&Map<String, Value>>,
    vocab_size: Option<usize>,
) -> Result<Scored> {
    let path = dir.join("tokenizer.model");
    let bytes = read_bytes(&path)?.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("{}: no such file", path.display()))
            .hint("Get the tokenizer of the model too; its SentencePiece file is called tokenizer.model.")
    })?;
    let pieces = pieces(&bytes, &path)?;
    let n = match (vocab_size, style) {
        // Zero counts as not given.
        (Some(0) | None, _) => pieces.len(),
        (Some(n), Style::Usual) => n,
        (Some(n), Style::Phi3) if pieces.len() <= n => n,
        (Some(n), Style::Phi3) => {
            return Err(invalid(&path, format!("{} pieces, but the model has {n} tokens", pieces.len())));
        }
    };
    super::check_size(n, &path)?;
    let mut vocab = Scored {
        tokens: (0..n).map(|i| format!("[PAD{i}]").into_bytes()).collect(),
        scores: vec![-10000.0; n],
        types: vec![TokenType::Unused; n],
        warnings: Vec::new(),
    };
    if pieces.len() > n {
        vocab
            .warnings
            .push(format!("{}: pieces from {n} on are left out, the model has none", path.display()));
    }
    for (id, piece) in pieces.into_iter().take(n).enumerate() {
        vocab.tokens[id] = piece.text;
        vocab.scores[id] = piece.score;
        vocab.types[id] = match piece.kind {
            PieceKind::Unknown => TokenType::Unknown,
            PieceKind::Control => TokenType::Control,
            PieceKind::Unused => TokenType::Unused,
            PieceKind::Byte => TokenType::Byte,
            PieceKind::Normal | PieceKind::UserDefined => TokenType::Normal,
        };
    }

    let path = dir.join("added_tokens.json");
    for (content, id) in read_json::<Map<String, Value>>(&path)?.unwrap_or_default() {
        let id = id.as_i64().ok_or_else(|| invalid(&path, format!("{content:?} has no integer id")))?;
        if let Some(id) = vocab.place(id, &content, style, &path)? {
            vocab.set(id, content.into_bytes(), TokenType::UserDefined);
        }
    }

    let path = dir.join("tokenizer_config.json");
    let listed = config.and_then(|c| c.get("added_tokens_decoder")).and_then(Value::as_object);
    for (id, token) in listed.into_iter().flatten() {
        let (id, token) = decoder_entry(id, token).ok_or_else(|| {
            invalid(&path, format!("entry {id:?} of added_tokens_decoder is not a token under its id"))
        })?;
        vocab.add(id, token, style, &path)?;
    }
    if style == Style::Phi3 {
        let path = dir.join("tokenizer.json");
        for token in definition.map_or(&[][..], |d| &d.added_tokens) {
            let id = token.id.ok_or_else(|| invalid(&path, format!("{:?} has no id", token.content)))?;
            vocab.add(id, token.clone(), style, &path)?;
        }
    }
    Ok(vocab)
}

impl Scored {
    /// The index of an id; nothing if it is too large and the family overlooks that.
    fn place(&mut self, id: i64, content: &str, style: Style, path: &Path) -> Result<Option<usize>> {
        match usize::try_from(id) {
            Ok(id) if id < self.tokens.len() => Ok(Some(id)),
            Ok(_) if style == Style::Usual || path.ends_with("added_tokens.json") => {
                let n = self.tokens.len();
                self.warnings.push(format!(
                    "{}: token {content:?} with id {id} is left out, the model has {n} tokens",
                    path.display()
                ));
                Ok(None)
            }
            _ => Err(invalid(path, format!("token {content:?} has the id {id}, which the model has not"))),
        }
    }

    fn add(&mut self, id: i64, token: AddedEntry, style: Style, path: &Path) -> Result<()> {
        let Some(id) = self.place(id, &token.content, style, path)? else { return Ok(()) };
        if self.types[id] != TokenType::Unused && self.tokens[id] != token.content.as_bytes() {
            let old = String::from_utf8_lossy(&self.tokens[id]).into_owned();
            self.warnings.push(format!(
                "{}: token {id} was {old:?} and becomes {:?}",
                path.display(),
                token.content
            ));
        }
        let special = token.special.unwrap_or(false);
        if special || (style == Style::Usual && super::looks_special(&token.content)) {
            self.set(id, token.content.into_bytes(), TokenType::Control);
        } else if style == Style::Usual {
            self.set(id, token.content.replace('\u{2581}', " ").into_bytes(), TokenType::UserDefined);
        } else {
            self.set(id, token.content.into_bytes(), TokenType::UserDefined);
        }
        Ok(())
    }

    fn set(&mut self, id: usize, text: Vec<u8>, kind: TokenType) {
        self.tokens[id] = text;
        self.scores[id] = -1000.0;
        self.types[id] = kind;
    }
}

/// Whether a `tokenizer.json` is a SentencePiece BPE model in the other format (byte fallback, a decoder of
/// steps), which the converter writes as one; a byte-level BPE is none.
pub(super) fn is_llama_hf(definition: &Definition) -> bool {
    definition.model.kind.as_deref() == Some("BPE")
        && definition.model.byte_fallback == Some(true)
        && definition.decoder.as_ref().and_then(|d| d.get("type")).and_then(Value::as_str) == Some("Sequence")
}

/// The vocabulary of such a `tokenizer.json`. There are no scores in it: all are -1000.
pub(super) fn load_llama_hf(
    dir: &Path,
    definition: &Definition,
    config: Option<&Map<String, Value>>,
) -> Result<Scored> {
    let path = dir.join("tokenizer.json");
    let full = FullVocab::load(dir, definition, config)?;
    let base = full.base_len();
    super::check_size(full.len(), &path)?;
    let mut vocab = Scored { warnings: full.warnings.clone(), ..Scored::default() };
    // Roles that LLaMA's tokenizer classes have without naming them.
    let class = config.and_then(|c| c.get("tokenizer_class")).and_then(Value::as_str).unwrap_or_default();
    let llama = class.starts_with("Llama") || class.starts_with("CodeLlama");
    let is_special =
        |text: &str| full.is_special(text) || (llama && ["<unk>", "<s>", "</s>"].contains(&text));
    for (id, text) in full.by_id(base).into_iter().enumerate() {
        let text = text.ok_or_else(|| invalid(&path, format!("id {id} has no token")))?;
        vocab.types.push(if is_byte(text) {
            TokenType::Byte
        } else if is_special(text) {
            TokenType::Control
        } else {
            TokenType::Normal
        });
        vocab.tokens.push(text.as_bytes().to_vec());
    }
    for (_, token) in full.all_added().filter(|(id, _)| *id as usize >= base) {
        vocab.types.push(if is_special(&token.content) {
            TokenType::Control
        } else {
            TokenType::UserDefined
        });
        vocab.tokens.push(token.content.as_bytes().to_vec());
    }
    vocab.scores = vec![-1000.0; vocab.tokens.len()];
    Ok(vocab)
}

/// Whether a token stands for one byte, like `<0x0A>`.
fn is_byte(text: &str) -> bool {
    text.strip_prefix("<0x")
        .and_then(|t| t.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}
