//! What the commands print: for people and as JSON, on success and on failure.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::checkpoint::Case;
use crate::support::{arguments, entries, model, program, quantize, run, run_in, text};

#[test]
fn help_and_version() {
    let version = run(&["--version"]).success();
    assert_eq!((version.stdout.as_str(), version.stderr.as_str()), ("llm-quantize, version 0.1.0\n", ""));
    let help = run(&["--help"]).success();
    for word in ["quantize", "info", "--format", "--threads", "Exit codes", "130"] {
        assert!(help.stdout.contains(word), "{word}");
    }
    let help = run(&["quantize", "--help"]).success();
    for word in ["--imatrix", "--tensor-type", "--dry-run", "--force", "--ignore-config"] {
        assert!(help.stdout.contains(word), "{word}");
    }
}

#[test]
fn no_arguments() {
    let outcome = run::<&str>(&[]).failure(2, &["Usage:", "quantize", "info"]);
    assert_eq!(outcome.stdout, "");
}

/// What `info` says of both, once as a model and once as the file made from it.
const FACTS: [(&str, u64); 5] = [
    ("parameter_count", 3_672_320),
    ("hidden_size", 256),
    ("num_layers", 4),
    ("num_heads", 4),
    ("vocab_size", 2048),
];

#[track_caller]
fn assert_facts(found: &Value) {
    for (key, value) in FACTS {
        assert_eq!(found[key], value, "{key}");
    }
    assert!(found.get("status").is_none(), "only a job has a status");
}

#[test]
fn info_of_a_model() {
    let path = text(&model("tiny-llama"));
    let found = run(&["info", &path, "--format", "json"]).success().json();
    assert_facts(&found);
    assert_eq!(found["model_name"], "tiny-llama");
    assert_eq!(found["architecture"], "LlamaForCausalLM");
    assert_eq!(found["torch_dtype"], "bfloat16");
    assert_eq!(found["supported"], true);

    let human = run(&["info", &path]).success();
    assert_eq!(human.stderr, "");
    for line in [
        "Model:         tiny-llama",
        "Parameters:    3,672,320",
        "Vocab Size:    2,048",
        "Dtype:         bfloat16",
    ] {
        assert!(human.stdout.lines().any(|l| l == line), "{line:?} is not in:\n{}", human.stdout);
    }
}

#[test]
fn info_of_a_file() {
    let out = tempfile::tempdir().unwrap();
    quantize(&model("tiny-llama"), "Q4_K_M", out.path(), &[]).success();
    let path = text(&out.path().join("tiny-llama-Q4_K_M.gguf"));
    let found = run(&["info", &path, "--format", "json"]).success().json();
    assert_facts(&found);
    assert_eq!(found["model_name"], "Tiny Llama");
    assert_eq!(found["architecture"], "llama");
    assert_eq!(found["torch_dtype"], "Q4_K");
    assert_eq!(found["format"], "gguf");
    assert_eq!(found["file_size"], std::fs::metadata(&path).unwrap().len());
    let gguf = &found["gguf"];
    assert_eq!(
        (&gguf["version"], &gguf["level"], &gguf["tensors"]),
        (&3.into(), &"Q4_K_M".into(), &38.into())
    );
    assert_eq!((&found["tokenizer"], &gguf["context_length"]), (&"gpt2 (gpt-2)".into(), &512.into()));

    let human = run(&["info", &path]).success().stdout;
    for word in ["Tiny Llama", "Level:         Q4_K_M", "Q6_K", "gpt2 (gpt-2)", "3,672,320"] {
        assert!(human.contains(word), "{word:?} is not in:\n{human}");
    }
}

/// What cannot be quantized can still be looked at.
#[test]
fn info_of_a_model_that_is_not_supported() {
    let case = Case::of("llama");
    case.edit("config.json", |config| config["architectures"] = serde_json::json!(["FalconForCausalLM"]));
    let path = text(&case.model());
    let found = run(&["info", &path, "--format", "json"]).success().json();
    assert_eq!((&found["architecture"], &found["supported"]), (&"FalconForCausalLM".into(), &false.into()));
    assert!(run(&["info", &path]).success().stdout.contains("cannot be quantized"));
}

