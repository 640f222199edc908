//! A tokenizer's whole vocabulary: the model's tokens, and those added around it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Map, Value};

use super::definition::{AddedEntry, Definition};
use super::json::{invalid, read_json};
use crate::error::Result;

/// The special tokens that every tokenizer may name, in the order in which they are added.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token outside of the model's own vocabulary, or one of it that is matched before the model runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AddedToken {
    pub(crate) content: String,
    pub(crate) normalized: bool,
    pub(crate) special: bool,
}

impl From<AddedEntry> for AddedToken {
    fn from(e: AddedEntry) -> Self {
        let special = e.special.unwrap_or(false);
        AddedToken { content: e.content, normalized: e.normalized.unwrap_or(!special), special }
    }
}

/// The vocabulary as the transformers library has it once a tokenizer is loaded.
#[derive(Debug, Default)]
pub(crate) struct FullVocab {
    /// The model's tokens; two of them may claim one id.
    index: HashMap<String, u32>,
    /// `index` as a list in the order of the file.
    base: Vec<(String, u32)>,
    added: BTreeMap<u32, AddedToken>,
    added_index: HashMap<String, u32>,
    /// Tokens with a role (`bos_token`, ...) and the extra special ones.
    special: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

impl FullVocab {
    /// Puts together what `transformers.AutoTokenizer` does from the files of `dir`.
    ///
    /// Tokens are added in its order, which decides their ids: `added_tokens` of `tokenizer.json`; then
    /// `added_tokens_decoder` of `tokenizer_config.json` by id, overriding flags; without that
    /// `added_tokens.json`; then tokens with a role (`bos_token` and so on); then extra special tokens. As
    /// there, a token that is new gets the next free id, whatever id was declared for it.
    ///
    /// Some tokenizer classes have tokens of their own, see [`class_of`]. Not followed is that these read
    /// `added_tokens` of `tokenizer.json` only where `tokenizer_config.json` lists none; published models have
    /// the same tokens in both.
    pub(crate) fn load(
        dir: &Path,
        definition: &Definition,
        config: Option<&Map<String, Value>>,
    ) -> Result<Self> {
        let json = dir.join("tokenizer.json");
        let mut vocab = FullVocab::default();
        for (token, id) in &definition.model.vocab.0 {
            vocab.index.insert(token.clone(), *id);
        }
        vocab.base = definition.model.vocab.0.clone();
        // A token that is listed twice keeps its last id only.
        let index = &vocab.index;
        vocab.base.retain(|(token, id)| index[token] == *id);

        for entry in &definition.added_tokens {
            let declared = entry.id;
            let content = entry.content.clone();
            let got = vocab.add(entry.clone().into()).map_err(|what| invalid(&json, what))?;
            if let (Some(declared), Some(got)) = (declared, got)
                && declared != i64::from(got)
            {
                if !(0..super::MAX_VOCAB as i64).contains(&declared) {
                    return Err(invalid(
                        &json,
                        format!("added token {content:?} has the impossible id {declared}"),
                    ));
                }
                vocab.warnings.push(format!(
                    "{}: added token {content:?} claims id {declared} but gets {got}",
                    json.display()
                ));
            }
        }
        vocab.add_from_config(dir, config)?;
        Ok(vocab)
    }

