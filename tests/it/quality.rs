//! `analyze quality`: errors stand where they were made, and the page holds them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoint::Case;
use crate::evaluate::{rounded, short_text};
use crate::support::{Outcome, entries, model, quantize, run, text};

fn quality(model: &Path, reference: &Path, data: &Path, extra: &[&str]) -> Outcome {
    let (model, reference, data) = (text(model), text(reference), text(data));
    let args = ["analyze", "quality", &model, "--reference", &reference, "--data", &data];
    run(&[&args, extra].concat())
}

#[track_caller]
fn report(model: &Path, reference: &Path, data: &Path, ctx: &str) -> Value {
    quality(model, reference, data, &["--ctx", ctx, "--format", "json"]).success().json()
}

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap()
}

/// Names and errors of a layer's matrices.
fn linears(layer: &Value) -> Vec<(&str, f64)> {
    let all = layer["linears"].as_array().unwrap();
    all.iter().map(|l| (l["name"].as_str().unwrap(), number(&l["nmse"]))).collect()
}

const LLAMA: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

#[test]
fn errors_stand_where_they_were_made() {
    let (_dir, data) = short_text();
    let case = rounded("layers.2.mlp.up_proj", 3);
    let found = report(&case.model(), &model("tiny-llama"), &data, "128");
    let layers = found["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    for (i, layer) in layers.iter().enumerate() {
        assert_eq!(layer["layer"], i);
        let linears = linears(layer);
        assert!(linears.iter().map(|(name, _)| *name).eq(LLAMA));
        for (name, nmse) in linears {
            // Each matrix sees the reference's own inputs, so those behind the damage are not blamed for it.
            let damaged = i == 2 && name == "ffn_up";
            assert!(if damaged { nmse > 1e-3 } else { nmse == 0.0 }, "layer {i}, {name}: {nmse}");
        }
        for key in ["nmse", "token_nmse"] {
            let drift = number(&layer[key]);
            assert!(if i >= 2 { drift > 1e-6 } else { drift == 0.0 }, "layer {i}: {drift}");
        }
    }
    assert!(number(&found["kl_divergence"]) > 0.0);
}

/// What `evaluate` says of the same models is the same.
#[test]
fn the_loss_beside_the_errors_is_that_of_evaluate() {
    let (_dir, data) = short_text();
    let (case, tiny) = (rounded("proj", 4), model("tiny-llama"));
    let found = report(&case.model(), &tiny, &data, "128");
    let (model, reference, data) = (text(&case.model()), text(&tiny), text(&data));
    let args =
        ["evaluate", &model, "--reference", &reference, "--data", &data, "--ctx", "128", "--format", "json"];
    let evaluated = run(&args).success().json();
    for key in ["perplexity", "kl_divergence", "top1_agreement", "chunks", "positions", "protocol", "tokens"]
    {
        assert_eq!(found[key], evaluated[key], "{key}");
    }
}

#[test]
fn the_error_of_a_matrix_is_that_of_its_weights() {
    let (_dir, data) = short_text();
    let case = Case::of("tiny-llama");
    // Outputs that are half of what they should be have a quarter of the energy as error.
    case.edit_weights(|weights| {
        let t = weights.iter_mut().find(|t| t.name.contains("layers.0.self_attn.v_proj")).unwrap();
        let values: Vec<f32> =
            t.data.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect();
        values.iter().enumerate().for_each(|(i, w)| t.set(i, w / 2.0));
    });
    let found = report(&case.model(), &model("tiny-llama"), &data, "128");
    let (name, nmse) = linears(&found["layers"][0])[2];
    assert_eq!(name, "attn_v");
    assert!((nmse - 0.25).abs() < 1e-6, "{nmse}");
}

#[test]
fn every_kind_of_layer_is_compared() {
    let (_dir, data) = short_text();
    for (name, expected) in [
        ("phi3", &LLAMA[..]),
        ("gemma3", &LLAMA),
        (
            "mixtral",
            &[
                "attn_q",
                "attn_k",
                "attn_v",
                "attn_output",
                "ffn_gate_inp",
                "ffn_gate_exps",
                "ffn_up_exps",
                "ffn_down_exps",
            ],
        ),
    ] {
        let original = model(name);
        let case = Case::of(name);
        case.edit_weights(|weights| {
            for t in weights.iter_mut().filter(|t| t.shape.len() == 2 && t.name.contains("layers")) {
                let first = half::bf16::from_le_bytes([t.data[0], t.data[1]]).to_f32();
                t.set(0, first + 0.25);
            }
        });
        let found = report(&case.model(), &original, &data, "64");
        for layer in found["layers"].as_array().unwrap() {
            let linears = linears(layer);
            assert!(
                linears.iter().map(|(name, _)| *name).eq(expected.iter().copied()),
                "{name}: {linears:?}"
            );
            assert!(linears.iter().all(|(_, nmse)| *nmse < 1.0), "{name}: {linears:?}");
            assert!(linears.iter().filter(|(_, nmse)| *nmse > 0.0).count() >= 4, "{name}: {linears:?}");
        }
        assert_eq!(
            (&found["bits_per_weight"], &found["reference_bits_per_weight"]),
            (&json!(16.0), &json!(16.0))
        );
        let weights: u64 =
            found["tensors"].as_array().unwrap().iter().map(|t| t["weights"].as_u64().unwrap()).sum();
        let expected: usize = crate::checkpoint::read_weights(&original.join("model.safetensors"))
            .iter()
            .filter(|t| t.shape.len() == 2)
            .map(|t| t.shape.iter().product::<usize>())
            .sum();
        assert_eq!(weights, expected as u64, "{name}");
    }
}

