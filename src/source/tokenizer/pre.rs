//! llama.cpp's name for a pre-tokenizer, found by how it is defined.
//!
//! llama.cpp's converter encodes a test sentence and looks the hash of the ids up in a list of published
//! models, so that a model with one more token, or a vocabulary of its own, is refused. The name stands for the
//! way text is cut before merging and not for a vocabulary; the definition in `tokenizer.json` tells it as
//! well.

use serde_json::{Map, Value};

use super::added::FullVocab;
use super::definition::Definition;
pub(super) use super::pre_table::QWEN2;
use super::pre_table::{FAMILIES, STRUCTURES};

/// One step of a pre-tokenizer as the table lists it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// Byte-level with GPT-2's own pattern.
    Gpt2,
    /// Byte-level with no pattern.
    Bytes,
    /// Digits, each by itself.
    Digit,
    /// Digits in runs.
    Digits,
    /// Runs of punctuation.
    Punctuation,
    /// A pattern whose matches, and what lies between, become pieces.
    Pattern(&'static str),
    /// Such a pattern, of which the start is enough.
    PatternStart(&'static str),
}

/// One step as a tokenizer has it.
#[derive(Clone, Debug, PartialEq)]
enum Found {
    Gpt2,
    Bytes,
    Digit,
    Digits,
    Punctuation,
    Pattern(String),
    Other(String),
}

impl Step {
    fn matches(self, found: &Found) -> bool {
        match (self, found) {
            (Step::Gpt2, Found::Gpt2)
            | (Step::Bytes, Found::Bytes)
            | (Step::Digit, Found::Digit)
            | (Step::Digits, Found::Digits)
            | (Step::Punctuation, Found::Punctuation) => true,
            (Step::Pattern(p), Found::Pattern(found)) => plain(p) == *found,
            (Step::PatternStart(p), Found::Pattern(found)) => found.starts_with(&plain(p)),
            _ => false,
        }
    }
}

/// A name, and what the user should know if it is a guess.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) name: &'static str,
    pub(super) warning: Option<String>,
}

/// The name for the pre-tokenizer of `definition`.
pub(super) fn recognize(
    definition: &Definition,
    vocab: &FullVocab,
    config: Option<&Map<String, Value>>,
) -> Choice {
    let mut steps = Vec::new();
    if let Some(pre) = &definition.pre_tokenizer {
        flatten(pre, &mut steps);
    }
    unite(&mut steps);
    let structure = STRUCTURES
        .iter()
        .find(|(want, _)| want.len() == steps.len() && want.iter().zip(&steps).all(|(w, s)| w.matches(s)));
    if let Some((_, name)) = structure {
        return Choice { name: family(refine(name, definition, config), vocab), warning: None };
    }
    // SentencePiece's way: spaces are marked by the normalizer, nothing else is cut.
    if definition.model.byte_fallback == Some(true) && marks_spaces(definition) {
        return Choice { name: "gemma4", warning: None };
    }
    let name = match steps.last() {
        Some(Found::Gpt2) => "gpt-2",
        _ => "default",
    };
    let found = match &definition.pre_tokenizer {
        Some(pre) => pre.to_string(),
        None => "none".to_owned(),
    };
    Choice {
        name,
        warning: Some(format!(
            "the pre-tokenizer of tokenizer.json is none that llama.cpp is known to have a name for; {name:?} is \
             written, which may cut text in other places. If you know the right name, give it with \
             --metadata tokenizer.ggml.pre=NAME. Found: {}",
            shorten(&found)
        )),
    }
}

