//! GPTQ and AWQ directories that are damaged, incomplete or contradict themselves: an error that names the tensor.

use std::fs;

use llm_quantize::format::awq::AwqConfig;
use llm_quantize::format::gptq::Version;
use llm_quantize::format::packed::config::Stated;
use llm_quantize::format::packed::{Container, PackedModel, Scheme};
use llm_quantize::quant::Grid;
use serde_json::{Value, json};

use crate::checkpoint::{Case, Weights};
use crate::packed::{checkpoint, gptq};
use crate::support::{run, text};

const GRID: Grid = Grid { bits: 4, group_size: 32, symmetric: true };
const LAYER: &str = "model.layers.1.mlp.gate_proj";

fn case() -> Case {
    checkpoint("llama", &gptq(GRID, Version::V1), GRID)
}

/// `info` refuses the model with `code` in words that hold each of `words`.
#[track_caller]
fn refused(case: &Case, code: i32, words: &[&str]) {
    run(&["info", &text(&case.model())]).failure(code, words);
}

/// Changes both places that say how the model is quantized.
fn edit_quantization(case: &Case, change: impl Fn(&mut Value)) {
    case.edit("config.json", |config| change(&mut config["quantization_config"]));
    if case.file("quantize_config.json").exists() {
        case.edit("quantize_config.json", &change);
    }
}

fn tensor<'a>(weights: &'a mut [Weights], suffix: &str) -> &'a mut Weights {
    let name = format!("{LAYER}.{suffix}");
    weights.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

#[test]
fn a_tensor_that_is_missing() {
    for suffix in ["qweight", "qzeros", "scales"] {
        let case = case();
        case.edit_weights(|weights| weights.retain(|tensor| tensor.name != format!("{LAYER}.{suffix}")));
        refused(&case, 6, &[&format!("{LAYER}.{suffix} is missing")]);
    }
    let case = case();
    case.edit_weights(|weights| weights.retain(|tensor| tensor.name != format!("{LAYER}.g_idx")));
    run(&["info", &text(&case.model())]).success();
}

#[test]
fn a_tensor_of_the_wrong_shape_or_type() {
    for suffix in ["qweight", "qzeros", "scales", "g_idx"] {
        let case = case();
        case.edit_weights(|weights| {
            let tensor = tensor(weights, suffix);
            let [rows, rest @ ..] = tensor.shape.as_mut_slice() else { panic!("{suffix} has a shape") };
            // As many inputs fewer as a group has, or one row.
            let less = if suffix == "g_idx" { 32 } else { 1 };
            *rows -= less;
            let row = rest.iter().product::<usize>() * if suffix == "scales" { 2 } else { 4 };
            tensor.data.truncate(tensor.data.len() - less * row);
        });
        refused(&case, 6, &[&format!("{LAYER}."), "has the shape"]);
        let case = self::case();
        case.edit_weights(|weights| {
            let tensor = tensor(weights, suffix);
            tensor.dtype = if suffix == "scales" { "I32" } else { "F32" }.into();
            if suffix == "scales" {
                tensor.shape[0] /= 2;
            }
        });
        refused(&case, 6, &[&format!("{LAYER}.{suffix} has type")]);
    }
}

#[test]
fn a_flat_or_empty_tensor() {
    for suffix in ["qweight", "qzeros", "scales"] {
        let case = case();
        case.edit_weights(|weights| {
            let tensor = tensor(weights, suffix);
            tensor.shape = vec![tensor.shape.iter().product()];
        });
        refused(&case, 6, &[LAYER]);
        let case = self::case();
        case.edit_weights(|weights| {
            let tensor = tensor(weights, suffix);
            tensor.shape = vec![0, 0];
            tensor.data.clear();
        });
        refused(&case, 6, &[LAYER]);
    }
}

#[test]
fn values_that_cannot_be() {
    let case = case();
    case.edit_weights(|weights| tensor(weights, "g_idx").data[..4].copy_from_slice(&99u32.to_le_bytes()));
    refused(&case, 6, &[LAYER, "group index 99"]);
    let case = self::case();
    case.edit_weights(|weights| tensor(weights, "g_idx").data[..4].copy_from_slice(&(-1i32).to_le_bytes()));
    refused(&case, 6, &[LAYER, "group index -1"]);
    let read = |case: &Case| {
        let config: Value = serde_json::from_slice(&fs::read(case.file("config.json")).unwrap()).unwrap();
        let stated = Stated::find(&case.model(), &config).unwrap().unwrap();
        let model = PackedModel::open(&case.model(), Scheme::read(&stated).unwrap()).unwrap();
        model.linear(&format!("{LAYER}.weight")).unwrap_err()
    };
    let case = self::case();
    case.edit_weights(|weights| tensor(weights, "scales").set(3, f32::NAN));
    let e = read(&case);
    assert!(e.exit_code() == 6 && e.to_string().contains(LAYER) && e.to_string().contains("scale"), "{e}");
    // Zero points of the second version in a file that says the first.
    let case = self::case();
    case.edit_weights(|weights| tensor(weights, "qzeros").data.fill(0x88));
    let e = read(&case);
    assert!(
        e.exit_code() == 6 && e.to_string().contains(LAYER) && e.to_string().contains("zero points"),
        "{e}"
    );
    assert!(e.suggestion().unwrap().contains("gptq_v2"));
}

