//! `analyze importance`: the importance matrices that llama-imatrix makes, and what can go wrong on the way.

use std::path::{Path, PathBuf};

use llm_quantize::Kind;
use llm_quantize::calib::imatrix::{Entry, Format, Imatrix, Sums};
use tempfile::TempDir;

use crate::checkpoint::Case;
use crate::support::{Outcome, data, entries, imatrix, model, quantized, run, text};

/// What llama-imatrix is called.
const CHUNK: u32 = 512;

/// The text that llama-imatrix was run on.
pub(crate) fn calibration() -> String {
    text(&data("text/calibration.txt"))
}

/// The arguments of `analyze importance`, on one thread unless `extra` says otherwise.
pub(crate) fn arguments(model: &Path, out: &Path, extra: &[&str]) -> Vec<String> {
    let (model, out, data) = (text(model), text(out), calibration());
    let mut args = vec!["analyze", "importance", &model, "-o", &out];
    if !extra.contains(&"--calibration-data") {
        args.extend(["--calibration-data", &data]);
    }
    if !extra.contains(&"--threads") {
        args.extend(["--threads", "1"]);
    }
    args.extend(extra);
    args.into_iter().map(String::from).collect()
}

/// A place for output, and runs that write there.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        text(&self.path(name))
    }

    /// Runs on one of the test models.
    fn run(&self, name: &str, out: &str, extra: &[&str]) -> Outcome {
        run(&arguments(&model(name), &self.path(out), extra))
    }

    /// The same, into what was made.
    #[track_caller]
    fn sums(&self, name: &str, out: &str, extra: &[&str]) -> Sums {
        self.run(name, out, extra).success();
        self.load(out)
    }

    #[track_caller]
    fn load(&self, out: &str) -> Sums {
        Sums::load(&self.path(out), CHUNK).unwrap()
    }

    /// Adds up files.
    #[track_caller]
    fn merge(&self, files: &[&str], out: &str, extra: &[&str]) -> Outcome {
        let (out, files) = (self.text(out), files.iter().map(|f| self.text(f)).collect::<Vec<_>>());
        let mut args = vec!["analyze", "importance", "-o", &out, "--merge"];
        args.extend(files.iter().map(String::as_str));
        args.extend(extra);
        run(&args)
    }

    /// Asserts that a run is refused, and leaves nothing beyond `left`.
    #[track_caller]
    fn refused(&self, extra: &[&str], code: i32, words: &[&str], left: &[&str]) {
        self.run("tiny-llama", "out.gguf", extra).failure(code, words);
        assert_eq!(entries(self.0.path()), left, "nothing is left behind");
    }
}

/// The largest difference of any value, relative to the expected one.
#[track_caller]
fn largest_difference(found: &Sums, expected: &Sums) -> f64 {
    assert!(found.entries.keys().eq(expected.entries.keys()));
    let mut largest = 0f64;
    for (name, expected) in &expected.entries {
        let found = &found.entries[name];
        assert_eq!(
            (found.squares.len(), &found.counts),
            (expected.squares.len(), &expected.counts),
            "{name}"
        );
        for (found, expected) in found.squares.iter().zip(&expected.squares) {
            let (found, expected) = (f64::from(*found), f64::from(*expected));
            assert!(expected > 0.0, "{name}");
            largest = largest.max((found / expected - 1.0).abs());
        }
    }
    largest
}

