//! Perplexity against llama.cpp and transformers, KL divergence, and what cannot be evaluated.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checkpoint::Case;
use crate::support::{Outcome, data, entries, model, quantize, run, text};

fn arguments(model: &Path, data: &Path, extra: &[&str]) -> Vec<String> {
    let (model, data) = (text(model), text(data));
    ["evaluate", &model, "--data", &data].iter().chain(extra).map(|s| (*s).to_owned()).collect()
}

fn evaluate(model: &Path, data: &Path, extra: &[&str]) -> Outcome {
    run(&arguments(model, data, extra))
}

#[track_caller]
fn report(model: &Path, data: &Path, extra: &[&str]) -> Value {
    evaluate(model, data, &[&["--format", "json"], extra].concat()).success().json()
}

/// A part of Moby-Dick that tiny-llama was not trained on.
fn evaluation() -> std::path::PathBuf {
    data("text/evaluation.txt")
}

/// A file with a text of some hundred tokens, and what keeps it.
pub(crate) fn short_text() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("short.txt");
    fs::write(&path, &fs::read_to_string(evaluation()).unwrap()[..2000]).unwrap();
    (dir, path)
}

#[track_caller]
fn assert_near(found: &Value, expected: f64, relative: f64) {
    let found = found.as_f64().unwrap();
    assert!((found / expected - 1.0).abs() < relative, "{found} is not {expected}");
}

/// transformers 5.23 in float32: windows of 256 back to back, at every position the next token.
#[test]
fn perplexity_of_the_full_protocol_is_that_of_transformers() {
    let found = report(&model("tiny-llama"), &evaluation(), &["--ctx", "256"]);
    assert_near(&found["perplexity"], 55.318804, 1e-6);
    assert_eq!((&found["protocol"], &found["tokens"]), (&json!("full"), &json!(103_936)));
    let chunks = found["chunks"].as_array().unwrap();
    assert_eq!((&found["windows"], chunks.len()), (&json!(406), 406));
    assert!(chunks.iter().all(|chunk| chunk["tokens"] == 256));
}

/// `llama-perplexity -c 512` of the model in bfloat16.
#[test]
fn perplexity_of_the_llama_cpp_protocol_is_that_of_llama_perplexity() {
    let found = report(&model("tiny-llama"), &evaluation(), &["--protocol", "llama.cpp"]);
    assert_near(&found["perplexity"], 74.1737, 5e-4);
    assert_eq!((&found["protocol"], &found["ctx"]), (&json!("llama.cpp"), &json!(512)));
    assert_eq!(found["positions"]["position"][0], 256);
    assert_eq!(found["positions"]["position"].as_array().unwrap().len(), 255);
}

/// Figures of `llama-perplexity -c 512`, which rounds activations to 8 bits where weights are quantized.
#[track_caller]
fn assert_perplexity(level: &str, expected: f64) {
    let out = tempfile::tempdir().unwrap();
    quantize(&model("tiny-llama"), level, out.path(), &["-n", "x"]).success();
    let found = report(&out.path().join("x.gguf"), &evaluation(), &["--protocol", "llama.cpp"]);
    assert_near(&found["perplexity"], expected, 3e-3);
    assert_eq!(found["format"], json!("gguf"));
}

#[test]
fn perplexity_of_gguf_files_is_near_that_of_llama_perplexity() {
    assert_perplexity("Q4_K_M", 74.4699);
    assert_perplexity("Q2_K", 77.5404);
}

#[test]
#[ignore = "takes minutes: scripts/perplexity.sh"]
fn perplexity_of_more_gguf_files_is_near_that_of_llama_perplexity() {
    let levels = [("Q8_0", 74.1726), ("IQ4_XS", 74.2960), ("Q4_0", 74.8983), ("Q3_K_M", 75.3941)];
    for (level, expected) in levels {
        assert_perplexity(level, expected);
    }
}

