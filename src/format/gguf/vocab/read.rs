//! Reads a vocabulary as llama.cpp does (`llama_vocab::impl::load` in `src/llama-vocab.cpp`): with its defaults for keys
//! that are absent, and its corrections of token types.

use std::collections::HashMap;

use super::super::metadata::{Array, Metadata, Value};
use crate::error::{Error, Kind, Result};
use crate::source::vocab::{ChatTemplate, TokenType, Vocab, VocabModel};

/// Names of pre-tokenizers whose models want a BOS even if no key says so.
const ADD_BOS: &[&str] = &[
    "chameleon",
    "falcon-h1",
    "falcon3",
    "jina-v5-nano",
    "lfm2",
    "llama-bpe",
    "llama-v3",
    "llama3",
    "midm-2.0",
    "pixtral",
    "tekken",
];

/// Tokens that llama.cpp takes for control tokens whatever type they have: ends of turns, messages and texts, and the
/// marks for filling in the middle.
const CONTROL: &[&str] = &[
    "</s>",
    "<EOT>",
    "<PAD>",
    "<PRE>",
    "<MID>",
    "<REPO>",
    "<SUF>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<eos>",
    "<fim-middle>",
    "<fim-pad>",
    "<fim-prefix>",
    "<fim-repo>",
    "<fim-suffix>",
    "<fim_middle>",
    "<fim_pad>",
    "<fim_prefix>",
    "<fim_suffix>",
    "<reponame>",
    "<turn|>",
    "<|call|>",
    "<|calls|>",
    "<|code_middle|>",
    "<|code_prefix|>",
    "<|code_suffix|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|file_sep|>",
    "<|fim_middle|>",
    "<|fim_pad|>",
    "<|fim_prefix|>",
    "<|fim_repo|>",
    "<|fim_suffix|>",
    "<|flush|>",
    "<|im_end|>",
    "<|middle|>",
    "<|prefix|>",
    "<|repo_name|>",
    "<|return|>",
    "<|suffix|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<｜fim▁hole｜>",
    "[EOS]",
    "[EOT]",
    "[PAD]",
    "[e~[",
    "_<EOT>",
    "▁<MID>",
    "▁<PRE>",
    "▁<SUF>",
];

/// Ids of `bos`, `eos` and `unk` where no key names them.
type Defaults = [Option<u32>; 3];

/// The vocabulary of a file.
///
/// Roles and switches are filled in with llama.cpp's defaults. `late` is empty: it says only in which order to write.
///
/// # Errors
/// `Unsupported` for a tokenizer that is neither byte-level BPE nor SentencePiece, `Invalid` if a key is missing or of
/// the wrong type, or lists differ in length.
pub fn read_vocab(meta: &Metadata) -> Result<Vocab> {
    let keys = Keys { meta };
    let kind = keys.text("model")?.ok_or_else(|| missing("model"))?;
    let pre = keys.text("pre")?.unwrap_or("default").to_owned();
    let Some(Value::Array(Array::Str(tokens))) = keys.get("tokens") else {
        return Err(keys.wrong("tokens", "a list of strings"));
    };
    let tokens: Vec<Vec<u8>> = tokens
        .iter()
        .enumerate()
        .map(|(id, text)| if text.is_empty() { format!("[EMPTY_{id}]").into_bytes() } else { text.clone() })
        .collect();
    let (model, defaults): (VocabModel, Defaults) = match kind {
        "gpt2" => (VocabModel::ByteLevelBpe { merges: keys.merges()? }, [Some(11), Some(11), None]),
        "llama" => {
            let scores = keys.scores(tokens.len())?;
            (VocabModel::SentencePiece { scores }, [Some(1), Some(2), Some(0)])
        }
        other => {
            return Err(Error::new(
                Kind::Unsupported,
                format!("tokenizer.ggml.model is '{other}'; only 'gpt2' and 'llama' are supported"),
            ));
        }
    };
    let types = keys.types(&tokens)?;
    let spm = matches!(model, VocabModel::SentencePiece { .. });
    let special = keys.special(defaults, tokens.len(), &pre)?;
    let mut add = Vec::new();
    for (role, default) in [("bos", spm || ADD_BOS.contains(&pre.as_str())), ("eos", false), ("sep", false)] {
        add.push((role.to_owned(), keys.flag(&format!("add_{role}_token"))?.unwrap_or(default)));
    }
    Ok(Vocab {
        model,
        pre,
        special,
        add,
        add_space_prefix: Some(keys.flag("add_space_prefix")?.unwrap_or(spm)),
        chat_template: chat_template(meta),
        lowercase: keys.flag("normalizer.lowercase")?,
        strip_accents: keys.flag("normalizer.strip_accents")?,
        strip_after: strip_after(meta, &tokens, &types),
        late: Vec::new(),
        warnings: Vec::new(),
        tokens,
        types,
    })
}

/// The keys under `tokenizer.ggml`.
struct Keys<'a> {
    meta: &'a Metadata,
}

