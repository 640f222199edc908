//! GGUF files as models that are computed: what they hold is what went into them.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use llm_quantize::arch::Model;
use llm_quantize::arch::spec::Key;
use llm_quantize::cancel::Cancel;
use llm_quantize::error::{Error, Kind};
use llm_quantize::format::gguf::reader::Reader;
use llm_quantize::format::gguf::writer::{Layout, Writer};
use llm_quantize::format::gguf::{Array, GgmlType, Metadata, Value, blocks};
use llm_quantize::pipeline::model::{OpenModel, gguf};
use llm_quantize::progress::Silent;
use llm_quantize::source::config::Config;
use llm_quantize::source::dense::Dense;
use llm_quantize::source::safetensors::Tensors;
use llm_quantize::source::tokenizer::encoder::Encoder;
use serde_json::json;
use tempfile::TempDir;

use crate::checkpoint::Case;
use crate::support::{MODELS, data, model, quantize, text};

fn open(path: &Path) -> Result<OpenModel, Error> {
    OpenModel::open(&text(path), &[], &Cancel::new(), &Silent)
}

/// A test model as a GGUF file in a directory of its own.
fn made(name: &str, level: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    quantize(&model(name), level, dir.path(), &["-n", "model.gguf"]).success();
    let path = dir.path().join("model.gguf");
    (dir, path)
}

fn nmse<'a>(found: impl IntoIterator<Item = &'a f32>, expected: impl IntoIterator<Item = &'a f32>) -> f64 {
    let (mut error, mut energy) = (0.0, 0.0);
    for (f, e) in found.into_iter().zip(expected) {
        error += (f64::from(*f) - f64::from(*e)).powi(2);
        energy += f64::from(*e).powi(2);
    }
    error / energy
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn logits(opened: &OpenModel, tokens: &[u32]) -> Tensor {
    let decoder = opened.decoder().unwrap();
    let context = decoder.context(tokens.len());
    let mut hidden = decoder.embed(&[tokens]).unwrap();
    for i in 0..decoder.layers() {
        hidden = decoder.layer(i).unwrap().forward(&hidden, &context, &mut ()).unwrap();
    }
    decoder.head(&hidden).unwrap()
}

fn read(weights: &dyn Dense, name: &str) -> Vec<f32> {
    let shape = weights.shape(name).unwrap().to_vec();
    let mut values = vec![0.0; shape.iter().product()];
    weights.read(name, 0..shape[0], &mut values).unwrap();
    values
}

#[test]
fn every_architecture_computes_what_its_checkpoint_does() {
    for name in MODELS {
        let (_dir, path) = made(name, "BF16");
        let opened = open(&path).unwrap();
        assert_eq!(opened.format, "gguf");
        let states =
            candle_core::safetensors::load(model(name).join("reference.safetensors"), &Device::Cpu).unwrap();
        let tokens: Vec<u32> = states["input_ids"]
            .flatten_all()
            .unwrap()
            .to_vec1::<i64>()
            .unwrap()
            .into_iter()
            .map(|t| t as u32)
            .collect();
        // The file does not hold Mistral's window, which llama.cpp does not have: only what lies within is the same.
        let same = if *name == "mistral-swa" { 24 } else { tokens.len() };
        let found = logits(&opened, &tokens);
        let width = found.dims()[2];
        let (found, expected) = (values(&found), values(&states["logits"]));
        let error = nmse(&found[..same * width], &expected[..same * width]);
        assert!(error < 1e-8, "{name}: logits differ by {error:e}");
    }
}

#[test]
fn every_configuration_comes_back() {
    for name in MODELS {
        let (_dir, path) = made(name, "BF16");
        let opened = open(&path).unwrap();
        let mut original = Model::read(Config::load(&model(name)).unwrap(), &[]).unwrap();
        if *name == "mistral-swa" {
            original.hyper.sliding_window = None;
            assert_eq!(opened.model.config.architecture().unwrap(), "LlamaForCausalLM");
        } else {
            assert_eq!(opened.model.config.architecture().unwrap(), original.config.architecture().unwrap());
            let kind = |model: &Model| model.config.raw()["model_type"].clone();
            assert_eq!(kind(&opened.model), kind(&original), "{name}");
        }
        // Some families do not write the length of a head.
        original.hyper.head_dim_stated &= original.spec.keys.contains(&Key::KeyLength);
        assert_eq!(opened.model.hyper, original.hyper, "{name}");
    }
}

