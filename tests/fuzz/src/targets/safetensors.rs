//! The weights of a checkpoint, and the index of its shards.

use llm_quantize::source::dense::Dense;
use llm_quantize::source::safetensors::Tensors;

use super::place::{Place, split};

/// `model.safetensors.index.json`, a NUL, and one of two shards, the other one being intact. Without an index the whole
/// input is the only file.
pub(super) fn safetensors(input: &[u8]) {
    let place = match input.first() {
        Some(b'{') => {
            let (index, one) = split(input);
            Place::with(&[
                ("model.safetensors.index.json", index),
                ("one.safetensors", one),
                ("two.safetensors", &shard("b")),
            ])
        }
        _ => Place::with(&[("model.safetensors", input)]),
    };
    if let Ok(tensors) = Tensors::open(place.path()) {
        read_all(&tensors);
    }
    let Ok(tensors) = Tensors::open_packed(place.path()) else { return };
    for (_, info) in tensors.iter() {
        assert_eq!(tensors.bytes(info).len(), info.len() * info.dtype.bytes());
    }
    for (_, info) in tensors.integers() {
        assert_eq!(tensors.words(info).len(), info.shape.iter().product::<usize>());
    }
}

/// Reads all weights, row by row.
pub(super) fn read_all(weights: &dyn Dense) {
    for name in weights.names() {
        let shape = weights.shape(name).expect("it is one of the names");
        let (Some(rows), width) = (shape.first(), shape.iter().skip(1).product()) else { continue };
        assert!(weights.bits(name).is_some());
        let mut row = vec![0.0; width];
        // A tensor of very many rows without weights is nothing to read.
        for i in (0..*rows).take_while(|_| width > 0) {
            if weights.read(name, i..i + 1, &mut row).is_err() {
                break;
            }
            assert!(row.iter().all(|weight| weight.is_finite()));
        }
    }
}

fn shard(tensor: &str) -> Vec<u8> {
    let header = format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#);
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 8]].concat()
}