#[test]
fn info_of_what_is_no_model() {
    run(&["info", &text(&model("llama").join("config.json"))])
        .failure(6, &["config.json is not a GGUF file"]);
    run(&["info", "/nowhere/model"]).failure(3, &["/nowhere/model", "not found"]);
    run(&["info", "/nowhere/model.gguf"]).failure(3, &["/nowhere/model.gguf", "not found"]);
}

#[test]
fn the_report_as_json() {
    let out = tempfile::tempdir().unwrap();
    let outcome = quantize(&model("tiny-llama"), "Q4_K_M", out.path(), &["--format", "json"]).success();
    let report = outcome.json();
    let path = out.path().join("tiny-llama-Q4_K_M.gguf");
    let size = std::fs::metadata(&path).unwrap().len();
    for (key, value) in [
        ("status", Value::from("success")),
        ("output_path", text(&path).into()),
        ("format", "gguf".into()),
        ("quantization_level", "Q4_K_M".into()),
        ("file_size", size.into()),
        ("validation_status", "valid".into()),
        ("compression_ratio", (size as f64 / (2.0 * 3_672_320.0)).into()),
    ] {
        assert_eq!(report[key], value, "{key}");
    }
    for key in ["duration_seconds", "encode_seconds", "peak_memory_bytes"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}");
    }
    let summary = &report["metadata"];
    assert_eq!(summary["architecture"], "LlamaForCausalLM");
    assert_eq!(summary["original_dtype"], "bfloat16");
    assert_eq!((&summary["parameters"], &summary["file_size"]), (&3_672_320.into(), &size.into()));
    let tensors = summary["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 38);
    let bytes: u64 = tensors.iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    let by_type: u64 =
        summary["types"].as_object().unwrap().values().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert_eq!(bytes, by_type);
    let bits = bytes as f64 * 8.0 / 3_672_320.0;
    assert!((summary["bits_per_weight"].as_f64().unwrap() - bits).abs() < 1e-9);
}

#[test]
fn failures_as_json() {
    let case = Case::of("llama");
    case.edit("config.json", |config| config["logit_scale"] = 2.into());
    for (level, extra, code, kind, words) in [
        ("Q9", &[][..], 2, "UsageError", ["'Q9'", "Q4_K_M"]),
        ("Q4_0", &[], 8, "UnsupportedError", ["logit_scale", "--ignore-config"]),
        ("IQ2_XS", &[], 8, "UnsupportedError", ["IQ2_XS", "Q4_K_M"]),
        ("Q4_0", &["--imatrix", "/nowhere"], 3, "ModelNotFoundError", ["/nowhere", ""]),
    ] {
        let outcome = case.quantize(level, &[&["--format", "json"], extra].concat()).failure(code, &[]);
        let failure = outcome.json();
        assert_eq!((&failure["status"], &failure["error_code"]), (&"error".into(), &code.into()));
        assert_eq!(failure["error_type"], kind);
        assert!(failure["message"].as_str().unwrap().contains(words[0]), "{failure}");
        assert!(
            words[1].is_empty() || failure["suggestion"].as_str().unwrap().contains(words[1]),
            "{failure}"
        );
        assert_eq!(entries(&case.out()), [""; 0]);
    }
    let failure = run(&["--format", "json", "info", "/nowhere/x"]).failure(3, &[]).json();
    assert_eq!(failure["error_code"], 3);
}

#[test]
fn people_read_standard_error() {
    let out = tempfile::tempdir().unwrap();
    let outcome = quantize(&model("llama"), "Q4_0", out.path(), &[]).success();
    assert_eq!(outcome.stdout, "");
    for word in
        ["Loading model", "Architecture: LlamaForCausalLM (2 layers", "Complete:", "llama-Q4_0.gguf", "NMSE"]
    {
        assert!(outcome.stderr.contains(word), "{word:?} is not in:\n{}", outcome.stderr);
    }
    let verbose =
        quantize(&model("llama"), "Q4_0", out.path(), &["--force", "--verbosity", "verbose"]).success();
    assert!(verbose.stderr.contains("Duration:"), "{}", verbose.stderr);
}

