//! Configurations, tokenizers, options and outputs that cannot be: a clear message, the right exit code, and nothing
//! left behind.

use std::fs;

use serde_json::{Value, json};

use crate::checkpoint::Case;
use crate::support::{entries, imatrix, quantize, run, text};

#[test]
fn an_unknown_architecture() {
    let case = Case::of("llama");
    case.edit("config.json", |config| config["architectures"] = json!(["FalconForCausalLM"]));
    let words = ["FalconForCausalLM", "Supported are:", "LlamaForCausalLM", "Qwen3MoeForCausalLM"];
    case.refused("Q4_0", &[], 8, &words);
}

#[test]
fn no_architecture_or_two() {
    for architectures in
        [Value::Null, json!([]), json!(["LlamaForCausalLM", "MistralForCausalLM"]), json!([7])]
    {
        let case = Case::of("llama");
        case.edit("config.json", |config| config["architectures"] = architectures);
        case.refused("Q4_0", &[], 6, &["architectures"]);
    }
}

#[test]
fn levels_that_are_not_there() {
    let case = Case::of("llama");
    let valid = ["Q4_K_M", "IQ4_XS", "TQ1_0", "BF16"];
    case.refused("IQ2_XS", &[], 8, &[&["IQ2_XS"][..], &valid].concat());
    case.refused("Q9", &[], 2, &[&["'Q9'"][..], &valid].concat());
}

#[test]
fn an_empty_directory() {
    let case = Case::empty("nothing");
    case.refused("Q4_0", &[], 3, &["nothing holds no config.json"]);
}

#[test]
fn a_missing_directory() {
    let case = Case::empty("nothing");
    let outcome = quantize(&case.file("absent"), "Q4_0", &case.out(), &[]);
    outcome.failure(3, &["absent", "not found", "Check the path"]);
    assert!(!case.out().exists());
}

#[test]
fn a_file_instead_of_a_directory() {
    let case = Case::of("llama");
    let outcome = quantize(&case.file("model.safetensors"), "Q4_0", &case.out(), &[]);
    outcome.failure(8, &["model.safetensors is a file", "config.json"]);
    assert!(!case.out().exists());
}

#[test]
fn a_configuration_that_is_no_json() {
    let case = Case::of("llama");
    for broken in ["", "{", "{\"hidden_size\": }", "\u{0}"] {
        fs::write(case.file("config.json"), broken).unwrap();
        case.refused("Q4_0", &[], 6, &["config.json is not valid JSON"]);
    }
    fs::write(case.file("config.json"), "[".repeat(100_000)).unwrap();
    case.refused("Q4_0", &[], 6, &["config.json is not valid JSON"]);
    for other in ["[]", "7", "null"] {
        fs::write(case.file("config.json"), other).unwrap();
        case.refused("Q4_0", &[], 6, &["config.json is not a JSON object"]);
    }
}

#[test]
fn a_configuration_of_the_wrong_types() {
    for (key, value) in [
        ("hidden_size", json!("128")),
        ("num_hidden_layers", json!(-1)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("vocab_size", json!(1e300)),
        ("rms_norm_eps", json!([])),
    ] {
        let case = Case::of("llama");
        case.edit("config.json", |config| config[key] = value);
        case.refused("Q4_0", &[], 6, &["config.json", key]);
    }
}

#[test]
fn a_key_that_nobody_understands() {
    let case = Case::of("llama");
    case.edit("config.json", |config| config["logit_scale"] = json!(0.5));
    case.refused("Q4_0", &[], 8, &["logit_scale", "--ignore-config logit_scale"]);
    case.quantize("Q4_0", &["--ignore-config", "logit_scale"]).success();
    assert_eq!(entries(&case.out()), ["llama-Q4_0.gguf"]);
}

#[test]
fn an_unknown_rope_type() {
    let case = Case::of("llama");
    case.edit("config.json", |config| config["rope_parameters"]["rope_type"] = json!("dynamic"));
    case.refused("Q4_0", &[], 8, &["rope_parameters", "'dynamic'"]);
}

#[test]
fn a_model_that_is_quantized_already() {
    let case = Case::of("llama");
    case.edit("config.json", |config| {
        config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4})
    });
    case.refused("Q4_0", &[], 8, &["quantized already", "quantization_config"]);
}

