//! Special tokens, chat templates and what post-processors tell of them.
//!
//! The rules are those of `SpecialVocab` in llama.cpp's `gguf` package, oddities included: they decide which
//! keys a GGUF file has and in which order.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::definition::Definition;
use super::json::{invalid, read_json, read_text, read_text_of};
use crate::error::{Error, Result};
use crate::source::vocab::ChatTemplate;

/// The roles that are looked for where a family asks for no others.
pub(super) const ROLES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// What the files say of special tokens.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Special {
    /// Role and id, in the order found.
    pub(super) ids: Vec<(String, u32)>,
    /// Role and whether its token is added to a text.
    pub(super) add: Vec<(String, bool)>,
    pub(super) chat_template: Option<ChatTemplate>,
    pub(super) lowercase: Option<bool>,
    pub(super) strip_accents: Option<bool>,
    pub(super) warnings: Vec<String>,
}

/// Reads the files of `dir`. Ids from `n_vocab` on are left out where that is given.
pub(super) fn load(
    dir: &Path,
    definition: Option<&Definition>,
    config: Option<&Map<String, Value>>,
    roles: &[&str],
    n_vocab: Option<usize>,
) -> Result<Special> {
    let mut special = Special::default();
    let mut roles: Vec<String> = roles.iter().map(|r| (*r).to_owned()).collect();
    // An empty object counts as no file.
    let mut config = config.filter(|c| !c.is_empty()).cloned();
    if let Some(definition) = definition {
        if let Some(normalizer) = &definition.normalizer {
            special.normalizer(normalizer);
        }
        Template { special: &mut special, roles: &mut roles, config: &mut config }.read(definition);
    }
    if let Some(config) = &config {
        special.chat_template = chat_template(dir, config, &mut special.warnings)?;
        for role in &roles {
            special.role(role, config, definition, n_vocab);
        }
    }
    let path = dir.join("config.json");
    if let Some(model) = read_json::<Value>(&path)? {
        for role in &roles {
            let key = format!("{role}_token_id");
            let id = match model.get(&key) {
                None | Some(Value::Null) => model.get("text_config").and_then(|c| c.get(&key)),
                id => id,
            };
            if let Some(id) = id {
                special.set_id(role, id, n_vocab);
            }
        }
    }
    if let Some((role, _)) = special.ids.iter().find(|(_, id)| *id as usize >= super::MAX_VOCAB) {
        return Err(invalid(&path, format!("id of {role} token is impossible")));
    }
    Ok(special)
}

impl Special {
    fn set_add(&mut self, role: &str, value: bool) {
        match self.add.iter_mut().find(|(r, _)| r == role) {
            Some(entry) => entry.1 = value,
            None => self.add.push((role.to_owned(), value)),
        }
    }

    fn added(&self, role: &str) -> Option<bool> {
        self.add.iter().find(|(r, _)| r == role).map(|(_, v)| *v)
    }

    /// Notes the first id that is found for a role; a list of ids or null says nothing.
    fn set_id(&mut self, role: &str, id: &Value, n_vocab: Option<usize>) {
        if !(id.is_i64() || id.is_u64()) {
            return;
        }
        // The converter gives up at a negative id; published models have some (-1 for "none").
        match id.as_u64() {
            Some(id) if n_vocab.is_none_or(|n| id < n as u64) => {
                if !self.ids.iter().any(|(r, _)| r == role) {
                    self.ids.push((role.to_owned(), u32::try_from(id).unwrap_or(u32::MAX)));
                }
            }
            _ => {
                self.warnings.push(format!("the id {id} of the {role} token is out of range and is left out"))
            }
        }
    }

    fn role(
        &mut self,
        role: &str,
        config: &Map<String, Value>,
        definition: Option<&Definition>,
        n_vocab: Option<usize>,
    ) {
        if let Some(Value::Bool(add)) = config.get(&format!("add_{role}_token")) {
            match self.added(role) {
                None => self.add.push((role.to_owned(), *add)),
                Some(other) if other != *add => self.warnings.push(format!(
                    "tokenizer_config.json has add_{role}_token {add}, tokenizer.json's post-processor says \
                     {other}: the latter is used"
                )),
                Some(_) => {}
            }
        }
        let text = match config.get(&format!("{role}_token")) {
            Some(Value::String(text)) => text.as_str(),
            Some(Value::Object(token)) => match token.get("content") {
                Some(Value::String(text)) => text.as_str(),
                _ => return,
            },
            _ => return,
        };
        let added = definition.map_or(&[][..], |d| &d.added_tokens);
        if let Some(id) = added.iter().find(|t| t.content == text).and_then(|t| t.id) {
            self.set_id(role, &json!(id), n_vocab);
        }
    }

