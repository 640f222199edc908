//! Writes a model of random weights whose layers have the shapes of Llama 3.1, to measure how long they take.
//!
//! usage: cargo run --release --example stack 8b|70b LAYERS SCALE OUT
//!
//! OUT is a directory that does not exist yet. SCALE divides all sizes: 1 is the model itself, 32 something to try the program
//! with. The tokenizer is that of the tests, so that there is no large vocabulary.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

const TEMPLATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/llama");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [shape, layers, scale, out] = args.as_slice() else {
        return Err("usage: stack 8b|70b LAYERS SCALE OUT".into());
    };
    let (layers, scale): (usize, usize) = (layers.parse()?, scale.parse()?);
    let (hidden, wide, heads) = match shape.as_str() {
        "8b" => (4096 / scale, 14336 / scale, 32 / scale.min(8)),
        "70b" => (8192 / scale, 28672 / scale, 64 / scale.min(8)),
        _ => return Err(format!("there is no shape {shape}").into()),
    };
    let kv_heads = 8 / scale.min(8);
    let head_dim = hidden / heads;
    let (out, template) = (Path::new(out), Path::new(TEMPLATE));
    std::fs::create_dir(out)?;
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(template.join(name), out.join(name))?;
    }
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(template.join("config.json"))?)?;
    for (key, value) in [
        ("hidden_size", hidden),
        ("intermediate_size", wide),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
        ("head_dim", head_dim),
        ("num_hidden_layers", layers),
        ("max_position_embeddings", 131_072),
    ] {
        config[key] = json!(value);
    }
    let vocab = config["vocab_size"].as_u64().ok_or("the template has no vocabulary")? as usize;
    std::fs::write(out.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    let mut tensors = HashMap::new();
    let mut matrix = |name: String, rows: usize, columns: usize| {
        // Outputs are of the size of inputs.
        let weights = Tensor::randn(0f32, (columns as f32).powf(-0.5), (rows, columns), &Device::Cpu)?;
        tensors.insert(name, weights.to_dtype(DType::BF16)?);
        candle_core::Result::Ok(())
    };
    matrix("model.embed_tokens.weight".into(), vocab, hidden)?;
    matrix("lm_head.weight".into(), vocab, hidden)?;
    for layer in 0..layers {
        for (name, rows, columns) in [
            ("self_attn.q_proj", heads * head_dim, hidden),
            ("self_attn.k_proj", kv_heads * head_dim, hidden),
            ("self_attn.v_proj", kv_heads * head_dim, hidden),
            ("self_attn.o_proj", hidden, heads * head_dim),
            ("mlp.gate_proj", wide, hidden),
            ("mlp.up_proj", wide, hidden),
            ("mlp.down_proj", hidden, wide),
        ] {
            matrix(format!("model.layers.{layer}.{name}.weight"), rows, columns)?;
        }
    }
    let norms = (0..layers).flat_map(|layer| {
        ["input_layernorm", "post_attention_layernorm"]
            .map(|norm| format!("model.layers.{layer}.{norm}.weight"))
    });
    for name in norms.chain(["model.norm.weight".into()]) {
        tensors.insert(name, Tensor::ones(hidden, DType::BF16, &Device::Cpu)?);
    }
    candle_core::safetensors::save(&tensors, out.join("model.safetensors"))?;
    Ok(())
}
