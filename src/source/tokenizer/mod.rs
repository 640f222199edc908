//! The tokenizer of a model: its files read into a [`Vocab`].
//!
//! What is read, and as what it counts, is what llama.cpp's converter does for each family of models, so that
//! the same vocabulary comes out. One thing is decided otherwise: the pre-tokenizer is recognized by its
//! definition, where the converter compares a hash of what a test sentence becomes; see [`pre`].

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::source::vocab::{Late, Vocab, VocabModel};

mod added;
mod bpe;
mod definition;
pub mod encoder;
pub(crate) mod json;
pub mod pre;
mod pre_table;
mod proto;
pub mod rebuild;
mod sentencepiece;
mod special;

use definition::Definition;
use json::read_json;
use sentencepiece::{Scored, Style};
use special::Special;

/// More tokens than any model has; what claims more is broken.
const MAX_VOCAB: usize = 1 << 22;

/// Which files make a family's vocabulary, and what is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VocabScheme {
    /// LLaMA, Mistral, SmolLM3 and relatives: `tokenizer.model` if there is one, else `tokenizer.json` as
    /// SentencePiece if it has byte fallback, else as byte-level BPE.
    Llama,
    /// Qwen2 and Qwen3: `tokenizer.model` if there is one, else byte-level BPE.
    Qwen,
    /// Byte-level BPE only (Qwen's mixtures of experts, and whatever has no way of its own).
    Bpe,
    /// Gemma 2: `tokenizer.model`, no space before the text.
    Gemma2,
    /// Gemma 3: as Gemma 2, or byte-level BPE where there is no `tokenizer.model`.
    Gemma3,
    /// Phi-3: `tokenizer.model` with its own treatment of added tokens; byte-level BPE for Phi-4, whose class
    /// is `GPT2Tokenizer`.
    Phi3,
}

/// Reads the tokenizer of the model in `dir`.
///
/// `vocab_size` is that of `config.json`; with none, as many tokens as the tokenizer has.
///
/// # Errors
///
/// `NotFound` if the tokenizer's files are missing, `Invalid` if they are broken or do not fit `vocab_size`.
pub fn load_vocab(dir: &Path, scheme: VocabScheme, vocab_size: Option<usize>) -> Result<Vocab> {
    let files = Files {
        dir,
        definition: Definition::load(dir)?,
        config: read_json(&dir.join("tokenizer_config.json"))?,
        vocab_size,
    };
    let has_model = dir.join("tokenizer.model").is_file();
    match scheme {
        VocabScheme::Llama => files.llama(has_model),
        VocabScheme::Bpe => files.bpe(),
        VocabScheme::Qwen if has_model => files.sentencepiece(Style::Usual),
        VocabScheme::Qwen => files.bpe(),
        VocabScheme::Gemma3 if !has_model => files.bpe(),
        VocabScheme::Gemma2 | VocabScheme::Gemma3 => files.gemma(),
        VocabScheme::Phi3 if files.class() == "GPT2Tokenizer" => files.bpe(),
        VocabScheme::Phi3 => files.sentencepiece(Style::Phi3),
    }
}

/// Number of tokens that a model without `tokenizer.model` defines, added ones counted on top even where they repeat one
/// of the vocabulary: Gemma 3's embedding is cut to it (`Gemma3Model.modify_tensors`).
pub fn known_tokens(dir: &Path) -> Result<Option<usize>> {
    if dir.join("tokenizer.model").is_file() {
        return Ok(None);
    }
    Ok(Definition::load(dir)?.map(|d| d.model.vocab.0.len() + d.added_tokens.len()))
}

/// A model's tokenizer files, as far as they are read whatever the family.
struct Files<'a> {
    dir: &'a Path,
    definition: Option<Definition>,
    config: Option<Map<String, Value>>,
    vocab_size: Option<usize>,
}