    fn normalizer(&mut self, normalizer: &Value) {
        match normalizer.get("type").and_then(Value::as_str) {
            Some("Lowercase") => self.lowercase = Some(true),
            Some("StripAccents") => self.strip_accents = Some(true),
            Some("BertNormalizer") => {
                if let Some(v) = normalizer.get("lowercase") {
                    self.lowercase = v.as_bool();
                }
                if let Some(v) = normalizer.get("strip_accents") {
                    self.strip_accents = v.as_bool();
                }
            }
            Some("Sequence") => {
                for part in normalizer.get("normalizers").and_then(Value::as_array).into_iter().flatten() {
                    self.normalizer(part);
                }
            }
            _ => {}
        }
    }
}

/// What Python takes for false.
fn falsy(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

/// The special token or sequence at a place of a template, if that is what is there.
fn item<'a>(place: &'a Value, what: &str) -> Option<&'a Value> {
    place.get(what)?.get("id").filter(|v| !falsy(v))
}

/// A reading of post-processors, which may rename tokens in the configuration at hand.
struct Template<'a> {
    special: &'a mut Special,
    roles: &'a mut Vec<String>,
    config: &'a mut Option<Map<String, Value>>,
}

/// The tokens that the configuration has for the roles; null where it has none.
struct Named {
    bos: Value,
    cls: Value,
    eos: Value,
    sep: Value,
}

impl Template<'_> {
    fn token(&self, role: &str) -> Value {
        self.config.as_ref().and_then(|c| c.get(role)).cloned().unwrap_or(Value::Null)
    }

    fn rename(&mut self, role: &str, token: &Value) {
        if let Some(config) = self.config {
            config.insert(role.to_owned(), token.clone());
        }
    }

    fn read(&mut self, definition: &Definition) {
        let mut named = Named {
            bos: self.token("bos_token"),
            cls: self.token("cls_token"),
            eos: self.token("eos_token"),
            sep: self.token("sep_token"),
        };
        if falsy(&named.bos) && !falsy(&named.cls) {
            named.bos = named.cls.clone();
            self.rename("bos_token", &named.bos.clone());
        }
        if falsy(&named.eos) && !falsy(&named.sep) {
            named.eos = named.sep.clone();
            self.rename("eos_token", &named.eos.clone());
        }
        let Some(post) = definition.post_processor.as_ref().filter(|p| !falsy(p)) else { return };
        let one = [post.clone()];
        let list = post.get("processors").and_then(Value::as_array).map_or(&one[..], Vec::as_slice);
        for processor in list {
            match processor.get("type").and_then(Value::as_str) {
                Some("ByteLevel") => {
                    for role in ["bos", "eos"] {
                        if self.special.added(role).is_none() {
                            self.special.set_add(role, false);
                        }
                    }
                }
                Some("RobertaProcessing") => self.roberta(processor, &mut named),
                Some("TemplateProcessing") => self.template(processor, &mut named),
                _ => {}
            }
        }
    }

    fn roberta(&mut self, processor: &Value, named: &mut Named) {
        for role in ["bos", "eos", "sep"] {
            self.special.set_add(role, true);
        }
        if self.config.is_none() {
            return;
        }
        let first =
            |key: &str, other: &Value| processor.get(key).and_then(|v| v.get(0)).unwrap_or(other).clone();
        if falsy(&named.cls) {
            named.cls = first("cls", &named.bos);
            self.rename("cls_token", &named.cls);
        }
        if falsy(&named.sep) {
            named.sep = first("sep", &named.eos);
            self.rename("sep_token", &named.sep);
        }
    }

    fn template(&mut self, processor: &Value, named: &mut Named) {
        let places = |key| processor.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let (single, pair) = (places("single"), places("pair"));
        let (mut first, mut last) = (None, None);
        if single.len() > 1 {
            first = item(&single[0], "SpecialToken");
            last = item(&single[single.len() - 1], "SpecialToken");
        }
        if let Some(first) = first {
            self.leading(first, named);
        }
        if let Some(last) = last {
            self.trailing(last, named);
        }
        let at = |place: Option<&Value>, token: Option<&Value>| {
            token.is_some() && place.and_then(|p| item(p, "SpecialToken")) == token
        };
        let start = usize::from(at(pair.first(), first));
        let stop = pair.len() - usize::from(at(pair.last(), last));
        let pair = pair.get(start..stop).unwrap_or_default();
        // A, one or two tokens, B.
        let sequence = |place: Option<&Value>, id: &str| {
            place.and_then(|p| item(p, "Sequence")).and_then(Value::as_str) == Some(id)
        };
        if !sequence(pair.first(), "A") || !sequence(pair.last(), "B") {
            return;
        }
        let between = &pair[1..pair.len() - 1];
        if between.is_empty() {
            return;
        }
        let separates =
            |place: &Value| item(place, "SpecialToken").is_some_and(|t| *t == named.sep || *t == named.eos);
        let add =
            (separates(&between[0]) && last.is_none()) || (between.len() == 2 && separates(&between[1]));
        self.special.set_add("sep", add);
        if add && falsy(&named.sep) {
            self.rename("sep_token", &named.eos);
        }
    }

    fn leading(&mut self, first: &Value, named: &mut Named) {
        if self.config.is_none() {
            named.bos = first.clone();
        } else if *first != named.bos && *first != named.cls {
            if falsy(&named.bos) {
                named.bos = first.clone();
                self.rename("bos_token", first);
            }
            if falsy(&named.cls) {
                named.cls = first.clone();
                self.rename("cls_token", first);
            }
        }
        let known = *first == named.bos || *first == named.cls;
        self.special.set_add("bos", known);
        if !known {
            self.special
                .warnings
                .push(format!("tokenizer.json puts {first} first, which is not the bos token"));
        }
    }

    fn trailing(&mut self, last: &Value, named: &mut Named) {
        if self.config.is_none() {
            named.eos = last.clone();
        } else if *last != named.eos {
            // The old end token lives on as end of turn, or of message.
            let spare = ["eot", "eom"].into_iter().find(|r| !self.roles.iter().any(|have| have == r));
            match spare {
                Some(role) => {
                    self.roles.push(role.to_owned());
                    self.rename(&format!("{role}_token"), &named.eos.clone());
                }
                None => self.special.warnings.push(format!("{last} replaces the end token {}", named.eos)),
            }
            named.eos = last.clone();
            self.rename("eos_token", last);
        }
        self.special.set_add("eos", true);
    }
}

