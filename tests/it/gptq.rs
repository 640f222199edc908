//! `quantize MODEL gptq`: what it writes, what it says, and what it refuses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checkpoint::Case;
use crate::support::{Outcome, data, entries, model, run, sha256, text};

/// Arguments of a short calibration.
const SHORT: &[&str] = &["--calibration-samples", "8", "--seq-len", "32", "--group-size", "32"];

fn quantize(model: &Path, level: &str, out: &Path, extra: &[&str]) -> Outcome {
    let (model, out, data) = (text(model), text(out), text(&data("text/evaluation.txt")));
    let mut args = vec!["quantize", &model, "gptq", "-q", level, "-o", &out, "-n", "q"];
    args.extend(["--calibration-data", &data]);
    // What a test asks for takes the place of what is usual.
    args.extend(SHORT.chunks(2).filter(|option| !extra.contains(&option[0])).flatten());
    args.extend(extra);
    run(&args)
}

fn report(outcome: Outcome) -> Value {
    outcome.success().json()
}

/// All files of a directory.
fn files(dir: &Path) -> BTreeMap<String, String> {
    entries(dir)
        .into_iter()
        .map(|name| (name.clone(), sha256(&std::fs::read(dir.join(name)).unwrap())))
        .collect()
}

struct Out(tempfile::TempDir);