#[test]
fn both_weights_and_codes() {
    let case = case();
    case.edit_weights(|weights| {
        weights.push(Weights {
            name: format!("{LAYER}.weight"),
            dtype: "F16".into(),
            shape: vec![1],
            data: vec![0; 2],
        })
    });
    refused(&case, 6, &[LAYER, "twice"]);
}

#[test]
fn a_truncated_file() {
    let case = case();
    let whole = fs::read(case.file("model.safetensors")).unwrap();
    for keep in [whole.len() - 1, whole.len() / 2, 8, 0] {
        fs::write(case.file("model.safetensors"), &whole[..keep]).unwrap();
        refused(&case, 6, &["model.safetensors", &format!("{keep} bytes")]);
    }
}

#[test]
fn a_configuration_that_is_not_understood() {
    for (key, value, code, word) in [
        ("bits", json!(5), 8, "5 bits"),
        ("bits", json!("4"), 6, "`bits` must be a whole number"),
        ("bits", json!(null), 6, "`bits`"),
        ("bits", json!(8), 6, "has the shape"),
        ("group_size", json!(0), 6, "`group_size`"),
        ("group_size", json!(64), 6, "has the shape"),
        ("checkpoint_format", json!("gptq_p"), 8, "gptq_p"),
        ("checkpoint_format", json!("marlin"), 8, "marlin"),
        ("pack_dtype", json!("int16"), 8, "int16"),
        ("is_marlin_format", json!(true), 8, "Marlin"),
        ("dynamic", json!({"-:^model\\.layers\\.1\\.": {}}), 6, "leaves model.layers.1."),
        ("dynamic", json!({"+:.*gate_proj": {"bits": 8}}), 6, "gate_proj."),
        ("dynamic", json!({"(": {}}), 8, "pattern"),
        ("dynamic", json!([]), 6, "`dynamic` must be an object"),
        ("quant_method", json!("bitnet"), 0, ""),
        ("quant_method", json!(4), 6, "`quant_method`"),
        ("quant_method", json!("awq"), 8, "version gptq"),
    ] {
        let case = case();
        edit_quantization(&case, |q| q[key] = value.clone());
        match code {
            0 => assert!(run(&["info", &text(&case.model())]).success().stdout.contains("BITNET")),
            code => refused(&case, code, &[word]),
        }
    }
    let case = case();
    edit_quantization(&case, |q| *q = json!("4 bits"));
    refused(&case, 6, &["not a JSON object"]);
    let case = self::case();
    fs::write(case.file("quantize_config.json"), "{").unwrap();
    refused(&case, 6, &["quantize_config.json is not valid JSON"]);
    let case = self::case();
    case.edit("quantize_config.json", |q| q["bits"] = json!(2));
    refused(&case, 6, &["bits is 4", "quantize_config.json says 2"]);
}

#[test]
fn a_pattern_that_takes_for_ever() {
    let case = case();
    edit_quantization(&case, |q| q["dynamic"] = json!({"-:(?=(.*)*)((?:[a-z0-9_.]+)+)+\\1!$": {}}));
    let outcome = run(&["info", &text(&case.model())]);
    assert!([0, 8].contains(&outcome.code), "{}", outcome.stderr);
}

#[test]
fn a_quantization_without_codes() {
    let case = Case::of("llama");
    case.edit("config.json", |config| {
        config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4, "group_size": 32})
    });
    refused(&case, 6, &["the configuration says gptq", "no tensor of a quantized layer"]);
}

#[test]
fn codes_without_a_quantization() {
    let case = case();
    case.edit("config.json", |config| drop(config.as_object_mut().unwrap().remove("quantization_config")));
    // The file that AutoGPTQ writes is enough.
    run(&["info", &text(&case.model())]).success();
    fs::remove_file(case.file("quantize_config.json")).unwrap();
    refused(&case, 8, &["quantized already", "quantization_config"]);
}

#[test]
fn an_awq_directory() {
    let case = || checkpoint("llama", &Container::Awq(AwqConfig { group_size: Some(32) }), GRID);
    for (key, value, code, word) in [
        ("bits", json!(8), 8, "AWQ of 8 bits"),
        ("version", json!("gemv"), 8, "gemv"),
        ("group_size", json!(64), 6, "has the shape"),
    ] {
        let case = case();
        edit_quantization(&case, |q| q[key] = value.clone());
        refused(&case, code, &[word]);
    }
    // GPTQModel's default: no zero points are asked for, and those of the middle are there.
    let symmetric = case();
    edit_quantization(&symmetric, |q| q["zero_point"] = json!(false));
    run(&["info", "--verify", &text(&symmetric.model())]).success();
    symmetric.edit_weights(|weights| {
        let zeros = weights.iter_mut().find(|w| w.name == format!("{LAYER}.qzeros")).unwrap();
        assert!(zeros.data.iter().all(|byte| *byte == 0x88));
        zeros.data[0] = 0x87;
    });
    let words = [LAYER, "said to be symmetric", "zero points of 7"];
    run(&["info", "--verify", &text(&symmetric.model())]).failure(6, &words);
    let case = case();
    case.edit_weights(|weights| {
        let (name, data) = (format!("{LAYER}.g_idx"), vec![0; 4 * 128]);
        weights.push(Weights { name, dtype: "I32".into(), shape: vec![128], data });
    });
    refused(&case, 6, &[&format!("{LAYER}.g_idx does not belong in awq")]);
}
