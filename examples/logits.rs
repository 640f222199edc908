//! Writes the logits of a text in float32, for comparison with other programs.
//!
//! usage: cargo run --release --example logits MODEL TEXT OUT
//!
//! MODEL is whatever `evaluate` takes, TEXT a file. OUT is a safetensors file with `input_ids` `[1, tokens]` and `logits`
//! `[1, tokens, vocabulary]`.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use llm_quantize::cancel::Cancel;
use llm_quantize::pipeline::model::OpenModel;
use llm_quantize::progress::Silent;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, out] = args.as_slice() else { return Err("usage: logits MODEL TEXT OUT".into()) };
    let opened = OpenModel::open(model, &[], &Cancel::new(), &Silent)?;
    let ids = opened.encoder.encode(&std::fs::read_to_string(text)?)?;
    let decoder = opened.decoder()?;
    let context = decoder.context(ids.len());
    let mut hidden = decoder.embed(&[&ids])?;
    for i in 0..decoder.layers() {
        hidden = decoder.layer(i)?.forward(&hidden, &context, &mut ())?;
    }
    let logits = decoder.head(&hidden)?;
    let ids = Tensor::from_vec(ids.iter().map(|id| i64::from(*id)).collect(), (1, ids.len()), &Device::Cpu)?;
    let tensors = HashMap::from([("input_ids", ids), ("logits", logits)]);
    candle_core::safetensors::save(&tensors, out)?;
    Ok(())
}
