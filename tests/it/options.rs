//! Options of `quantize` that change what is written.

use llm_quantize::format::gguf::level::LEVELS;
use serde_json::{Value as Json, json};

use crate::checkpoint::Case;
use crate::gguf_file::{File, Value, bits};
use crate::support::{data, imatrix, model, quantize, quantized, run, text};

#[track_caller]
fn made(level: &str, extra: &[&str]) -> File {
    File::parse(&quantized(&model("tiny-llama"), level, extra))
}

/// The names of the tensors whose type differs between two files.
fn changed<'a>(a: &'a File, b: &File) -> Vec<&'a str> {
    a.tensors.iter().filter(|t| t.ty != b.ty(&t.name)).map(|t| t.name.as_str()).collect()
}

#[test]
fn patterns_choose_types() {
    let plain = made("Q4_0", &[]);
    let file = made("Q4_0", &["--tensor-type", r"blk\.[02]\.attn_v=q8_0", "--tensor-type", "ATTN_(V|K)=F16"]);
    let attn_v = |layer| file.ty(&format!("blk.{layer}.attn_v.weight"));
    assert_eq!([0, 1, 2, 3].map(attn_v), ["Q8_0", "F16", "Q8_0", "F16"], "the first match wins");
    assert_eq!(file.ty("blk.1.attn_k.weight"), "F16");
    assert_eq!(changed(&file, &plain).len(), 8, "no other tensor changes");
    assert_eq!(file.ty("blk.0.attn_norm.weight"), "F32");
    // Norms are never quantized, whatever a pattern says.
    let file = made("Q4_0", &["--tensor-type", ".=Q8_0"]);
    assert_eq!((file.ty("output_norm.weight"), file.ty("blk.3.ffn_norm.weight")), ("F32", "F32"));
    assert_eq!(file.ty("blk.3.ffn_up.weight"), "Q8_0");
}

#[test]
fn types_of_head_and_embedding() {
    let plain = made("Q4_0", &[]);
    let file = made("Q4_0", &["--token-embedding-type", "Q5_K"]);
    assert_eq!((file.ty("token_embd.weight"), changed(&file, &plain)), ("Q5_K", vec!["token_embd.weight"]));
    // The head is tied to the embedding, which is thus the output tensor.
    let file = made("Q4_0", &["--output-tensor-type", "F16"]);
    assert_eq!((file.ty("token_embd.weight"), changed(&file, &plain)), ("F16", vec!["token_embd.weight"]));

    let both = ["--output-tensor-type", "Q8_0", "--token-embedding-type", "Q5_1"];
    let file = File::parse(&quantized(&model("llama"), "Q4_0", &both));
    assert_eq!((file.ty("output.weight"), file.ty("token_embd.weight")), ("Q8_0", "Q5_1"));
}

#[test]
fn pure_is_one_type() {
    let mixed = made("Q4_K_M", &[]);
    assert_eq!(mixed.ty("token_embd.weight"), "Q6_K");
    let pure = made("Q4_K_M", &["--pure"]);
    let norms = pure.tensors.iter().filter(|t| t.name.contains("norm"));
    assert!(norms.clone().all(|t| t.ty == "F32"));
    let rest: Vec<_> = pure.tensors.iter().filter(|t| !t.name.contains("norm")).collect();
    assert_eq!(rest.len() + norms.count(), mixed.tensors.len());
    assert!(rest.iter().all(|t| t.ty == "Q4_K"));
}

/// What a file is said to hold is what it holds.
#[test]
fn info_counts_the_types() {
    let out = tempfile::tempdir().unwrap();
    quantize(&model("tiny-llama"), "Q3_K_M", out.path(), &["-n", "x", "--tensor-type", "attn_q=BF16"])
        .success();
    let path = out.path().join("x.gguf");
    let found = run(&["info", &text(&path), "--format", "json"]).success().json();
    let file = File::open(&path);
    let mut total = 0;
    for (ty, counts) in found["gguf"]["types"].as_object().unwrap() {
        let of_type: Vec<_> = file.tensors.iter().filter(|t| t.ty == ty).collect();
        let bytes: usize = of_type.iter().map(|t| t.data.len()).sum();
        assert_eq!(*counts, json!([of_type.len(), bytes]), "{ty}");
        total += of_type.len();
    }
    assert_eq!(total, file.tensors.len());
    assert_eq!(found["gguf"]["types"]["BF16"][0], 4);
}

#[test]
fn metadata_is_set() {
    let settings = [
        "general.name=A=B \u{1f600}",
        "general.license=str:7",
        "test.int=7",
        "test.float=float:7",
        "test.half=0.5",
        "test.bool=true",
        "test.text=bool:false",
        "llama.context_length=99",
        "llama.rope.freq_base=5",
    ];
    let extra: Vec<&str> = settings.iter().flat_map(|s| ["--metadata", s]).collect();
    let file = made("Q8_0", &extra);
    for (key, kind, value) in [
        ("general.name", 8, Value::Str("A=B \u{1f600}".into())),
        ("general.license", 8, Value::Str("7".into())),
        ("test.int", 4, Value::Int(7)),
        ("test.float", 6, Value::F32(7.0)),
        ("test.half", 6, Value::F32(0.5)),
        ("test.bool", 7, Value::Bool(true)),
        ("test.text", 7, Value::Bool(false)),
        ("llama.context_length", 4, Value::Int(99)),
        // The type of the value that is replaced.
        ("llama.rope.freq_base", 6, Value::F32(5.0)),
    ] {
        assert_eq!(file.key(key), Some((kind, &value)), "{key}");
    }
    assert_eq!(file.metadata.last().unwrap().0, "llama.rope.freq_base", "settings come last, in their order");
}