impl Out {
    fn new() -> Out {
        Out(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn checkpoint(&self) -> PathBuf {
        self.path().join("q")
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_checkpoint_is_written_and_reported() {
    let out = Out::new();
    let report = report(quantize(&model("llama"), "4bit", out.path(), &["--format", "json"]));
    assert_eq!(entries(out.path()), ["q"]);
    assert_eq!(report["status"], "success");
    assert_eq!(report["quantization_level"], "4bit");
    assert_eq!(report["calibration"]["rows"], 8);
    let linears = report["linears"].as_array().unwrap();
    assert_eq!(linears.len(), report["metadata"]["layers"].as_u64().unwrap() as usize * 7);
    let share: f64 = linears.iter().map(|l| l["share"].as_f64().unwrap()).sum();
    assert!((share - 1.0).abs() < 1e-9, "{share}");
    for linear in linears {
        assert_eq!(linear["method"], "gptq", "{linear}");
        assert!(linear["relative_error"].as_f64().unwrap() < 0.05, "{linear}");
        assert_eq!(linear["tokens"], 256, "{linear}");
    }
    let config = read(&out.checkpoint().join("config.json"));
    assert_eq!(config["torch_dtype"], "float16");
    let quantization = &config["quantization_config"];
    assert_eq!(quantization, &read(&out.checkpoint().join("quantize_config.json")));
    for (key, value) in [
        ("quant_method", json!("gptq")),
        ("bits", json!(4)),
        ("group_size", json!(32)),
        ("sym", json!(true)),
        ("desc_act", json!(false)),
        ("checkpoint_format", json!("gptq")),
    ] {
        assert_eq!(quantization[key], value, "{key}");
    }
}

#[test]
fn every_grid_order_and_version_passes_its_own_validation() {
    for (level, extra) in [
        ("2bit", &["--group-size", "64"][..]),
        ("3bit", &["--group-size", "-1"]),
        ("8bit", &["--group-size", "128"]),
        ("4bit", &["--asym"]),
        ("4bit", &["--asym", "--checkpoint-format", "gptq"]),
        ("3bit", &["--desc-act"]),
        ("4bit", &["--low-memory"]),
    ] {
        let out = Out::new();
        let report =
            report(quantize(&model("llama"), level, out.path(), &[extra, &["--format", "json"]].concat()));
        assert_eq!(report["validation_status"], "valid", "{level} {extra:?}");
        let stated = read(&out.checkpoint().join("quantize_config.json"));
        let v2 = extra == ["--asym"];
        assert_eq!(stated["checkpoint_format"], if v2 { "gptq_v2" } else { "gptq" }, "{extra:?}");
        assert_eq!(stated["static_groups"], extra == ["--desc-act"]);
        // GPTQModel loads asymmetric files of version 1 only from those who keep zero points above 0.
        let quantizers = stated["meta"]["quantizer"].as_array().unwrap();
        let keeps = quantizers.iter().any(|q| q.as_str().unwrap().starts_with("gptqmodel:"));
        assert_eq!(keeps, extra.len() == 3, "{extra:?}: {quantizers:?}");
    }
}

#[test]
fn fused_matrices_and_other_families_are_quantized() {
    for name in ["phi3", "gemma3", "qwen2", "qwen3"] {
        let out = Out::new();
        let report = report(quantize(&model(name), "4bit", out.path(), &["--format", "json"]));
        assert!(report["metadata"]["matrices"].as_u64().unwrap() > 0, "{name}");
        assert_eq!(report["metadata"]["left_out"], json!([]), "{name}");
    }
}

#[test]
fn threads_and_memory_do_not_change_the_bytes() {
    for name in ["tiny-llama", "mixtral"] {
        let bytes = |extra: &[&str]| {
            let out = Out::new();
            quantize(&model(name), "3bit", out.path(), extra).success();
            files(&out.checkpoint())
        };
        let one = bytes(&["--threads", "1"]);
        for extra in [&["--threads", "2"][..], &["--threads", "7"], &["--threads", "2", "--low-memory"]] {
            assert_eq!(bytes(extra), one, "{name} {extra:?}");
        }
    }
}

#[test]
fn experts_with_few_tokens_are_searched_alone() {
    let out = Out::new();
    let outcome =
        quantize(&model("mixtral"), "4bit", out.path(), &["--format", "json", "--calibration-samples", "1"]);
    let stderr = outcome.stderr.clone();
    let report = report(outcome);
    let by = |method: &str| {
        let linears = report["linears"].as_array().unwrap();
        linears
            .iter()
            .filter(|l| l["method"] == method)
            .map(|l| l["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let few = by("few_tokens");
    assert!(!few.is_empty() && few.iter().all(|name| name.contains("experts")), "{few:?}");
    assert!(by("gptq").iter().any(|name| name.ends_with("o_proj")));
    assert!(stderr.contains(&few[0]) && stderr.contains("too few"), "{stderr}");
}

#[test]
fn what_is_skipped_keeps_its_companions() {
    let out = Out::new();
    let report =
        report(quantize(&model("llama"), "4bit", out.path(), &["--skip", "0.*q_proj", "--format", "json"]));
    let left_out: Vec<&str> = report["metadata"]["left_out"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["name"].as_str().unwrap().rsplit('.').next().unwrap())
        .collect();
    assert_eq!(left_out, ["k_proj", "q_proj", "v_proj"]);
    let stated = read(&out.checkpoint().join("quantize_config.json"));
    let patterns: Vec<&String> = stated["dynamic"].as_object().unwrap().keys().collect();
    assert!(patterns.iter().all(|p| p.starts_with("-:")) && !patterns.is_empty(), "{patterns:?}");
}

#[test]
fn a_dry_run_writes_nothing() {
    let out = Out::new();
    let outcome = quantize(&model("llama"), "4bit", out.path(), &["--dry-run"]).success();
    assert!(outcome.stdout.contains("bits each"), "{}", outcome.stdout);
    assert!(entries(out.path()).is_empty());
}

#[test]
fn an_output_that_exists_is_kept() {
    let out = Out::new();
    std::fs::create_dir(out.checkpoint()).unwrap();
    std::fs::write(out.checkpoint().join("mine"), "x").unwrap();
    quantize(&model("llama"), "4bit", out.path(), &[]).failure(2, &["exists"]);
    assert_eq!(entries(&out.checkpoint()), ["mine"]);
    std::fs::remove_file(out.checkpoint().join("mine")).unwrap();
    quantize(&model("llama"), "2bit", out.path(), &[]).success();
    quantize(&model("llama"), "4bit", out.path(), &[]).failure(2, &["exists"]);
    quantize(&model("llama"), "4bit", out.path(), &["--force"]).success();
    assert_eq!(read(&out.checkpoint().join("quantize_config.json"))["bits"], 4);
}

#[test]
fn options_of_another_format_are_refused() {
    let out = Out::new();
    let refused = |outcome: Outcome, option: &str| {
        outcome.failure(2, &[option, "is not an option of"]);
        assert!(entries(out.path()).is_empty());
    };
    for option in [&["--pure"][..], &["--imatrix", "x"], &["--tensor-type", "a=Q4_0"], &["--metadata", "a=b"]]
    {
        refused(quantize(&model("llama"), "4bit", out.path(), option), option[0]);
    }
    for option in
        [&["--group-size", "64"][..], &["--asym"], &["--damp", "0.1"], &["--seq-len", "8"], &["--skip", "x"]]
    {
        refused(crate::support::quantize(&model("llama"), "Q4_0", out.path(), option), option[0]);
    }
    quantize(&model("llama"), "Q4_K_M", out.path(), &[]).failure(2, &["Q4_K_M", "4bit"]);
    quantize(&model("llama"), "4bit", out.path(), &["--group-size", "48"]).failure(2, &["48", "128"]);
    quantize(&model("llama"), "4bit", out.path(), &["--damp", "2"]).failure(2, &["--damp"]);
    quantize(&model("llama"), "4bit", out.path(), &["--skip", "("]).failure(2, &["--skip"]);
    quantize(&model("llama"), "4bit", out.path(), &["--sym", "--asym"]).failure(2, &["--asym"]);
}

#[test]
fn inputs_that_are_no_numbers_stop_the_work_and_are_named() {
    let case = Case::of("llama");
    case.edit_weights(|weights| {
        let norm = weights.iter_mut().find(|w| w.name.ends_with("1.input_layernorm.weight")).unwrap();
        (0..norm.shape[0]).for_each(|i| norm.set(i, 3e38));
    });
    let out = Out::new();
    quantize(&case.model(), "4bit", out.path(), &[]).failure(6, &["layer 1", "q_proj", "NaN"]);
    assert!(entries(out.path()).is_empty(), "nothing is left behind");
}

#[test]
fn inputs_that_are_always_zero_leave_the_search() {
    let case = Case::of("llama");
    case.edit_weights(|weights| {
        let norm = weights.iter_mut().find(|w| w.name.ends_with("0.input_layernorm.weight")).unwrap();
        (0..norm.shape[0]).for_each(|i| norm.set(i, 0.0));
    });
    let out = Out::new();
    let outcome = quantize(&case.model(), "4bit", out.path(), &[]).success();
    assert!(
        outcome.stderr.contains("layers.0.self_attn.q_proj: its Hessian is singular"),
        "{}",
        outcome.stderr
    );
}