#[test]
fn every_kind_of_rope_comes_back() {
    let factors = |from: i32| (from..from + 12).map(|i| f64::from(i) / 10.0).collect::<Vec<_>>();
    let cases = [
        ("llama", json!({"rope_type": "linear", "factor": 2.5, "rope_theta": 12345.5})),
        (
            "qwen2",
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e6,
                "beta_fast": 16.0, "attention_factor": 1.25}),
        ),
        (
            "smollm3",
            json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64, "rope_theta": 5e5}),
        ),
        (
            "phi3",
            json!({"rope_type": "longrope", "short_factor": factors(10), "long_factor": factors(20),
                "original_max_position_embeddings": 64, "partial_rotary_factor": 0.75, "rope_theta": 1e4}),
        ),
        (
            "gemma3",
            json!({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}),
        ),
    ];
    for (name, rope) in cases {
        let case = Case::of(name);
        case.edit("config.json", |config| {
            config["rope_parameters"] = rope;
            config["original_max_position_embeddings"] = json!(64);
        });
        case.quantize("BF16", &["-n", "model.gguf"]).success();
        let opened = open(&case.out().join("model.gguf")).unwrap();
        let original = Model::read(Config::load(&case.model()).unwrap(), &[]).unwrap().hyper;
        let found = &opened.model.hyper;
        assert_eq!((&found.rope, found.rope_theta_swa), (&original.rope, original.rope_theta_swa), "{name}");
    }
}

#[test]
fn all_weights_come_back() {
    for name in MODELS {
        let original = Tensors::open(&model(name)).unwrap();
        let (_dir, path) = made(name, "BF16");
        let opened = open(&path).unwrap();
        let weights = &*opened.weights;
        assert_eq!(weights.names(), Dense::names(&original), "{name}");
        for tensor in weights.names() {
            assert_eq!(weights.shape(tensor), Dense::shape(&original, tensor), "{name}: {tensor}");
            let (found, expected) = (read(weights, tensor), read(&original, tensor));
            // A norm that was stored as 1 + w has lost the last bits of w.
            let offset = opened.model.spec.norm_offset != 0.0 && tensor.contains("norm");
            let near = |f: f32, e: f32| if offset { (f - e).abs() < 1e-7 } else { f == e };
            let same = found.iter().zip(&expected).all(|(f, e)| near(*f, *e));
            assert!(same, "{name}: {tensor} differs");
        }
    }
}

#[test]
fn every_level_is_read_as_its_blocks_decode() {
    let original = Tensors::open(&model("tiny-llama")).unwrap();
    for (level, bound) in
        [("F32", 1e-12), ("Q8_0", 1e-4), ("Q4_1", 0.02), ("Q5_K_M", 0.01), ("IQ4_XS", 0.02), ("Q2_K", 0.2)]
    {
        let (_dir, path) = made("tiny-llama", level);
        let opened = open(&path).unwrap();
        let reader = Reader::open(&path).unwrap();
        for tensor in opened.weights.names() {
            let found = read(&*opened.weights, tensor);
            let error = nmse(&found, &read(&original, tensor));
            assert!(error < bound, "{level}: {tensor} differs by {error:e}");
            // Rows in the middle are the same as those of the whole.
            let rows = opened.weights.shape(tensor).unwrap()[0];
            let width = found.len() / rows;
            let mut part = vec![0.0; 3 * width];
            opened.weights.read(tensor, rows / 2..rows / 2 + 3, &mut part).unwrap();
            assert_eq!(part, found[rows / 2 * width..][..3 * width], "{level}: {tensor}");
        }
        let info = reader.tensor("blk.1.ffn_down.weight").unwrap();
        let mut decoded = vec![0.0; info.len() as usize];
        blocks::decode(info.ty, reader.data(info), &mut decoded);
        assert_eq!(read(&*opened.weights, "model.layers.1.mlp.down_proj.weight"), decoded, "{level}");
    }
}

