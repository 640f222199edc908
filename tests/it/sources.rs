//! The same weights, held in another way, give the same bytes.

use std::fs;

use serde_json::{Map, json};

use crate::checkpoint::{Case, read_weights, write_weights};
use crate::support::{model, quantized};

#[test]
fn shards_are_one_model() {
    let case = Case::of("tiny-llama");
    let weights = read_weights(&case.file("model.safetensors"));
    fs::remove_file(case.file("model.safetensors")).unwrap();
    let mut map = Map::new();
    let mut size = 0;
    for (i, shard) in weights.chunks(weights.len().div_ceil(3)).enumerate() {
        let file = format!("model-{:05}-of-00003.safetensors", i + 1);
        write_weights(&case.file(&file), shard);
        for tensor in shard {
            map.insert(tensor.name.clone(), json!(file));
            size += tensor.data.len();
        }
    }
    assert!(case.file("model-00003-of-00003.safetensors").is_file());
    let index = json!({"metadata": {"total_size": size}, "weight_map": map});
    fs::write(case.file("model.safetensors.index.json"), index.to_string()).unwrap();
    for level in ["Q4_K_M", "BF16"] {
        let sharded = quantized(&case.model(), level, &[]);
        assert!(sharded == quantized(&model("tiny-llama"), level, &[]), "{level}");
    }
}

/// Any float type that holds the weights exactly gives the same quantized tensors.
#[test]
fn float_types_that_hold_the_same_weights() {
    for dtype in ["F32", "F16"] {
        let case = Case::of("tiny-llama");
        // Values that float16 cannot hold are changed in both sources, so that they hold the same.
        let plain = Case::of("tiny-llama");
        for (case, dtype) in [(&plain, "BF16"), (&case, dtype)] {
            case.edit_weights(|weights| {
                for tensor in weights {
                    for b in tensor.data.as_chunks_mut().0 {
                        let weight = half::bf16::from_le_bytes(*b).to_f32();
                        if half::f16::from_f32(weight).to_f32() != weight {
                            *b = [0, 0];
                        }
                    }
                    if dtype != "BF16" {
                        tensor.convert(dtype);
                    }
                }
            });
        }
        for level in ["Q4_K_M", "Q8_0", "Q2_K", "F32"] {
            let ours = quantized(&case.model(), level, &[]);
            assert!(ours == quantized(&plain.model(), level, &[]), "{level} of {dtype}");
        }
    }
}
