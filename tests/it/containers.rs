//! GPTQ and AWQ directories: what is written is what the formats say, and what is read is what was written.

use std::fs;
use std::path::Path;

use half::f16;
use llm_quantize::arch::Model;
use llm_quantize::arch::decoder::Decoder;
use llm_quantize::cancel::Cancel;
use llm_quantize::error::Kind;
use llm_quantize::format::awq::AwqConfig;
use llm_quantize::format::gptq::Version;
use llm_quantize::format::packed::config::Stated;
use llm_quantize::format::packed::{Container, Entry, PackedModel, PackedWriter, Scheme, Target};
use llm_quantize::pipeline::model::OpenModel;
use llm_quantize::progress::Silent;
use llm_quantize::quant::{Grid, QuantizedLinear};
use llm_quantize::source::dense::Dense;
use llm_quantize::source::safetensors::FloatType;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::checkpoint::{Case, Weights, write_weights};
use crate::packed::{checkpoint, checkpoint_with, gptq};
use crate::packed_file::PackedFile;
use crate::support::{entries, model, run, text};

const AWQ: Container = Container::Awq(AwqConfig { group_size: Some(32) });
const GRID: Grid = Grid { bits: 4, group_size: 32, symmetric: false };

fn open(dir: &Path) -> PackedModel {
    let config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    let stated = Stated::find(dir, &config).unwrap().unwrap();
    PackedModel::open(dir, Scheme::read(&stated).unwrap()).unwrap()
}

/// A layer of all kinds of codes, scales of both signs, and groups in any order if `act_order`.
fn layer(shape: [usize; 2], grid: Grid, act_order: bool, seed: u64) -> QuantizedLinear {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 16
    };
    let [n, k] = shape;
    let groups = grid.groups(k);
    let max = u64::from(grid.max_code());
    let codes = (0..n * k).map(|_| (next() % (max + 1)) as u8).collect();
    let scales = (0..n * groups).map(|_| f16::from_f32((next() % 4001) as f32 / 2000.0 - 1.0)).collect();
    let zero = |next: u64| if grid.symmetric { grid.middle() } else { 1 + (next % max) as u8 };
    let zeros = (0..n * groups).map(|_| zero(next())).collect();
    let g_idx = act_order.then(|| {
        let mut g_idx: Vec<u32> = (0..k).map(|i| (i / grid.group_size) as u32).collect();
        (1..k).for_each(|i| g_idx.swap(i, (next() % (i as u64 + 1)) as usize));
        g_idx
    });
    QuantizedLinear::new(shape, grid, codes, scales, zeros, g_idx).unwrap()
}

/// Writes one layer.
fn write(container: &Container, grid: Grid, linear: &QuantizedLinear, dir: &Path) {
    let shape = [linear.out_features(), linear.in_features()];
    let entries = [Entry::Linear { name: "model.layers.0.x".into(), shape, grid, bias: false }];
    let config = json!({"model_type": "llama"});
    let mut writer = PackedWriter::create(Target::new(dir, None, &config), container, &entries).unwrap();
    writer.linear("model.layers.0.x", linear, None).unwrap();
    writer.finish().unwrap();
}

fn with_act_order(container: Container) -> Container {
    match container {
        Container::Gptq(mut config) => {
            config.desc_act = true;
            Container::Gptq(config)
        }
        awq => awq,
    }
}

