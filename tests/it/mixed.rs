//! Precisions that differ between matrices: by rules, by a profile, and by what units lose.

use std::path::Path;

use serde_json::{Value, json};

use crate::gguf_file::File;
use crate::support::{Outcome, data, entries, model, run, text};

/// A failure in JSON.
trait Refusal {
    fn refusal(self, code: i32, words: &[&str]);
}

impl Refusal for Outcome {
    #[track_caller]
    fn refusal(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        for word in words {
            let said = format!("{}{}", self.stdout, self.stderr);
            assert!(said.contains(word), "{word:?} is not in:\n{said}");
        }
    }
}

/// Runs `quantize llama FORMAT` with a short calibration.
fn quantize(format: &str, out: &Path, extra: &[&str]) -> Outcome {
    let (model, out, data) = (text(&model("llama")), text(out), text(&data("text/calibration.txt")));
    let mut args = vec!["quantize", &model, format, "-o", &out, "-n", "q", "--format", "json"];
    if format != "gguf" || extra.contains(&"--target-bpw") {
        args.extend(["--calibration-data", &data, "--calibration-samples", "8", "--seq-len", "32"]);
    }
    args.extend(extra);
    run(&args)
}

fn profile(format: &str, file: &Path, extra: &[&str]) -> Outcome {
    let (model, file, data) = (text(&model("llama")), text(file), text(&data("text/calibration.txt")));
    let mut args =
        vec!["analyze", "profile", &model, "--output-format", format, "-o", &file, "--format", "json"];
    args.extend(["--calibration-data", &data, "--calibration-samples", "8", "--seq-len", "32"]);
    args.extend(extra);
    run(&args)
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Bits and group size of each matrix as GPTQModel finds them: the first rule that matches from the beginning of the name.
fn stated(config: &Value, name: &str) -> (u64, i64) {
    let rules = config["dynamic"].as_object().unwrap();
    let rule = rules.iter().find(|(pattern, _)| {
        let pattern = pattern.strip_prefix("+:").expect("no matrix is left out");
        regex::Regex::new(&format!("^(?:{pattern})")).unwrap().is_match(name)
    });
    let of = rule.map_or(config, |(_, rule)| rule);
    (of["bits"].as_u64().unwrap(), of["group_size"].as_i64().unwrap())
}

#[test]
fn rules_give_linear_layers_other_grids() {
    let out = tempfile::tempdir().unwrap();
    let rules = ["--linear-bits", r"down_proj=8bit:64", "--linear-bits", r"layers\.1\..*[qkv]_proj=4bit"];
    let report = quantize("gptq", out.path(), &[&["-q", "3bit", "--group-size", "32"], &rules[..]].concat())
        .success()
        .json();
    assert_eq!(
        report["metadata"]["grids"],
        json!([
            {"bits": 3, "group_size": 32, "matrices": 9, "weights": 196608},
            {"bits": 4, "group_size": 32, "matrices": 3, "weights": 32768},
            {"bits": 8, "group_size": 64, "matrices": 2, "weights": 65536},
        ])
    );
    assert_eq!(report["validation_status"], "valid", "every matrix was read again by what the file states");
    let config = read(&out.path().join("q/quantize_config.json"));
    let layer = |layer: usize, leaf: &str| stated(&config, &format!("model.layers.{layer}.{leaf}"));
    assert_eq!((layer(0, "mlp.down_proj"), layer(1, "mlp.down_proj")), ((8, 64), (8, 64)));
    assert_eq!((layer(0, "self_attn.q_proj"), layer(1, "self_attn.v_proj")), ((3, 32), (4, 32)));
    // vLLM asks for what it joins.
    assert_eq!((layer(0, "self_attn.qkv_proj"), layer(1, "self_attn.qkv_proj")), ((3, 32), (4, 32)));
    assert_eq!(layer(1, "mlp.gate_up_proj"), (3, 32));
}

#[test]
fn rules_that_loaders_could_not_follow_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let refused = |rule: &str, words: &[&str]| {
        quantize("gptq", out.path(), &["-q", "3bit", "--linear-bits", rule]).refusal(2, words);
        assert!(entries(out.path()).is_empty());
    };
    refused("q_proj=4bit", &["q_proj", "k_proj", "loaders join them"]);
    refused("nothing=4bit", &["nothing", "no linear layer"]);
    refused("down_proj=5bit", &["5bit"]);
    refused("down_proj", &["PATTERN=BITS"]);
    quantize("awq", out.path(), &["-q", "4bit", "--linear-bits", "o=4bit"]).refusal(2, &["--linear-bits"]);
}

