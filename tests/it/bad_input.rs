//! Weights that are damaged, missing or misleading: a clear message, the right exit code, and nothing left behind.

use std::fs;

use serde_json::json;

use crate::checkpoint::{Case, read_weights, write_weights};

const GATE: &str = "model.layers.1.mlp.gate_proj.weight";

#[test]
fn truncated_weights() {
    let case = Case::of("llama");
    let path = case.file("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for keep in [whole.len() - 1, whole.len() / 2, 100, 8, 7, 0] {
        fs::write(&path, &whole[..keep]).unwrap();
        case.refused("Q4_0", &[], 6, &["model.safetensors", &format!("{keep} bytes"), "download it again"]);
    }
}

#[test]
fn a_header_longer_than_the_file() {
    let case = Case::of("llama");
    for len in [1 << 20, 1 << 40, u64::MAX] {
        let mut bytes = fs::read(case.file("model.safetensors")).unwrap();
        bytes.truncate(4096);
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        fs::write(case.file("model.safetensors"), bytes).unwrap();
        case.refused("Q4_0", &[], 6, &["model.safetensors is not a valid safetensors file"]);
    }
}

#[test]
fn overlapping_tensors() {
    let case = Case::of("llama");
    case.edit_header(|header| {
        let other = header["model.layers.0.mlp.gate_proj.weight"]["data_offsets"].clone();
        header[GATE]["data_offsets"] = other;
    });
    case.refused("Q4_0", &[], 6, &["model.safetensors is not a valid safetensors file"]);
}

#[test]
fn shapes_and_offsets_that_overflow() {
    for (field, value) in [
        ("shape", json!([1_u64 << 33, 1_u64 << 33])),
        ("shape", json!([u64::MAX, 2])),
        ("data_offsets", json!([u64::MAX - 1, u64::MAX])),
        ("data_offsets", json!([8, 0])),
    ] {
        let case = Case::of("llama");
        case.edit_header(|header| header[GATE][field] = value);
        case.refused("Q4_0", &[], 6, &["model.safetensors is not a valid safetensors file"]);
    }
}

#[test]
fn weights_of_a_type_that_is_no_float() {
    let case = Case::of("llama");
    // As many bytes as before.
    case.edit_header(|header| header[GATE]["dtype"] = json!("I16"));
    case.refused("Q4_0", &[], 8, &[GATE, "I16", "F32, F16 and BF16"]);
}

#[test]
fn an_index_that_leaves_the_directory() {
    let case = Case::of("llama");
    fs::rename(case.file("model.safetensors"), case.file("../model.safetensors")).unwrap();
    let index = json!({"weight_map": {GATE: "../model.safetensors"}});
    fs::write(case.file("model.safetensors.index.json"), index.to_string()).unwrap();
    case.refused("Q4_0", &[], 6, &[GATE, "'../model.safetensors'", "outside its own directory"]);
}

#[test]
fn an_index_of_a_missing_shard() {
    let case = Case::of("llama");
    let index = json!({"weight_map": {"a": "model.safetensors", GATE: "model-2.safetensors"}});
    fs::write(case.file("model.safetensors.index.json"), index.to_string()).unwrap();
    case.refused("Q4_0", &[], 6, &["shard model-2.safetensors is missing"]);
}

