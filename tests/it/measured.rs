//! `quantize --evaluate` and `--html`: the result is measured from what was written, and a page tells of it.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::quality::assert_well_formed;
use crate::support::{Outcome, data, entries, model, run, text};

const CUT: &[&str] = &["--ctx", "128", "--chunks", "3"];

fn quantize(format: &str, level: &str, out: &Path, extra: &[&str]) -> Outcome {
    let (model, out) = (text(&model("tiny-llama")), text(out));
    run(&[&["quantize", &model, format, "-q", level, "-o", &out, "-n", "q"], extra].concat())
}

/// What `evaluate` finds in a finished result.
fn evaluate(model_path: &Path, data: &str) -> Value {
    let (quantized, reference) = (text(model_path), text(&model("tiny-llama")));
    let args = ["evaluate", &quantized, "--reference", &reference, "--data", data, "--format", "json"];
    run(&[&args[..], CUT].concat()).success().json()
}

#[track_caller]
fn assert_same(report: &Value, evaluated: &Value, data: &str) {
    let found = &report["evaluation"];
    for (key, other) in [
        ("perplexity", "perplexity"),
        ("source_perplexity", "reference_perplexity"),
        ("kl_divergence", "kl_divergence"),
        ("kl_divergence_stderr", "kl_divergence_stderr"),
        ("top1_agreement", "top1_agreement"),
        ("tokens", "tokens"),
    ] {
        assert_eq!(found[key], evaluated[other], "{key}");
    }
    assert_eq!(found["data"], data);
    assert!(found["kl_divergence"].as_f64().unwrap() > 0.0);
}

#[test]
fn gptq_is_measured_and_has_a_page() {
    let out = tempfile::tempdir().unwrap();
    let (data, page) = (text(&data("text/evaluation.txt")), out.path().join("page.html"));
    let page_text = text(&page);
    let args = ["--calibration-samples", "4", "--seq-len", "64", "--skip", r"layers\.0\.mlp\.down_proj"];
    let args = [&args[..], CUT, &["--evaluate", "--data", &data, "--html", &page_text]].concat();
    let report =
        quantize("gptq", "3bit", out.path(), &[&args[..], &["--format", "json"]].concat()).success().json();
    assert_eq!(report["linears"].as_array().unwrap().len(), 27);
    assert_same(&report, &evaluate(&out.path().join("q"), &data), &data);

    let html = fs::read_to_string(&page).unwrap();
    let kld = format!("{:.6}", report["evaluation"]["kl_divergence"].as_f64().unwrap());
    for word in [
        "model.layers.3.mlp.down_proj",
        "self_attn.q_proj",
        "layer 3",
        "In 16 bits",
        "damping",
        "KL divergence by position",
        &kld,
    ] {
        assert!(html.contains(word), "{word}");
    }
    for word in ["<script", "http:", "https:", "url(", "NaN"] {
        assert!(!html.contains(word), "{word}");
    }
    assert_well_formed(&html);

    // A page that is there is not lost, and this is known before the work.
    fs::remove_dir_all(out.path().join("q")).unwrap();
    quantize("gptq", "3bit", out.path(), &args).failure(2, &["page.html", "exists", "--force"]);
    assert_eq!(entries(out.path()), ["page.html"]);
}

#[test]
fn people_read_what_was_measured() {
    let out = tempfile::tempdir().unwrap();
    let data = text(&data("text/evaluation.txt"));
    let args = [CUT, &["--evaluate", "--data", &data]].concat();
    let said = quantize("gguf", "Q2_K", out.path(), &args).success().stderr;
    let found = evaluate(&out.path().join("q.gguf"), &data);
    for (what, key) in [("Perplexity: ", "perplexity"), ("KL divergence: ", "kl_divergence")] {
        let digits = if key == "perplexity" { 4 } else { 6 };
        let line = format!("{what}{:.digits$}", found[key].as_f64().unwrap());
        assert!(said.contains(&line), "{line} is not in:\n{said}");
    }
}

#[test]
fn a_measurement_that_cannot_be_is_known_before_the_work() {
    let out = tempfile::tempdir().unwrap();
    let missing = text(&out.path().join("none.txt"));
    let page = text(&out.path().join("page.html"));
    quantize("gguf", "Q4_0", out.path(), &["--evaluate", "--data", &missing]).failure(3, &["none.txt"]);
    quantize("gguf", "Q4_0", out.path(), &["--data", &missing]).failure(2, &["--data", "--evaluate"]);
    quantize("gguf", "Q4_0", out.path(), &["--html", &page]).failure(2, &["--html", "GGUF"]);
    assert!(entries(out.path()).is_empty());
}