#[test]
fn a_profile_says_what_units_lose_and_is_applied() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("p.json");
    let found = profile("gptq", &file, &["--target-bpw", "3.6", "--threads", "2"]).success().json();
    assert_eq!(found, read(&file));
    let units = found["units"].as_array().unwrap();
    assert_eq!(units.len(), 8, "two layers of qkv, o, gate and up, down");
    assert_eq!(units[0]["name"], "model.layers.0.self_attn.qkv_proj");
    for unit in units {
        let options = unit["options"].as_array().unwrap();
        let of = |precision: &str| {
            let option = options.iter().find(|option| option["precision"] == precision).unwrap();
            (option["measured"].as_f64().unwrap(), option["estimate"].as_f64().unwrap())
        };
        let (two, four, eight) = (of("2bit:128"), of("4bit:128"), of("8bit:128"));
        assert!(two.0 > four.0 && four.0 > eight.0 && two.1 > four.1 && four.1 > eight.1, "{unit}");
        assert_eq!(of("16bit"), (0.0, 0.0));
    }
    let correlation = &found["rank_correlation"];
    assert!(correlation["all"].as_f64().unwrap() > 0.8, "{correlation}");
    let bits = found["bits_per_weight"].as_f64().unwrap();
    assert!(bits <= 3.6 && bits > 3.4, "{bits}");

    let by_file = quantize("gptq", &out.path().join("a"), &["--profile", &text(&file)]).success().json();
    assert!((by_file["metadata"]["quantized_bits_per_weight"].as_f64().unwrap() - bits).abs() < 1e-9);
    quantize("gptq", &out.path().join("b"), &["--target-bpw", "3.6"]).success();
    let bytes = |dir: &str| std::fs::read(out.path().join(dir).join("q/model.safetensors")).unwrap();
    assert!(bytes("a") == bytes("b"), "both ways lead to the same file");

    quantize("awq", out.path(), &["--profile", &text(&file)]).refusal(2, &["is for gptq"]);
    let group = ["--profile", &text(&file), "--group-size", "64"];
    quantize("gptq", out.path(), &group).refusal(2, &["--group-size"]);
    std::fs::write(&file, "{}").unwrap();
    quantize("gptq", out.path(), &["--profile", &text(&file)]).refusal(6, &["not a profile"]);
    quantize("gptq", out.path(), &["--profile", "nowhere"]).refusal(3, &["nowhere"]);
    assert_eq!(entries(out.path()), ["a", "b", "p.json"]);
}

#[test]
fn estimates_need_fewer_measurements() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("p.json");
    let found = profile("gptq", &file, &["--preset", "compression", "--estimate"]).success().json();
    assert_eq!((&found["preset"], &found["target_bits_per_weight"]), (&json!("compression"), &json!(3.15)));
    let options = found["units"][0]["options"].as_array().unwrap();
    assert!(options.iter().all(|o| o["measured"].is_null() && o["estimate"].as_f64().unwrap() >= 0.0));
    assert!(found.get("rank_correlation").is_none());
}

#[test]
fn awq_leaves_out_what_loses_most() {
    let out = tempfile::tempdir().unwrap();
    let group = ["--group-size", "64", "--target-bpw", "7"];
    let report = quantize("awq", out.path(), &group).success().json();
    let left_out = report["metadata"]["left_out"].as_array().unwrap();
    assert!(!left_out.is_empty() && left_out.len() < 14, "{left_out:?}");
    let bits = report["metadata"]["quantized_parameters"].as_f64().unwrap();
    assert!(bits < 294_912.0, "not all weights are quantized: {bits}");
    quantize("awq", &out.path().join("b"), &["--target-bpw", "3"])
        .refusal(2, &["--target-bpw 3", "less than"]);
}

#[test]
fn gguf_gives_tensors_types() {
    let out = tempfile::tempdir().unwrap();
    let report = quantize("gguf", out.path(), &["--target-bpw", "6"]).success().json();
    let bits = report["metadata"]["bits_per_weight"].as_f64().unwrap();
    assert!(bits <= 6.0 && bits > 5.5, "{bits}");
    let file = File::parse(&std::fs::read(out.path().join("q.gguf")).unwrap());
    let types: std::collections::BTreeSet<&str> =
        file.tensors.iter().filter(|t| t.name.starts_with("blk.")).map(|t| file.ty(&t.name)).collect();
    assert!(types.len() > 2, "{types:?}");
    quantize("gguf", &out.path().join("b"), &["--target-bpw", "1"]).refusal(2, &["--target-bpw 1"]);
    let both = ["--target-bpw", "5", "--tensor-type", "ffn=Q8_0"];
    quantize("gguf", &out.path().join("b"), &both).refusal(2, &["--tensor-type"]);
}