/// Permissions do not bind every user who runs tests; a path below a regular file binds all.
#[test]
fn an_output_directory_that_cannot_be() {
    let case = Case::of("llama");
    let below = case.file("config.json").join("sub");
    let before = entries(&case.model());
    let outcome = quantize(&case.model(), "Q4_0", &below, &[]);
    outcome.failure(1, &["cannot write to", "config.json/sub", "--output-dir"]);
    assert_eq!(entries(&case.model()), before);
}

#[test]
fn an_output_that_exists() {
    let case = Case::of("llama");
    let target = case.out().join("llama-Q4_0.gguf");
    fs::create_dir(case.out()).unwrap();
    fs::write(&target, "theirs").unwrap();
    case.quantize("Q4_0", &[]).failure(2, &["llama-Q4_0.gguf exists already", "--force"]);
    assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
    case.quantize("Q4_0", &["--force"]).success();
    assert_eq!(fs::read(&target).unwrap()[..4], *b"GGUF");
    assert_eq!(entries(&case.out()), ["llama-Q4_0.gguf"]);
}

/// A failure with --force keeps what was there.
#[test]
fn an_output_survives_a_failure() {
    let case = Case::of("llama");
    let target = case.out().join("llama-Q4_0.gguf");
    fs::create_dir(case.out()).unwrap();
    fs::write(&target, "theirs").unwrap();
    case.edit_weights(|weights| weights[5].set(0, f32::NAN));
    case.quantize("Q4_0", &["--force"]).failure(6, &["NaN"]);
    assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
    assert_eq!(entries(&case.out()), ["llama-Q4_0.gguf"]);
}

#[test]
fn an_output_that_is_a_directory() {
    let case = Case::of("llama");
    fs::create_dir_all(case.out().join("x.gguf")).unwrap();
    for force in [&[][..], &["--force"]] {
        let outcome = case.quantize("Q4_0", &[&["-n", "x.gguf"], force].concat());
        outcome.failure(2, &["x.gguf is a directory", "--output-name"]);
    }
    assert_eq!(entries(&case.out()), ["x.gguf"]);
}

#[test]
fn an_output_name_that_leaves_the_directory() {
    let case = Case::of("llama");
    for name in ["../x", "/elsewhere/x.gguf", "a/b"] {
        case.refused("Q4_0", &["-n", name], 2, &[name, "--output-dir"]);
    }
}

#[test]
fn a_level_that_needs_an_importance_matrix() {
    let case = Case::of("tiny-llama");
    case.refused("Q2_K_S", &[], 2, &["importance matrix", "--imatrix"]);
}

#[test]
fn an_importance_matrix_of_another_model() {
    // Its layers are called the same, and are twice as wide.
    let case = Case::of("llama");
    case.refused("Q4_0", &["--imatrix", &imatrix()], 6, &["256", "128", "belongs to another model"]);
}

#[test]
fn an_importance_matrix_that_is_none() {
    let case = Case::of("llama");
    case.refused("Q4_0", &["--imatrix", "/nowhere/imatrix.gguf"], 3, &["/nowhere/imatrix.gguf"]);
    let config = text(&case.file("config.json"));
    case.refused("Q4_0", &["--imatrix", &config], 6, &["config.json", "llama-imatrix"]);
    let directory = text(&case.model());
    let outcome = case.quantize("Q4_0", &["--imatrix", &directory]);
    assert!(outcome.code != 0 && outcome.stderr.contains(&directory), "{outcome:?}");
}

