//! `quantize MODEL gptq --tune`: what it learns, and that it does so in the same way every time.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::checkpoint::read_weights;
use crate::support::{Outcome, data, entries, model, run, sha256, text};

/// Arguments of a short calibration.
const SHORT: &[&str] = &["--calibration-samples", "16", "--seq-len", "32", "--group-size", "32"];

fn tune(name: &str, format: &str, level: &str, out: &Path, extra: &[&str]) -> Outcome {
    tune_and_tell(name, format, level, out, &[extra, &["--format", "json"]].concat())
}

/// The same, with a report for people, and errors on standard error.
fn tune_and_tell(name: &str, format: &str, level: &str, out: &Path, extra: &[&str]) -> Outcome {
    let (model, out, data) = (text(&model(name)), text(out), text(&data("text/calibration.txt")));
    let mut args = vec!["quantize", &model, format, "-q", level, "-o", &out, "-n", "q"];
    args.extend(["--calibration-data", &data]);
    // What a test asks for takes the place of what is usual.
    args.extend(SHORT.chunks(2).filter(|option| !extra.contains(&option[0])).flatten());
    args.extend(extra);
    run(&args)
}

fn files(dir: &Path) -> BTreeMap<String, String> {
    entries(dir)
        .into_iter()
        .map(|name| (name.clone(), sha256(&std::fs::read(dir.join(name)).unwrap())))
        .collect()
}

/// The held-out loss at the start and of what was kept, of each curve.
fn losses(report: &Value) -> Vec<[f64; 2]> {
    let curves = report["tuning"].as_array().unwrap().iter();
    let losses = curves.map(|curve| {
        let points = curve["points"].as_array().unwrap();
        let at =
            |step: &Value| points.iter().find(|p| p["step"] == *step).unwrap()["held_out"].as_f64().unwrap();
        assert_eq!(curve["rolled_back"], 0);
        [at(&0.into()), at(&curve["kept"])]
    });
    losses.collect()
}

/// What is left of the loss on rows that are learned from, of each curve: of random weights, little is the same on others.
fn learned(report: &Value) -> Vec<f64> {
    let curves = report["tuning"].as_array().unwrap().iter();
    let left = curves.map(|curve| {
        let points = curve["points"].as_array().unwrap();
        let train: Vec<f64> = points.iter().filter_map(|point| point["train"].as_f64()).collect();
        train.last().unwrap() / train[0]
    });
    left.collect()
}

#[test]
fn every_layer_is_tuned_and_the_curves_are_reported() {
    let out = tempfile::tempdir().unwrap();
    let report = tune("llama", "gptq", "2bit", out.path(), &["--tune", "block", "--tune-steps", "40"])
        .success()
        .json();
    let found = losses(&report);
    assert_eq!(found.len(), report["metadata"]["layers"].as_u64().unwrap() as usize);
    assert!(found.iter().all(|[start, kept]| kept <= start), "{found:?}");
    assert!(learned(&report).iter().all(|left| *left < 0.99), "{:?}", learned(&report));
    assert_eq!(report["validation_status"], "valid");
}

#[test]
fn the_whole_model_is_tuned_and_its_norms_are_stored_in_16_bits() {
    let out = tempfile::tempdir().unwrap();
    let page = out.path().join("page.html");
    let extra = ["--tune", "global", "--tune-steps", "21", "--html", &text(&page)];
    let report = tune("tiny-llama", "gptq", "2bit", out.path(), &extra).success().json();
    let found = losses(&report);
    assert_eq!(found.len(), 1);
    assert!(found[0][1] < found[0][0], "{found:?}");
    assert!(learned(&report)[0] < 0.98, "{:?}", learned(&report));
    assert!(std::fs::read_to_string(page).unwrap().contains("Held-out rows"));
    let original = read_weights(&model("tiny-llama").join("model.safetensors"));
    let tuned = read_weights(&out.path().join("q/model.safetensors"));
    let norms = tuned.iter().filter(|t| t.name.contains("norm"));
    let mut moved = 0;
    for norm in norms {
        assert_eq!(norm.dtype, "F16", "{}", norm.name);
        let mut before = original.iter().find(|t| t.name == norm.name).unwrap().clone();
        before.convert("F16");
        moved += usize::from(before.data != norm.data);
    }
    assert!(moved > 0, "no norm was learned");
}