/// Both are a model in the same tokens, whatever they are stored as.
#[test]
fn a_gguf_file_is_compared_with_the_model_that_it_was_made_of() {
    let (_dir, data) = short_text();
    let out = tempfile::tempdir().unwrap();
    quantize(&model("tiny-llama"), "Q4_K_M", out.path(), &["-n", "x"]).success();
    let reference = text(&model("tiny-llama"));
    let found = report(&out.path().join("x.gguf"), &data, &["--ctx", "128", "--reference", &reference]);
    assert_eq!((&found["format"], &found["reference_format"]), (&json!("gguf"), &json!("hf")));
    let alone = report(&model("tiny-llama"), &data, &["--ctx", "128"]);
    assert_eq!(found["reference_perplexity"], alone["perplexity"]);
    assert!(found["kl_divergence"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let (_dir, data) = short_text();
    let tiny = model("tiny-llama");
    let found = report(&tiny, &data, &["--reference", &text(&tiny), "--ctx", "128"]);
    assert_eq!((&found["kl_divergence"], &found["kl_divergence_max"]), (&json!(0.0), &json!(0.0)));
    assert_eq!((&found["top1_agreement"], &found["perplexity_ratio"]), (&json!(1.0), &json!(1.0)));
    assert_eq!(found["perplexity"], found["reference_perplexity"]);
}

/// tiny-llama with the matrices whose name contains `part` rounded to so many bits of each row's largest weight.
pub(crate) fn rounded(part: &str, bits: u32) -> Case {
    let case = Case::of("tiny-llama");
    case.edit_weights(|weights| {
        for t in weights.iter_mut().filter(|t| t.name.contains(part)) {
            let values: Vec<f32> =
                t.data.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect();
            for (r, row) in values.chunks(t.shape[1]).enumerate() {
                let step = row.iter().fold(0f32, |max, w| max.max(w.abs())) / ((1 << (bits - 1)) - 1) as f32;
                for (c, w) in row.iter().enumerate() {
                    t.set(r * t.shape[1] + c, (w / step).round() * step);
                }
            }
        }
    });
    case
}

#[test]
fn fewer_bits_diverge_more() {
    let (_dir, data) = short_text();
    let tiny = text(&model("tiny-llama"));
    let number = |v: &Value| v.as_f64().unwrap();
    let mut last = 0.0;
    for bits in [8, 6, 4, 3] {
        let found = report(&rounded("proj", bits).model(), &data, &["--reference", &tiny, "--ctx", "128"]);
        let kl = number(&found["kl_divergence"]);
        // Without saturation a bit less quadruples the squared error, and KL goes with it.
        assert!(kl > 3.0 * last && kl > 0.0, "{bits} bits: {kl} after {last}");
        last = kl;
        let percentiles = ["50", "90", "95", "99"].map(|p| number(&found["kl_divergence_percentiles"][p]));
        assert!(percentiles.is_sorted() && percentiles[3] <= number(&found["kl_divergence_max"]));
        assert!(number(&found["kl_divergence_stderr"]) > 0.0 && number(&found["perplexity_stderr"]) > 0.0);
        // The sums by position and by window are those of all tokens.
        let n = found["tokens"].as_u64().unwrap() as f64;
        let mean = |v: &Value| v.as_array().unwrap().iter().map(number).sum::<f64>();
        let positions = &found["positions"];
        let windows = number(&found["windows"]);
        assert!((mean(&positions["kl_divergence"]) * windows / n / kl - 1.0).abs() < 1e-9);
        let agreement = number(&found["top1_agreement"]);
        assert!((mean(&positions["top1_agreement"]) * windows / n - agreement).abs() < 1e-9);
        let chunks = found["chunks"].as_array().unwrap();
        let by_chunk: f64 =
            chunks.iter().map(|c| number(&c["kl_divergence"]) * number(&c["tokens"])).sum::<f64>() / n;
        assert!((by_chunk / kl - 1.0).abs() < 1e-9);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (_dir, data) = short_text();
    let (case, tiny) = (rounded("proj", 4), text(&model("tiny-llama")));
    let run = |threads| {
        let mut found =
            report(&case.model(), &data, &["--reference", &tiny, "--ctx", "64", "--threads", threads]);
        let object = found.as_object_mut().unwrap();
        object.retain(|key, _| !["duration_seconds", "peak_memory_bytes"].contains(&key.as_str()));
        found
    };
    let (one, three) = (run("1"), run("3"));
    for key in ["perplexity", "kl_divergence", "kl_divergence_max", "top1_agreement"] {
        assert_near(&three[key], one[key].as_f64().unwrap(), 1e-6);
    }
}

#[test]
fn the_window_is_what_the_protocol_and_the_model_allow() {
    let (_dir, data) = short_text();
    // This model's context is 256 tokens.
    for (extra, ctx, first) in [
        (&[][..], 256, 0),
        (&["--protocol", "llama.cpp"][..], 256, 128),
        (&["--ctx", "100", "--chunks", "2"][..], 100, 0),
    ] {
        let found = report(&model("llama"), &data, extra);
        assert_eq!((&found["ctx"], &found["positions"]["position"][0]), (&json!(ctx), &json!(first)));
        if extra.contains(&"--chunks") {
            assert_eq!(found["windows"], 2);
        }
    }
    let refused = |extra: &[&str], words: &[&str]| {
        evaluate(&model("llama"), &data, extra).failure(2, words);
    };
    refused(&["--ctx", "257"], &["257", "256 tokens", "llama"]);
    refused(&["--ctx", "1"], &["--ctx"]);
    refused(&["--ctx", "2", "--protocol", "llama.cpp"], &["at least 3"]);
    refused(&["--chunks", "0"], &["--chunks"]);
}

#[test]
fn people_get_a_table() {
    let (_dir, data) = short_text();
    let tiny = model("tiny-llama");
    let found = evaluate(&rounded("proj", 4).model(), &data, &["--reference", &text(&tiny), "--ctx", "128"])
        .success();
    for word in [
        "Perplexity",
        "ratio",
        "KL divergence",
        "nats",
        "Top-1 agreement",
        "±",
        "windows of 128",
        "tiny-llama",
    ] {
        assert!(found.stdout.contains(word), "{word} is not in:\n{}", found.stdout);
    }
    assert!(found.stderr.contains("Computing"), "{}", found.stderr);
    let alone = evaluate(&tiny, &data, &["--ctx", "128"]).success();
    assert!(!alone.stdout.contains("KL"), "{}", alone.stdout);
}

#[test]
fn the_result_is_written_into_a_file() {
    let (dir, data) = short_text();
    let file = text(&dir.path().join("result.json"));
    let args = ["--ctx", "128", "-o", &file];
    let printed = report(&model("tiny-llama"), &data, &args);
    let written: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(written, printed);
    evaluate(&model("tiny-llama"), &data, &args).failure(2, &["result.json", "exists", "--force"]);
    evaluate(&model("tiny-llama"), &data, &[&args[..], &["--force"]].concat()).success();
    assert_eq!(entries(dir.path()), ["result.json", "short.txt"]);
}

#[test]
fn a_model_that_is_worse_than_asked_for_has_its_own_exit_code() {
    let (_dir, data) = short_text();
    let (tiny, case) = (text(&model("tiny-llama")), rounded("proj", 3));
    let with = |extra: &[&str]| {
        evaluate(&case.model(), &data, &[&["--reference", &tiny, "--ctx", "128"], extra].concat())
    };
    with(&["--max-ppl", "1e6", "--max-kld", "100"]).success();
    let found = with(&["--max-ppl", "2"]).failure(11, &["perplexity", "--max-ppl 2"]);
    assert!(found.stdout.contains("KL divergence"), "what was measured is printed: {}", found.stdout);
    let found = with(&["--max-kld", "1e-9", "--format", "json"]);
    assert_eq!(found.code, 11);
    let json = found.json();
    assert_eq!((&json["status"], &json["error_code"]), (&json!("error"), &json!(11)));
    assert!(json["kl_divergence"].as_f64().unwrap() > 1e-9);
    evaluate(&case.model(), &data, &["--max-kld", "1"]).failure(2, &["--reference"]);
    evaluate(&case.model(), &data, &["--max-ppl", "nan"]).failure(2, &["--max-ppl"]);
}

#[test]
fn texts_that_cannot_be_used_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, bytes: &[u8], code: i32, words: &[&str]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let found = evaluate(&model("tiny-llama"), &path, &["--ctx", "64"]).failure(code, words);
        assert_eq!(found.stdout, "");
    };
    refused("empty.txt", b"", 6, &["empty.txt", "no text"]);
    refused("blank.txt", b" \n\n\t", 6, &["blank.txt", "no text"]);
    refused("latin.txt", b"caf\xe9 au lait", 6, &["latin.txt", "not UTF-8", "byte 3"]);
    refused("short.txt", b"Call me Ishmael.", 6, &["tokens", "window of 64 takes 65", "--ctx"]);
    let missing = dir.path().join("missing.txt");
    evaluate(&model("tiny-llama"), &missing, &[]).failure(3, &["missing.txt"]);
    evaluate(&model("tiny-llama"), dir.path(), &[]).failure(1, &["cannot read --data"]);
}

#[test]
fn the_texts_of_records_are_joined_by_empty_lines() {
    let (dir, data) = short_text();
    let all = fs::read_to_string(&data).unwrap();
    let (a, b) = all.split_at(1000);
    let (jsonl, txt) = (dir.path().join("two.jsonl"), dir.path().join("one.txt"));
    fs::write(&jsonl, format!("{}\n{}\n", json!({"text": a}), json!({"text": b}))).unwrap();
    fs::write(&txt, format!("{a}\n\n{b}")).unwrap();
    let perplexity =
        |data: &Path| report(&model("tiny-llama"), data, &["--ctx", "128"])["perplexity"].clone();
    assert_eq!(perplexity(&jsonl), perplexity(&txt));
    fs::write(&jsonl, json!({"messages": [{"role": "user", "content": a}]}).to_string()).unwrap();
    evaluate(&model("tiny-llama"), &jsonl, &[]).failure(8, &["two.jsonl", "conversations"]);
    fs::write(&jsonl, "{").unwrap();
    evaluate(&model("tiny-llama"), &jsonl, &[]).failure(6, &["two.jsonl"]);
}

#[test]
fn models_that_cannot_be_compared_are_refused() {
    let (dir, data) = short_text();
    let tiny = model("tiny-llama");
    let against = |reference: &str, code, words: &[&str]| {
        evaluate(&tiny, &data, &["--ctx", "64", "--reference", reference]).failure(code, words);
    };
    against(&text(&model("llama")), 6, &["tiny-llama", "different vocabularies", "2048", "512"]);
    against(&text(dir.path()), 3, &["config.json"]);
    against("no/such/model", 3, &["no/such/model"]);

    // The same tokens under the same ids, but no merges: another text of tokens.
    let case = Case::of("tiny-llama");
    case.edit("tokenizer.json", |t| t["model"]["merges"] = json!([]));
    against(&text(&case.model()), 6, &["different tokens", "token 0"]);
}

#[test]
fn tokens_that_the_model_does_not_have_are_refused() {
    let (_dir, data) = short_text();
    let case = Case::of("llama");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::write(case.file(file), fs::read(model("tiny-llama").join(file)).unwrap()).unwrap();
    }
    evaluate(&case.model(), &data, &["--ctx", "64"])
        .failure(6, &["makes token", "only 512 tokens", "tokenizer"]);
}

#[test]
fn predictions_that_are_not_numbers_are_refused() {
    let (_dir, data) = short_text();
    let case = Case::of("llama");
    case.edit_weights(|weights| {
        for t in weights.iter_mut().filter(|t| t.name.contains("norm")) {
            (0..t.shape[0]).for_each(|i| t.set(i, 3e38));
        }
    });
    evaluate(&case.model(), &data, &["--ctx", "64"]).failure(6, &["window 0", "not finite"]);
}
