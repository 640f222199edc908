//! Layers that GPTQModel packed are read as it reads them, and packed as it packs them.

use llm_quantize::format::awq::AwqLayout;
use llm_quantize::format::gptq::{GptqLayout, Version};
use llm_quantize::format::packed::{Layout, PackedModel, Scheme, config::Stated};
use llm_quantize::source::dense::Dense;
use serde_json::{Value, json};

use crate::checkpoint::{Weights, read_weights, write_weights};
use crate::support::data;

const SHAPE: [usize; 2] = [32, 64];

/// The tensors of one layer, under names of a model; the weights that GPTQModel makes of them.
fn fixture(name: &str, version: Option<Version>) -> (Vec<Weights>, Vec<f32>) {
    let all = read_weights(&data("golden/packed/gptqmodel.safetensors"));
    let get = |suffix: &str| all.iter().find(|tensor| tensor.name == format!("{name}.{suffix}")).cloned();
    let qzeros = match version {
        Some(Version::V1) => "v1.qzeros",
        Some(Version::V2) => "v2.qzeros",
        None => "qzeros",
    };
    let parts = [("qweight", "qweight"), (qzeros, "qzeros"), ("scales", "scales"), ("g_idx", "g_idx")];
    let tensors = parts.into_iter().filter_map(|(stored, suffix)| {
        Some(Weights { name: format!("model.layers.0.x.{suffix}"), ..get(stored)? })
    });
    let weight = get("weight").unwrap();
    assert_eq!(weight.shape, SHAPE);
    (tensors.collect(), weight.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

#[track_caller]
fn check(tensors: &[Weights], weights: &[f32], config: &Value, layout: &dyn Layout) {
    let dir = tempfile::tempdir().unwrap();
    write_weights(&dir.path().join("model.safetensors"), tensors);
    let stated = Stated::find(dir.path(), &json!({"quantization_config": config})).unwrap().unwrap();
    let model = PackedModel::open(dir.path(), Scheme::read(&stated).unwrap()).unwrap();
    let name = "model.layers.0.x.weight";
    assert_eq!(model.shape(name), Some(&SHAPE[..]));
    let mut read = vec![0.0; weights.len()];
    model.read(name, 0..SHAPE[0], &mut read).unwrap();
    assert_eq!(read, weights, "{config}");
    let linear = model.linear(name).unwrap();
    for (part, bytes) in layout.parts(SHAPE, linear.grid()).iter().zip(layout.pack(&linear).unwrap()) {
        let theirs = tensors.iter().find(|t| t.name.ends_with(part.suffix)).unwrap();
        assert_eq!((&theirs.shape, &theirs.data), (&part.shape, &bytes), "{} of {config}", part.suffix);
    }
}

#[test]
fn gptq() {
    for bits in [2, 3, 4, 8] {
        for (act, suffix) in [(false, ""), (true, ".act")] {
            for version in [Version::V1, Version::V2] {
                let (tensors, weights) = fixture(&format!("gptq.{bits}bit{suffix}"), Some(version));
                let config = json!({
                    "quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": act, "sym": false,
                    "checkpoint_format": version.name(), "meta": {"quantizer": ["gptqmodel:7.7.0"]},
                });
                check(&tensors, &weights, &config, &GptqLayout::new(version));
            }
        }
    }
}

#[test]
fn awq() {
    let (tensors, weights) = fixture("awq.4bit", None);
    let config =
        json!({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": true, "version": "gemm"});
    check(&tensors, &weights, &config, &AwqLayout);
    let autoround = json!({
        "quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 32, "sym": false,
        "extra_config": {"model.layers.1.x": {"bits": 16}},
    });
    check(&tensors, &weights, &autoround, &AwqLayout);
    let autoawq = json!({"w_bit": 4, "q_group_size": 32, "zero_point": true, "version": "GEMM"});
    check(&tensors, &weights, &autoawq, &AwqLayout);
}

#[test]
fn spellings_of_gptq() {
    let (tensors, weights) = fixture("gptq.4bit", Some(Version::V1));
    let layout = GptqLayout::new(Version::V1);
    for config in [
        json!({"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": false, "static_groups": false, "sym": false,
               "true_sequential": true, "model_name_or_path": null, "model_file_base_name": "model"}),
        json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false, "autoround_version": "0.5.1",
               "provider": "auto-round", "modules_in_block_to_quantize": [["x"]]}),
        json!({"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 2, "group_size": 64,
               "sym": true, "extra_config": {"model.layers.0.x": {"bits": 4, "group_size": 32, "sym": false}}}),
        json!({"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": true,
               "dynamic": {"-:.*lm_head": {}, r"+:.*\.x$": {"bits": 4, "group_size": 32, "sym": false}}}),
    ] {
        check(&tensors, &weights, &config, &layout);
    }
}