/// NMSE of each tensor in the report.
#[track_caller]
fn errors(level: &str, extra: &[&str]) -> Vec<(String, String, f64)> {
    let out = tempfile::tempdir().unwrap();
    let extra = [&["--format", "json"], extra].concat();
    let report = quantize(&model("tiny-llama"), level, out.path(), &extra).success().json();
    let text = |v: &Json| v.as_str().unwrap().to_owned();
    let tensors = report["metadata"]["tensors"].as_array().unwrap();
    tensors.iter().map(|t| (text(&t["name"]), text(&t["type"]), t["nmse"].as_f64().unwrap())).collect()
}

/// No code of b bits can hold normally distributed weights with an error below 4^-b of their energy, and a uniform
/// quantizer keeps that pace: a quarter of the error for each bit. What it loses is a constant factor: its range is set by
/// the largest weight of each block, two to three standard deviations, and a second scale per block (a minimum) costs bits
/// that symmetric weights do not need. The factors are 2 to 4, and 6 to 7 for the types with a minimum in float16.
#[test]
fn errors_are_what_the_bits_allow() {
    for level in [
        "Q8_0", "Q6_K", "Q5_K_M", "Q5_1", "Q5_0", "Q4_K_M", "Q4_1", "Q4_0", "IQ4_XS", "IQ4_NL", "Q3_K_M",
        "Q2_K",
    ] {
        for (name, ty, nmse) in errors(level, &[]) {
            if ["F32", "BF16"].contains(&ty.as_str()) {
                assert_eq!(nmse, 0.0, "{level}: {name} is a copy");
                continue;
            }
            let ideal = 4f64.powf(-bits(&ty));
            assert!(
                (ideal..ideal * 8.0).contains(&nmse),
                "{level}: {name} as {ty} has NMSE {nmse:e}, {:.2}",
                nmse / ideal
            );
        }
    }
}

/// The three values of a ternary type cannot follow weights that were not trained for them; zeros would have 1.
#[test]
fn errors_of_ternary_types_are_below_that_of_zeros() {
    for level in ["TQ1_0", "TQ2_0"] {
        for (name, ty, nmse) in errors(level, &[]) {
            assert!(nmse < 1.0, "{level}: {name} as {ty} has NMSE {nmse}");
        }
    }
}

/// bfloat16 is a part of float32, and nearly one of float16: only weights below 2^-14 lose bits there.
#[test]
fn copies_and_wider_types_have_no_error() {
    assert!(errors("BF16", &[]).iter().all(|(.., nmse)| *nmse == 0.0));
    assert!(errors("F32", &[]).iter().all(|(.., nmse)| *nmse == 0.0));
    assert!(errors("F16", &[]).iter().all(|(.., nmse)| *nmse < 1e-9));
}

/// Importance moves error to where it matters less, so that there is more of it in all, but not much.
#[test]
fn importance_costs_little_plain_error() {
    let imatrix = imatrix();
    for level in ["Q4_K_M", "Q3_K_M"] {
        let plain = errors(level, &[]);
        let weighted = errors(level, &["--imatrix", &imatrix]);
        for ((name, ty, a), (_, weighted_ty, b)) in plain.iter().zip(&weighted) {
            if ty == weighted_ty && *a > 0.0 {
                assert!((0.5..2.0).contains(&(b / a)), "{level}: {name} goes from {a:e} to {b:e}");
            }
        }
        assert!(plain.iter().zip(&weighted).any(|(a, b)| a.2 != b.2), "{level}: importance is used");
    }
}

/// The two formats hold the same matrix. The older one rounds once more, which changes no bit at this level.
#[test]
fn both_formats_of_importance_give_the_same_tensors() {
    let legacy = text(&data("golden/tiny-llama/imatrix.dat"));
    let (new, old) = (made("Q4_K_M", &["--imatrix", &imatrix()]), made("Q4_K_M", &["--imatrix", &legacy]));
    assert_eq!(new.tensors.len(), old.tensors.len());
    for (a, b) in new.tensors.iter().zip(&old.tensors) {
        assert!((&a.name, a.ty, &a.data) == (&b.name, b.ty, &b.data), "{} differs", a.name);
    }
}

/// Tensors of zeros, and of weights that float16 scales can hardly hold or not at all, are written as llama.cpp does.
#[test]
fn weights_near_zero_are_no_error() {
    let case = Case::of("llama");
    for size in [0.0, -0.0, 1e-39, 1e-30, 1e-8, 3e-8, 1e-7, 1e-6, 1e-5, 1e-4] {
        case.edit_weights(|weights| {
            // Rows of 256 weights, which every type can hold.
            for t in weights.iter_mut().filter(|t| t.name.ends_with("mlp.down_proj.weight")) {
                let len = t.shape.iter().product::<usize>();
                (0..len).for_each(|i| t.set(i, size * [1.0, -0.5, 0.25, -1.0, 0.0, 0.75, 1.0][i % 7]));
            }
        });
        for level in LEVELS.iter().filter(|level| level.name != "Q2_K_S") {
            case.quantize(level.name, &["--force", "--verbosity", "quiet"]).success();
        }
    }
}
