//! `quantize MODEL awq`: what it writes, what it says, and what it refuses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checkpoint::{Case, Llama, Weights};
use crate::support::{MODELS, Outcome, data, entries, model, run, sha256, text};

/// Arguments of a short calibration.
const SHORT: &[&str] = &["--calibration-samples", "8", "--seq-len", "32", "--group-size", "32"];

fn quantize_to(format: &str, model: &Path, out: &Path, extra: &[&str]) -> Outcome {
    let (model, out, data) = (text(model), text(out), text(&data("text/evaluation.txt")));
    let mut args = vec!["quantize", &model, format, "-q", "4bit", "-o", &out, "-n", "q"];
    args.extend(["--calibration-data", &data]);
    // What a test asks for takes the place of what is usual.
    args.extend(SHORT.chunks(2).filter(|option| !extra.contains(&option[0])).flatten());
    args.extend(extra);
    run(&args)
}

fn quantize(model: &Path, out: &Path, extra: &[&str]) -> Outcome {
    quantize_to("awq", model, out, extra)
}

fn report(model: &Path, out: &Path, extra: &[&str]) -> Value {
    quantize(model, out, &[extra, &["--format", "json"]].concat()).success().json()
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

/// KL divergence from `reference` on the first `chunks` windows of the evaluation text.
fn divergence(model: &Path, reference: &Path, ctx: &str, chunks: &str) -> f64 {
    let (model, reference) = (text(model), text(reference));
    let data = text(&data("text/evaluation.txt"));
    let args =
        ["evaluate", &model, "--reference", &reference, "--data", &data, "--ctx", ctx, "--chunks", chunks];
    let found = run(&[&args[..], &["--format", "json"]].concat()).success().json();
    found["kl_divergence"].as_f64().unwrap()
}

#[test]
fn a_checkpoint_is_written_and_reported() {
    let out = Out::new();
    let report = report(&model("llama"), out.path(), &[]);
    assert_eq!(entries(out.path()), ["q"]);
    for (key, value) in [("status", "success"), ("format", "awq"), ("quantization_level", "4bit")] {
        assert_eq!(report[key], value);
    }
    assert_eq!((&report["metadata"]["solver"], &report["calibration"]["rows"]), (&json!("awq"), &json!(8)));
    let linears = report["linears"].as_array().unwrap();
    assert_eq!(linears.len(), report["metadata"]["layers"].as_u64().unwrap() as usize * 7);
    let share: f64 = linears.iter().map(|l| l["share"].as_f64().unwrap()).sum();
    assert!((share - 1.0).abs() < 1e-9, "{share}");
    for linear in linears {
        assert_eq!(linear["method"], "awq", "{linear}");
        assert!(linear["relative_error"].as_f64().unwrap() < 0.05, "{linear}");
        let clip = linear["clip"].as_f64().unwrap();
        assert!((0.5..1.2).contains(&clip), "{linear}");
        for exponent in ["activation_exponent", "weight_exponent"] {
            assert!((0.0..=1.0).contains(&linear[exponent].as_f64().unwrap()), "{linear}");
        }
    }
    let config = read(&out.checkpoint().join("config.json"));
    assert_eq!(config["torch_dtype"], "float16");
    let quantization = &config["quantization_config"];
    for (key, value) in [
        ("quant_method", json!("awq")),
        ("bits", json!(4)),
        ("group_size", json!(32)),
        ("zero_point", json!(true)),
        ("version", json!("gemm")),
        ("modules_to_not_convert", Value::Null),
    ] {
        assert_eq!(quantization[key], value, "{key}");
    }
    assert!(!out.checkpoint().join("quantize_config.json").exists());
}

/// A factor that is not moved into each consumer makes another model: the loss would not be that of rounding.
#[test]
fn every_family_loses_no_more_than_with_gptq() {
    // The tokenizer of the small Gemma 2 has a token more than the model; that it is folded right is tested by itself.
    for name in MODELS.iter().filter(|name| **name != "gemma2") {
        let source = model(name);
        let loss = |format: &str, extra: &[&str]| {
            let out = Out::new();
            quantize_to(format, &source, out.path(), extra).success();
            divergence(&out.checkpoint(), &source, "64", "8")
        };
        let (awq, solved, gptq) =
            (loss("awq", &[]), loss("awq", &["--solver", "gptq"]), loss("gptq", &["--asym"]));
        assert!(awq < 3.0 * gptq && solved < 2.0 * gptq, "{name}: {awq} {solved} {gptq}");
    }
}

#[test]
fn threads_and_memory_do_not_change_the_bytes() {
    for (name, solver) in [("tiny-llama", "awq"), ("mixtral", "awq"), ("phi3", "gptq")] {
        let bytes = |extra: &[&str]| {
            let out = Out::new();
            quantize(&model(name), out.path(), &[extra, &["--solver", solver]].concat()).success();
            files(&out.checkpoint())
        };
        let one = bytes(&["--threads", "1"]);
        for extra in [&["--threads", "2"][..], &["--threads", "7", "--low-memory"]] {
            assert_eq!(bytes(extra), one, "{name} {extra:?}");
        }
    }
}

#[test]
fn experts_with_few_tokens_are_searched_alone() {
    let out = Out::new();
    let outcome =
        quantize(&model("mixtral"), out.path(), &["--format", "json", "--calibration-samples", "1"])
            .success();
    let report = outcome.json();
    let few: Vec<&str> = report["linears"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|l| l["method"] == "few_tokens")
        .map(|l| l["name"].as_str().unwrap())
        .collect();
    assert!(!few.is_empty() && few.iter().all(|name| name.contains("experts")), "{few:?}");
    assert!(outcome.stderr.contains(few[0]) && outcome.stderr.contains("too few"), "{}", outcome.stderr);
}

#[test]
fn what_is_skipped_is_listed_with_its_companions() {
    let out = Out::new();
    report(&model("llama"), out.path(), &["--skip", r"layers\.0\..*q_proj"]);
    let config = read(&out.checkpoint().join("config.json"));
    let listed = config["quantization_config"]["modules_to_not_convert"].as_array().unwrap().clone();
    for name in ["q_proj", "k_proj", "v_proj", "qkv_proj"] {
        assert!(listed.contains(&json!(format!("model.layers.0.self_attn.{name}"))), "{name}: {listed:?}");
    }
    assert_eq!(listed.len(), 4, "{listed:?}");
    let loss = divergence(&out.checkpoint(), &model("llama"), "64", "8");
    assert!(loss < 0.1, "what stays in 16 bits is folded too: {loss}");
}

/// 160 inputs of down are no multiple of 64.
fn ragged(tied: bool) -> Case {
    let sizes = Llama {
        hidden: 128,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        feed_forward: 160,
        vocab: 512,
        tied,
    };
    Case::generate(&sizes, 3)
}

#[test]
fn a_group_size_that_does_not_divide_leaves_the_layer_in_16_bits() {
    let (case, out) = (ragged(true), Out::new());
    let outcome = quantize(&case.model(), out.path(), &["--group-size", "64", "--format", "json"]).success();
    assert!(outcome.stderr.contains("160 inputs"), "{}", outcome.stderr);
    let left_out = outcome.json()["metadata"]["left_out"].clone();
    assert_eq!(left_out.as_array().unwrap().len(), 2, "{left_out}");
    let config = read(&out.checkpoint().join("config.json"));
    assert_eq!(
        config["quantization_config"]["modules_to_not_convert"],
        json!(["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"])
    );
    // With rows shorter than a group there is nothing left to do.
    quantize(
        &ragged(true).model(),
        Out::new().path(),
        &["--group-size", "128", "--skip", "q_proj|o_proj|gate"],
    )
    .failure(8, &["no matrix"]);
}

#[test]
fn tied_and_untied_heads_stay_as_they_are() {
    for tied in [true, false] {
        let (case, out) = (ragged(tied), Out::new());
        report(&case.model(), out.path(), &[]);
        let weights = crate::checkpoint::read_weights(&out.checkpoint().join("model.safetensors"));
        let head = weights.iter().any(|w| w.name == "lm_head.weight");
        assert_eq!(head, !tied);
        let norm = |weights: &[Weights]| {
            weights.iter().find(|w| w.name == "model.norm.weight").map(|w| w.data.clone()).unwrap()
        };
        let mut source = crate::checkpoint::read_weights(&case.file("model.safetensors"));
        source.iter_mut().for_each(|w| w.convert("F16"));
        assert_eq!(norm(&weights), norm(&source), "nothing is moved into the head");
    }
}

fn with_norm(change: impl Fn(&mut Weights)) -> Case {
    let case = Case::of("llama");
    case.edit_weights(|weights| {
        let norm = weights.iter_mut().find(|w| w.name.ends_with("1.input_layernorm.weight")).unwrap();
        change(norm);
    });
    case
}

#[test]
fn inputs_that_are_no_numbers_stop_the_work_and_are_named() {
    let case = with_norm(|norm| (0..norm.shape[0]).for_each(|i| norm.set(i, 3e38)));
    let out = Out::new();
    quantize(&case.model(), out.path(), &[]).failure(6, &["layer 1", "q_proj", "NaN"]);
    assert!(entries(out.path()).is_empty(), "nothing is left behind");
}

#[test]
fn dead_channels_and_layers_are_quantized() {
    // One channel is always zero.
    let case = with_norm(|norm| norm.set(5, 0.0));
    let out = Out::new();
    for linear in report(&case.model(), out.path(), &[])["linears"].as_array().unwrap() {
        let dead = u64::from(
            ["1.self_attn.q", "1.self_attn.k", "1.self_attn.v"]
                .iter()
                .any(|n| linear["name"].as_str().unwrap().contains(n)),
        );
        assert_eq!((&linear["dead_inputs"], &linear["method"]), (&json!(dead), &json!("awq")), "{linear}");
    }
    assert!(divergence(&out.checkpoint(), &case.model(), "64", "8") < 0.1);
    // All are.
    for solver in ["awq", "gptq"] {
        let case = with_norm(|norm| (0..norm.shape[0]).for_each(|i| norm.set(i, 0.0)));
        let out = Out::new();
        let outcome = quantize(&case.model(), out.path(), &["--solver", solver]).success();
        assert!(
            outcome.stderr.contains("layers.1.self_attn.q_proj: its inputs are always zero"),
            "{}",
            outcome.stderr
        );
        assert!(divergence(&out.checkpoint(), &case.model(), "64", "8") < 0.1);
    }
}

#[test]
fn weights_that_are_all_zero_stay_so() {
    let case = Case::of("llama");
    case.edit_weights(|weights| {
        for w in weights
            .iter_mut()
            .filter(|w| w.name.contains("0.mlp.up_proj") || w.name.contains("1.self_attn.v_proj"))
        {
            w.data.fill(0);
        }
    });
    for solver in ["awq", "gptq"] {
        let out = Out::new();
        let report = report(&case.model(), out.path(), &["--solver", solver]);
        let up =
            report["linears"].as_array().unwrap().iter().find(|l| l["name"] == "model.layers.0.mlp.up_proj");
        assert_eq!(up.unwrap()["weight_nmse"], 0.0);
        assert!(divergence(&out.checkpoint(), &case.model(), "64", "8") < 0.1, "{solver}");
    }
}

/// The same token everywhere, and one short row.
#[test]
fn little_and_constant_data_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    std::fs::write(&path, "a".repeat(4000)).unwrap();
    let constant = text(&path);
    for extra in [
        &["--calibration-samples", "1", "--seq-len", "16"][..],
        &["--calibration-data", &constant, "--calibration-samples", "1", "--seq-len", "16"],
    ] {
        let out = Out::new();
        let (model, to) = (text(&model("llama")), text(out.path()));
        let mut args =
            vec!["quantize", &model, "awq", "-q", "4bit", "-o", &to, "-n", "q", "--group-size", "32"];
        args.extend(extra);
        run(&args).success();
        assert!(divergence(&out.checkpoint(), Path::new(&model), "64", "8") < 0.5, "{extra:?}");
    }
}