/// Writes a layer, reads it bit by bit and with our reader.
fn assert_round_trip(container: &Container, grid: Grid, linear: &QuantizedLinear) {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("x");
    write(container, grid, linear, &dir);
    let file = PackedFile::open(&dir.join("model.safetensors"));
    let shape @ [n, k] = [linear.out_features(), linear.in_features()];
    let found = match container {
        Container::Gptq(config) => {
            let less = u8::from(config.version == Version::V1);
            file.gptq("model.layers.0.x", shape, grid.bits as usize, less)
        }
        Container::Awq(_) => file.awq("model.layers.0.x", shape, grid.group_size.min(k)),
    };
    let groups: Vec<u32> = (0..k).map(|i| linear.group_of(i) as u32).collect();
    assert_eq!(found.groups, groups);
    assert_eq!(found.codes.concat(), linear.codes());
    assert_eq!(found.zeros.concat(), linear.zeros());
    assert_eq!(found.scales.concat(), linear.scales());
    assert_eq!(found.weights(), linear.dequantize());
    let model = open(&dir);
    assert_eq!(&model.linear("model.layers.0.x.weight").unwrap(), linear);
    assert_eq!(model.names(), ["model.layers.0.x.weight"]);
    let mut row = vec![0.0; k * 2];
    model.read("model.layers.0.x.weight", n - 2..n, &mut row).unwrap();
    assert_eq!(row, linear.dequantize()[(n - 2) * k..]);
}

#[test]
fn every_width_of_gptq_is_what_the_format_says() {
    for bits in [2, 3, 4, 8] {
        for version in [Version::V1, Version::V2] {
            // 32 divides 96, 64 leaves a shorter last group.
            for (group_size, act_order) in
                [(32, false), (64, false), (Grid::WHOLE_ROW, false), (32, true), (64, true)]
            {
                for symmetric in [false, true] {
                    let grid = Grid { bits, group_size, symmetric };
                    let mut container = gptq(grid, version);
                    if act_order {
                        container = with_act_order(container);
                    }
                    assert_round_trip(&container, grid, &layer([64, 96], grid, act_order, 7));
                }
            }
        }
    }
}