#[test]
fn tokenizers_give_the_ids_of_the_original() {
    let texts = std::fs::read_to_string(data("golden/tokens/lines.txt")).unwrap();
    for name in MODELS.iter().chain(&["tiny-llama"]) {
        let (_dir, path) = made(name, "Q8_0");
        let opened = open(&path).unwrap();
        let original = Encoder::open(&model(name)).unwrap();
        for line in texts.lines().chain([texts.as_str()]) {
            // llama.cpp puts a space before every text; transformers not before one that has a space, or never.
            if *name == "phi3" || *name == "llama-spm" && line.starts_with(' ') {
                continue;
            }
            let (found, expected) = (opened.encoder.encode(line).unwrap(), original.encode(line).unwrap());
            assert_eq!(found, expected, "{name}: {line:?}");
        }
        assert_eq!(opened.encoder.add_bos(), original.add_bos(), "{name}");
        // The test model of Gemma 2 names its tokens otherwise than its class does.
        if *name != "gemma2" {
            assert_eq!(
                (opened.encoder.bos(), opened.encoder.eos()),
                (original.bos(), original.eos()),
                "{name}"
            );
        }
        assert!(opened.encoder.same_vocabulary(&original), "{name}");
        let other = Encoder::open(&model(if *name == "llama" { "llama-spm" } else { "tiny-llama" })).unwrap();
        assert_eq!(opened.encoder.same_vocabulary(&other), *name == "tiny-llama", "{name}");
    }
}

#[test]
fn tokenizers_are_saved_as_hugging_face_has_them() {
    let texts = std::fs::read_to_string(data("golden/tokens/lines.txt")).unwrap();
    for name in ["llama-spm", "gemma2", "qwen2"] {
        let (dir, path) = made(name, "Q8_0");
        let opened = open(&path).unwrap().encoder;
        gguf::tokenizer(&path).unwrap().save(dir.path()).unwrap();
        let saved = Encoder::open(dir.path()).unwrap();
        assert_eq!(saved.special(), opened.special(), "{name}");
        for line in texts.lines() {
            assert_eq!(saved.encode(line).unwrap(), opened.encode(line).unwrap(), "{name}: {line:?}");
        }
    }
}

#[test]
fn tokenizers_give_the_ids_of_llama_cpp() {
    let texts = std::fs::read_to_string(data("golden/tokens/lines.txt")).unwrap();
    let golden = std::fs::read_to_string(data("golden/tokens/ids.json")).unwrap();
    let golden: std::collections::BTreeMap<String, Vec<Vec<u32>>> = serde_json::from_str(&golden).unwrap();
    assert_eq!(golden.len(), 3);
    for (name, expected) in golden {
        let (_dir, path) = made(&name, "Q8_0");
        let encoder = open(&path).unwrap().encoder;
        assert_eq!(texts.split_terminator('\n').count(), expected.len());
        for (line, expected) in texts.split_terminator('\n').zip(expected) {
            assert_eq!(encoder.encode(line).unwrap(), expected, "{name}: {line:?}");
        }
    }
}

/// A file's keys and tensors, to be written with a change.
struct Parts {
    meta: Metadata,
    tensors: Vec<(String, Vec<u64>, GgmlType, Vec<u8>)>,
}

impl Parts {
    fn of(path: &Path) -> Parts {
        let reader = Reader::open(path).unwrap();
        let tensors = reader.tensors().iter();
        Parts {
            meta: reader.metadata().clone(),
            tensors: tensors
                .map(|t| (t.name.clone(), t.shape.clone(), t.ty, reader.data(t).to_vec()))
                .collect(),
        }
    }

    fn write(&self, path: &Path) {
        let layout =
            Layout::new(&self.meta, self.tensors.iter().map(|(n, s, t, _)| (n.clone(), s.clone(), *t)));
        let mut writer = Writer::new(std::fs::File::create(path).unwrap(), layout).unwrap();
        self.tensors.iter().for_each(|(.., data)| writer.write(data).unwrap());
    }

    fn without(&mut self, key: &str) {
        let mut meta = Metadata::new();
        self.meta.iter().filter(|(k, _)| *k != key).for_each(|(k, v)| meta.set(k, v.clone()));
        self.meta = meta;
    }