/// Tells names apart that differ by something else than the steps.
fn refine(name: &'static str, definition: &Definition, config: Option<&Map<String, Value>>) -> &'static str {
    let flag = |key: &str| config.and_then(|c| c.get(key)).and_then(Value::as_bool);
    match name {
        // With this name llama.cpp looks for the whole word before merging.
        "llama-bpe" if definition.model.ignore_merges != Some(true) => "dbrx",
        // Cut alike; llama.cpp cleans up spaces in what it decodes for one and not for the other.
        "smollm" if flag("clean_up_tokenization_spaces") == Some(true) => "starcoder",
        "bloom" if flag("clean_up_tokenization_spaces") == Some(false) => "poro-chat",
        name => name,
    }
}

fn family(name: &'static str, vocab: &FullVocab) -> &'static str {
    // Both names of this structure have the same relatives.
    let group = if name == "starcoder" { "smollm" } else { name };
    FAMILIES
        .iter()
        .find(|(of, tokens, _)| *of == group && tokens.split('+').all(|t| vocab.is_added(t)))
        .map_or(name, |(_, _, family)| family)
}

/// Whether the normalizer writes spaces as `▁` and the pre-tokenizer cuts at nothing else than spaces.
fn marks_spaces(definition: &Definition) -> bool {
    let is_mark = |n: &Value| {
        n.get("type").and_then(Value::as_str) == Some("Replace")
            && n.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
            && n.get("content").and_then(Value::as_str) == Some("\u{2581}")
    };
    let cuts_at_spaces = definition.pre_tokenizer.as_ref().is_none_or(|p| {
        p.get("type").and_then(Value::as_str) == Some("Split")
            && p.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
    });
    cuts_at_spaces && definition.normalizer.as_ref().is_some_and(is_mark)
}

fn flatten(pre: &Value, steps: &mut Vec<Found>) {
    let kind = pre.get("type").and_then(Value::as_str).unwrap_or_default();
    let flag = |key: &str, default: bool| pre.get(key).and_then(Value::as_bool).unwrap_or(default);
    steps.push(match kind {
        "Sequence" => {
            for step in pre.get("pretokenizers").and_then(Value::as_array).into_iter().flatten() {
                flatten(step, steps);
            }
            return;
        }
        "ByteLevel" if flag("use_regex", true) => Found::Gpt2,
        "ByteLevel" => Found::Bytes,
        "Digits" if flag("individual_digits", false) => Found::Digit,
        "Digits" => Found::Digits,
        "Punctuation" => Found::Punctuation,
        "Split" => split(pre),
        _ => Found::Other(kind.to_owned()),
    });
}

fn split(pre: &Value) -> Found {
    let behavior = pre.get("behavior").and_then(Value::as_str).unwrap_or_default();
    let invert = pre.get("invert").and_then(Value::as_bool).unwrap_or(false);
    let regex = pre.pointer("/pattern/Regex").and_then(Value::as_str);
    match (regex, behavior, invert) {
        // To remove what does not match is the same where everything does.
        (Some(regex), "Isolated", _) | (Some(regex), "Removed", true) => match plain(regex) {
            regex if regex == plain(r"\p{N}") || regex == r"\d" => Found::Digit,
            regex => Found::Pattern(regex),
        },
        _ => Found::Other(format!("Split {behavior}")),
    }
}

/// Puts GPT-2's pattern and a byte-level step without one together.
fn unite(steps: &mut Vec<Found>) {
    const GPT2: [&str; 2] = [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    ];
    if let [.., Found::Pattern(p), Found::Bytes] = &steps[..]
        && GPT2.iter().any(|g| plain(g) == *p)
    {
        steps.truncate(steps.len() - 2);
        steps.push(Found::Gpt2);
    }
}

/// A pattern with different ways to write one thing made the same.
fn plain(regex: &str) -> String {
    let mut text = regex.replace('\r', r"\r").replace('\n', r"\n");
    for contractions in [
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
        "'(?i:[sdmt]|ll|ve|re)",
        "'(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])",
    ] {
        text = text.replace(contractions, "(?i:'s|'t)");
    }
    // Possessive or not, these match the same: what follows cannot begin inside of them.
    text = text.replace("?+", "?").replace("++", "+").replace(r"\p{N}{1}", r"\p{N}");
    // Spaces before take all line ends but the last.
    text = text.replace(r"\s*[\r\n]+", r"\s*[\r\n]");
    // What no alternative matches is a piece of its own anyway.
    match text.strip_suffix(r"\s+(?!\S)|\s+") {
        Some(start) => format!(r"{start}\s+(?!\S)"),
        None => text,
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(600) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bytes(regex: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex})
    }
    fn pattern(regex: &str) -> Value {
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
    }
    fn sequence(steps: &[Value]) -> Value {
        json!({"type": "Sequence", "pretokenizers": steps})
    }
    fn name(pre: Value, added: &[&str], more: Value) -> (&'static str, Option<String>) {
        let added: Vec<Value> = added.iter().map(|t| json!({"content": t, "special": true})).collect();
        let mut model = json!({"type": "BPE", "vocab": {"a": 0}});
        for key in ["ignore_merges", "byte_fallback"] {
            if let Some(v) = more.get(key) {
                model[key] = v.clone();
            }
        }
        let all = json!({"model": model, "pre_tokenizer": pre, "added_tokens": added, "normalizer": more["normalizer"]});
        let definition: Definition = serde_json::from_value(all).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let vocab = FullVocab::load(dir.path(), &definition, None).unwrap();
        let choice = recognize(&definition, &vocab, more.as_object());
        (choice.name, choice.warning)
    }
    fn known(pre: Value, added: &[&str], more: Value) -> &'static str {
        let (name, warning) = name(pre, added, more);
        assert_eq!(warning, None);
        name
    }

    #[test]
    fn published_definitions_get_their_names() {
        let none = || json!({});
        let digits = |each: bool| json!({"type": "Digits", "individual_digits": each});
        let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        assert_eq!(known(bytes(true), &[], none()), "gpt-2");
        assert_eq!(known(bytes(true), &["<|padding|>"], none()), "olmo");
        let all = sequence(&[pattern(llama3), bytes(false)]);
        assert_eq!(known(all.clone(), &["<|any|>"], json!({"ignore_merges": true})), "llama-bpe");
        assert_eq!(known(all.clone(), &[">>TITLE<<"], json!({"ignore_merges": true})), "falcon3");
        assert_eq!(known(all, &[], none()), "dbrx");
        // Phi-4: the same as tiktoken writes it, and what does not match removed.
        let cl100k = json!({"type": "Split", "behavior": "Removed", "invert": true, "pattern": {"Regex":
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"}});
        assert_eq!(known(sequence(&[cl100k, bytes(false)]), &[], none()), "dbrx");
        let qwen = sequence(&[pattern(QWEN2), bytes(false)]);
        assert_eq!(known(qwen.clone(), &["<|im_start|>"], none()), "qwen2");
        assert_eq!(known(qwen, &["<｜begin▁of▁sentence｜>"], none()), "deepseek-r1-qwen");
        let code = sequence(&[digits(true), bytes(true)]);
        assert_eq!(known(code.clone(), &[], json!({"clean_up_tokenization_spaces": false})), "smollm");
        assert_eq!(known(code.clone(), &[], json!({"clean_up_tokenization_spaces": true})), "starcoder");
        assert_eq!(known(code.clone(), &["<fim_prefix>", "<file_sep>"], none()), "starcoder");
        assert_eq!(known(code.clone(), &["<fim_prefix>"], none()), "refact");
        assert_eq!(known(code, &["<BOS_TOKEN>"], none()), "command-r");
        let deepseek = sequence(&[
            pattern("[\r\n]"),
            pattern(r"\s?\p{L}+"),
            pattern(r"\s?\p{P}+"),
            pattern("[一-龥ࠀ-一가-퟿]+"),
            digits(true),
            bytes(false),
        ]);
        assert_eq!(known(deepseek, &[], none()), "deepseek-coder");
        let deepseek = sequence(&[
            pattern("\\p{N}{1,3}"),
            pattern("[一-龥\u{3040}-ゟ゠-ヿ]+"),
            pattern(
                "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
            ),
            bytes(false),
        ]);
        assert_eq!(known(deepseek, &[], none()), "deepseek-v3");
        let falcon = sequence(&[
            json!({"type": "Punctuation", "behavior": "Contiguous"}),
            bytes(true),
            digits(false),
            pattern("[0-9][0-9][0-9]"),
        ]);
        assert_eq!(known(falcon, &[], none()), "falcon");
        let bloom = sequence(&[pattern(r" ?[^(\s|[.,!?…。，、।۔،])]+"), bytes(false)]);
        assert_eq!(known(bloom, &[], none()), "bloom");
        let gemma = json!({"byte_fallback": true,
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}});
        let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
        assert_eq!(known(split, &[], gemma), "gemma4");
    }

    #[test]
    fn an_unknown_definition_is_named_in_a_warning() {
        let (got, warning) = name(sequence(&[pattern(r"\w+"), bytes(true)]), &[], json!({}));
        assert_eq!(got, "gpt-2");
        let warning = warning.unwrap();
        assert!(
            warning.contains(r"\\w+") && warning.contains("--metadata tokenizer.ggml.pre=NAME"),
            "{warning}"
        );
        assert_eq!(name(json!({"type": "Whitespace"}), &[], json!({})).0, "default");
        assert_eq!(name(Value::Null, &[], json!({})).0, "default");
        let long = format!("(?:{})", "é".repeat(5000));
        assert!(name(pattern(&long), &[], json!({})).1.unwrap().len() < 2000);
    }
}
