//! JSON files: one document, or a record in each line, which data sets on the Hub also call `.json`.

use std::ops::ControlFlow;
use std::path::Path;

use serde_json::Value;

use super::Sink;
use super::lines::{TextFile, rest};
use super::record::{COLUMNS, Place, kind, sample};
use crate::error::{Error, Kind, Result};

/// The keys under which a document has its list of samples.
const LISTS: [&str; 5] = ["texts", "samples", "data", "calibration", "text"];

/// The samples of a `.json` file.
pub(super) fn records(
    path: &Path,
    name: &str,
    column: Option<&str>,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>> {
    let mut file = TextFile::open(path, name)?;
    let place = Place { file: name, at: None };
    let Some(mut text) = file.next_line()? else {
        return Err(Error::new(Kind::Invalid, format!("{name} is empty")));
    };
    // An object in the first line and more to come: records line by line, of which there may be many.
    if let Ok(first @ Value::Object(_)) = serde_json::from_str::<Value>(&text) {
        let mut next = file.next_line()?;
        while next.as_ref().is_some_and(|line| line.trim().is_empty()) {
            next = file.next_line()?;
        }
        let Some(line) = next else { return document(first, column, &place, sink) };
        for (number, line) in [(1, &text), (file.line(), &line)] {
            let place = Place { file: name, at: Some(("line", number)) };
            let value = serde_json::from_str(line).map_err(|e| place.no_json(&e))?;
            if sink(sample(value, column, &place)?)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        return Ok(rest(&mut file, name, column, sink)?.unwrap_or(ControlFlow::Continue(())));
    }
    text += &file.rest()?;
    if text.trim().is_empty() {
        return Err(Error::new(Kind::Invalid, format!("{name} is empty")));
    }
    document(serde_json::from_str(&text).map_err(|e| place.no_json(&e))?, column, &place, sink)
}

/// The samples of one document: a list, an object that has one, a map of texts, or one sample.
fn document(
    value: Value,
    column: Option<&str>,
    place: &Place<'_>,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>> {
    let list = match value {
        Value::Array(list) => list,
        Value::String(_) => vec![value],
        Value::Object(mut object) => {
            let mut keys = column.into_iter().chain(LISTS);
            let list = keys.find(|key| is_list_of_samples(object.get(*key)));
            let is_record = match column {
                Some(column) => object.contains_key(column),
                None => COLUMNS.iter().any(|name| object.contains_key(*name)),
            };
            let is_map = !object.is_empty() && object.values().all(|v| v.is_string() || v.is_object());
            if let Some(Value::Array(list)) = list.and_then(|key| object.get_mut(key)) {
                std::mem::take(list)
            } else if is_record {
                vec![Value::Object(object)]
            } else if is_map {
                object.into_iter().map(|(_, v)| v).collect()
            } else {
                let keys: Vec<&str> = object.keys().map(String::as_str).collect();
                return Err(place
                    .invalid(format!("an object without a list of samples; its keys are: {}", keys.join(", ")))
                    .hint("Use a list of texts, or an object with one under \"texts\", \"samples\" or \"data\"."));
            }
        }
        other => return Err(place.invalid(format!("{} is no list of samples", kind(&other)))),
    };
    for (i, value) in list.into_iter().enumerate() {
        let flow = sample(value, column, place)
            .map_err(|e| place.invalid(format!("sample {}: {}", i + 1, own_words(&e, place))))
            .and_then(&mut *sink)?;
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// A list whose items are not messages of one conversation.
fn is_list_of_samples(value: Option<&Value>) -> bool {
    let Some(Value::Array(list)) = value else { return false };
    !list.iter().all(|item| item.get("role").is_some())
}

fn own_words(e: &Error, place: &Place<'_>) -> String {
    e.to_string().trim_start_matches(&format!("{place}: ")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calib::dataset::Sample;
    use serde_json::json;

    fn texts(value: Value, column: Option<&str>) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        let place = Place { file: "x.json", at: None };
        let flow = document(value, column, &place, &mut |sample| {
            texts.push(match sample {
                Sample::Text(text) => text.into_owned(),
                Sample::Chat(messages) => messages.to_string(),
            });
            Ok(ControlFlow::Continue(()))
        })?;
        assert!(flow.is_continue());
        Ok(texts)
    }

    #[test]
    fn documents_of_every_form_are_read() {
        let ab = vec!["a".to_owned(), "b".to_owned()];
        for value in [
            json!(["a", "b"]),
            json!([{"text": "a"}, {"content": "b"}]),
            json!({"texts": ["a", "b"]}),
            json!({"samples": ["a", {"text": "b"}], "name": "x"}),
            json!({"data": [{"text": "a"}, "b"]}),
            json!({"calibration": ["a", "b"]}),
            json!({"text": ["a", "b"]}),
            json!({"one": "a", "two": {"text": "b"}}),
        ] {
            assert_eq!(texts(value.clone(), None).unwrap(), ab, "{value}");
        }
        assert_eq!(texts(json!("a"), None).unwrap(), ["a"]);
        assert_eq!(texts(json!({"text": "a", "id": 1}), None).unwrap(), ["a"]);
        assert_eq!(texts(json!({"story": ["a", "b"]}), None).unwrap_err().kind(), Kind::Invalid);
        let chat = json!({"messages": [{"role": "user", "content": "x"}]});
        assert_eq!(texts(chat.clone(), None).unwrap(), [chat["messages"].to_string()]);
        assert_eq!(texts(json!([chat]), None).unwrap(), [chat["messages"].to_string()]);
        assert_eq!(texts(json!([{"story": "a"}]), Some("story")).unwrap(), ["a"]);
    }

    #[test]
    fn other_documents_are_refused() {
        for (value, word) in [
            (json!(17), "a number"),
            (json!(null), "null"),
            (json!({}), "its keys are"),
            (json!({"a": 1}), "its keys are: a"),
            (json!(["a", 17]), "sample 2: a record is a number"),
            (json!([{"a": 1}]), "sample 1: no column text"),
        ] {
            let e = texts(value.clone(), None).unwrap_err();
            assert_eq!(e.kind(), Kind::Invalid);
            assert!(e.to_string().contains(word), "{value}: {e}");
        }
    }
}