    fn tensor(&mut self, name: &str) -> &mut (String, Vec<u64>, GgmlType, Vec<u8>) {
        self.tensors.iter_mut().find(|t| t.0 == name).unwrap()
    }
}

#[test]
fn what_cannot_be_computed_is_refused_by_name() {
    type Change = fn(&mut Parts);
    let (dir, path) = made("llama", "BF16");
    let cases: &[(Change, Kind, &[&str])] = &[
        (|p| p.meta.set("general.architecture", "mamba"), Kind::Unsupported, &["mamba", "not supported"]),
        (|p| p.without("general.architecture"), Kind::Invalid, &["general.architecture", "missing"]),
        (|p| p.without("llama.block_count"), Kind::Invalid, &["llama.block_count", "missing"]),
        (|p| p.meta.set("llama.block_count", "two"), Kind::Invalid, &["llama.block_count", "whole number"]),
        (
            |p| p.meta.set("llama.logit_scale", 0.5f32),
            Kind::Unsupported,
            &["llama.logit_scale", "may change"],
        ),
        (|p| p.meta.set("llama.rope.scaling.type", "new"), Kind::Unsupported, &["rope.scaling.type", "new"]),
        (|p| p.meta.set("llama.rope.dimension_count", 16u32), Kind::Unsupported, &["partial_rotary_factor"]),
        (|p| p.meta.set("llama.attention.head_count", 3u32), Kind::Invalid, &["num_key_value_heads"]),
        (
            |p| p.meta.set("llama.feed_forward_length", Value::Array(Array::U32(vec![256, 128]))),
            Kind::Unsupported,
            &["feed_forward_length", "same in all layers"],
        ),
        (
            |p| p.tensors.retain(|t| t.0 != "output_norm.weight"),
            Kind::Invalid,
            &["output_norm.weight", "missing"],
        ),
        (|p| p.tensor("output_norm.weight").0 = "other".into(), Kind::Invalid, &["output_norm.weight"]),
        (
            |p| p.tensors.push(("other".into(), vec![1], GgmlType::F32, vec![0; 4])),
            Kind::Unsupported,
            &["tensors that", "other"],
        ),
        (|p| p.tensor("output_norm.weight").1 = vec![64, 2], Kind::Invalid, &["output_norm.weight", "shape"]),
        (
            |p| {
                let tensor = p.tensor("output.weight");
                (tensor.2, tensor.3) = (GgmlType::I16, tensor.3.clone());
            },
            Kind::Unsupported,
            &["output.weight", "I16"],
        ),
        (
            |p| p.meta.set("tokenizer.ggml.model", "bert"),
            Kind::Unsupported,
            &["tokenizer.ggml.model", "bert"],
        ),
        (|p| p.meta.set("tokenizer.ggml.pre", "new"), Kind::Unsupported, &["tokenizer.ggml.pre", "new"]),
        (|p| p.without("tokenizer.ggml.tokens"), Kind::Invalid, &["tokenizer.ggml.tokens", "missing"]),
        (
            |p| {
                p.meta.set("tokenizer.ggml.tokens", Value::Array(Array::Str(vec![b"a".to_vec()])));
                p.without("tokenizer.ggml.token_type");
            },
            Kind::Invalid,
            &["1 tokens", "512"],
        ),
        (
            |p| {
                p.tensors.push(("rope_freqs.weight".into(), vec![16], GgmlType::F32, vec![66; 64]));
            },
            Kind::Unsupported,
            &["rope_freqs.weight"],
        ),
    ];
    for (change, kind, words) in cases {
        let mut parts = Parts::of(&path);
        change(&mut parts);
        let changed = dir.path().join("changed.gguf");
        parts.write(&changed);
        let e = open(&changed).map(|_| ()).expect_err(words[0]);
        assert_eq!(e.kind(), *kind, "{e}");
        for word in *words {
            assert!(e.to_string().contains(word), "{word:?} is not in: {e}");
        }
    }
}

