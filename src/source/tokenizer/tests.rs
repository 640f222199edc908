use super::*;
use crate::format::gguf::metadata::{Array, Metadata, Value as Gguf};
use crate::format::gguf::vocab::write_vocab;
use crate::source::vocab::{ChatTemplate, TokenType};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// The array as Python's `json.dumps` writes it.
fn python_json(array: &Array) -> String {
    let list: Vec<String> = match array {
        Array::Str(v) => v
            .iter()
            .map(|s| {
                let mut out = String::from("\"");
                for c in std::str::from_utf8(s).unwrap().chars() {
                    match c {
                        '"' => out.push_str("\\\""),
                        '\\' => out.push_str("\\\\"),
                        '\n' => out.push_str("\\n"),
                        '\r' => out.push_str("\\r"),
                        '\t' => out.push_str("\\t"),
                        '\u{8}' => out.push_str("\\b"),
                        '\u{c}' => out.push_str("\\f"),
                        ' '..='~' => out.push(c),
                        c => c.encode_utf16(&mut [0; 2]).iter().for_each(|u| out += &format!("\\u{u:04x}")),
                    }
                }
                out + "\""
            })
            .collect(),
        Array::I32(v) => v.iter().map(i32::to_string).collect(),
        Array::F32(v) => v.iter().map(|f| format!("{:?}", f64::from(*f))).collect(),
        _ => panic!("unexpected array"),
    };
    format!("[{}]", list.join(", "))
}

fn digest(value: &Gguf) -> Value {
    match value {
        Gguf::Str(s) => json!(std::str::from_utf8(s).unwrap()),
        Gguf::Bool(b) => json!(b),
        Gguf::U32(v) => json!(v),
        Gguf::Array(a) => {
            let hash = Sha256::digest(python_json(a).as_bytes());
            let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
            json!({"len": a.len(), "sha256": hex})
        }
        other => panic!("unexpected {other:?}"),
    }
}

/// Keys and values must be those of the converter, in its order.
fn check_golden(model: &str, golden: &str, scheme: VocabScheme) {
    let data = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data"));
    let dir = data.join("models").join(model);
    let config: Value = json::read_json(&dir.join("config.json")).unwrap().unwrap();
    let size = config["vocab_size"].as_u64().map(|n| n as usize);
    let vocab = load_vocab(&dir, scheme, size).unwrap();
    let mut meta = Metadata::new();
    write_vocab(&vocab, &mut meta);
    let got: Vec<(String, Value)> = meta.iter().map(|(k, v)| (k.to_owned(), digest(v))).collect();
    let golden: Value = json::read_json(&data.join("golden").join(golden)).unwrap().unwrap();
    let want = golden["metadata"].as_object().unwrap().iter();
    let want: Vec<_> =
        want.filter(|(k, _)| k.starts_with("tokenizer.")).map(|(k, v)| (k.clone(), v.clone())).collect();
    assert_eq!(got, want, "{model}");
    let guessed = vocab.warnings.iter().any(|w| w.contains("pre-tokenizer"));
    assert!(!guessed, "{model}: {:?}", vocab.warnings);
}

#[test]
fn models_give_the_converters_keys() {
    use VocabScheme::*;
    for (model, scheme) in [
        ("llama", Llama),
        ("llama-spm", Llama),
        ("llama3-rope", Llama),
        ("mistral-swa", Llama),
        ("mixtral", Llama),
        ("smollm3", Llama),
        ("qwen2", Qwen),
        ("qwen3", Qwen),
        ("qwen3-moe", Bpe),
        ("gemma2", Gemma2),
        ("gemma3", Gemma3),
        ("phi3", Phi3),
    ] {
        check_golden(model, &format!("arch/{model}.json"), scheme);
    }
    check_golden("tiny-llama", "tiny-llama/BF16.json", Llama);
}

/// A directory with these files.
fn model(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let bytes = match content {
            Value::String(text) => text.clone().into_bytes(),
            other => other.to_string().into_bytes(),
        };
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn bpe(added: Value) -> Value {
    json!({
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "merges": [["a", "b"]]}})
}

fn keys(vocab: &Vocab) -> Vec<String> {
    let mut meta = Metadata::new();
    write_vocab(vocab, &mut meta);
    meta.iter()
        .map(|(k, _)| k.trim_start_matches("tokenizer.").trim_start_matches("ggml.").to_owned())
        .collect()
}

#[test]
fn added_tokens_have_their_types_and_texts() {
    let added = json!([
        {"id": 4, "content": "<s>", "special": true, "normalized": false},
        {"id": 5, "content": "<|x|>", "special": false, "normalized": true},
        {"id": 6, "content": "ĠĠ▁", "special": false, "normalized": true},
        {"id": 7, "content": "Ġy", "special": false, "normalized": false}]);
    let dir = model(&[
        ("tokenizer.json", bpe(added)),
        ("config.json", json!({"bos_token_id": 4, "pad_token_id": -1})),
    ]);
    let vocab = load_vocab(dir.path(), VocabScheme::Qwen, Some(9)).unwrap();
    let texts: Vec<_> = vocab.tokens.iter().map(|t| std::str::from_utf8(t).unwrap()).collect();
    assert_eq!(texts, ["a", "b", "ab", "Ġ", "<s>", "<|x|>", "ĠĠ ", " y", "[PAD8]"]);
    use TokenType::*;
    assert_eq!(vocab.types[3..], [Normal, Control, Control, UserDefined, UserDefined, Unused]);
    assert_eq!(vocab.special, [("bos".to_owned(), 4)]);
    assert_eq!(vocab.warnings.len(), 1, "{:?}", vocab.warnings);
    assert_eq!(vocab.model, VocabModel::ByteLevelBpe { merges: vec!["a b".into()] });
}

