//! Outputs with random damage: `info --verify` finds it, or it is proven that what can be read is still a whole model.

use std::fs;
use std::path::{Path, PathBuf};

use llm_quantize::arch::decoder::{Decoder, Hidden};
use llm_quantize::cancel::Cancel;
use llm_quantize::error::Kind;
use llm_quantize::format::awq::AwqConfig;
use llm_quantize::format::gptq::Version;
use llm_quantize::format::packed::Container;
use llm_quantize::pipeline::model::OpenModel;
use llm_quantize::pipeline::verify::verify;
use llm_quantize::progress::Silent;
use llm_quantize::quant::Grid;
use llm_quantize::source::dense::Dense;

use crate::checkpoint::{Case, Llama};
use crate::packed;
use crate::support::{entries, run, text};

const GRID: Grid = Grid { bits: 4, group_size: 32, symmetric: false };

/// An intact output, and the directory that goes away with it.
struct Output {
    _dir: tempfile::TempDir,
    /// What is passed to the program.
    model: PathBuf,
    files: Vec<PathBuf>,
}

impl Output {
    /// A small output of this kind.
    fn of(kind: &str) -> Output {
        let sizes = Llama {
            hidden: 64,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 32,
            feed_forward: 96,
            vocab: 512,
            tied: true,
        };
        let source = Case::generate(&sizes, 7);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().to_owned();
        let model = match kind {
            "gguf" => {
                source.quantize("Q4_K_M", &[]).success();
                let made = source.out().join(only(&entries(&source.out())));
                fs::copy(made, out.join("model.gguf")).unwrap();
                out.join("model.gguf")
            }
            "hf" => {
                source.quantize("F16", &[]).success();
                let gguf = text(&source.out().join(only(&entries(&source.out()))));
                let made = text(&out);
                run(&["convert", &gguf, "hf", "--dtype", "f16", "-o", &made, "-n", "model"]).success();
                out.join("model")
            }
            "gptq" => packed_copy(&source, &packed::gptq(GRID, Version::V2), &out),
            "awq" => packed_copy(&source, &Container::Awq(AwqConfig { group_size: Some(32) }), &out),
            other => panic!("{other} is no kind of output"),
        };
        let files = match model.is_file() {
            true => vec![model.clone()],
            false => entries(&model).iter().map(|name| model.join(name)).collect(),
        };
        Output { _dir: dir, model, files }
    }
}

fn packed_copy(source: &Case, container: &Container, out: &Path) -> PathBuf {
    let case = packed::checkpoint_from(&source.model(), container, |_| Some(GRID), u64::MAX);
    let made = out.join("model");
    fs::create_dir(&made).unwrap();
    for name in entries(&case.model()) {
        fs::copy(case.file(&name), made.join(name)).unwrap();
    }
    made
}

fn only(names: &[String]) -> &str {
    let [name] = names else { panic!("one result, not {names:?}") };
    name
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * n as u128) >> 64) as usize
    }
}

/// Damages a file in one of the ways in which files are damaged; half of the time near its beginning, where headers are.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let len = bytes.len();
    let at = match random.below(2) {
        0 => random.below(len.min(4096)),
        _ => random.below(len),
    };
    let run = (1 << random.below(10)).min(len - at);
    match random.below(8) {
        0 | 1 => {
            let bit = random.below(8);
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at} flipped")
        }
        2 => {
            bytes[at] = random.below(256) as u8;
            format!("byte {at} is {}", bytes[at])
        }
        3 => {
            let value = [0, 0xff][random.below(2)];
            bytes[at..at + run].fill(value);
            format!("bytes {at}..{} are {value}", at + run)
        }
        4 => {
            bytes[at..at + run].fill_with(|| random.below(256) as u8);
            format!("bytes {at}..{} are random", at + run)
        }
        5 => {
            bytes.truncate(at);
            format!("cut off at {at}")
        }
        6 => {
            bytes.drain(at..at + run);
            format!("bytes {at}..{} are missing", at + run)
        }
        _ => {
            let copy = bytes[at..at + run].to_vec();
            bytes.splice(at..at, copy);
            format!("bytes {at}..{} are there twice", at + run)
        }
    }
}

/// Names and shapes of all tensors.
fn structure(weights: &dyn Dense) -> Vec<(String, Vec<usize>)> {
    weights.names().iter().map(|name| (name.to_string(), weights.shape(name).unwrap().to_vec())).collect()
}