fn chat_template(
    dir: &Path,
    config: &Map<String, Value>,
    warnings: &mut Vec<String>,
) -> Result<Option<ChatTemplate>> {
    let value = match config.get("chat_template") {
        Some(value) => value.clone(),
        None => match template_files(dir)? {
            Some(value) => value,
            None => return Ok(None),
        },
    };
    Ok(match value {
        Value::Null => None,
        Value::String(text) => Some(ChatTemplate::One(text)),
        Value::Array(list) => Some(ChatTemplate::Named(
            list.iter()
                .filter_map(|t| {
                    let name = t.get("name").and_then(Value::as_str).unwrap_or_default();
                    Some((name.to_owned(), t.get("template")?.as_str()?.to_owned()))
                })
                .collect(),
        )),
        _ => {
            warnings.push(
                "tokenizer_config.json: chat_template is neither text nor a list, and is left out".into(),
            );
            None
        }
    })
}

/// The templates in a folder; none if there is no such folder. One that cannot be read is an error: a template less would be
/// another model.
fn further_templates(folder: &Path) -> Result<Vec<PathBuf>> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    let unreadable = |e| Error::io(format!("cannot read {}", folder.display()), e);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), NotFound | NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(unreadable(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|e| e == "jinja") {
            found.push(path);
        }
    }
    Ok(found)
}

/// `chat_template.jinja` with the further templates of its folder, else `chat_template.json`.
fn template_files(dir: &Path) -> Result<Option<Value>> {
    if let Some(text) = read_text(&dir.join("chat_template.jinja"))? {
        let mut more = further_templates(&dir.join("additional_chat_templates"))?;
        if more.is_empty() {
            return Ok(Some(Value::String(text)));
        }
        // The converter takes them as the file system lists them, which is no order at all.
        more.sort();
        let mut list = vec![json!({"name": "default", "template": text})];
        for path in more {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(text) = read_text_of(dir, &path)? {
                list.push(json!({"name": name, "template": text}));
            }
        }
        return Ok(Some(Value::Array(list)));
    }
    let file = read_json::<Value>(&dir.join("chat_template.json"))?;
    Ok(file.and_then(|f| f.get("chat_template").cloned()))
}
