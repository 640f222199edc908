//! Where the text of a record is.

use std::borrow::Cow;
use std::fmt;

use serde_json::{Map, Value};

use super::Sample;
use crate::error::{Error, Kind, Result};

/// The columns that are looked for, the first that is there and not null is taken.
pub(super) const COLUMNS: [&str; 3] = ["text", "content", "messages"];

/// Where a record is, for errors.
pub(super) struct Place<'a> {
    pub(super) file: &'a str,
    /// A line or row by its number; the first is 1.
    pub(super) at: Option<(&'static str, usize)>,
}

impl Place<'_> {
    pub(super) fn invalid(&self, what: impl fmt::Display) -> Error {
        Error::new(Kind::Invalid, format!("{self}: {what}"))
    }

    /// The error for text that is not JSON.
    pub(super) fn no_json(&self, e: &serde_json::Error) -> Error {
        let text = e.to_string();
        let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
        match self.at {
            Some(_) => self.invalid(format!("invalid JSON at column {}: {reason}", e.column())),
            None => {
                self.invalid(format!("invalid JSON in line {}, column {}: {reason}", e.line(), e.column()))
            }
        }
    }

    /// The error for a record without the column, or without any that is known.
    pub(super) fn no_column<'a>(&self, column: Option<&str>, found: impl Iterator<Item = &'a str>) -> Error {
        let found: Vec<&str> = found.collect();
        let found = if found.is_empty() { "none".into() } else { found.join(", ") };
        match column {
            Some(column) => self.invalid(format!("no column {column:?}; found: {found}")),
            None => self.invalid(format!("no column text, content or messages; found: {found}")),
        }
        .hint("Name the column that holds the text with --text-column.")
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file)?;
        self.at.iter().try_for_each(|(unit, number)| write!(f, ", {unit} {number}"))
    }
}

/// The sample in one record: a string, or an object with a known column (with `column`, if that is given).
pub(super) fn sample(record: Value, column: Option<&str>, place: &Place<'_>) -> Result<Sample<'static>> {
    match record {
        Value::String(text) if column.is_none() => Ok(Sample::Text(Cow::Owned(text))),
        Value::Object(mut object) => {
            let (name, value) = pick(&mut object, column, place)?;
            of_column(&name, value, place)
        }
        other => Err(place.invalid(format!("a record is {}, not an object with a text", kind(&other)))),
    }
}

fn pick(object: &mut Map<String, Value>, column: Option<&str>, place: &Place<'_>) -> Result<(String, Value)> {
    let known = column.map_or(COLUMNS.to_vec(), |column| vec![column]);
    let there = known.iter().filter(|name| object.contains_key(**name));
    let name = there.clone().find(|name| !object[**name].is_null()).or_else(|| there.clone().next());
    match name {
        Some(name) => Ok(((*name).to_owned(), object[*name].take())),
        None => Err(place.no_column(column, object.keys().map(String::as_str))),
    }
}

/// The sample in the value of a column. Null is an empty text.
pub(super) fn of_column(name: &str, value: Value, place: &Place<'_>) -> Result<Sample<'static>> {
    match value {
        Value::Null => Ok(Sample::Text(Cow::Borrowed(""))),
        Value::String(text) => Ok(Sample::Text(Cow::Owned(text))),
        Value::Array(messages) => {
            let is_message =
                |m: &Value| m.get("role").is_some_and(Value::is_string) && m.get("content").is_some();
            if messages.is_empty() || !messages.iter().all(is_message) {
                return Err(place.invalid(format!(
                    "column {name:?} is a list, but not of messages with \"role\" and \"content\""
                )));
            }
            Ok(Sample::Chat(Value::Array(messages)))
        }
        other => Err(place.invalid(format!("column {name:?} is {}, not text or messages", kind(&other)))),
    }
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PLACE: Place<'_> = Place { file: "x.jsonl", at: Some(("line", 3)) };

    fn text(record: Value, column: Option<&str>) -> Result<String> {
        match sample(record, column, &PLACE)? {
            Sample::Text(text) => Ok(text.into_owned()),
            Sample::Chat(messages) => Ok(messages.to_string()),
        }
    }

    #[test]
    fn the_text_is_found() {
        for (record, column, expected) in [
            (json!("a"), None, "a"),
            (json!({"text": "a", "content": "b"}), None, "a"),
            (json!({"meta": 1, "content": "b"}), None, "b"),
            (json!({"text": null, "content": "b"}), None, "b"),
            (json!({"text": null}), None, ""),
            (json!({"text": "a", "story": "c"}), Some("story"), "c"),
            (
                json!({"messages": [{"role": "user", "content": "hi"}]}),
                None,
                r#"[{"role":"user","content":"hi"}]"#,
            ),
            (
                json!({"chat": [{"role": "u", "content": [1]}]}),
                Some("chat"),
                r#"[{"role":"u","content":[1]}]"#,
            ),
        ] {
            assert_eq!(text(record, column).unwrap(), expected);
        }
    }

    #[test]
    fn other_records_are_refused_with_their_place() {
        for (record, column, word) in [
            (json!({"a": 1, "b": 2}), None, "found: a, b"),
            (json!({}), None, "found: none"),
            (json!({"text": "a"}), Some("story"), "no column \"story\"; found: text"),
            (json!("a"), Some("story"), "a string"),
            (json!(17), None, "a number"),
            (json!([1]), None, "a list"),
            (json!({"text": 17}), None, "\"text\" is a number"),
            (json!({"messages": []}), None, "not of messages"),
            (json!({"messages": [{"from": "human", "value": "x"}]}), None, "\"role\""),
        ] {
            let e = text(record.clone(), column).unwrap_err();
            assert_eq!(e.kind(), Kind::Invalid);
            assert!(e.to_string().starts_with("x.jsonl, line 3: "), "{e}");
            assert!(e.to_string().contains(word), "{record}: {e}");
        }
    }
}
