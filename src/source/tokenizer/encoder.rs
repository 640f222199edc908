//! Text to token ids, by the `tokenizers` library.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::definition::Definition;
use super::json::read_json;
use super::special;
use crate::error::{Error, Kind, Result};
use crate::foreign::caught;
use crate::source::vocab::ChatTemplate;

/// What a model says of its special tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Whether the model wants its BOS before every text.
    pub add_bos: bool,
    /// The chat template, or several under their names.
    pub chat_template: Option<ChatTemplate>,
}

/// A model's tokenizer, ready to encode.
#[derive(Debug)]
pub struct Encoder {
    /// Takes special tokens in a text for what they spell.
    plain: Tokenizer,
    /// Takes them for what they mean; made when it is first needed.
    parsing: OnceLock<Tokenizer>,
    special: SpecialTokens,
}

impl Encoder {
    /// Reads `tokenizer.json` and `tokenizer_config.json` of the model in `dir`.
    ///
    /// # Errors
    /// `NotFound` if there is no `tokenizer.json`, `Invalid` if it is damaged.
    pub fn open(dir: &Path) -> Result<Encoder> {
        let path = dir.join("tokenizer.json");
        let Some(definition) = Definition::load(dir)? else {
            return Err(Error::new(Kind::NotFound, format!("{} holds no tokenizer.json", dir.display()))
                .hint("Save the tokenizer with transformers (save_pretrained writes tokenizer.json)."));
        };
        let config: Option<Map<String, Value>> = read_json(&dir.join("tokenizer_config.json"))?;
        let found = special::load(dir, Some(&definition), config.as_ref(), &special::ROLES, None)?;
        let id = |role: &str| found.ids.iter().find(|(r, _)| r == role).map(|(_, id)| *id);
        let special = SpecialTokens {
            bos: id("bos"),
            eos: id("eos"),
            add_bos: found.add.iter().any(|(role, add)| role == "bos" && *add),
            chat_template: found.chat_template,
        };
        let bytes =
            std::fs::read(&path).map_err(|e| Error::io(format!("cannot read {}", path.display()), e))?;
        Encoder::of_definition(&bytes, special, || format!("{} is not a usable tokenizer", path.display()))
    }

    /// Of what stands in `tokenizer.json`; `what` says what is wrong if the library does not take it. It panics at some, such as
    /// at merges of tokens to one that is longer than every token.
    pub(super) fn of_definition(
        bytes: &[u8],
        special: SpecialTokens,
        what: impl FnOnce() -> String,
    ) -> Result<Encoder> {
        match caught(|| Tokenizer::from_bytes(bytes)) {
            Some(Ok(tokenizer)) => Ok(Encoder::new(tokenizer, special)),
            Some(Err(e)) => Err(Error::new(Kind::Invalid, what()).because(e)),
            None => Err(Error::new(Kind::Invalid, what())),
        }
    }

    /// From parts. Truncation and padding of `tokenizer` are switched off.
    pub fn new(mut tokenizer: Tokenizer, special: SpecialTokens) -> Encoder {
        tokenizer.with_padding(None);
        // Only a stride can be refused.
        let _ = tokenizer.with_truncation(None);
        tokenizer.set_encode_special_tokens(true);
        Encoder { plain: tokenizer, parsing: OnceLock::new(), special }
    }

    /// The tokens of a text and no others; special tokens that the text spells out are ordinary text.
    ///
    /// # Errors
    /// `Invalid` if the tokenizer cannot express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        encode(&self.plain, text)
    }

    /// The same, where special tokens that the text spells out become what they mean, as a chat template wants it.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        let parsing = self.parsing.get_or_init(|| {
            let mut tokenizer = self.plain.clone();
            tokenizer.set_encode_special_tokens(false);
            tokenizer
        });
        encode(parsing, text)
    }

    /// What the model says of its special tokens.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// Whether the model wants its BOS before every text.
    pub fn add_bos(&self) -> bool {
        self.special.add_bos && self.special.bos.is_some()
    }

    /// What a token spells.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.plain.id_to_token(id)
    }

    /// The chat template; of several the one called `default`.
    pub fn chat_template(&self) -> Option<&str> {
        match self.special.chat_template.as_ref()? {
            ChatTemplate::One(template) => Some(template),
            ChatTemplate::Named(all) => {
                all.iter().find(|(name, _)| name == "default").map(|(_, t)| t.as_str())
            }
        }
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.plain.get_vocab_size(true)
    }

    /// Whether both give every token the same id, so that predictions of one can be compared with those of the other. One
    /// may know more tokens: classes of transformers have some that are in no file, and GGUF holds those too. The mark
    /// that SentencePiece has for a space counts as one: llama.cpp's converter writes added tokens so.
    pub fn same_vocabulary(&self, other: &Encoder) -> bool {
        let vocab = |encoder: &Encoder| -> BTreeMap<u32, String> {
            // In order: of several tokens with the same id, which no tokenizer should have, it is always the same that counts.
            let tokens = encoder.plain.get_vocab(true).into_iter().collect::<BTreeMap<_, _>>().into_iter();
            tokens.map(|(text, id)| (id, text.replace('\u{2581}', " "))).collect()
        };
        let (one, other) = (vocab(self), vocab(other));
        let (few, many) = if one.len() <= other.len() { (one, other) } else { (other, one) };
        !few.is_empty() && few.iter().all(|(id, text)| many.get(id) == Some(text))
    }

    /// The tokenizer itself.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.plain
    }
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let failed = || Error::new(Kind::Invalid, "the tokenizer cannot encode the text");
    let encoding = caught(|| tokenizer.encode(text, false)).ok_or_else(failed)?;
    Ok(encoding.map_err(|e| failed().because(e))?.get_ids().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(name: &str) -> Encoder {
        Encoder::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name)).unwrap()
    }

    #[test]
    fn a_text_has_its_own_tokens_only() {
        let encoder = open("tiny-llama");
        let bos = encoder.bos().unwrap();
        let text = encoder.token_text(bos).unwrap();
        let plain = encoder.encode("Once upon a time").unwrap();
        assert!(!plain.is_empty() && !plain.contains(&bos));
        assert!(!encoder.encode(&text).unwrap().contains(&bos));
        assert_eq!(encoder.encode_with_special(&text).unwrap(), [bos]);
    }

    #[test]
    fn vocabularies_are_told_apart() {
        let (a, b) = (open("tiny-llama"), open("llama-spm"));
        assert!(a.same_vocabulary(&a) && !a.same_vocabulary(&b));
    }

    #[test]
    fn a_directory_without_a_tokenizer_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Encoder::open(dir.path()).unwrap_err().kind(), Kind::NotFound);
        std::fs::write(dir.path().join("tokenizer.json"), "{\"model\": {\"type\": \"BPE\"}}").unwrap();
        assert_eq!(Encoder::open(dir.path()).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn merges_that_lead_nowhere_are_an_error_and_not_the_librarys_panic() {
        let dir = tempfile::tempdir().unwrap();
        for model in [
            r#""vocab": {"a": 0, "b": 1}, "merges": ["a b"]"#,
            r###""vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "continuing_subword_prefix": "##""###,
        ] {
            let text = format!("{{\"added_tokens\": [], \"model\": {{\"type\": \"BPE\", {model}}}}}");
            std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
            let error = Encoder::open(dir.path()).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains("is not a usable tokenizer"), "{error}");
        }
    }
}
