//! Limits for what a result may lose.

use std::path::Path;

use serde_json::Value;

use crate::support::{Outcome, data, entries, model, run, text};

/// Runs `quantize llama FORMAT` with a short calibration.
fn quantize(format: &str, level: &str, out: &Path, extra: &[&str]) -> Outcome {
    let (model, out, data) = (text(&model("llama")), text(out), text(&data("text/calibration.txt")));
    let mut args = vec!["quantize", &model, format, "-q", level, "-o", &out, "-n", "q"];
    if format != "gguf" || extra.iter().any(|option| option.starts_with("--max")) {
        args.extend(["--calibration-data", &data, "--calibration-samples", "8", "--seq-len", "32"]);
    }
    args.extend(extra);
    run(&args)
}

/// What the stages of a JSON report are called.
fn stages(report: &Value) -> Vec<&str> {
    let attempts = report["budget"]["attempts"].as_array().unwrap();
    attempts.iter().map(|attempt| attempt["stage"].as_str().unwrap()).collect()
}

fn kld(report: &Value, attempt: usize) -> f64 {
    report["budget"]["attempts"][attempt]["loss"]["kl_divergence"].as_f64().unwrap()
}

/// What plain quantization to two bits in groups of 32 loses.
fn plain(out: &Path) -> Value {
    let extra = ["--group-size", "32", "--max-kld", "10", "--format", "json"];
    quantize("gptq", "2bit", out, &extra).success().json()
}

#[test]
fn a_limit_that_plain_quantization_keeps_costs_no_more_than_the_measurement() {
    let out = tempfile::tempdir().unwrap();
    let report = plain(&out.path().join("a"));
    assert_eq!((stages(&report), &report["budget"]["met"]), (vec!["plain"], &Value::Bool(true)));
    assert_eq!(report["budget"]["attempts"][0]["profile_seconds"], 0.0, "nothing else was looked for");
    assert_eq!(report["output_path"], text(&out.path().join("a/q")));
    assert_eq!(entries(&out.path().join("a")), ["q"]);
    quantize("gptq", "2bit", &out.path().join("b"), &["--group-size", "32"]).success();
    let bytes = |dir: &str| std::fs::read(out.path().join(dir).join("q/model.safetensors")).unwrap();
    assert!(bytes("a") == bytes("b"), "the held-out rows are not those that it is calibrated with");
}

#[test]
fn bits_go_where_they_matter_until_the_limit_is_kept() {
    let out = tempfile::tempdir().unwrap();
    let before = plain(&out.path().join("a"));
    let limit = format!("{}", kld(&before, 0) / 3.0);
    let page = text(&out.path().join("page.html"));
    let extra = ["--group-size", "32", "--max-kld", &limit, "--format", "json", "--html", &page];
    let report = quantize("gptq", "2bit", &out.path().join("b"), &extra).success().json();
    assert_eq!(stages(&report)[..2], ["plain", "more_bits"]);
    let page = std::fs::read_to_string(page).unwrap();
    let rows = stages(&report).len();
    assert!(page.contains("The result keeps to it.") && page.matches("more bits where").count() == rows - 1);
    assert_eq!(page.matches(" (kept)</th>").count(), 1, "{page}");
    assert!(!stages(&report).contains(&"island"), "{:?}", stages(&report));
    assert_eq!(kld(&report, 0), kld(&before, 0));
    let last = stages(&report).len() - 1;
    assert!(kld(&report, last) * 3.0 <= kld(&before, 0) && report["budget"]["met"] == true);
    let attempts = report["budget"]["attempts"].as_array().unwrap();
    assert_eq!(report["file_size"], attempts[last]["file_size"]);
    let added: i64 = attempts.iter().map(|a| a["bytes_added"].as_i64().unwrap()).sum();
    assert_eq!(
        added,
        attempts[last]["file_size"].as_i64().unwrap() - attempts[0]["file_size"].as_i64().unwrap()
    );
    let eight = report["metadata"]["quantized_bits_per_weight"].as_f64().unwrap();
    assert!(eight < 8.0, "less than eight bits are enough: {eight}");
    assert_eq!(entries(&out.path().join("b")), ["q"], "nothing is left of the other attempts");
    // What was measured is measured again from the file.
    let (q, original) = (text(&out.path().join("b/q")), text(&model("llama")));
    let eval = text(&data("text/evaluation.txt"));
    run(&["evaluate", &q, "--reference", &original, "--data", &eval, "--ctx", "32", "--chunks", "2"])
        .success();
}

#[test]
fn the_best_result_is_kept_if_none_is_good_enough() {
    let out = tempfile::tempdir().unwrap();
    let extra = ["--group-size", "32", "--max-kld", "1e-12", "--format", "json"];
    let outcome = quantize("gptq", "4bit", out.path(), &extra);
    assert_eq!(outcome.code, 11, "{}", outcome.stderr);
    let report = outcome.json();
    assert!(report["status"] == "error" && report["error_type"] == "QualityError", "{report}");
    assert_eq!(stages(&report)[..2], ["plain", "more_bits"]);
    assert_eq!(*stages(&report).last().unwrap(), "island");
    let kept = report["budget"]["kept"].as_u64().unwrap() as usize;
    assert!((0..stages(&report).len()).all(|i| kld(&report, kept) <= kld(&report, i)));
    assert!(report["message"].as_str().unwrap().contains("it is kept"), "{report}");
    assert_eq!(entries(out.path()), ["q"]);
    assert!(out.path().join("q/model.safetensors").exists());
}