impl<'a> Keys<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.meta.get(&format!("tokenizer.ggml.{name}"))
    }

    fn wrong(&self, name: &str, expected: &str) -> Error {
        match self.get(name) {
            Some(_) => Error::new(Kind::Invalid, format!("the key tokenizer.ggml.{name} must be {expected}")),
            None => missing(name),
        }
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.get(name).map(|v| v.as_str().ok_or_else(|| self.wrong(name, "text"))).transpose()
    }

    fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(_) => Err(self.wrong(name, "true or false")),
        }
    }

    fn merges(&self) -> Result<Vec<String>> {
        let expected = "a list of texts";
        let Some(Value::Array(Array::Str(merges))) = self.get("merges") else {
            return Err(self.wrong("merges", expected));
        };
        let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).ok();
        merges.iter().map(text).collect::<Option<_>>().ok_or_else(|| self.wrong("merges", expected))
    }

    fn scores(&self, n: usize) -> Result<Vec<f32>> {
        let scores: Vec<f32> = match self.get("scores") {
            Some(Value::Array(Array::F32(scores))) => scores.clone(),
            Some(Value::Array(Array::I32(scores))) => scores.iter().map(|s| *s as f32).collect(),
            // llama.cpp would give all tokens the score 0 and merge from left to right, which fits no model.
            _ => return Err(self.wrong("scores", "a list of numbers")),
        };
        if scores.len() < n || scores.iter().any(|s| s.is_nan()) {
            return Err(self.wrong("scores", &format!("a number for each of {n} tokens")));
        }
        Ok(scores[..n].to_vec())
    }

    fn types(&self, tokens: &[Vec<u8>]) -> Result<Vec<TokenType>> {
        let given = match self.get("token_type") {
            Some(Value::Array(Array::I32(types))) if types.len() >= tokens.len() => Some(types),
            None => None,
            Some(_) => return Err(self.wrong("token_type", "an int32 for each token")),
        };
        let of = |(id, text): (usize, &Vec<u8>)| {
            let kind = match given.map(|types| types[id]) {
                Some(2) => TokenType::Unknown,
                Some(3) => TokenType::Control,
                Some(4) => TokenType::UserDefined,
                Some(5) => TokenType::Unused,
                Some(6) => TokenType::Byte,
                _ => TokenType::Normal,
            };
            if CONTROL.iter().any(|known| known.as_bytes() == text) { TokenType::Control } else { kind }
        };
        Ok(tokens.iter().enumerate().map(of).collect())
    }

    fn special(&self, defaults: Defaults, n: usize, pre: &str) -> Result<Vec<(String, u32)>> {
        let [bos, eos, unk] = defaults;
        // These models begin their texts with nothing.
        let bos = bos.filter(|_| !["chatglm-bpe", "glm4", "glm5"].contains(&pre));
        let mut special = Vec::new();
        for (role, name, default) in [
            ("bos", "bos", bos),
            ("eos", "eos", eos),
            ("unk", "unknown", unk),
            ("sep", "seperator", None),
            ("pad", "padding", None),
            ("mask", "mask", None),
            ("eot", "eot", None),
            ("eom", "eom", None),
        ] {
            let name = format!("{name}_token_id");
            let given = match self.get(&name) {
                None => None,
                Some(value) => Some(value.as_u64().ok_or_else(|| self.wrong(&name, "a whole number"))?),
            };
            // An id that the vocabulary does not have counts as none.
            let given = given.and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < n);
            if let Some(id) = given.or(default.filter(|id| (*id as usize) < n)) {
                special.push((role.to_owned(), id));
            }
        }
        Ok(special)
    }
}

/// The tokens of Phi-3 that take the white space after them: the special ones, but for three.
fn strip_after(meta: &Metadata, tokens: &[Vec<u8>], types: &[TokenType]) -> Vec<u32> {
    let name = meta.get("general.name").and_then(Value::as_str).unwrap_or_default().to_lowercase();
    if !name.contains("phi-3") && !name.contains("phi3") {
        return Vec::new();
    }
    let strips = |id: &usize| {
        matches!(types[*id], TokenType::Control | TokenType::Unknown | TokenType::UserDefined)
            && ![&b"<unk>"[..], b"<s>", b"<|endoftext|>"].contains(&tokens[*id].as_slice())
    };
    (0..tokens.len()).filter(strips).map(|id| id as u32).collect()
}

/// The template, or those that have names together with the default.
fn chat_template(meta: &Metadata) -> Option<ChatTemplate> {
    let text = |key: &str| meta.get(key).and_then(Value::as_str).map(str::to_owned);
    let default = text("tokenizer.chat_template");
    let names = match meta.get("tokenizer.chat_templates") {
        Some(Value::Array(Array::Str(names))) => names.as_slice(),
        _ => &[],
    };
    // Keys are looked through once, however many names there are.
    let templates: HashMap<&str, &str> = meta
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix("tokenizer.chat_template.")?, value.as_str()?)))
        .collect();
    let mut named: Vec<(String, String)> = names
        .iter()
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter_map(|name| Some((name.to_owned(), (*templates.get(name)?).to_owned())))
        .take(templates.len())
        .collect();
    if named.is_empty() {
        return default.map(ChatTemplate::One);
    }
    if let Some(default) = default {
        named.insert(0, ("default".into(), default));
    }
    Some(ChatTemplate::Named(named))
}