#[test]
fn types_that_cannot_be() {
    let case = Case::of("llama");
    for (option, value, code, words) in [
        ("--tensor-type", "attn_v", 2, ["attn_v", "PATTERN=TYPE"]),
        ("--tensor-type", "=Q8_0", 2, ["'=Q8_0'", "PATTERN=TYPE"]),
        ("--tensor-type", "(=Q8_0", 2, ["'('", "not a regular expression"]),
        ("--tensor-type", "attn_v=Q9", 2, ["'Q9'", "Valid types: F32"]),
        ("--tensor-type", "attn_v=IQ2_XS", 8, ["IQ2_XS", "--tensor-type"]),
        // Rows of 128 weights are half a block.
        ("--tensor-type", "attn_v=I8", 8, ["I8", "--tensor-type"]),
        ("--output-tensor-type", "Q4_K_M", 2, ["'Q4_K_M'", "--output-tensor-type"]),
        ("--token-embedding-type", "", 2, ["''", "--token-embedding-type"]),
    ] {
        case.refused("Q4_0", &[option, value], code, &words);
    }
}

#[test]
fn metadata_that_cannot_be() {
    let case = Case::of("llama");
    for (setting, words) in [
        ("general.name", ["general.name", "KEY=VALUE"]),
        ("=x", ["'=x'", "KEY=VALUE"]),
        ("general.alignment=64", ["general.alignment", "cannot set"]),
        ("a.b=int:x", ["a.b", "'x' is no int"]),
        ("a.b=int:4294967296", ["a.b", "no int"]),
        ("a.b=float:inf", ["a.b", "no float"]),
        ("llama.block_count=two", ["llama.block_count", "'two' is no int"]),
        ("tokenizer.ggml.tokens=x", ["tokenizer.ggml.tokens", "list"]),
    ] {
        case.refused("Q4_0", &["--metadata", setting], 2, &words);
    }
}

#[test]
fn devices_that_are_not_there() {
    let case = Case::of("llama");
    #[cfg(not(feature = "cuda"))]
    case.refused("Q4_0", &["--device", "cuda:0"], 8, &["--device cuda:0", "--device cpu"]);
    case.refused("Q4_0", &["--device", "tpu"], 2, &["'tpu'"]);
    case.refused("Q4_0", &["--simd", "neon9"], 2, &["'neon9'", "portable"]);
}

#[test]
fn a_missing_tokenizer() {
    let case = Case::of("llama");
    fs::remove_file(case.file("tokenizer.json")).unwrap();
    case.refused("Q4_0", &[], 3, &["tokenizer.json"]);
}

#[test]
fn a_broken_tokenizer() {
    let case = Case::of("llama");
    let empty = r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#;
    for broken in ["", "{\"model\": ", "null", "[]", "{}", empty, r#"{"model": {"vocab": {"a": -1}}}"#] {
        fs::write(case.file("tokenizer.json"), broken).unwrap();
        case.refused("Q4_0", &[], 6, &["tokenizer.json"]);
    }
}

#[test]
fn an_added_token_with_an_absurd_id() {
    for id in [json!(9_000_000_000_000_000_u64), json!(-5), json!(u32::MAX)] {
        for content in ["<|bos|>", "<|new|>"] {
            let case = Case::of("llama");
            case.edit("tokenizer.json", |tokenizer| {
                tokenizer["added_tokens"][0]["content"] = json!(content);
                tokenizer["added_tokens"][0]["id"] = id.clone();
            });
            case.refused("Q4_0", &[], 6, &["tokenizer.json", content]);
        }
    }
}

#[test]
fn a_token_beyond_the_vocabulary() {
    let case = Case::of("llama");
    case.edit("tokenizer.json", |tokenizer| tokenizer["model"]["vocab"]["a"] = json!(4_000_000_000_u32));
    case.refused("Q4_0", &[], 6, &["tokenizer.json"]);
}

#[test]
fn wrong_arguments() {
    let case = Case::of("llama");
    let model = text(&case.model());
    for args in [
        &["quantize", &model, "gguf"][..],
        &["quantize", &model, "exl2", "-q", "Q4_0"],
        &["quantize", &model, "gguf", "-q", "Q4_0", "--threads", "0"],
        &["quantize", &model, "gguf", "-q", "Q4_0", "--threads", "many"],
        &["quantize", &model, "gguf", "-q", "Q4_0", "--nonsense"],
        &["info"],
        &["convert"],
    ] {
        let outcome = run(args).failure(2, &["error:"]);
        assert_eq!(outcome.stdout, "");
    }
}
