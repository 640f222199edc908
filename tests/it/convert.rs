//! `convert SOURCE FORMAT`: every way from one format to another, what it loses, and what it refuses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use llm_quantize::cancel::Cancel;
use llm_quantize::format::awq::AwqConfig;
use llm_quantize::format::gptq::Version;
use llm_quantize::format::packed::Container;
use llm_quantize::pipeline::model::OpenModel;
use llm_quantize::progress::Silent;
use llm_quantize::quant::Grid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checkpoint::Case;
use crate::gguf_file::File;
use crate::packed::{checkpoint, checkpoint_of, checkpoint_with, gptq};
use crate::support::{MODELS, Outcome, data, entries, model, quantize, run, sha256, text};

const AWQ: Container = Container::Awq(AwqConfig { group_size: Some(32) });
const ASYM: Grid = Grid { bits: 4, group_size: 32, symmetric: false };
const SYM: Grid = Grid { symmetric: true, ..ASYM };

/// A short calibration.
const SHORT: &[&str] = &["--calibration-samples", "8", "--seq-len", "32", "--group-size", "32"];

fn convert(source: &Path, to: &str, out: &Path, extra: &[&str]) -> Outcome {
    let (source, out) = (text(source), text(out));
    run(&[&["convert", &source, to, "-o", &out, "-n", "r", "--format", "json"], extra].concat())
}

/// A result in a directory of its own.
struct Made {
    dir: TempDir,
    found: Value,
}

impl Made {
    #[track_caller]
    fn of(source: &Path, to: &str, extra: &[&str]) -> Made {
        let dir = tempfile::tempdir().unwrap();
        let found = convert(source, to, dir.path(), extra).success().json();
        let made = Made { dir, found };
        let name = if to == "gguf" { "r.gguf" } else { "r" };
        assert_eq!(entries(made.dir.path()), [name], "nothing but the result is left");
        assert_eq!(made.found["output_path"], text(&made.path()));
        assert_eq!((&made.found["status"], &made.found["target_format"]), (&json!("success"), &json!(to)));
        made
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(&entries(self.dir.path())[0])
    }

    fn nmse(&self) -> f64 {
        self.found["weights"]["nmse"].as_f64().unwrap()
    }

    fn is_lossless(&self) -> bool {
        let found = &self.found;
        let lossless = found["is_lossy"] == json!(false);
        assert_eq!(lossless, self.nmse() == 0.0, "{found}");
        assert_eq!(lossless, found.get("warning_message").is_none(), "{found}");
        lossless
    }
}

/// A test model as a GGUF file in a directory of its own.
fn gguf(model: &Path, level: &str, extra: &[&str]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    quantize(model, level, dir.path(), &[&["-n", "model.gguf"], extra].concat()).success();
    let path = dir.path().join("model.gguf");
    (dir, path)
}