#[test]
fn the_importance_matrix_is_that_of_llama_imatrix() {
    let place = Place::new();
    let outcome = place.run("tiny-llama", "out.gguf", &["--chunks", "32", "--format", "json"]).success();
    let golden = |name: &str| Sums::load(&data("golden/tiny-llama").join(name), CHUNK).unwrap();
    let expected = golden("imatrix.gguf");
    let found = place.load("out.gguf");
    let difference = largest_difference(&found, &expected);
    assert!(difference < 1e-3, "{difference:e}");
    assert_eq!((&found.datasets, found.chunk_size), (&expected.datasets, expected.chunk_size));
    // In float32 both are far more precise.
    let found = place.sums("tiny-llama", "f32.gguf", &["--chunks", "32", "--compute", "f32"]);
    let difference = largest_difference(&found, &golden("imatrix-f32.gguf"));
    assert!(difference < 1e-4, "in float32: {difference:e}");

    let report = outcome.json();
    let expected = serde_json::json!({"status": "success", "output_path": place.text("out.gguf"), "format": "gguf",
        "file_size": std::fs::metadata(place.path("out.gguf")).unwrap().len(), "tensors": 28, "layers": 4, "chunks": 32,
        "chunk_size": 512, "tokens": 16384, "dropped_rows": 0, "experts_without_data": 0,
        "datasets": ["calibration.txt"]});
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&report[key], value, "{key}");
    }
    assert!(report["duration_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(entries(place.0.path()), ["f32.gguf", "out.gguf"], "no checkpoint is left");

    // The quantizer takes it.
    quantized(&model("tiny-llama"), "Q2_K", &["--imatrix", &place.text("out.gguf")]);
}

#[test]
fn both_formats_are_written_as_llama_imatrix_writes_them() {
    let golden = |name: &str| data("golden/tiny-llama").join(name);
    let sums = Sums::load(&golden("imatrix.gguf"), CHUNK).unwrap();
    for (format, name) in [(Format::Gguf, "imatrix.gguf"), (Format::Dat, "imatrix.dat")] {
        assert!(format.encode(&sums) == std::fs::read(golden(name)).unwrap(), "{name} is another file");
    }
}

#[test]
fn the_format_is_that_of_the_name_unless_it_is_given() {
    let place = Place::new();
    let few = ["--chunks", "1", "--ctx", "64"];
    place.run("llama", "a.gguf", &few).success();
    place.run("llama", "a.dat", &few).success();
    place.run("llama", "b.gguf", &[&few[..], &["--output-format", "dat"]].concat()).success();
    place.run("llama", "b.dat", &[&few[..], &["--output-format", "gguf"]].concat()).success();
    let bytes = |name: &str| std::fs::read(place.path(name)).unwrap();
    assert!(bytes("a.gguf") == bytes("b.dat") && bytes("a.dat") == bytes("b.gguf"));
    let load = |name: &str| Imatrix::load(&place.path(name)).unwrap();
    let (gguf, dat) = (load("a.gguf"), load("a.dat"));
    assert_eq!((&gguf.datasets, gguf.chunks), (&dat.datasets, dat.chunks));
    assert!(gguf.entries.keys().eq(dat.entries.keys()));
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_checkpoints() {
    let place = Place::new();
    let few: &[&str] = &["--chunks", "9", "--ctx", "300"];
    let ways: [&[&str]; 5] = [
        &[],
        &["--threads", "2"],
        &["--threads", "5"],
        &["--no-checkpoints"],
        &["--process-output", "--threads", "3"],
    ];
    for name in ["tiny-llama", "qwen3-moe"] {
        let few = if name == "tiny-llama" { few } else { &["--chunks", "9", "--ctx", "200"] };
        let bytes = ways.map(|way| {
            place.run(name, "out.gguf", &[few, way, &["--force"]].concat()).success();
            std::fs::read(place.path("out.gguf")).unwrap()
        });
        assert!(bytes[..4].iter().all(|other| *other == bytes[0]), "{name}");
        // tiny-llama's head is its embedding.
        assert_eq!(bytes[4] == bytes[0], name == "tiny-llama");
    }
}

#[test]
fn each_expert_counts_its_own_tokens() {
    let (used, experts) = (2, 4);
    for name in ["mixtral", "qwen3-moe"] {
        let place = Place::new();
        let sums = place.sums(name, "out.gguf", &["--chunks", "3", "--ctx", "100"]);
        let entry = |tensor: &str| &sums.entries[tensor];
        let router = entry("blk.1.ffn_gate_inp.weight");
        assert_eq!(router.counts, [300]);
        let Entry { squares, counts } = entry("blk.1.ffn_gate_exps.weight");
        assert_eq!((counts.len(), counts.iter().sum::<u64>()), (experts, 300 * used), "{name}");
        assert_eq!(entry("blk.1.ffn_up_exps.weight"), entry("blk.1.ffn_gate_exps.weight"));
        assert_eq!(&entry("blk.1.ffn_down_exps.weight").counts, counts);
        // Each token goes to as many experts with the input that the router has.
        for (i, all) in router.squares.iter().enumerate() {
            let of_experts: f32 = squares.iter().skip(i).step_by(router.squares.len()).sum();
            assert!((of_experts / (all * used as f32) - 1.0).abs() < 1e-5, "{name}: column {i}");
        }
        assert!(!sums.entries.contains_key("output.weight"));
    }
}

#[test]
fn experts_that_no_token_came_to_are_reported() {
    let place = Place::new();
    let report = |out: &str| {
        let outcome = place.run("qwen3-moe", out, &["--chunks", "1", "--ctx", "1"]).success();
        assert!(outcome.stderr.contains("experts that no token came to"), "{}", outcome.stderr);
    };
    report("out.gguf");
    report("out.dat");
    for name in ["out.gguf", "out.dat"] {
        let imatrix = Imatrix::load(&place.path(name)).unwrap();
        let gate = imatrix.get("blk.0.ffn_gate_exps.weight").unwrap();
        let unused = gate.chunks(gate.len() / 4).filter(|row| row.iter().all(|v| *v == 1.0)).count();
        assert_eq!(unused, 2, "{name}");
    }
}

#[test]
fn the_heads_input_is_collected_if_asked_for() {
    let place = Place::new();
    let few: &[&str] = &["--chunks", "2", "--ctx", "50", "--process-output"];
    let sums = place.sums("llama", "out.gguf", few);
    assert_eq!(sums.entries["output.weight"].counts, [100]);
    assert_eq!(sums.entries["output.weight"].squares.len(), 128);
    let outcome = place.run("qwen2", "tied.gguf", few).success();
    assert!(outcome.stderr.contains("Warning: --process-output"), "{}", outcome.stderr);
    assert!(!place.load("tied.gguf").entries.contains_key("output.weight"));
}

#[test]
fn importance_matrices_are_added_up() {
    let place = Place::new();
    let some = |chunks: &'static str| ["--ctx", "64", "--chunks", chunks];
    let one = place.sums("llama", "one.gguf", &some("3"));
    let file = place.text("one.gguf");
    let both = place.sums("llama", "both.gguf", &[&some("2")[..], &["--merge", &file]].concat());
    place.merge(&["one.gguf", "both.gguf"], "all.gguf", &[]).success();
    let all = place.load("all.gguf");
    assert_eq!((one.chunks(), both.chunks(), all.chunks(), all.chunk_size), (3, 5, 8, 64));
    assert_eq!(all.datasets, ["calibration.txt"; 3]);
    for (name, sum) in &all.entries {
        assert_eq!(sum.counts, [8 * 64]);
        for (i, square) in sum.squares.iter().enumerate() {
            assert_eq!(*square, one.entries[name].squares[i] + both.entries[name].squares[i], "{name}");
        }
    }
    // The older format's means become sums again.
    let dat = place.merge(&["one.gguf"], "one.dat", &["--format", "json"]).success().json();
    assert_eq!(
        (dat["format"].as_str(), dat["chunks"].as_u64(), dat.get("layers")),
        (Some("dat"), Some(3), None)
    );
    place.merge(&["one.dat"], "back.gguf", &["--ctx", "64"]).success();
    assert!(largest_difference(&place.load("back.gguf"), &one) < 1e-6);
}

#[test]
fn a_text_is_built_in() {
    let place = Place::new();
    let out = place.text("out.gguf");
    let args = ["analyze", "importance", &text(&model("llama")), "-o", &out, "--ctx", "64", "--chunks", "4"];
    let outcome = run(&args).success();
    assert!(outcome.stderr.contains("built-in text"), "{}", outcome.stderr);
    let sums = place.load("out.gguf");
    assert_eq!((sums.datasets.as_slice(), sums.chunks()), (&["built-in".to_owned()][..], 4));
}

#[test]
fn a_gguf_file_is_a_model_too() {
    let place = Place::new();
    let few: &[&str] = &["--chunks", "2", "--ctx", "64"];
    let expected = place.sums("tiny-llama", "hf.gguf", few);
    crate::support::quantize(&model("tiny-llama"), "BF16", place.0.path(), &["-n", "model.gguf"]).success();
    run(&arguments(&place.path("model.gguf"), &place.path("out.gguf"), few)).success();
    assert!(largest_difference(&place.load("out.gguf"), &expected) < 1e-6);
}

#[test]
fn only_what_belongs_together_is_added_up() {
    let place = Place::new();
    place.run("llama", "llama.gguf", &["--ctx", "64", "--chunks", "1"]).success();
    let left = entries(place.0.path());
    place.merge(&["llama.gguf", "tiny"], "out.gguf", &[]).failure(3, &["tiny"]);
    std::fs::copy(imatrix(), place.path("tiny")).unwrap();
    place.merge(&["llama.gguf", "tiny"], "out.gguf", &[]).failure(6, &["attn_k.weight", "different models"]);
    std::fs::write(place.path("tiny"), "GGUF").unwrap();
    place.merge(&["tiny"], "out.gguf", &[]).failure(6, &["tiny"]);
    std::fs::remove_file(place.path("tiny")).unwrap();
    assert_eq!(entries(place.0.path()), left);
}

#[test]
fn texts_that_cannot_be_used_are_refused() {
    let place = Place::new();
    let file = place.text("data.txt");
    let with = ["--calibration-data", &file];
    place.refused(&with, 3, &["data.txt"], &[]);
    for (bytes, word) in [
        (&b""[..], "empty"),
        (b"\n\n  \n", "empty"),
        (b"caf\xe9", "not UTF-8"),
        (b"Too short", "one chunk of 512"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        place.refused(&with, 6, &[word], &["data.txt"]);
    }
}

#[test]
fn options_that_cannot_be_are_refused() {
    let place = Place::new();
    place.refused(&["--ctx", "513"], 2, &["--ctx 513", "512 tokens"], &[]);
    place.refused(&["--ctx", "0"], 2, &["--ctx"], &[]);
    place.refused(&["--resume", "--no-checkpoints"], 2, &["--no-checkpoints"], &[]);
    place.refused(&["--resume"], 7, &["no checkpoint"], &[]);
    let out = place.text("out.gguf");
    run(&["analyze", "importance", "-o", &out]).failure(2, &["MODEL"]);
    run(&["analyze", "importance", "-o", &out, "--merge", &imatrix(), "--chunks", "3"])
        .failure(2, &["MODEL"]);
    std::fs::write(&out, "mine").unwrap();
    place.refused(&[], 2, &["exists already", "--force"], &["out.gguf"]);
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
}

#[test]
fn activations_that_are_not_finite_stop_the_run_and_are_named() {
    let case = Case::of("llama");
    case.edit_weights(|tensors| {
        let up = tensors.iter_mut().find(|t| t.name.ends_with("layers.1.mlp.up_proj.weight")).unwrap();
        (0..up.shape[1]).for_each(|i| up.set(i, if i % 2 == 0 { 3e38 } else { -3e38 }));
    });
    let out = case.out().join("out.gguf");
    let outcome = run(&arguments(&case.model(), &out, &["--chunks", "1", "--ctx", "64"]));
    outcome.failure(6, &["layer 1", "mlp.down_proj", "NaN or infinite"]);
    assert!(entries(&case.out()).is_empty(), "the same would come of going on");
    let e = Imatrix::load(&out).unwrap_err();
    assert_eq!(e.kind(), Kind::NotFound);
}
