//! The YAML part at the head of a model card.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::Result;
use crate::source::tokenizer::json::read_bytes;

/// A YAML value. A key that is there twice has its last value, as readers of model cards take it.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::source) enum Yaml {
    Null,
    /// A boolean or number, as text.
    Plain(String),
    Str(String),
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
}

impl Yaml {
    /// The value of a key, which may be null.
    pub(in crate::source) fn entry(&self, key: &str) -> Option<&Yaml> {
        let Yaml::Map(entries) = self else { return None };
        entries.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// The value of a key, unless that is null.
    pub(in crate::source) fn get(&self, key: &str) -> Option<&Yaml> {
        self.entry(key).filter(|v| **v != Yaml::Null)
    }

    /// The value as text. The converter fails at one that is a number.
    pub(in crate::source) fn scalar(&self) -> Option<String> {
        match self {
            Yaml::Str(text) | Yaml::Plain(text) => Some(text.clone()),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Yaml;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }
            fn visit_bool<E>(self, v: bool) -> Result<Yaml, E> {
                Ok(Yaml::Plain(v.to_string()))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Yaml, E> {
                Ok(Yaml::Plain(v.to_string()))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Yaml, E> {
                Ok(Yaml::Plain(v.to_string()))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Yaml, E> {
                // As Python writes it: 1.0 and not 1.
                Ok(Yaml::Plain(format!("{v:?}")))
            }
            fn visit_str<E>(self, v: &str) -> Result<Yaml, E> {
                Ok(Yaml::Str(v.to_owned()))
            }
            fn visit_unit<E>(self) -> Result<Yaml, E> {
                Ok(Yaml::Null)
            }
            fn visit_none<E>(self) -> Result<Yaml, E> {
                Ok(Yaml::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Yaml, D::Error> {
                Yaml::deserialize(d)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Yaml, A::Error> {
                let mut list = Vec::new();
                while let Some(v) = seq.next_element()? {
                    list.push(v);
                }
                Ok(Yaml::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Yaml, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<Yaml>()? {
                    match key.scalar() {
                        Some(key) => entries.push((key, map.next_value()?)),
                        None => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(Yaml::Map(entries))
            }
        }
        d.deserialize_any(V)
    }
}

/// The front matter of `README.md` in `dir`; null if there is none or it is broken.
pub(in crate::source) fn load(dir: &Path, warnings: &mut Vec<String>) -> Result<Yaml> {
    let path = dir.join("README.md");
    let Some(bytes) = read_bytes(&path)? else { return Ok(Yaml::Null) };
    let text = String::from_utf8_lossy(&bytes);
    let Some(yaml) = cut(&text) else { return Ok(Yaml::Null) };
    match serde_norway::from_str(&yaml) {
        Ok(front @ Yaml::Map(_)) => return Ok(front),
        Ok(_) => {
            warnings.push(format!("{}: the front matter is no list of keys and is left out", path.display()))
        }
        Err(e) => warnings.push(format!("{}: the front matter is left out: {e}", path.display())),
    }
    Ok(Yaml::Null)
}

/// The lines between the first, which must be `---`, and the next such line.
fn cut(text: &str) -> Option<String> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let text = text.replace("\r\n", "\n");
    let mut lines = text.split(is_end);
    if lines.next() != Some("---") {
        return None;
    }
    let mut yaml = String::new();
    for line in lines.take_while(|line| *line != "---") {
        yaml.push_str(line);
        yaml.push('\n');
    }
    // YAML forbids tabs here, and one published card has them.
    Some(yaml.replace('\t', "  "))
}