#[test]
fn people_get_a_table_and_a_page() {
    let (dir, data) = short_text();
    let (page, json) = (dir.path().join("page.html"), dir.path().join("result.json"));
    // Names are shown as they are given, and are no markup.
    let case = Case::empty("a&<b>'\"");
    for file in entries(&model("tiny-llama")) {
        fs::write(case.file(&file), fs::read(model("tiny-llama").join(&file)).unwrap()).unwrap();
    }
    let args = ["--ctx", "128", "--html", &text(&page), "-o", &text(&json)];
    let rough = rounded("proj", 4);
    let found = quality(&rough.model(), &case.model(), &data, &args).success();
    for word in ["hidden", "attn_q", "ffn_down", "KL divergence", "Bits per weight"] {
        assert!(found.stdout.contains(word), "{word} is not in:\n{}", found.stdout);
    }
    let html = fs::read_to_string(&page).unwrap();
    for word in [
        "<svg",
        "attn_output",
        "layer 3",
        "token_embd.weight",
        "KL divergence by position",
        "a&amp;&lt;b&gt;&#39;&quot;",
    ] {
        assert!(html.contains(word), "{word}");
    }
    for word in ["<b>'", "<script", "http:", "https:", "url("] {
        assert!(!html.contains(word), "{word}");
    }
    let plots: Vec<&str> =
        html.split("<svg").skip(1).map(|rest| rest.split("</svg>").next().unwrap()).collect();
    assert_eq!(plots.len(), 4);
    assert!(plots.iter().all(|plot| !plot.contains("NaN") && !plot.contains("inf")));
    assert_well_formed(&html);
    let written: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(written["layers"].as_array().unwrap().len(), 4);
    quality(&rough.model(), &case.model(), &data, &args).failure(2, &["exists", "--force"]);
}

/// A GGUF file: bits are those of its types, and the text is the built-in one.
#[test]
fn bits_are_those_of_the_types() {
    let out = tempfile::tempdir().unwrap();
    quantize(&model("tiny-llama"), "Q4_0", out.path(), &["-n", "q", "--pure"]).success();
    let (file, reference) = (text(&out.path().join("q.gguf")), text(&model("tiny-llama")));
    let args = ["analyze", "quality", &file, "--reference", &reference, "--ctx", "128", "--chunks", "2"];
    let found = run(&[&args[..], &["--format", "json"]].concat()).success().json();
    assert_eq!((&found["bits_per_weight"], &found["reference_bits_per_weight"]), (&json!(4.5), &json!(16.0)));
    assert_eq!((&found["data"], &found["windows"]), (&json!("built-in"), &json!(2)));
    for layer in found["layers"].as_array().unwrap() {
        // Four bits lose something, and not much.
        assert!(linears(layer).iter().all(|(_, nmse)| (1e-4..0.05).contains(nmse)), "{layer}");
    }
    let said = run(&args).success();
    assert!(said.stderr.contains("built-in text"), "{}", said.stderr);
}

/// Every element that is opened is closed, in order; quotes are balanced within tags.
#[track_caller]
pub(crate) fn assert_well_formed(html: &str) {
    let mut open = Vec::new();
    for tag in html.split('<').skip(1).map(|rest| rest.split_once('>').expect("tags end").0) {
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') && !tag.starts_with('!') && name != "meta" {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn models_without_the_same_layers_are_refused() {
    let (_dir, data) = short_text();
    quality(&model("llama"), &model("gemma3"), &data, &[]).failure(6, &["llama", "gemma3", "layers 2 and 6"]);
    let fewer = Case::of("tiny-llama");
    fewer.edit("config.json", |c| c["num_hidden_layers"] = json!(3));
    quality(&fewer.model(), &model("tiny-llama"), &data, &[]).failure(6, &["layers 3 and 4", "evaluate"]);
    run(&["analyze", "quality", "x"]).failure(2, &["--reference"]);
    run(&["analyze"]).failure(2, &["quality"]);
}