#[test]
fn a_dry_run_writes_nothing() {
    let out = Out::new();
    let outcome = quantize(&model("llama"), out.path(), &["--dry-run"]).success();
    assert!(outcome.stdout.contains("bits each"), "{}", outcome.stdout);
    assert!(entries(out.path()).is_empty());
}

#[test]
fn options_of_another_format_are_refused() {
    let out = Out::new();
    for option in [&["--asym"][..], &["--desc-act"], &["--damp", "0.1"], &["--pure"], &["--imatrix", "x"]] {
        quantize(&model("llama"), out.path(), option).failure(2, &[option[0], "is not an option of"]);
    }
    quantize_to("gptq", &model("llama"), out.path(), &["--solver", "gptq"]).failure(2, &["--solver"]);
    for size in ["-1", "256", "48"] {
        quantize(&model("llama"), out.path(), &["--group-size", size]).failure(2, &[size, "128"]);
    }
    let (model, to) = (text(&model("llama")), text(out.path()));
    run(&["quantize", &model, "awq", "-q", "3bit", "-o", &to]).failure(2, &["3bit", "4bit"]);
    assert!(entries(out.path()).is_empty());
}

/// tiny-llama, 64 rows of 256 tokens; all windows of the evaluation text.
#[test]
fn the_loss_is_below_the_bars() {
    let calibration = text(&data("text/calibration.txt"));
    for (solver, bar) in [("awq", 0.00607), ("gptq", 0.00420)] {
        let out = Out::new();
        let (source, to) = (text(&model("tiny-llama")), text(out.path()));
        run(&[
            "quantize",
            &source,
            "awq",
            "-q",
            "4bit",
            "-o",
            &to,
            "-n",
            "q",
            "--group-size",
            "128",
            "--solver",
            solver,
            "--calibration-data",
            &calibration,
            "--calibration-samples",
            "64",
            "--seq-len",
            "256",
        ])
        .success();
        let loss = divergence(&out.checkpoint(), &model("tiny-llama"), "256", "406");
        assert!(loss <= bar, "{solver}: {loss}");
    }
}