#[test]
fn an_index_that_is_no_index() {
    let case = Case::of("llama");
    for (index, word) in
        [("{", "not a valid index"), ("{}", "not a valid index"), (r#"{"weight_map":{}}"#, "names no tensor")]
    {
        fs::write(case.file("model.safetensors.index.json"), index).unwrap();
        case.refused("Q4_0", &[], 6, &["model.safetensors.index.json", word]);
    }
}

#[test]
fn shards_without_an_index() {
    let case = Case::of("llama");
    fs::rename(case.file("model.safetensors"), case.file("a.safetensors")).unwrap();
    fs::copy(case.file("a.safetensors"), case.file("b.safetensors")).unwrap();
    case.refused("Q4_0", &[], 6, &["2 safetensors files", "model.safetensors.index.json"]);
}

#[test]
fn a_missing_tensor() {
    let case = Case::of("llama");
    case.edit_weights(|weights| weights.retain(|t| t.name != GATE));
    case.refused("Q4_0", &[], 6, &[GATE, "missing"]);
}

#[test]
fn a_renamed_tensor_is_missing() {
    let case = Case::of("llama");
    case.edit_header(|header| {
        let info = header.remove(GATE).unwrap();
        header.insert("model.layers.1.mlp.other.weight".into(), info);
    });
    case.refused("Q4_0", &[], 6, &[GATE, "missing"]);
}

#[test]
fn a_tensor_too_many() {
    let case = Case::of("llama");
    case.edit_weights(|weights| {
        let mut extra = weights[0].clone();
        extra.name = "model.layers.0.mlp.other.weight".into();
        weights.push(extra);
    });
    case.refused("Q4_0", &[], 8, &["model.layers.0.mlp.other.weight"]);
}

#[test]
fn a_layer_too_many() {
    let case = Case::of("llama");
    case.edit("config.json", |config| config["num_hidden_layers"] = json!(1));
    case.refused("Q4_0", &[], 8, &["model.layers.1.", "more"]);
}

#[test]
fn a_shape_that_the_configuration_denies() {
    let case = Case::of("llama");
    case.edit("config.json", |config| config["intermediate_size"] = json!(160));
    case.refused("Q4_0", &[], 6, &["model.layers.0.mlp.gate_proj.weight", "160", "config.json"]);
}

/// A bad weight in a matrix and in a norm, in every source type; to be encoded, converted or copied.
#[test]
fn weights_that_are_no_numbers() {
    let case = Case::of("llama");
    let clean = read_weights(&case.file("model.safetensors"));
    for dtype in ["BF16", "F16", "F32"] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (name, gguf, index) in [
                (GATE, "blk.1.ffn_gate.weight", 3 * 128 + 5),
                ("model.norm.weight", "output_norm.weight", 77),
            ] {
                let mut weights = clean.clone();
                if dtype != "BF16" {
                    weights.iter_mut().for_each(|t| t.convert(dtype));
                }
                weights.iter_mut().find(|t| t.name == name).unwrap().set(index, bad);
                write_weights(&case.file("model.safetensors"), &weights);
                let place = match name {
                    GATE => "row 3, column 5",
                    _ => "77",
                };
                for level in ["Q4_0", dtype] {
                    case.refused(level, &[], 6, &[name, gguf, place, "NaN or infinity"]);
                }
            }
        }
    }
}

/// Rows of the query projection change places; the message names the place in the file to be written.
#[test]
fn a_bad_weight_among_reordered_rows() {
    let case = Case::of("llama");
    case.edit_weights(|weights| {
        let query = weights.iter_mut().find(|t| t.name == "model.layers.0.self_attn.q_proj.weight").unwrap();
        query.set(128 + 9, f32::NAN);
    });
    for level in ["Q4_0", "BF16"] {
        case.refused(level, &[], 6, &["model.layers.0.self_attn.q_proj.weight", "column 9"]);
    }
}

#[test]
fn a_bad_weight_of_an_expert() {
    let case = Case::of("mixtral");
    let name = "model.layers.1.block_sparse_moe.experts.2.w2.weight";
    case.edit_weights(|weights| weights.iter_mut().find(|t| t.name == name).unwrap().set(0, f32::NAN));
    for level in ["Q4_0", "BF16"] {
        case.refused(level, &[], 6, &[name, "blk.1.ffn_down_exps.weight", "row 0, column 0"]);
    }
}

/// float16 scales end at 65504: the weights would come back as infinity.
#[test]
fn weights_beyond_the_range_of_the_type() {
    let case = Case::of("llama");
    case.edit_weights(|weights| weights.iter_mut().find(|t| t.name == GATE).unwrap().set(0, 1e38));
    for level in ["Q4_0", "Q8_0", "F16"] {
        case.refused(level, &[], 6, &["blk.1.ffn_gate.weight", "validation failed"]);
    }
    case.quantize("BF16", &[]).success();
}

#[test]
fn no_weights() {
    let case = Case::of("llama");
    fs::remove_file(case.file("model.safetensors")).unwrap();
    case.refused("Q4_0", &[], 3, &["holds no safetensors file"]);
}
