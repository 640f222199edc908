//! The files are llama.cpp's, as digests of what it makes of the test models say.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use crate::gguf_file::{File, Value};
use crate::support::{arguments, data, model, run_in, sha256};

/// Digests of a directory whose names end in `.imatrix.json` or do not, by name.
fn digests(dir: &str, imatrix: bool) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(data(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .filter(|path| path.to_str().unwrap().ends_with(".imatrix.json") == imatrix)
        .collect();
    found.sort();
    found
}

/// The part of a digest's name before the first dot.
fn stem(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap().split('.').next().unwrap()
}

/// Quantizes in the directory of tiny-llama's digests: what the file says of the importance matrix is its name as given.
fn made(model: &Path, level: &str, extra: &[&str]) -> File {
    let out = tempfile::tempdir().unwrap();
    let extra = [&["-n", "out.gguf"], extra].concat();
    run_in(&data("golden/tiny-llama"), &arguments(model, level, out.path(), &extra)).success();
    File::open(&out.path().join("out.gguf"))
}

/// A value as the digests have it: long lists as their length and the hash of their JSON text.
fn digest_of(value: &Value) -> Json {
    match value {
        Value::List(list) if list.len() > 16 => {
            json!({"len": list.len(), "sha256": sha256(value.json().as_bytes())})
        }
        _ => serde_json::from_str(&value.json()).unwrap(),
    }
}

/// What differs, one line for each difference. `in_order` says whether keys and tensors have llama.cpp's order too.
fn differences(file: &File, golden: &Json, in_order: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, ours: Option<Json>, theirs: Option<&Json>| {
        if ours.as_ref() != theirs {
            let text = |v: Option<&Json>| v.map_or("nothing".to_owned(), Json::to_string);
            found.push(format!("{what}: {} instead of {}", text(ours.as_ref()), text(theirs)));
        }
    };
    compare("version", Some(json!(file.version)), golden.get("version"));
    let metadata = golden["metadata"].as_object().unwrap();
    for (key, theirs) in metadata {
        compare(key, file.key(key).map(|(_, value)| digest_of(value)), Some(theirs));
    }
    let keys: Vec<&str> = file.metadata.iter().map(|(key, ..)| key.as_str()).collect();
    for key in keys.iter().filter(|key| !metadata.contains_key(**key)) {
        compare(key, Some(json!("a key")), None);
    }
    let tensors = golden["tensors"].as_object().unwrap();
    for (name, theirs) in tensors {
        let ours = file.tensors.iter().find(|t| t.name == *name);
        let ours = ours.map(|t| json!({"type": t.ty, "shape": t.shape, "sha256": sha256(&t.data)}));
        compare(name, ours, Some(theirs));
    }
    let names: Vec<&str> = file.tensors.iter().map(|t| t.name.as_str()).collect();
    for name in names.iter().filter(|name| !tensors.contains_key(**name)) {
        compare(name, Some(json!("a tensor")), None);
    }
    if in_order {
        let theirs: Vec<&String> = metadata.keys().collect();
        compare("order of keys", Some(json!(keys)), Some(&json!(theirs)));
        let theirs: Vec<&String> = tensors.keys().collect();
        compare("order of tensors", Some(json!(names)), Some(&json!(theirs)));
    }
    found
}

/// Makes a file for every digest and reports all differences together.
#[track_caller]
fn assert_all_match(digests: &[PathBuf], in_order: bool, make: impl Fn(&str) -> File) {
    let mut report = Vec::new();
    for path in digests {
        let golden: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let name = path.file_name().unwrap().to_string_lossy();
        let lines = differences(&make(stem(path)), &golden, in_order);
        report.extend(lines.into_iter().map(|line| format!("{name}: {line}")));
    }
    assert!(report.is_empty(), "{} differences:\n{}", report.len(), report.join("\n"));
}

#[test]
fn every_level_of_tiny_llama() {
    let digests = digests("golden/tiny-llama", false);
    assert_eq!(digests.len(), 21, "every level but Q2_K_S, which needs an importance matrix");
    assert_all_match(&digests, true, |level| made(&model("tiny-llama"), level, &[]));
}

#[test]
fn every_level_of_tiny_llama_with_an_importance_matrix() {
    let digests = digests("golden/tiny-llama", true);
    assert_eq!(digests.len(), 22, "every level");
    let levels: Vec<&str> = digests.iter().map(|path| stem(path)).collect();
    for level in llm_quantize::format::gguf::level::LEVELS {
        assert!(levels.contains(&level.name), "{} has a digest", level.name);
    }
    assert_all_match(&digests, true, |level| {
        made(&model("tiny-llama"), level, &["--imatrix", "imatrix.gguf"])
    });
}

#[test]
fn every_architecture() {
    let digests = digests("golden/arch", false);
    assert_eq!(digests.len(), 12);
    // The converter writes tensors in the checkpoint's order; llama-quantize, which the program follows, sorts them.
    assert_all_match(&digests, false, |name| made(&model(name), "BF16", &[]));
}

#[test]
fn every_test_model_has_a_digest() {
    for entry in std::fs::read_dir(data("models")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let expected = format!("golden/arch/{name}.json");
        assert!(name == "tiny-llama" || data(&expected).is_file(), "{expected} is missing");
    }
}
