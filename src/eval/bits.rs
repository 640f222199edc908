//! Where the bits are: how much of the file each tensor takes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::arch::Model;
use crate::source::dense::Dense;

/// One tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TensorBits {
    /// Name in GGUF; the experts of a layer count together.
    pub name: String,
    /// Number of weights.
    pub weights: u64,
    /// Bits that each takes, scales and zero points included.
    pub bits_per_weight: f64,
}

/// The matrices of a model, those of each layer first. Norms and biases, which are not quantized, are left out.
pub fn tensor_bits(model: &Model, weights: &dyn Dense) -> Vec<TensorBits> {
    let canonical: BTreeMap<String, &str> =
        weights.names().into_iter().filter_map(|name| Some((model.spec.canonical(name)?, name))).collect();
    let mut found = Vec::new();
    let hyper = &model.hyper;
    let rules = || model.spec.tensors.iter().copied().flatten().filter(|rule| rule.shape.len() == 2);
    let layered = (0..hyper.layers)
        .flat_map(|layer| rules().filter(|rule| rule.per_layer()).map(move |rule| (rule, layer)))
        .chain(rules().filter(|rule| !rule.per_layer()).map(|rule| (rule, 0)));
    for (rule, layer) in layered {
        let layer = layer.to_string();
        let experts = if rule.hf.contains("{e}") { hyper.experts } else { 1 };
        let (mut total, mut bits) = (0u64, 0.0);
        for expert in 0..experts {
            let name = rule.hf.replace("{}", &layer).replace("{e}", &expert.to_string());
            let stored =
                canonical.get(&name).and_then(|name| Some((weights.shape(name)?, weights.bits(name)?)));
            if let Some((shape, each)) = stored {
                let n = shape.iter().product::<usize>() as u64;
                total += n;
                bits += n as f64 * each;
            }
        }
        if total > 0 {
            let name = rule.gguf.replace("{}", &layer);
            found.push(TensorBits { name, weights: total, bits_per_weight: bits / total as f64 });
        }
    }
    found
}

/// Bits per weight of all of them together.
pub fn bits_per_weight(tensors: &[TensorBits]) -> f64 {
    let weights: u64 = tensors.iter().map(|t| t.weights).sum();
    tensors.iter().map(|t| t.weights as f64 * t.bits_per_weight).sum::<f64>() / weights as f64
}
