//! A tokenizer's vocabulary in neutral form, as the GGUF writer and later converters need it.

/// What a token is, with the numbers that SentencePiece and GGUF use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// How text is cut into tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum VocabModel {
    /// Byte-level BPE; `merges` are `left right` in rank order.
    ByteLevelBpe {
        /// Merge rules, best first.
        merges: Vec<String>,
    },
    /// SentencePiece (unigram or BPE with byte fallback); one score per token.
    SentencePiece {
        /// Log probability or negative rank of each token.
        scores: Vec<f32>,
    },
}

/// A chat template, or several under their names.
#[derive(Clone, Debug, PartialEq)]
pub enum ChatTemplate {
    /// The only one.
    One(String),
    /// `(name, template)`, in the model's order.
    Named(Vec<(String, String)>),
}

/// A value that is written late, see [`Vocab::late`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Late {
    /// [`Vocab::add_space_prefix`].
    SpacePrefix,
    /// The id of this role in [`Vocab::special`].
    Special(String),
    /// The entry of this role in [`Vocab::add`].
    Add(String),
}

/// Everything that a GGUF file says of a tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocab {
    /// BPE or SentencePiece.
    pub model: VocabModel,
    /// llama.cpp's name of the pre-tokenizer (`llama-bpe`, `qwen2`, `default`, ...).
    pub pre: String,
    /// Each token's text; bytes, since a SentencePiece piece need not be UTF-8.
    pub tokens: Vec<Vec<u8>>,
    /// Each token's type.
    pub types: Vec<TokenType>,
    /// Ids of special tokens, in the order they are written: (`bos`, 1), (`eos`, 2), ...
    pub special: Vec<(String, u32)>,
    /// Whether a special token is added to a text: (`bos`, true), ...
    pub add: Vec<(String, bool)>,
    /// Whether SentencePiece puts a space before the text, where the model says so.
    pub add_space_prefix: Option<bool>,
    /// The chat template, if the model has one.
    pub chat_template: Option<ChatTemplate>,
    /// Whether the normalizer lowers the case, where `tokenizer.json` says so.
    pub lowercase: Option<bool>,
    /// Whether the normalizer strips accents, where `tokenizer.json` says so.
    pub strip_accents: Option<bool>,
    /// Special tokens that take the white space after them. Files do not say it; llama.cpp knows it of some models.
    pub strip_after: Vec<u32>,
    /// What some families write after everything else, in this order; the values are in the fields above.
    pub late: Vec<Late>,
    /// What the user should know of choices made here (an unknown pre-tokenizer, replaced tokens).
    pub warnings: Vec<String>,
}

impl Vocab {
    /// Sets whether the token of `role` is added to a text, in its place if the files say something of it, else
    /// as the last thing written.
    pub(crate) fn set_late_add(&mut self, role: &str, value: bool) {
        match self.add.iter_mut().find(|(r, _)| r == role) {
            Some(entry) => entry.1 = value,
            None => {
                self.late.push(Late::Add(role.to_owned()));
                self.add.push((role.to_owned(), value));
            }
        }
    }
}
