//! Checkpoints.

use std::fs;

use llm_quantize::format::packed::Packed;
use llm_quantize::pipeline::checkpoint::stream::{Stream, steps};
use llm_quantize::pipeline::checkpoint::{Checkpoint, Identity, Settings};
use llm_quantize::pipeline::gptq::report::How;
use llm_quantize::pipeline::layerwise::part::Part;
use llm_quantize::progress::Silent;
use safetensors::Dtype;

use super::place::{Place, split};

/// `checkpoint.json`, a NUL, and the first layer's file; or, if it is no JSON object, the file of a layer that GPTQ has
/// quantized.
pub(super) fn checkpoint(input: &[u8]) {
    match input.first() {
        Some(b'{') => state(input),
        _ => layer(input),
    }
}

fn state(input: &[u8]) {
    let (state, layer) = split(input);
    let name = Checkpoint::name("tensors", 0);
    // It may remove the whole directory.
    let place = Place::with(&[]);
    let dir = place.path().join("checkpoint");
    fs::create_dir_all(&dir).expect("there is room");
    fs::write(dir.join("checkpoint.json"), state).expect("there is room");
    fs::write(dir.join(&name), layer).expect("there is room");
    let output = place.path().join("out");
    resume(&Settings { command: "test".into(), output, dir: Some(dir.clone()), resume: false }, &name);
    let _ = fs::remove_dir_all(dir);
}

fn resume(settings: &Settings, name: &str) {
    let _ = settings.check_output(|| Ok(()));
    let tensors = [("token_embd.weight", 8), ("blk.0.a", 16), ("blk.1.a", 16)];
    let steps = steps(tensors);
    let Ok(Some(checkpoint)) = Checkpoint::open(settings, Identity::new("test"), steps.len(), &Silent) else {
        return;
    };
    let _ = checkpoint.note();
    let _ = checkpoint.read(name);
    let _ = checkpoint.get(name, |input| Ok(input.read(&mut [0; 3]).is_ok()));
    let _ = checkpoint.path(name);
    let stream = Stream::new(Some(checkpoint), steps);
    let _ = stream.done();
    let _ = stream.replay(tensors.map(|(_, bytes)| bytes), |_, _| Ok(()));
    if let Some(checkpoint) = stream.into_checkpoint() {
        let _ = checkpoint.take_report::<serde_json::Value>(&Silent);
    }
}

fn layer(input: &[u8]) {
    let spec = |name: &str, dtype, shape: &[usize]| Packed {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
        bytes: Vec::new(),
    };
    let expected = vec![spec("b.qweight", Dtype::I32, &[1, 2]), spec("a.scales", Dtype::F16, &[3])];
    let Ok(part) = Part::<How>::decode(input, expected) else { return };
    let mut again = Vec::new();
    part.encode().write(&mut again).expect("memory takes whatever is written");
}