#[test]
fn quiet_means_silent() {
    let out = tempfile::tempdir().unwrap();
    // 128 weights in a row: the mix falls back, which is a warning otherwise.
    for level in ["Q4_K_M", "BF16"] {
        let outcome = quantize(&model("llama"), level, out.path(), &["--verbosity", "quiet"]).success();
        assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""));
    }
    let outcome = quantize(&model("llama"), "BF16", out.path(), &["--verbosity", "quiet"]);
    outcome.failure(2, &["exists already"]);
}

#[test]
fn the_name_of_the_result() {
    let out = tempfile::tempdir().unwrap();
    let deep = out.path().join("a/b");
    quantize(&model("llama"), "q4_0", &deep, &[]).success();
    quantize(&model("llama"), "q4_k", &deep, &[]).success();
    quantize(&model("llama"), "BF16", &deep, &["-n", "plain"]).success();
    quantize(&model("llama"), "BF16", &deep, &["--output-name", "Other.GGUF"]).success();
    assert_eq!(entries(&deep), ["Other.GGUF", "llama-Q4_0.gguf", "llama-Q4_K_M.gguf", "plain.gguf"]);
}

/// The directory's own name counts, however it is spelt, and the current directory takes the result.
#[test]
fn the_current_directory() {
    let case = Case::of("llama");
    run_in(&case.model(), &["quantize", ".", "GGUF", "-q", "bf16", "--threads", "1"]).success();
    assert!(entries(&case.model()).contains(&"llama-BF16.gguf".to_owned()));
}

/// What somebody else may read is decided by the umask, as for any file.
#[test]
fn the_result_is_as_readable_as_other_files() {
    use std::os::unix::fs::PermissionsExt;
    let out = tempfile::tempdir().unwrap();
    quantize(&model("llama"), "BF16", out.path(), &["-n", "x"]).success();
    std::fs::write(out.path().join("other"), "").unwrap();
    let mode = |name| std::fs::metadata(out.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("x.gguf"), mode("other"));
}

#[test]
fn a_dry_run_writes_nothing_and_tells_the_truth() {
    for (name, level) in [("tiny-llama", "Q4_K_M"), ("mixtral", "Q3_K_L"), ("qwen2", "Q6_K")] {
        let parent = tempfile::tempdir().unwrap();
        let out = parent.path().join("out");
        let dry = quantize(&model(name), level, &out, &["--dry-run", "--format", "json"]).success().json();
        let human = quantize(&model(name), level, &out, &["--dry-run"]).success();
        assert!(!out.exists(), "nothing is written");
        assert!(human.stdout.contains(&format!("({} bytes)", dry["file_size"])), "{}", human.stdout);
        let real = quantize(&model(name), level, &out, &["--format", "json"]).success().json();
        let size = std::fs::metadata(out.join(format!("{name}-{level}.gguf"))).unwrap().len();
        assert_eq!(dry["file_size"], size);
        let without_errors = |summary: &Value| {
            let mut summary = summary.clone();
            for part in ["tensors", "types"] {
                let parts: Vec<&mut Value> = match &mut summary[part] {
                    Value::Array(list) => list.iter_mut().collect(),
                    Value::Object(map) => map.values_mut().collect(),
                    other => panic!("{other}"),
                };
                parts.into_iter().for_each(|p| drop(p.as_object_mut().unwrap().remove("nmse")));
            }
            summary
        };
        assert_eq!(without_errors(&real["metadata"]), dry, "{name}");
    }
}

/// A dry run needs no importance matrix and does not mind an output that exists.
#[test]
fn a_reader_that_closes_the_pipe_is_no_error() {
    let args = arguments(&model("llama"), "Q4_0", Path::new("."), &["--dry-run"]);
    let mut child = program().args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}