/// Proves that a model is whole: it has the tensors that it had, all of its weights are numbers, and it can be computed.
fn assert_whole(model: &str, intact: &[(String, Vec<usize>)]) {
    let open = OpenModel::open(model, &[], &Cancel::new(), &Silent).unwrap();
    assert_eq!(structure(&*open.weights), intact);
    for (name, shape) in intact {
        let mut values = vec![0.0; shape.iter().product()];
        open.weights.read(name, 0..shape[0], &mut values).unwrap();
        assert!(values.iter().all(|value| value.is_finite()), "{name}");
    }
    let decoder = Decoder::new(&open.model, &*open.weights).unwrap();
    let mut hidden = Hidden::embed(&decoder, &[vec![0, 5, 6, 7]]).unwrap();
    for layer in 0..decoder.layers() {
        hidden.advance(&decoder.layer(layer).unwrap(), &mut (), &Cancel::new()).unwrap();
    }
}

/// Damages an output so many times. Returns how often it was found.
fn corrupt(kind: &str, times: usize, seed: u64) -> usize {
    let output = Output::of(kind);
    let model = text(&output.model);
    let intact = OpenModel::open(&model, &[], &Cancel::new(), &Silent).unwrap();
    let intact = structure(&*intact.weights);
    verify(&model, 1, &Cancel::new(), &Silent).unwrap();
    assert_whole(&model, &intact);
    let mut random = Random(seed);
    let mut found = 0;
    let weights = output.files.iter().find(|path| path.extension().is_none_or(|e| e != "json")).unwrap();
    for i in 0..times {
        // Half of the time that of the weights.
        let file = match random.below(2) {
            0 => weights,
            _ => &output.files[random.below(output.files.len())],
        };
        let whole = fs::read(file).unwrap();
        let mut bytes = whole.clone();
        let what = damage(&mut bytes, &mut random);
        fs::write(file, &bytes).unwrap();
        let what = format!("{kind} {i}: {} with {what}", file.file_name().unwrap().display());
        match verify(&model, 1, &Cancel::new(), &Silent) {
            Ok(_) => {
                let proof = std::panic::catch_unwind(|| assert_whole(&model, &intact));
                assert!(proof.is_ok(), "{what}: not found, and the model is not whole");
            }
            Err(e) => {
                assert!(matches!(e.kind(), Kind::Invalid | Kind::Unsupported), "{what}: {e}");
                assert!(!e.to_string().is_empty());
                found += 1;
            }
        }
        fs::write(file, &whole).unwrap();
    }
    found
}

#[test]
fn damage_is_found_or_harmless_to_structure() {
    for kind in ["gguf", "gptq", "awq", "hf"] {
        let found = corrupt(kind, 60, 3);
        // Most of what is damaged here is a header, a size or a scale.
        assert!(found > 15, "{kind}: {found} of 60");
    }
}

/// The same at length: `scripts/corrupt.sh`.
#[test]
#[ignore = "takes minutes: scripts/corrupt.sh"]
#[allow(clippy::print_stderr, reason = "its result is the numbers")]
fn much_damage_is_found_or_harmless_to_structure() {
    let times = std::env::var("CORRUPTIONS").map_or(10_000, |n| n.parse().unwrap());
    for kind in ["gguf", "gptq", "awq", "hf"] {
        let found = corrupt(kind, times, 1);
        eprintln!("{kind}: {found} of {times} found, {} harmless to structure", times - found);
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for kind in ["gguf", "gptq", "awq", "hf"] {
        let output = Output::of(kind);
        let model = text(&output.model);
        let shown = run(&["info", &model, "--verify"]).success();
        assert!(shown.stdout.contains("Verified:") && shown.stdout.contains("intact"), "{}", shown.stdout);
        let json = run(&["info", &model, "--verify", "--format", "json"]).success().json();
        assert_eq!(json["verification"]["validation_status"], "valid");
        assert_eq!(json["verification"]["problems"].as_array().unwrap().len(), 0);
        assert!(json["verification"]["tensors"].as_u64().unwrap() > 18, "{json}");

        // The last float16 that is not finite: the end of the data is a norm, a scale or a block's minimum.
        let file = output.files.iter().find(|path| path.extension().is_none_or(|e| e != "json")).unwrap();
        let mut bytes = fs::read(file).unwrap();
        let end = bytes.len();
        bytes[end - 256..].fill(0xff);
        fs::write(file, &bytes).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        run(&["info", &model]).success();
        run(&["info", &model, "--verify"]).failure(6, &["is damaged", name, "at byte"]);
        let json = run(&["info", &model, "--verify", "--format", "json"]);
        assert_eq!(json.code, 6);
        let json = json.json();
        let problem = &json["problems"][0];
        assert_eq!(
            (&json["validation_status"], &problem["file"]),
            (&"invalid".into(), &name.into()),
            "{json}"
        );
        let at = problem["offset"].as_u64().unwrap() as usize;
        assert!(at < end && at + 4096 > end, "{json}");
        assert!(problem["tensor"].is_string() && problem["problem"].is_string(), "{json}");
    }
}