    fn add_from_config(&mut self, dir: &Path, config: Option<&Map<String, Value>>) -> Result<()> {
        let path = dir.join("tokenizer_config.json");
        let mut named: Map<String, Value> = config.cloned().unwrap_or_default();
        let mut by_id = BTreeMap::new();
        if let Some(decoder) = named.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, token) in decoder {
                let (id, token) = decoder_entry(id, token).ok_or_else(|| {
                    invalid(
                        &path,
                        format!("entry {id:?} of added_tokens_decoder is not a token under its id"),
                    )
                })?;
                by_id.insert(id, AddedToken::from(token));
            }
        } else {
            if let Some(map) = read_json::<Map<String, Value>>(&dir.join("special_tokens_map.json"))? {
                named.extend(map);
            }
            let path = dir.join("added_tokens.json");
            if let Some(list) = read_json::<Map<String, Value>>(&path)? {
                let special = special_names(&named);
                for (content, id) in list {
                    let id = id
                        .as_i64()
                        .ok_or_else(|| invalid(&path, format!("{content:?} has no integer id")))?;
                    let special = special.contains(&content);
                    by_id.insert(id, AddedToken { content, normalized: !special, special });
                }
            }
            // tokenizer.json's own list wins where both have an id; it is added already.
            let declared: Vec<i64> = self.added.keys().map(|id| i64::from(*id)).collect();
            for id in declared {
                by_id.remove(&id);
            }
        }
        for token in by_id.into_values() {
            self.add(token).map_err(|what| invalid(&path, what))?;
        }
        let class = class_of(dir, &named)?;
        for role in class.map_or(&[][..], |c| c.roles) {
            // A role that is set to null has no token.
            named.entry(role.0).or_insert_with(|| role.1.into());
        }
        self.special = special_names(&named);
        for content in self.special.clone() {
            // These classes make all of them special, whatever the files say.
            let again = class.is_some_and(|c| c.marks_all);
            if again || !self.added_index.contains_key(&content) {
                let token = AddedToken { content, normalized: false, special: true };
                self.add(token).map_err(|what| invalid(&path, what))?;
            }
        }
        Ok(())
    }

    /// Adds a token and returns its id: the one it has, else the next free one. The empty token is left out.
    fn add(&mut self, token: AddedToken) -> Result<Option<u32>, String> {
        if token.content.is_empty() {
            return Ok(None);
        }
        let id = match self.id(&token.content) {
            Some(id) => id,
            None => {
                let size = u32::try_from(self.index.len()).map_err(|_| "too many tokens")?;
                match self.added.last_key_value() {
                    Some((max, _)) if *max >= size || size == 0 => max.checked_add(1).ok_or("ids run out")?,
                    _ => size,
                }
            }
        };
        self.added_index.insert(token.content.clone(), id);
        self.added.insert(id, token);
        Ok(Some(id))
    }

    /// The id of `token`.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.added_index.get(token).or_else(|| self.index.get(token)).copied()
    }

    /// Number of tokens of the model itself.
    pub(crate) fn base_len(&self) -> usize {
        self.index.len()
    }

    /// Number of tokens in all.
    pub(crate) fn len(&self) -> usize {
        self.index.len() + self.added_index.keys().filter(|t| !self.index.contains_key(*t)).count()
    }

    /// The largest id, if there is a token.
    pub(crate) fn max_id(&self) -> Option<u32> {
        self.base.iter().map(|(_, id)| *id).chain(self.added.keys().copied()).max()
    }

    /// The added token of an id.
    pub(crate) fn added(&self, id: u32) -> Option<&AddedToken> {
        self.added.get(&id)
    }

    /// All added tokens by id.
    pub(crate) fn all_added(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.added.iter().map(|(id, token)| (*id, token))
    }

    /// Whether a token is an added one.
    pub(crate) fn is_added(&self, token: &str) -> bool {
        self.added_index.contains_key(token)
    }

    /// Whether a token has a role or is listed as special.
    pub(crate) fn is_special(&self, token: &str) -> bool {
        self.special.iter().any(|t| t == token)
    }

    /// Texts by id for ids below `n`; nothing where an id is free. Larger ids are left out.
    pub(crate) fn by_id(&self, n: usize) -> Vec<Option<&str>> {
        let mut texts = vec![None; n];
        let added = self.added_index.iter().map(|(token, id)| (token, *id));
        for (token, id) in self.base.iter().map(|(token, id)| (token, *id)).chain(added) {
            if let Some(text) = texts.get_mut(id as usize) {
                *text = Some(token.as_str());
            }
        }
        texts
    }
}

/// A tokenizer class that names tokens itself.
#[derive(Debug)]
struct Class {
    /// Tokens of roles that the files leave out.
    roles: &'static [(&'static str, &'static str)],
    marks_all: bool,
}