#[test]
fn keys_that_are_ignored_on_purpose_are_accepted() {
    let (dir, path) = made("llama", "BF16");
    let mut parts = Parts::of(&path);
    parts.meta.set("llama.logit_scale", 0.5f32);
    // What says nothing needs no permission.
    parts.meta.set("llama.expert_count", 0u32);
    parts.meta.set("llama.tensor_data_layout", "Meta AI original pth");
    let changed = dir.path().join("changed.gguf");
    parts.write(&changed);
    let ignore = ["llama.logit_scale".to_owned()];
    OpenModel::open(&text(&changed), &ignore, &Cancel::new(), &Silent).unwrap();
}

#[test]
fn a_file_is_known_by_its_first_bytes() {
    let (dir, path) = made("llama", "Q8_0");
    let other = dir.path().join("model.bin");
    std::fs::rename(&path, &other).unwrap();
    open(&other).unwrap();
    // Version 2 differs in nothing that is used here.
    let mut old = std::fs::read(&other).unwrap();
    old[4] = 2;
    std::fs::write(&other, old).unwrap();
    open(&other).unwrap();
    for (name, bytes, kind) in [
        ("short.gguf", &b"GG"[..], Kind::Invalid),
        ("zip.gguf", b"PK\x03\x04 and more", Kind::Invalid),
        ("empty.gguf", b"", Kind::Invalid),
        ("old.gguf", b"GGUF\x01\0\0\0", Kind::Unsupported),
        ("text.txt", b"a text", Kind::Unsupported),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let e = open(&path).map(|_| ()).unwrap_err();
        assert_eq!(e.kind(), kind, "{name}: {e}");
        assert!(e.to_string().contains(name), "{e}");
    }
}

#[test]
fn weights_that_are_not_finite_are_found_when_they_are_read() {
    let (dir, path) = made("llama", "F32");
    let mut parts = Parts::of(&path);
    parts.tensor("blk.1.ffn_up.weight").3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let changed = dir.path().join("changed.gguf");
    parts.write(&changed);
    let opened = open(&changed).unwrap();
    let decoder = opened.decoder().unwrap();
    decoder.layer(0).unwrap();
    let e = decoder.layer(1).unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid);
    assert!(e.to_string().contains("blk.1.ffn_up.weight"), "{e}");
}

#[test]
fn a_model_in_several_files_is_opened_by_the_first() {
    let (dir, path) = made("llama", "Q8_0");
    let whole = open(&path).unwrap();
    let Parts { meta, tensors } = Parts::of(&path);
    let name = |part: usize| dir.path().join(format!("split-{part:05}-of-00003.gguf"));
    let total = tensors.len();
    let mut rest = tensors.into_iter();
    for part in 1..=3 {
        let mut own = if part == 1 { meta.clone() } else { Metadata::new() };
        own.set("split.no", Value::U16(part as u16 - 1));
        own.set("split.count", Value::U16(3));
        own.set("split.tensors.count", Value::I32(total as i32));
        let tensors = rest.by_ref().take(if part == 3 { total } else { 5 }).collect();
        Parts { meta: own, tensors }.write(&name(part));
    }
    let split = open(&name(1)).unwrap();
    assert_eq!(split.weights.names(), whole.weights.names());
    for tensor in whole.weights.names() {
        assert_eq!(read(&*split.weights, tensor), read(&*whole.weights, tensor), "{tensor}");
    }
    let refused = |path: &Path, kind, words: &[&str]| {
        let e = open(path).map(|_| ()).unwrap_err();
        let all = format!("{e} {}", e.suggestion().unwrap_or_default());
        assert_eq!(e.kind(), kind, "{all}");
        words.iter().for_each(|word| assert!(all.contains(word), "{word:?} is not in: {all}"));
    };
    refused(&name(2), Kind::Usage, &["number 2 of 3", "split-00001-of-00003.gguf"]);
    let other = dir.path().join("other.gguf");
    std::fs::copy(name(1), &other).unwrap();
    refused(&other, Kind::Invalid, &["one of 3 files", "-00001-of-00003.gguf"]);
    std::fs::copy(name(3), name(2)).unwrap();
    refused(&name(1), Kind::Invalid, &["split.no is not 1"]);
    std::fs::remove_file(name(2)).unwrap();
    refused(&name(1), Kind::Invalid, &["split-00002-of-00003.gguf is missing"]);
}