fn missing(name: &str) -> Error {
    Error::new(Kind::Invalid, format!("the key tokenizer.ggml.{name} is missing"))
}

#[cfg(test)]
mod tests {
    use super::super::write_vocab;
    use super::*;

    fn vocab() -> Vocab {
        Vocab {
            model: VocabModel::SentencePiece { scores: vec![0.0, 0.0, 0.0, -1.0, -1000.0] },
            pre: "default".into(),
            tokens: ["<unk>", "<s>", "</s>", "a", "[PAD4]"].map(|t| t.as_bytes().to_vec()).into(),
            types: vec![
                TokenType::Unknown,
                TokenType::Control,
                TokenType::Control,
                TokenType::Normal,
                TokenType::Unused,
            ],
            special: vec![("bos".into(), 1), ("eos".into(), 2), ("unk".into(), 0), ("pad".into(), 2)],
            add: vec![("bos".into(), true), ("eos".into(), false), ("sep".into(), false)],
            add_space_prefix: Some(false),
            chat_template: Some(ChatTemplate::Named(vec![
                ("default".into(), "{{ x }}".into()),
                ("tool_use".into(), "{{ y }}".into()),
            ])),
            lowercase: None,
            strip_accents: None,
            strip_after: vec![],
            late: vec![],
            warnings: vec![],
        }
    }

    fn written(vocab: &Vocab) -> Metadata {
        let mut meta = Metadata::new();
        write_vocab(vocab, &mut meta);
        meta
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut vocab = vocab();
        assert_eq!(read_vocab(&written(&vocab)).unwrap(), vocab);
        vocab.model = VocabModel::ByteLevelBpe { merges: vec!["a b".into()] };
        vocab.pre = "qwen2".into();
        vocab.chat_template = Some(ChatTemplate::One("{{ x }}".into()));
        assert_eq!(read_vocab(&written(&vocab)).unwrap(), vocab);
    }

    #[test]
    fn what_a_file_does_not_say_is_llama_cpps_default() {
        let full = written(&vocab());
        let mut meta = Metadata::new();
        for (key, value) in full.iter().filter(|(key, _)| {
            ["model", "tokens", "scores"].contains(&key.trim_start_matches("tokenizer.ggml."))
        }) {
            meta.set(key, value.clone());
        }
        let read = read_vocab(&meta).unwrap();
        assert_eq!(read.special, [("bos".into(), 1), ("eos".into(), 2), ("unk".into(), 0)]);
        assert_eq!(read.add[0], ("bos".into(), true));
        assert_eq!(read.add_space_prefix, Some(true));
        // `</s>` is an end of text whatever its type.
        let control = read.types.iter().map(|t| *t == TokenType::Control);
        assert!(control.eq([false, false, true, false, false]));

        meta.set("tokenizer.ggml.model", "gpt2");
        meta.set("tokenizer.ggml.merges", Value::Array(Array::Str(vec![])));
        for (pre, add) in [("llama-bpe", true), ("gpt-2", false)] {
            meta.set("tokenizer.ggml.pre", pre);
            let read = read_vocab(&meta).unwrap();
            assert_eq!((read.special.len(), read.add[0].1, read.add_space_prefix), (0, add, Some(false)));
        }
    }

    #[test]
    fn phi_3_strips_spaces_after_its_tokens() {
        let mut meta = written(&vocab());
        meta.set("general.name", "Phi-3 Mini");
        assert_eq!(read_vocab(&meta).unwrap().strip_after, [2]);
    }

    #[test]
    fn damage_is_named() {
        for (key, value, kind) in [
            ("model", Value::from("bert"), Kind::Unsupported),
            ("model", Value::U32(1), Kind::Invalid),
            ("tokens", Value::U32(1), Kind::Invalid),
            ("scores", Value::Array(Array::F32(vec![0.0])), Kind::Invalid),
            ("scores", Value::Array(Array::F32(vec![f32::NAN; 5])), Kind::Invalid),
            ("token_type", Value::Array(Array::I32(vec![1])), Kind::Invalid),
            ("bos_token_id", Value::from("x"), Kind::Invalid),
            ("add_bos_token", Value::U32(1), Kind::Invalid),
        ] {
            let mut meta = written(&vocab());
            meta.set(format!("tokenizer.ggml.{key}"), value);
            let e = read_vocab(&meta).expect_err(key);
            assert_eq!(e.kind(), kind, "{e}");
            assert!(e.to_string().contains(&format!("tokenizer.ggml.{key}")), "{e}");
        }
    }
}