const QWEN2: Class = Class {
    roles: &[("unk_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
    marks_all: true,
};
const GPT2: Class = Class {
    roles: &[("unk_token", "<|endoftext|>"), ("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>")],
    marks_all: false,
};
const GEMMA: Class = Class {
    roles: &[
        ("unk_token", "<unk>"),
        ("bos_token", "<bos>"),
        ("eos_token", "<eos>"),
        ("pad_token", "<pad>"),
        ("mask_token", "<mask>"),
    ],
    marks_all: false,
};

/// The class that transformers 5 takes: for Qwen2 always its own, for some families the plain one, else the one
/// that `tokenizer_config.json` names or, without a name, the family's.
fn class_of(dir: &Path, config: &Map<String, Value>) -> Result<Option<&'static Class>> {
    let model: Option<Value> = read_json(&dir.join("config.json"))?;
    let family = model.as_ref().and_then(|m| m.get("model_type")).and_then(Value::as_str).unwrap_or_default();
    let named = config.get("tokenizer_class").and_then(Value::as_str);
    let class = match (family, named.map(|n| n.trim_end_matches("Fast"))) {
        ("qwen2", _) => Some(&QWEN2),
        ("phi3" | "phimoe" | "mistral" | "mixtral", _) => None,
        (_, Some("Qwen2Tokenizer")) => Some(&QWEN2),
        (_, Some("GPT2Tokenizer")) => Some(&GPT2),
        (_, Some("GemmaTokenizer")) => Some(&GEMMA),
        (_, Some(_)) => None,
        ("qwen2_moe" | "qwen3" | "qwen3_moe", None) => Some(&QWEN2),
        ("gemma" | "gemma2" | "gemma3" | "gemma3_text", None) => Some(&GEMMA),
        _ => None,
    };
    Ok(class)
}

/// An entry of `added_tokens_decoder`: its id and token.
pub(crate) fn decoder_entry(id: &str, token: &Value) -> Option<(i64, AddedEntry)> {
    let id = id.trim().parse().ok()?;
    let flag = |name| token.get(name).and_then(Value::as_bool);
    let content = token.get("content")?.as_str()?.to_owned();
    Some((id, AddedEntry { id: Some(id), content, normalized: flag("normalized"), special: flag("special") }))
}

/// The text of a token that is given as a string or as an object with `content`.
fn text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Tokens with a role, then those that a class of its own names (`image_token`), then the extra ones.
fn special_names(config: &Map<String, Value>) -> Vec<String> {
    let named = NAMED.iter().filter_map(|key| config.get(*key));
    let others = config
        .iter()
        .filter(|(key, _)| key.ends_with("_token") && !NAMED.contains(&key.as_str()))
        .map(|(_, v)| v);
    // An object gives further roles their tokens.
    let extra = ["extra_special_tokens", "additional_special_tokens"].iter().find_map(|key| {
        config.get(*key).filter(|v| v.as_array().is_some_and(|a| !a.is_empty()) || v.is_object())
    });
    let extra: Vec<&Value> = match extra {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(Value::Object(roles)) => roles.values().collect(),
        _ => Vec::new(),
    };
    let mut names: Vec<String> = Vec::new();
    for token in named.chain(others).chain(extra).filter_map(text) {
        if !token.is_empty() && !names.iter().any(|n| n == token) {
            names.push(token.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn load(definition: Value, config: Value) -> Result<FullVocab> {
        let dir = tempfile::tempdir().unwrap();
        let definition: Definition = serde_json::from_value(definition).unwrap();
        FullVocab::load(dir.path(), &definition, config.as_object())
    }

    #[test]
    fn ids_of_new_tokens_follow_the_vocabulary() {
        let definition = json!({
            "added_tokens": [{"id": 0, "content": "a", "special": true}, {"id": 2, "content": "<x>"}],
            "model": {"vocab": {"a": 0, "b": 1}}});
        let config = json!({
            "added_tokens_decoder": {"9": {"content": "<y>", "special": true}, "2": {"content": "<x>", "special": true}},
            "eos_token": "b", "pad_token": {"content": "<pad>"}, "image_token": "<img>",
            "extra_special_tokens": ["<e>", "<x>"]});
        let v = load(definition, config).unwrap();
        assert_eq!(v.by_id(8)[..7], ["a", "b", "<x>", "<y>", "<pad>", "<img>", "<e>"].map(Some));
        assert!(v.added(2).unwrap().special && !v.added(2).unwrap().normalized);
        assert!(v.added(1).unwrap().special && v.is_special("b"));
        assert_eq!((v.base_len(), v.len(), v.max_id()), (2, 7, Some(6)));
    }

    #[test]
    fn impossible_ids_are_errors() {
        let definition = json!({"added_tokens": [{"id": 4_000_000_000u32, "content": "<x>"}],
            "model": {"vocab": {"a": 0}}});
        assert!(load(definition, Value::Null).is_err());
        let definition = json!({"added_tokens": [{"id": 5, "content": "a"}, {"id": 6, "content": "<x>"}],
            "model": {"vocab": {"a": 4294967295u32}}});
        assert!(load(definition, Value::Null).is_err());
        let config = json!({"added_tokens_decoder": {"x": {"content": "a"}}});
        assert!(load(json!({"model": {"vocab": {"a": 0}}}), config).is_err());
    }
}