#[test]
fn tuning_is_left_out_if_there_is_no_memory_for_it() {
    let out = tempfile::tempdir().unwrap();
    let (model, data, place) =
        (text(&model("tiny-llama")), text(&data("text/calibration.txt")), text(out.path()));
    let job = ["quantize", &model, "gptq", "-q", "4bit", "--group-size", "32", "-o", &place, "-n", "q"];
    let rows = ["--calibration-data", &data, "--calibration-samples", "16", "--seq-len", "128"];
    // All else is done in 150 MB, tuning on these rows takes 234 MB.
    let limits = ["--max-kld", "1e-12", "--memory-limit", "200MB", "--threads", "2", "--format", "json"];
    let outcome = run(&[&job[..], &rows, &limits].concat());
    assert_eq!(outcome.code, 11, "{}", outcome.stderr);
    assert_eq!(stages(&outcome.json()), ["plain", "more_bits", "island"]);
    assert!(outcome.stderr.contains("Tuning is left out: not enough memory: about"), "{}", outcome.stderr);
    assert_eq!(entries(out.path()), ["q"]);
}

#[test]
fn other_formats_and_perplexity_have_limits_too() {
    let out = tempfile::tempdir().unwrap();
    let eval = text(&data("text/evaluation.txt"));
    let extra = [
        "--max-ppl-increase",
        "50%",
        "--eval-data",
        &eval,
        "--ctx",
        "32",
        "--chunks",
        "4",
        "--format",
        "json",
    ];
    let report = quantize("gguf", "Q4_0", &out.path().join("a"), &extra).success().json();
    assert_eq!(stages(&report), ["plain"]);
    assert!(report["budget"]["attempts"][0]["loss"]["data"].as_str().unwrap().ends_with("evaluation.txt"));
    let before = kld(&report, 0);
    let limit = format!("{}", before / 2.0);
    let extra =
        ["--max-kld", &limit, "--eval-data", &eval, "--ctx", "32", "--chunks", "4", "--format", "json"];
    let report = quantize("gguf", "Q4_0", &out.path().join("b"), &extra).success().json();
    assert_eq!(stages(&report)[..2], ["plain", "more_bits"]);
    assert_eq!(kld(&report, 0), before);

    let group = ["--group-size", "32", "--max-kld", "10", "--format", "json"];
    let plain = quantize("awq", "4bit", &out.path().join("c"), &group).success().json();
    let limit = format!("{}", kld(&plain, 0) * 0.9);
    let extra = ["--group-size", "32", "--max-kld", &limit, "--format", "json"];
    let report = quantize("awq", "4bit", &out.path().join("d"), &extra).success().json();
    let seen = stages(&report);
    assert_eq!(seen[..2], ["plain", "tuning"], "AWQ has one number of bits: {seen:?}");
    assert_eq!(*seen.last().unwrap(), "island", "random weights have nothing in common to be learned");
    assert!(!report["metadata"]["left_out"].as_array().unwrap().is_empty());
}

#[test]
fn a_dry_run_shows_the_stages_and_their_cost() {
    let out = tempfile::tempdir().unwrap();
    let outcome = quantize("gptq", "3bit", out.path(), &["--max-kld", "0.01", "--dry-run"]).success();
    for words in ["plain quantization", "more bits", "16 bits", "at least", "--max-kld 0.01"] {
        assert!(outcome.stdout.contains(words), "{words}: {}", outcome.stdout);
    }
    let found = quantize("gptq", "3bit", out.path(), &["--max-kld", "0.01", "--dry-run", "--format", "json"]);
    let found = found.success().json();
    let stages = found["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    assert_eq!(names, ["plain", "more_bits", "tuning", "island"]);
    assert!(
        stages
            .iter()
            .all(|s| s["seconds"].as_f64().unwrap() > 0.0 && s["operations"].as_f64().unwrap() > 0.0)
    );
    assert_eq!(found["trials"], 8 * 12, "eight units at four numbers of bits in groups of three sizes");
    assert!(entries(out.path()).is_empty());
}

#[test]
fn measuring_on_what_was_calibrated_with_is_noticed() {
    let out = tempfile::tempdir().unwrap();
    let measured = |text: &str, out: &Path| {
        let extra = ["--max-kld", "10", "--eval-data", text, "--ctx", "32", "--chunks", "20"];
        quantize("gptq", "4bit", out, &extra).success().stderr
    };
    let same = measured(&text(&data("text/calibration.txt")), &out.path().join("a"));
    assert!(same.contains("of the calibration rows are in"), "{same}");
    let other = measured(&text(&data("text/evaluation.txt")), &out.path().join("b"));
    assert!(!other.contains("of the calibration rows are in"), "{other}");
}

#[test]
fn what_contradicts_itself_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let refused = |extra: &[&str], words: &[&str]| {
        quantize("gptq", "4bit", out.path(), extra).failure(2, words);
        assert!(entries(out.path()).is_empty());
    };
    refused(&["--max-kld", "0"], &["--max-kld 0", "no quantized model"]);
    refused(&["--max-kld", "-1"], &["--max-kld"]);
    refused(&["--max-ppl-increase", "0%"], &["--max-ppl-increase 0%"]);
    refused(&["--max-kld", "0.1", "--max-ppl-increase", "1%"], &["--max-ppl-increase"]);
    refused(&["--target-bpw", "3"], &["--target-bpw"]);
    refused(&["--max-kld", "0.1", "--evaluate"], &["--evaluate"]);
    refused(&["--max-kld", "0.1", "--ctx", "32"], &["--ctx", "--eval-data"]);
    refused(&["--estimate"], &["--estimate"]);
    refused(&["--eval-data", "x"], &["--evaluate"]);
    let none = ["quantize", &text(&model("llama")), "gptq", "-o", &text(out.path())];
    run(&none).failure(2, &["--quant-level"]);
}