#[test]
fn awq_is_what_the_format_says() {
    for group_size in [32, 96, Grid::WHOLE_ROW] {
        for symmetric in [false, true] {
            let grid = Grid { bits: 4, group_size, symmetric };
            let stated = Some(group_size).filter(|n| *n != Grid::WHOLE_ROW);
            let container = Container::Awq(AwqConfig { group_size: stated });
            assert_round_trip(&container, grid, &layer([40, 96], grid, false, 3));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_come_back(
        n in 1usize..8, k in 1usize..8, width in 0usize..4, group_size in 1usize..300,
        v2 in any::<bool>(), symmetric in any::<bool>(), act_order in any::<bool>(), seed in any::<u64>(),
    ) {
        let grid = Grid { bits: [2, 3, 4, 8][width], group_size, symmetric };
        let container = gptq(grid, if v2 { Version::V2 } else { Version::V1 });
        let container = if act_order { with_act_order(container) } else { container };
        assert_round_trip(&container, grid, &layer([n * 32, k * 32], grid, act_order, seed));
    }

    #[test]
    fn random_layers_come_back_from_awq(
        n in 1usize..20, groups in 1usize..6, group_size in 1usize..50, symmetric in any::<bool>(), seed in any::<u64>(),
    ) {
        let grid = Grid { bits: 4, group_size, symmetric };
        let container = Container::Awq(AwqConfig { group_size: Some(group_size) });
        assert_round_trip(&container, grid, &layer([n * 8, groups * group_size], grid, false, seed));
    }
}

#[test]
fn zero_points_of_zero_need_the_second_version() {
    let linear =
        QuantizedLinear::new([32, 32], GRID, vec![1; 1024], vec![f16::ONE; 32], vec![0; 32], None).unwrap();
    let place = tempfile::tempdir().unwrap();
    let plan = [Entry::Linear { name: "a.0.x".into(), shape: [32, 32], grid: GRID, bias: false }];
    let config = json!({});
    for (version, works) in [(Version::V1, false), (Version::V2, true)] {
        let dir = place.path().join(version.name());
        let mut writer =
            PackedWriter::create(Target::new(&dir, None, &config), &gptq(GRID, version), &plan).unwrap();
        match (writer.linear("a.0.x", &linear, None), works) {
            (Ok(()), true) => drop(writer.finish().unwrap()),
            (Err(e), false) => {
                assert_eq!(e.kind(), Kind::Invalid);
                assert!(e.to_string().contains("a.0.x") && e.to_string().contains("zero point"), "{e}");
            }
            (found, _) => panic!("{version:?}: {found:?}"),
        }
    }
    assert_eq!(entries(place.path()), ["gptq_v2"], "nothing is left of the other");
}

#[test]
fn what_a_container_cannot_hold_is_refused_before_any_work() {
    let place = tempfile::tempdir().unwrap();
    let config = json!({});
    for (container, shape, grid) in [
        (gptq(GRID, Version::V1), [48, 64], GRID),
        (gptq(GRID, Version::V1), [64, 80], GRID),
        (gptq(GRID, Version::V1), [64, 64], Grid { bits: 5, ..GRID }),
        (AWQ, [12, 64], GRID),
        (AWQ, [64, 80], GRID),
        (AWQ, [64, 64], Grid { bits: 8, ..GRID }),
        (AWQ, [64, 64], Grid { group_size: 64, ..GRID }),
    ] {
        let entries = [Entry::Linear { name: "the.layer".into(), shape, grid, bias: false }];
        let dir = place.path().join("x");
        let e = PackedWriter::create(Target::new(&dir, None, &config), &container, &entries).unwrap_err();
        assert_eq!(e.kind(), Kind::Unsupported);
        assert!(e.to_string().contains("the.layer"), "{e}");
    }
    assert_eq!(entries(place.path()), [""; 0]);
}

#[test]
fn a_whole_model_goes_and_comes() {
    for (name, container) in [
        ("llama", gptq(GRID, Version::V2)),
        ("qwen2", gptq(Grid { symmetric: true, ..GRID }, Version::V1)),
        ("llama", AWQ),
    ] {
        let grid = match &container {
            Container::Gptq(config) => config.grid,
            Container::Awq(_) => GRID,
        };
        let case = checkpoint(name, &container, grid);
        let opened = OpenModel::open(&text(&case.model()), &[], &Cancel::default(), &Silent).unwrap();
        assert_eq!(opened.format, if matches!(container, Container::Awq(_)) { "awq" } else { "gptq" });
        // The same weights in float32 give the same logits.
        let plain = Case::of(name);
        let weights = opened.weights.names().into_iter().map(|name| {
            let shape = opened.weights.shape(name).unwrap().to_vec();
            let mut values = vec![0.0f32; shape.iter().product()];
            opened.weights.read(name, 0..shape[0], &mut values).unwrap();
            let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            Weights { name: name.into(), dtype: "F32".into(), shape, data }
        });
        write_weights(&plain.file("model.safetensors"), &weights.collect::<Vec<_>>());
        let plain = OpenModel::open(&text(&plain.model()), &[], &Cancel::default(), &Silent).unwrap();
        let tokens: Vec<u32> = (1..40).collect();
        let logits = |model: &OpenModel| logits(&model.model, &*model.weights, &tokens);
        let (found, expected) = (logits(&opened), logits(&plain));
        assert!(found.iter().all(|v| v.is_finite()));
        assert_eq!(found, expected, "{name}");
        assert_eq!(opened.encoder.encode("a b").unwrap(), plain.encoder.encode("a b").unwrap());
    }
}

fn logits(model: &Model, weights: &dyn Dense, tokens: &[u32]) -> Vec<f32> {
    let decoder = Decoder::new(model, weights).unwrap();
    let context = decoder.context(tokens.len());
    let mut hidden = decoder.embed(&[tokens]).unwrap();
    for i in 0..decoder.layers() {
        hidden = decoder.layer(i).unwrap().forward(&hidden, &context, &mut ()).unwrap();
    }
    decoder.head(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn files_of_a_gptq_directory() {
    let grid = Grid { symmetric: true, ..GRID };
    let case = checkpoint("llama", &gptq(grid, Version::V1), grid);
    assert_eq!(
        entries(&case.model()),
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "quantize_config.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let json = |name: &str| -> Value { serde_json::from_slice(&fs::read(case.file(name)).unwrap()).unwrap() };
    let config = json("config.json");
    assert_eq!(config["quantization_config"], json("quantize_config.json"));
    assert_eq!(config["torch_dtype"], "float16");
    assert_eq!(config["dtype"], "float16");
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    let q = &config["quantization_config"];
    assert_eq!(q["quant_method"], "gptq");
    assert_eq!(q["bits"], 4);
    assert_eq!(q["group_size"], 32);
    assert_eq!(q["sym"], true);
    assert_eq!(q["desc_act"], false);
    assert_eq!(q["lm_head"], false);
    assert_eq!(q["checkpoint_format"], "gptq");
    assert_eq!(q["pack_dtype"], "int32");
    assert_eq!(q["meta"]["quantizer"][0], concat!("llm-quantize:", env!("CARGO_PKG_VERSION")));
    assert!(q.get("dynamic").is_none() && q.get("modules_in_block_to_quantize").is_none());
    // What loaders see of symmetric zero points of four bits.
    let file = PackedFile::open(&case.file("model.safetensors"));
    let qzeros = &file.tensor("model.layers.0.mlp.down_proj.qzeros").data;
    assert!(qzeros.iter().all(|byte| *byte == 0x77));
    let bytes = fs::read(case.file("model.safetensors")).unwrap();
    assert_eq!((8 + u64::from_le_bytes(bytes[..8].try_into().unwrap())) % 8, 0);
    assert!(bytes[8..].starts_with(br#"{"__metadata__":{"format":"pt"}"#));
}

#[test]
fn layers_left_out_are_listed_as_each_loader_reads_them() {
    let wanted = |name: &str| name.contains(".mlp.") || name.contains("layers.1.");
    let names = ["k_proj", "o_proj", "q_proj", "qkv_proj", "v_proj"];
    let case = checkpoint_with("llama", &gptq(GRID, Version::V2), GRID, wanted, u64::MAX);
    let q: Value = serde_json::from_slice(&fs::read(case.file("quantize_config.json")).unwrap()).unwrap();
    let dynamic: Vec<&String> = q["dynamic"].as_object().unwrap().keys().collect();
    assert_eq!(dynamic, names.map(|leaf| format!(r"-:^model\.layers\.(?:0)\.self_attn\.{leaf}$")).each_ref());
    let modules = q["modules_in_block_to_quantize"][0].as_array().unwrap();
    assert_eq!(modules.len(), 10);
    assert!(modules.contains(&json!("model.layers.0.mlp.up_proj")));
    let opened = open(&case.model());
    assert_eq!(opened.linears().len(), 10);
    let case = checkpoint_with("llama", &AWQ, GRID, wanted, u64::MAX);
    let config: Value = serde_json::from_slice(&fs::read(case.file("config.json")).unwrap()).unwrap();
    let q = &config["quantization_config"];
    assert_eq!(
        q["modules_to_not_convert"],
        json!(names.map(|leaf| format!("model.layers.0.self_attn.{leaf}")))
    );
    assert_eq!(q["dynamic"].as_object().unwrap().keys().collect::<Vec<_>>(), dynamic);
    assert_eq!((q["version"].as_str(), q["zero_point"].as_bool()), (Some("gemm"), Some(true)));
    assert_eq!(open(&case.model()).linears().len(), 10);
}

#[test]
fn shards_hold_the_same() {
    let one = checkpoint("llama", &AWQ, GRID);
    let many = checkpoint_with("llama", &AWQ, GRID, |_| true, 100_000);
    let files = entries(&many.model());
    assert!(files.contains(&"model-00002-of-00004.safetensors".to_owned()), "{files:?}");
    assert!(files.contains(&"model.safetensors.index.json".to_owned()));
    let (one, many) = (open(&one.model()), open(&many.model()));
    assert_eq!(one.names(), many.names());
    for (weight, _) in one.linears() {
        assert_eq!(one.linear(weight).unwrap(), many.linear(weight).unwrap(), "{weight}");
    }
}

#[test]
fn info_says_how_a_model_is_quantized() {
    let grid = Grid { bits: 8, symmetric: true, ..GRID };
    let case = checkpoint("llama", &gptq(grid, Version::V1), grid);
    let plain = run(&["info", &text(&model("llama")), "--format", "json"]).success().json();
    let found = run(&["info", &text(&case.model()), "--format", "json"]).success().json();
    assert_eq!(found["format"], "gptq");
    assert_eq!(found["parameter_count"], plain["parameter_count"]);
    assert_eq!(found["supported"], false);
    let q = &found["quantization"];
    assert_eq!(q["method"], "gptq");
    assert_eq!((q["bits"].as_u64(), q["group_size"].as_i64()), (Some(8), Some(32)));
    assert_eq!((q["sym"].as_bool(), q["desc_act"].as_bool()), (Some(true), Some(false)));
    assert_eq!(q["checkpoint_format"], "gptq");
    assert!(q["quantizer"].as_str().unwrap().starts_with("llm-quantize:"));
    assert_eq!(q["weights"]["act_order"], false);
    assert_eq!(q["weights"]["types"]["8-bit"][0], 14);
    // Eight bits, and per group of 32 a scale of 16 and a zero point of 8; the group indices add a little.
    let bits = q["weights"]["layer_bits_per_weight"].as_f64().unwrap();
    assert!((8.75..9.1).contains(&bits), "{bits}");
    let human = run(&["info", &text(&case.model())]).success().stdout;
    for line in
        ["Quantized:     GPTQ", "Bits:          8", "Act-Order:     no", "Quantizer:     llm-quantize"]
    {
        assert!(human.contains(line), "{line:?} is not in:\n{human}");
    }
}

#[test]
fn a_quantized_model_is_no_source_for_gguf() {
    let case = checkpoint("llama", &AWQ, GRID);
    case.refused("Q4_0", &[], 8, &["quantized already"]);
    // Also if nothing but its tensors says so.
    case.edit("config.json", |config| drop(config.as_object_mut().unwrap().remove("quantization_config")));
    case.refused("Q4_0", &[], 8, &["I32", "quantized already", "quantization_config"]);
}

#[test]
fn values_beyond_float16_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("x");
    let config = json!({});
    let entries =
        [Entry::Dense { name: "norm".into(), dtype: FloatType::F16, shape: vec![2], left_out: false }];
    for values in [[1.0, 1e6], [f32::NAN, 0.0]] {
        let mut writer = PackedWriter::create(Target::new(&dir, None, &config), &AWQ, &entries).unwrap();
        let e = writer.dense("norm", &values).unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid);
        assert!(e.to_string().contains("norm"), "{e}");
    }
}

#[test]
fn an_output_is_replaced_only_by_force_and_never_the_source() {
    let case = checkpoint("llama", &AWQ, GRID);
    let dir = case.model();
    let before = fs::read(case.file("config.json")).unwrap();
    let config = json!({"new": 1});
    let entries = [];
    let target = Target::new(&dir, None, &config);
    assert_eq!(PackedWriter::create(target, &AWQ, &entries).unwrap_err().kind(), Kind::Usage);
    let own = Target { source: Some(&dir), force: true, ..target };
    assert_eq!(PackedWriter::create(own, &AWQ, &entries).unwrap_err().kind(), Kind::Usage);
    let writer = PackedWriter::create(Target { force: true, ..target }, &AWQ, &entries).unwrap();
    assert_eq!(fs::read(case.file("config.json")).unwrap(), before, "untouched until it is finished");
    writer.finish().unwrap();
    let config: Value = serde_json::from_slice(&fs::read(case.file("config.json")).unwrap()).unwrap();
    assert_eq!(config["new"], 1);
}
