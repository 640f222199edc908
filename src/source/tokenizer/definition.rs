//! `tokenizer.json`, the definition of a tokenizer in the `tokenizers` library's format.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::json::read_json;
use crate::error::Result;

/// The parts of `tokenizer.json` that a conversion needs.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Definition {
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) added_tokens: Vec<AddedEntry>,
    #[serde(default)]
    pub(crate) normalizer: Option<Value>,
    #[serde(default)]
    pub(crate) pre_tokenizer: Option<Value>,
    #[serde(default)]
    pub(crate) post_processor: Option<Value>,
    #[serde(default)]
    pub(crate) decoder: Option<Value>,
    #[serde(default)]
    pub(crate) model: Model,
}

impl Definition {
    /// Reads `tokenizer.json` of `dir`, if it is there.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>> {
        read_json(&dir.join("tokenizer.json"))
    }
}

/// The model: vocabulary and merge rules.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Model {
    #[serde(rename = "type", default)]
    pub(crate) kind: Option<String>,
    #[serde(default)]
    pub(crate) byte_fallback: Option<bool>,
    #[serde(default)]
    pub(crate) ignore_merges: Option<bool>,
    #[serde(default)]
    pub(crate) vocab: Entries,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) merges: Vec<Merge>,
}

/// A token that the library finds before the model sees the text.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct AddedEntry {
    #[serde(default)]
    pub(crate) id: Option<i64>,
    pub(crate) content: String,
    #[serde(default)]
    pub(crate) normalized: Option<bool>,
    #[serde(default)]
    pub(crate) special: Option<bool>,
}

fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// The vocabulary as `(token, id)` in the file's order.
#[derive(Debug, Default)]
pub(crate) struct Entries(pub(crate) Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary: an object of ids, or a list of pieces with scores")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Entries, A::Error> {
                let mut entries: Vec<(String, u32)> = Vec::new();
                while let Some((piece, _score)) = seq.next_element::<(String, f64)>()? {
                    let id = u32::try_from(entries.len()).map_err(serde::de::Error::custom)?;
                    entries.push((piece, id));
                }
                Ok(Entries(entries))
            }
            fn visit_unit<E>(self) -> Result<Entries, E> {
                Ok(Entries::default())
            }
        }
        d.deserialize_any(V)
    }
}

/// One merge rule as GGUF holds it: both halves with one space between.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Merge {
    /// `left right`.
    pub(crate) text: String,
    /// Whether a half held a space, which is now written as `Ġ`.
    pub(crate) escaped: bool,
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge rule: \"left right\" or [\"left\", \"right\"]")
            }
            fn visit_str<E>(self, v: &str) -> Result<Merge, E> {
                Ok(Merge { text: v.to_owned(), escaped: false })
            }
            fn visit_string<E>(self, v: String) -> Result<Merge, E> {
                Ok(Merge { text: v, escaped: false })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let mut half = |i| {
                    seq.next_element::<String>()?
                        .ok_or_else(|| serde::de::Error::invalid_length(i, &"two halves"))
                };
                let (left, right) = (half(0)?, half(1)?);
                if seq.next_element::<serde::de::IgnoredAny>()?.is_some() {
                    return Err(serde::de::Error::invalid_length(3, &"two halves"));
                }
                // A space inside a half would read as the separator; U+0120 is what byte-level BPE writes for
                // it.
                let escaped = left.contains(' ') || right.contains(' ');
                let text = format!("{} {}", left.replace(' ', "\u{120}"), right.replace(' ', "\u{120}"));
                Ok(Merge { text, escaped })
            }
        }
        d.deserialize_any(V)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_merge_formats_and_both_vocabulary_formats() {
        let d: Definition = serde_json::from_str(
            r#"{"added_tokens": null, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b", ["x y", " "]]}}"#,
        )
        .unwrap();
        assert_eq!(d.model.vocab.0, [("a".to_owned(), 0), ("b".to_owned(), 1)]);
        assert_eq!(d.model.merges[0], Merge { text: "a b".into(), escaped: false });
        assert_eq!(d.model.merges[1], Merge { text: "xĠy Ġ".into(), escaped: true });
        let d: Definition =
            serde_json::from_str(r#"{"model": {"type": "Unigram", "vocab": [["<unk>", 0], ["a", -1.5]]}}"#)
                .unwrap();
        assert_eq!(d.model.vocab.0[1], ("a".to_owned(), 1));
        for bad in [
            r#"{"model": {"vocab": {"a": -1}}}"#,
            r#"{"model": {"vocab": {"a": 5e9}}}"#,
            r#"{"model": {"merges": [["a"]]}}"#,
            r#"{"model": {"merges": [["a", "b", "c"]]}}"#,
        ] {
            assert!(serde_json::from_str::<Definition>(bad).is_err(), "{bad}");
        }
    }
}