/// Every weight of a model, by name, as float32.
fn weights(path: &Path) -> BTreeMap<String, Vec<u32>> {
    let opened = OpenModel::open(&text(path), &[], &Cancel::new(), &Silent).unwrap();
    let read = |name: &str| {
        let shape = opened.weights.shape(name).unwrap();
        let mut values = vec![0.0; shape.iter().product()];
        opened.weights.read(name, 0..shape[0], &mut values).unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    opened.weights.names().into_iter().map(|name| (name.to_owned(), read(name))).collect()
}

/// Types and bytes of the tensors of a GGUF file.
fn tensors(path: &Path) -> Vec<(String, &'static str, String)> {
    let file = File::parse(&std::fs::read(path).unwrap());
    file.tensors.into_iter().map(|t| (t.name, t.ty, sha256(&t.data))).collect()
}

/// What a GGUF file says of tokens: their texts, scores and types, merges, and which ones are special.
fn vocabulary(path: &Path) -> BTreeMap<String, String> {
    let file = File::parse(&std::fs::read(path).unwrap());
    let entries = file.metadata.into_iter().filter(|(key, ..)| key.starts_with("tokenizer.ggml."));
    // What is said in so many words now was the default before.
    let stated = entries.filter(|(key, ..)| !key.ends_with("add_space_prefix") && !key.contains(".add_"));
    stated.map(|(key, _, value)| (key, format!("{value:?}"))).collect()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn float_gguf_files_become_plain_directories_and_the_same_files_again() {
    for name in MODELS.iter().chain(&["tiny-llama"]) {
        for (level, dtype) in [("BF16", "bfloat16"), ("F16", "float16"), ("F32", "float32")] {
            if level != "BF16" && !["tiny-llama", "gemma3"].contains(name) {
                continue;
            }
            let (_dir, source) = gguf(&model(name), level, &[]);
            // Norms are float32 in GGUF, and Gemma's have lost the last bits of what was added to them.
            let made = Made::of(&source, "hf", &[]);
            let gemma = name.starts_with("gemma");
            assert!(made.is_lossless() || gemma && made.nmse() < 1e-8, "{name} {level}: {}", made.found);
            assert_eq!(made.found["quantization_level"], dtype, "{name}");
            let config = read(&made.path().join("config.json"));
            assert_eq!(config["torch_dtype"], dtype, "{name}");
            for file in
                ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"]
            {
                assert!(made.path().join(file).is_file(), "{name}: {file}");
            }
            let (_again, again) = gguf(&made.path(), level, &[]);
            let same = tensors(&source) == tensors(&again);
            assert!(same || gemma, "{name} {level}");
            assert_eq!(vocabulary(&source), vocabulary(&again), "{name}");
        }
    }
}

/// Quantized to a type, dequantized, and quantized again they are the same bytes.
const IDEMPOTENT: &[&str] = &["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0"];

#[test]
fn weights_that_lie_on_the_grid_of_a_uniform_type_stay_there() {
    for level in IDEMPOTENT {
        let (_dir, source) = gguf(&model("tiny-llama"), level, &["--pure"]);
        let plain = Made::of(&source, "hf", &["--dtype", "f32"]);
        assert!(plain.is_lossless(), "{level}: {}", plain.found);
        let again = Made::of(&plain.path(), "gguf", &["-q", level, "--pure"]);
        assert!(again.is_lossless(), "{level}: {}", again.nmse());
        assert_eq!(tensors(&source), tensors(&again.path()), "{level}");
    }
    // The others search for scales and find different ones.
    let (_dir, source) = gguf(&model("tiny-llama"), "Q4_K_S", &["--pure"]);
    let plain = Made::of(&source, "hf", &["--dtype", "f32"]);
    let again = Made::of(&plain.path(), "gguf", &["-q", "Q4_K_S", "--pure"]);
    assert!(!again.is_lossless() && again.nmse() < 1e-2, "{}", again.nmse());
}

#[test]
fn codes_are_carried_over_from_gptq_to_awq_and_back() {
    for (grid, version) in [(SYM, Version::V1), (SYM, Version::V2), (ASYM, Version::V1), (ASYM, Version::V2)]
    {
        let case = checkpoint("tiny-llama", &gptq(grid, version), grid);
        let awq = Made::of(&case.model(), "awq", &[]);
        assert!(awq.is_lossless(), "{}", awq.found);
        assert_eq!(
            (&awq.found["carried_over"], &awq.found["expected_impact"]),
            (&json!(true), &json!("none"))
        );
        assert_eq!(weights(&case.model()), weights(&awq.path()));
        let stated = &read(&awq.path().join("config.json"))["quantization_config"];
        let expected = json!({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": true, "version": "gemm"});
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&stated[key], value, "{key}");
        }

        let back = Made::of(&awq.path(), "gptq", &[]);
        assert!(back.is_lossless(), "{}", back.found);
        assert_eq!(weights(&case.model()), weights(&back.path()));
        let stated = read(&back.path().join("quantize_config.json"));
        let format = if grid.symmetric { "gptq" } else { "gptq_v2" };
        assert_eq!((&stated["checkpoint_format"], &stated["sym"]), (&json!(format), &json!(grid.symmetric)));
        // Of our own first checkpoint nothing has changed but what is said of its making.
        if (grid.symmetric, version) == (true, Version::V1)
            || (grid.symmetric, version) == (false, Version::V2)
        {
            let file = |dir: &Path| sha256(&std::fs::read(dir.join("model.safetensors")).unwrap());
            assert_eq!(file(&case.model()), file(&back.path()));
        }
    }
}

#[test]
fn biases_and_layers_left_out_go_along() {
    let wanted = |name: &str| !name.contains("layers.0.mlp");
    let case = checkpoint_with("qwen2", &AWQ, ASYM, wanted, u64::MAX);
    let made = Made::of(&case.model(), "gptq", &[]);
    assert!(made.is_lossless(), "{}", made.found);
    assert_eq!(weights(&case.model()), weights(&made.path()));
    let stated = read(&made.path().join("quantize_config.json"));
    assert!(stated["dynamic"].as_object().unwrap().keys().all(|key| key.starts_with("-:")), "{stated}");
    let back = Made::of(&made.path(), "awq", &[]);
    assert_eq!(weights(&case.model()), weights(&back.path()));
    let stated = &read(&back.path().join("config.json"))["quantization_config"];
    assert!(stated["modules_to_not_convert"].as_array().unwrap().len() >= 3, "{stated}");
}

#[test]
fn what_awq_cannot_hold_is_not_carried_over() {
    let eight = Grid { bits: 8, ..SYM };
    let case = checkpoint("llama", &gptq(eight, Version::V1), eight);
    let out = tempfile::tempdir().unwrap();
    let short = ["--seq-len", "32", "--calibration-samples", "4", "--force"];
    let calibrated = |case: &Path, extra: &[&str], words: &[&str]| {
        let made = convert(case, "awq", out.path(), &[&short[..], extra].concat()).success();
        words.iter().for_each(|word| assert!(made.stderr.contains(word), "{word}: {}", made.stderr));
    };
    calibrated(&case.model(), &[], &["cannot be carried over", "8 bits"]);
    let case = checkpoint("llama", &gptq(SYM, Version::V1), SYM);
    calibrated(&case.model(), &["--group-size", "64"], &["groups of 32", "--group-size"]);
    calibrated(&case.model(), &["--requantize"], &[]);
    calibrated(&model("llama"), &[], &["Quantizing to AWQ"]);
    // Groups in another order.
    case.edit_weights(|weights| {
        for tensor in weights.iter_mut().filter(|t| t.name.ends_with("o_proj.g_idx")) {
            let words = tensor.data.as_chunks_mut::<4>().0;
            let last = words.len() - 1;
            words.swap(0, last);
        }
    });
    calibrated(&case.model(), &[], &["act-order", "o_proj"]);
    let plain = Made::of(&case.model(), "hf", &["--dtype", "f32"]);
    assert_eq!(weights(&case.model()), weights(&plain.path()));
    assert!(Made::of(&case.model(), "gguf", &["-q", "F32"]).is_lossless());
}

#[test]
fn overrides_of_single_layers_are_read() {
    let eight = Grid { bits: 8, group_size: Grid::WHOLE_ROW, ..ASYM };
    let grid_of = |layer: &str| match layer {
        _ if layer.contains("layers.1.mlp") => None,
        _ if layer.ends_with("down_proj") => Some(eight),
        _ => Some(SYM),
    };
    let case = checkpoint_of("tiny-llama", &gptq(SYM, Version::V1), grid_of, u64::MAX);
    let stated = read(&case.file("quantize_config.json"));
    assert_eq!(stated["dynamic"].as_object().unwrap().len(), 5, "{stated}");
    let plain = Made::of(&case.model(), "hf", &["--dtype", "f32"]);
    assert!(plain.is_lossless());
    assert_eq!(weights(&case.model()), weights(&plain.path()));
    let bits = |layer: &str| {
        let name = format!("model.layers.{layer}.weight");
        let tensors = plain.found["weights"]["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["name"] == name).unwrap()["source_bits"].as_f64().unwrap()
    };
    assert!((8.0..8.6).contains(&bits("0.mlp.down_proj")), "{}", bits("0.mlp.down_proj"));
    assert_eq!(bits("1.mlp.down_proj"), 16.0);
    assert!((4.5..5.0).contains(&bits("1.self_attn.q_proj")), "{}", bits("1.self_attn.q_proj"));
    let out = tempfile::tempdir().unwrap();
    let short = ["--seq-len", "32", "--calibration-samples", "4"];
    let made = convert(&case.model(), "awq", out.path(), &short).success();
    assert!(
        made.stderr.contains("cannot be carried over") && made.stderr.contains("8 bits"),
        "{}",
        made.stderr
    );
}

#[test]
fn losses_are_in_the_expected_order() {
    let grid = Grid { group_size: 32, ..SYM };
    let gptq4 = checkpoint("tiny-llama", &gptq(grid, Version::V1), grid);
    let awq = checkpoint("tiny-llama", &AWQ, ASYM);
    let (_dir, q4) = gguf(&model("tiny-llama"), "Q4_K_M", &[]);
    let calibration = text(&data("text/evaluation.txt"));
    let calibrated = [&["--calibration-data", &calibration], SHORT].concat();
    let kld = |made: &Made| made.found["evaluation"]["kl_divergence"].as_f64().unwrap();
    let measure = ["--evaluate", "--data", &calibration, "--ctx", "128", "--chunks", "4"];
    let measured = |source: &Path, to: &str, extra: &[&str]| {
        let made = Made::of(source, to, &[extra, &measure].concat());
        let e = &made.found["evaluation"];
        let change = e["perplexity"].as_f64().unwrap() / e["source_perplexity"].as_f64().unwrap() - 1.0;
        assert!((e["perplexity_change_percent"].as_f64().unwrap() - 100.0 * change).abs() < 1e-9, "{e}");
        made
    };
    let carried = measured(&awq.model(), "gptq", &[]);
    assert_eq!(kld(&carried), 0.0);
    let plain = measured(&awq.model(), "hf", &[]);
    let float = measured(&gptq4.model(), "gguf", &["-q", "F16"]);
    let eight = measured(&gptq4.model(), "gguf", &["-q", "Q8_0"]);
    let again = measured(&awq.model(), "gptq", &[&["--requantize"], calibrated.as_slice()].concat());
    let from_gguf = measured(&q4, "gptq", &calibrated);
    let to_gguf = measured(&gptq4.model(), "gguf", &[]);
    let losses = [&carried, &plain, &float, &eight, &again, &to_gguf, &from_gguf].map(kld);
    let nmse = [&carried, &plain, &float, &eight, &again, &to_gguf, &from_gguf].map(|made| made.nmse());
    assert!(losses[1] < 1e-5 && losses[2] < 1e-5, "{losses:?}");
    assert!(losses[3] < 1e-3 && losses[2] < losses[3], "{losses:?}");
    assert!(losses[3] < losses[5] && losses[4] < losses[6], "{losses:?}");
    assert!(losses[5] < 0.2 && losses[6] < 0.5, "{losses:?}");
    assert!(nmse[3] < nmse[5], "{nmse:?}");
    for (made, impact) in [
        (&carried, "none"),
        (&plain, "rounding"),
        (&float, "rounding"),
        (&eight, "small"),
        (&again, "small"),
        (&to_gguf, "medium"),
        (&from_gguf, "large"),
    ] {
        assert_eq!(made.found["expected_impact"], impact);
        assert!(made.is_lossless() == (impact == "none"), "{}", made.found);
    }
}

#[test]
fn packed_directories_of_all_families_become_gguf_and_plain_weights() {
    for name in ["qwen2", "phi3", "gemma3", "mixtral", "qwen3-moe", "llama-spm"] {
        let wanted = |name: &str| !name.ends_with("mlp.gate");
        let case = checkpoint_with(name, &gptq(SYM, Version::V1), SYM, wanted, u64::MAX);
        let plain = Made::of(&case.model(), "hf", &["--dtype", "f32"]);
        assert!(plain.is_lossless(), "{name}: {}", plain.found);
        assert_eq!(weights(&case.model()), weights(&plain.path()), "{name}");
        assert!(read(&plain.path().join("config.json")).get("quantization_config").is_none());
        assert!(!plain.path().join("quantize_config.json").exists());
        // The same file as from the plain weights, but for what the directory is called.
        let made = Made::of(&case.model(), "gguf", &["-q", "Q5_0"]);
        let (_dir, other) = gguf(&plain.path(), "Q5_0", &[]);
        assert_eq!(tensors(&made.path()), tensors(&other), "{name}");
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let case = checkpoint("tiny-llama", &gptq(SYM, Version::V1), SYM);
    let digest = |threads: &str| {
        let made = Made::of(&case.model(), "gguf", &["-q", "Q4_K_M", "--threads", threads]);
        (sha256(&std::fs::read(made.path()).unwrap()), made.found["weights"].clone())
    };
    assert_eq!(digest("1"), digest("5"));
}

#[test]
fn the_way_back_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = ["--metadata", "general.source.repo_url=https://huggingface.co/org/tiny-llama"];
    let (_source, source) = gguf(&model("tiny-llama"), "Q4_K_M", &base);
    let outcome = convert(&source, "gptq", dir.path(), SHORT).success();
    let command = "llm-quantize quantize org/tiny-llama gptq -q 4bit";
    assert!(outcome.stderr.contains("large loss") && outcome.stderr.contains(command), "{}", outcome.stderr);
    let found = outcome.json();
    assert_eq!((&found["original_model"], &found["instead"]), (&json!("org/tiny-llama"), &json!(command)));
    assert!(found["warning_message"].as_str().unwrap().contains(command));
    assert_eq!(found["is_lossy"], true);

    let case = checkpoint("llama", &gptq(SYM, Version::V1), SYM);
    std::fs::write(case.file("README.md"), "---\nbase_model: org/other\n---\n").unwrap();
    let found = convert(&case.model(), "gguf", dir.path(), &["-q", "q4_0"]).success().json();
    assert_eq!(found["instead"], "llm-quantize quantize org/other gguf -q Q4_0");
    std::fs::remove_file(case.file("README.md")).unwrap();
    let found = convert(&case.model(), "gguf", dir.path(), &["-q", "q4_0", "--force"]).success().json();
    assert_eq!(found["instead"], "llm-quantize quantize ORIGINAL gguf -q Q4_0");
}

#[test]
fn an_output_is_replaced_only_by_force_and_only_by_a_good_one() {
    let case = checkpoint("tiny-llama", &gptq(SYM, Version::V1), SYM);
    let out = case.out();
    let file = out.join("r.gguf");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(&file, "old").unwrap();
    let bytes = || std::fs::read(&file).unwrap();
    convert(&case.model(), "gguf", &out, &[]).failure(2, &[]);
    let evaluation = text(&data("text/evaluation.txt"));
    let cut = ["--data", &evaluation, "--ctx", "64", "--chunks", "1", "--force"];
    let strict = [&["--max-kld", "1e-9", "-q", "Q2_K"], cut.as_slice()].concat();
    let failure = convert(&case.model(), "gguf", &out, &strict).failure(11, &[]).json();
    assert_eq!((&failure["error_code"], &failure["error_type"]), (&json!(11), &json!("QualityError")));
    assert!(failure["evaluation"]["kl_divergence"].as_f64().unwrap() > 1e-9, "{failure}");
    assert_eq!((bytes(), entries(&out)), (b"old".to_vec(), vec!["r.gguf".into()]));
    let lax = [&["--max-kld", "10", "-q", "Q2_K"], cut.as_slice()].concat();
    convert(&case.model(), "gguf", &out, &lax).success();
    assert!(bytes().starts_with(b"GGUF"));
    // Directories too.
    convert(&case.model(), "awq", &out, &[]).success();
    convert(&case.model(), "awq", &out, &[]).failure(2, &[]);
    convert(&case.model(), "awq", &out, &["--force"]).success();
    assert_eq!(entries(&out), ["r", "r.gguf"]);
    // Never what it is made from.
    let source = text(&case.model());
    let (dir, name) = source.rsplit_once('/').unwrap();
    let args = ["convert", &source, "hf", "-o", dir, "-n", name, "--force"];
    run(&args).failure(2, &["the source itself"]);
}

#[test]
fn a_conversion_to_the_same_format_is_explained() {
    let out = tempfile::tempdir().unwrap();
    let (_dir, file) = gguf(&model("llama"), "Q8_0", &[]);
    let gptq = checkpoint("llama", &gptq(SYM, Version::V1), SYM);
    let awq = checkpoint("llama", &AWQ, ASYM);
    for (source, to) in [(file, "gguf"), (gptq.model(), "gptq"), (awq.model(), "awq"), (model("llama"), "hf")]
    {
        let outcome = convert(&source, to, out.path(), &[]).failure(8, &[]);
        let message = outcome.json()["message"].as_str().unwrap().to_owned();
        assert!(message.contains("already"), "{message}");
        assert!(outcome.json()["suggestion"].is_string());
    }
    assert_eq!(entries(out.path()), [""; 0]);
}

#[test]
fn half_a_model_is_told_from_a_whole_one() {
    let refused = |case: &Case, code: i32, words: &[&str]| {
        for command in [&["info"][..], &["convert"]] {
            let model = text(&case.model());
            let mut args = [command, &[model.as_str()]].concat();
            if command == ["convert"] {
                args.extend(["gguf", "-o", model.as_str()]);
            }
            run(&args).failure(code, words);
        }
    };
    let case = checkpoint("llama", &gptq(SYM, Version::V1), SYM);
    std::fs::rename(case.file("model.safetensors"), case.file("model.bin")).unwrap();
    refused(&case, 6, &["found config.json", "gptq", "a safetensors file is missing", "never unpickled"]);
    let case = checkpoint("llama", &gptq(SYM, Version::V1), SYM);
    std::fs::remove_file(case.file("config.json")).unwrap();
    refused(&case, 6, &["model.safetensors", "gptq", "config.json is missing"]);
    let case = Case::empty("empty");
    refused(&case, 3, &["holds no model"]);
    // A statement without codes, and codes without a statement.
    let case = Case::of("llama");
    std::fs::write(case.file("quantize_config.json"), r#"{"bits": 4, "group_size": 32}"#).unwrap();
    refused(&case, 6, &["gptq", "no tensor of a quantized layer"]);
    let case = checkpoint("llama", &AWQ, ASYM);
    case.edit("config.json", |config| drop(config.as_object_mut().unwrap().remove("quantization_config")));
    refused(&case, 8, &["quantization_config"]);
    let case = Case::of("llama");
    case.edit("config.json", |config| config["quantization_config"] = json!({"quant_method": "fp8"}));
    run(&["convert", &text(&case.model()), "gguf"]).failure(8, &["fp8"]);
}

#[test]
fn a_file_that_is_no_gguf_is_no_source() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.txt");
    std::fs::write(&file, "text").unwrap();
    run(&["convert", &text(&file), "hf"]).failure(6, &["not a GGUF file"]);
    run(&["convert", "no/such/file.gguf", "hf"]).failure(3, &["not found"]);
}

#[test]
fn options_belong_to_their_target() {
    for (to, option, word) in [
        ("gguf", &["--group-size", "64"][..], "--group-size"),
        ("gguf", &["--calibration-samples", "3"], "--calibration-samples"),
        ("gguf", &["--dtype", "f32"], "--dtype"),
        ("gguf", &["--requantize"], "--requantize"),
        ("gptq", &["--imatrix", "x"], "--imatrix"),
        ("gptq", &["-q", "Q4_0"], "Q4_0"),
        ("awq", &["--asym"], "--asym"),
        ("awq", &["-q", "8bit"], "8bit"),
        ("hf", &["-q", "4bit"], "--quant-level"),
        ("hf", &["--pure"], "--pure"),
        ("hf", &["--data", "x"], "--data"),
    ] {
        let model = text(&model("llama"));
        run(&[&["convert", &model, to], option].concat()).failure(2, &[word]);
    }
}

#[test]
fn people_read_what_was_lost() {
    let case = checkpoint("tiny-llama", &gptq(SYM, Version::V1), SYM);
    let out = text(&case.out());
    let source = text(&case.model());
    let said = |args: &[&str]| {
        let outcome = run(&[&["convert", &source], args, &["-o", &out]].concat()).success();
        assert_eq!(outcome.stdout, "", "the report goes to standard error");
        outcome.stderr
    };
    let lossless = said(&["awq"]);
    assert!(lossless.contains("nothing was lost") && lossless.contains("carried over"), "{lossless}");
    let lossy = said(&["gguf"]);
    for word in ["Warning", "medium loss", "ORIGINAL", "Weights: NMSE", "packed-Q4_K_M.gguf"] {
        assert!(lossy.contains(word), "{word:?} is not in:\n{lossy}");
    }
    assert_eq!(entries(&case.out()), ["packed-Q4_K_M.gguf", "packed-awq-4bit"]);
}