#[test]
fn keys_come_in_the_order_of_each_family() {
    let pieces =
        proto::tests::model(&[("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("▁a", -1.0, 1), ("<0x0A>", -2.0, 6)]);
    let dir = model(&[(
        "tokenizer_config.json",
        json!({"add_prefix_space": false, "add_bos_token": true,
        "chat_template": [{"name": "default", "template": "d"}, {"name": "rag-1", "template": "r"}],
        "added_tokens_decoder": {"4": {"content": "▁<u>"}, "1": {"content": "<S>", "special": true},
            "99999": {"content": "far"}}}),
    )]);
    std::fs::write(dir.path().join("tokenizer.model"), pieces).unwrap();
    let vocab = load_vocab(dir.path(), VocabScheme::Llama, Some(6)).unwrap();
    assert_eq!(vocab.tokens[1], b"<S>");
    assert_eq!(vocab.tokens[4], b" <u>");
    assert_eq!(
        vocab.model,
        VocabModel::SentencePiece { scores: vec![0.0, -1000.0, -1.0, -2.0, -1000.0, -10000.0] }
    );
    assert_eq!(vocab.warnings.len(), 2, "{:?}", vocab.warnings);
    assert!(matches!(vocab.chat_template, Some(ChatTemplate::Named(ref l)) if l.len() == 2));
    let start = ["add_space_prefix", "model", "pre", "tokens", "scores", "token_type", "add_bos_token"];
    assert_eq!(keys(&vocab)[..7], start);
    assert_eq!(keys(&vocab)[7..], ["chat_template.rag_1", "chat_templates", "chat_template"]);
    let vocab = load_vocab(dir.path(), VocabScheme::Gemma2, Some(6)).unwrap();
    assert_eq!(keys(&vocab)[0], "model");
    assert_eq!(keys(&vocab).last().unwrap(), "add_space_prefix");
    // CodeLlama's end of turn, and Granite's bos, by the size of the vocabulary.
    let vocab = load_vocab(dir.path(), VocabScheme::Llama, Some(32016)).unwrap();
    assert_eq!(keys(&vocab).last().unwrap(), "eot_token_id");
    assert_eq!(vocab.special, [("eot".to_owned(), 32010)]);
    let vocab = load_vocab(dir.path(), VocabScheme::Llama, Some(49152)).unwrap();
    assert_eq!(vocab.add, [("bos".to_owned(), false)]);
    assert_eq!(keys(&vocab).last().unwrap(), "chat_template");
}

#[test]
fn broken_and_hostile_files_are_errors() {
    let kind = |dir: &tempfile::TempDir, scheme, size| {
        load_vocab(dir.path(), scheme, size).map_err(|e| (e.kind(), e.to_string()))
    };
    let none = model(&[]);
    for scheme in [VocabScheme::Llama, VocabScheme::Phi3, VocabScheme::Gemma2, VocabScheme::Bpe] {
        assert_eq!(kind(&none, scheme, None).unwrap_err().0, Kind::NotFound);
    }
    let good = model(&[("tokenizer.json", bpe(json!([])))]);
    assert!(kind(&good, VocabScheme::Llama, None).is_ok());
    assert_eq!(kind(&good, VocabScheme::Bpe, Some(1 << 40)).unwrap_err().0, Kind::Invalid);
    assert_eq!(kind(&good, VocabScheme::Bpe, Some(3)).unwrap_err().0, Kind::Invalid);
    let far = model(&[("tokenizer.json", bpe(json!([{"id": 4_000_000_000u32, "content": "x"}])))]);
    assert_eq!(kind(&far, VocabScheme::Bpe, None).unwrap_err().0, Kind::Invalid);
    let cut = model(&[("tokenizer.json", json!("{\"model\": {\n\"vocab\": "))]);
    let (kind, text) = kind(&cut, VocabScheme::Bpe, None).unwrap_err();
    assert_eq!(kind, Kind::Invalid);
    assert!(text.contains("tokenizer.json") && text.contains("line 2"), "{text}");
}

#[test]
fn a_vocabulary_in_parts_is_read() {
    let dir = model(&[
        ("vocab.json", json!({"a": 0, "b": 1, "ab": 2})),
        ("merges.txt", json!("#version: 0.2\r\na b\r\nbad\n")),
        ("tokenizer_config.json", json!({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|e|>"})),
    ]);
    let vocab = load_vocab(dir.path(), VocabScheme::Qwen, None).unwrap();
    assert_eq!((vocab.pre.as_str(), vocab.tokens.len()), ("qwen2", 5));
    // The class brings a token of its own.
    assert_eq!(vocab.tokens.last().map(Vec::as_slice), Some(&b"<|endoftext|>"[..]));
    assert_eq!(vocab.model, VocabModel::ByteLevelBpe { merges: vec!["a b".into()] });
    assert_eq!(vocab.warnings.len(), 1);
}
