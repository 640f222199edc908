//! A model beside the one that it was made from: how far its predictions have moved, and where that comes from.

use serde::{Deserialize, Serialize};

use super::bits::TensorBits;
use super::layers::LayerError;
use super::report::Evaluation;

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quality {
    /// Always `success`; a failure has no report.
    pub status: String,
    /// The model, as it was given.
    pub model: String,
    /// Its format.
    pub format: String,
    /// The reference, as it was given.
    pub reference: String,
    /// Its format.
    pub reference_format: String,
    /// Where the text comes from.
    pub data: String,
    /// Bits per weight of the model's matrices, scales and zero points included.
    pub bits_per_weight: f64,
    /// The same of the reference.
    pub reference_bits_per_weight: f64,
    /// Perplexity and KL divergence.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// Errors by layer and matrix.
    pub layers: Vec<LayerError>,
    /// Where the model's bits are.
    pub tensors: Vec<TensorBits>,
    /// All of the work.
    pub duration_seconds: f64,
    /// Peak resident memory, mapped model files included.
    pub peak_memory_bytes: Option<u64>,
}

impl Quality {
    /// Names of the matrices that some layer has, in the order of the computation.
    pub fn linears(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for linear in self.layers.iter().flat_map(|layer| &layer.linears) {
            if !names.contains(&linear.name.as_str()) {
                names.push(&linear.name);
            }
        }
        names
    }
}