#[test]
fn threads_do_not_change_the_bytes() {
    for scope in ["block", "global"] {
        let bytes = |threads: &str| {
            let out = tempfile::tempdir().unwrap();
            let extra = ["--tune", scope, "--tune-steps", "3", "--threads", threads];
            tune("tiny-llama", "gptq", "3bit", out.path(), &extra).success();
            files(&out.path().join("q"))
        };
        assert_eq!(bytes("3"), bytes("1"), "{scope}");
    }
}

#[test]
fn fused_matrices_other_families_and_awq_are_tuned() {
    for (name, format, level, scope) in [
        ("phi3", "gptq", "3bit", "block"),
        ("gemma3", "gptq", "3bit", "global"),
        ("qwen3", "gptq", "3bit", "global"),
        ("llama", "awq", "4bit", "block"),
        ("qwen2", "awq", "4bit", "global"),
    ] {
        let out = tempfile::tempdir().unwrap();
        let report =
            tune(name, format, level, out.path(), &["--tune", scope, "--tune-steps", "10"]).success().json();
        assert!(losses(&report).iter().all(|[start, kept]| kept <= start), "{name}");
        assert_eq!(report["validation_status"], "valid", "{name}");
    }
}

#[test]
fn only_what_is_named_is_tuned() {
    let out = tempfile::tempdir().unwrap();
    let plain = tempfile::tempdir().unwrap();
    // A trained model: of random weights, what is learned of some rows is of no use for the held-out ones, and nothing is kept.
    tune("tiny-llama", "gptq", "2bit", plain.path(), &[]).success();
    let steps = ["--tune", "global", "--tune-steps", "14", "--tune-rate", "0.004"];
    let extra = [&steps[..], &["--tune-layers", r"layers\.0\.mlp"]].concat();
    let report = tune("tiny-llama", "gptq", "2bit", out.path(), &extra).success().json();
    assert!(report["tuning"][0]["kept"].as_u64().unwrap() > 0, "{report}");
    let [before, after] = [&plain, &out].map(|dir| read_weights(&dir.path().join("q/model.safetensors")));
    let changed: Vec<&str> = before
        .iter()
        .zip(&after)
        .filter(|(a, b)| a.data != b.data && !a.name.contains("norm"))
        .map(|(a, _)| a.name.as_str())
        .collect();
    assert!(!changed.is_empty());
    assert!(changed.iter().all(|name| name.contains("layers.0.mlp")), "{changed:?}");
    let auto = ["--tune", "global", "--tune-steps", "3", "--tune-layers", "auto"];
    tune("llama", "gptq", "3bit", tempfile::tempdir().unwrap().path(), &auto).success();
}

#[test]
fn what_cannot_be_tuned_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let refused = |name: &str, extra: &[&str], code: i32, words: &[&str]| {
        tune_and_tell(name, "gptq", "3bit", out.path(), extra).failure(code, words);
        assert_eq!(entries(out.path()), [""; 0]);
    };
    refused("mixtral", &["--tune", "block"], 8, &["mixture of experts"]);
    refused("llama", &["--tune", "block", "--calibration-samples", "7"], 2, &["8 calibration rows"]);
    refused("llama", &["--tune", "block", "--tune-layers", "auto"], 2, &["--tune global"]);
    refused("llama", &["--tune", "block", "--tune-layers", "("], 2, &["regular expression"]);
    refused("llama", &["--tune", "block", "--offload"], 2, &["--offload"]);
    refused("llama", &["--tune", "everything"], 2, &["block", "global"]);
    refused("llama", &["--tune", "global", "--tune-rate", "0"], 2, &["--tune-rate"]);
    refused("llama", &["--tune-steps", "5"], 2, &["--tune"]);
}

#[test]
fn few_bits_without_tuning_are_warned_of() {
    let out = tempfile::tempdir().unwrap();
    let said = tune("llama", "gptq", "3bit", out.path(), &[]).success().stderr;
    assert!(said.contains("--tune global"), "{said}");
    let said = tune("llama", "gptq", "4bit", out.path(), &["--force"]).success().stderr;
    assert!(!said.contains("--tune"), "{said}");
}