impl Files<'_> {
    fn class(&self) -> &str {
        self.config
            .as_ref()
            .and_then(|c| c.get("tokenizer_class"))
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    fn llama(&self, has_model: bool) -> Result<Vocab> {
        if self.definition.is_none() && !has_model && self.dir.join("tekken.json").is_file() {
            return Err(Error::new(
                Kind::Unsupported,
                format!("{}: a tokenizer in Mistral's own format (tekken.json)", self.dir.display()),
            )
            .hint("Use the model in the Hugging Face format, which has a tokenizer.json."));
        }
        let mut vocab = if has_model {
            self.sentencepiece(Style::Usual)?
        } else {
            match &self.definition {
                Some(definition) if sentencepiece::is_llama_hf(definition) => {
                    let scored = sentencepiece::load_llama_hf(self.dir, definition, self.config.as_ref())?;
                    self.scored(scored)?
                }
                _ => self.bpe()?,
            }
        };
        let space = self.config.as_ref().and_then(|c| c.get("add_prefix_space"));
        vocab.add_space_prefix = space.and_then(Value::as_bool);
        match self.vocab_size {
            // CodeLlama.
            Some(32016) => {
                self.more_special(&mut vocab, &["prefix", "suffix", "middle", "eot"], ("eot", 32010))?
            }
            // Small Granite models.
            Some(49152) => vocab.set_late_add("bos", false),
            _ => {}
        }
        Ok(vocab)
    }

    fn gemma(&self) -> Result<Vocab> {
        let mut vocab = self.sentencepiece(Style::Usual)?;
        vocab.add_space_prefix = Some(false);
        vocab.late.push(Late::SpacePrefix);
        Ok(vocab)
    }

    fn bpe(&self) -> Result<Vocab> {
        let bpe = bpe::load(self.dir, self.definition.as_ref(), self.config.as_ref(), self.vocab_size)?;
        let special = self.special(&special::ROLES, None)?;
        let model = VocabModel::ByteLevelBpe { merges: bpe.merges };
        Ok(vocab(model, bpe.pre, bpe.tokens, bpe.types, bpe.warnings, special))
    }

    fn sentencepiece(&self, style: Style) -> Result<Vocab> {
        self.scored(sentencepiece::load(
            self.dir,
            style,
            self.definition.as_ref(),
            self.config.as_ref(),
            self.vocab_size,
        )?)
    }

    fn scored(&self, scored: Scored) -> Result<Vocab> {
        let special = self.special(&special::ROLES, Some(scored.tokens.len()))?;
        let model = VocabModel::SentencePiece { scores: scored.scores };
        Ok(vocab(model, "default".into(), scored.tokens, scored.types, scored.warnings, special))
    }

    fn special(&self, roles: &[&str], n_vocab: Option<usize>) -> Result<Special> {
        special::load(self.dir, self.definition.as_ref(), self.config.as_ref(), roles, n_vocab)
    }

    /// Looks for further roles, as a family's second reading of the same files does; `fallback` is a role's id
    /// where the files name none. Of the roles only `eot` and `eom` have a key in GGUF.
    fn more_special(&self, vocab: &mut Vocab, roles: &[&str], fallback: (&str, u32)) -> Result<()> {
        let mut more = self.special(roles, None)?;
        if !more.ids.iter().any(|(role, _)| role == fallback.0) {
            more.ids.push((fallback.0.to_owned(), fallback.1));
        }
        for (role, id) in more.ids.into_iter().filter(|(role, _)| role.starts_with("eo")) {
            match vocab.special.iter_mut().find(|(r, _)| *r == role) {
                Some(entry) => entry.1 = id,
                None => {
                    vocab.late.push(Late::Special(role.clone()));
                    vocab.special.push((role, id));
                }
            }
        }
        for (role, add) in more.add {
            vocab.set_late_add(&role, add);
        }
        Ok(())
    }
}

fn vocab(
    model: VocabModel,
    pre: String,
    tokens: Vec<Vec<u8>>,
    types: Vec<crate::source::vocab::TokenType>,
    mut warnings: Vec<String>,
    special: Special,
) -> Vocab {
    warnings.extend(special.warnings);
    Vocab {
        model,
        pre,
        tokens,
        types,
        special: special.ids,
        add: special.add,
        add_space_prefix: None,
        chat_template: special.chat_template,
        lowercase: special.lowercase,
        strip_accents: special.strip_accents,
        strip_after: Vec::new(),
        late: Vec::new(),
        warnings,
    }
}

/// Whether a token that is not marked as special should have been.
fn looks_special(text: &str) -> bool {
    let within = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || within("<|", "|>")
        || within("<｜", "｜>")
        || within("<unused", ">")
}

fn check_size(n: usize, path: &Path) -> Result<()> {
    if n == 0 || n > MAX_VOCAB {
        return Err(json::invalid(path, format!("a vocabulary of {n} tokens is impossible")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
