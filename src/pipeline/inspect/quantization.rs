//! What is special about a GPTQ or AWQ directory.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Result;
use crate::format::packed::config::{Method, Stated};
use crate::format::packed::{PackedModel, Scheme};
use crate::source::SourceModel;
use crate::source::dense::Dense;

/// How a checkpoint is quantized. Absent values are not known.
#[derive(Clone, Debug, Serialize)]
pub struct Quantization {
    /// `gptq`, `awq` or another method.
    pub method: String,
    /// Bits per code.
    pub bits: Option<u32>,
    /// Inputs per group; -1 is a whole row.
    pub group_size: Option<i64>,
    /// Whether zero points are the middle of the grid, as it is stated.
    pub sym: Option<bool>,
    /// Whether it is stated that inputs were quantized in another order than theirs.
    pub desc_act: Option<bool>,
    /// `gptq`, `gptq_v2` or `gemm`.
    pub checkpoint_format: Option<&'static str>,
    /// The tool that made it.
    pub quantizer: Option<String>,
    /// What the weights say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PackedWeights>,
}

/// The weights of a quantized checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct PackedWeights {
    /// Bits per weight over all tensors.
    pub bits_per_weight: f64,
    /// The same over the quantized layers, with scales, zero points and group indices.
    pub layer_bits_per_weight: f64,
    /// Whether the groups of any layer are in another order than its inputs.
    pub act_order: bool,
    /// Per type the number of weights' tensors and all their bytes; quantized layers are, for example, `4-bit`.
    pub types: BTreeMap<String, (usize, u64)>,
    /// Number of weights.
    #[serde(skip)]
    pub parameters: u64,
    /// Bytes of the files.
    #[serde(skip)]
    pub file_bytes: u64,
}

/// Looks at a quantization that a directory states.
///
/// # Errors
/// `Invalid` if the weights are not what it says.
pub(super) fn inspect(source: &SourceModel, stated: &Stated) -> Result<Quantization> {
    if let Method::Other(method) = stated.method()? {
        return Ok(Quantization {
            method,
            bits: None,
            group_size: None,
            sym: None,
            desc_act: None,
            checkpoint_format: None,
            quantizer: stated.quantizer(),
            weights: None,
        });
    }
    let scheme = Scheme::read(stated)?;
    let mut found = Quantization {
        method: scheme.method.into(),
        bits: Some(scheme.base.bits),
        group_size: Some(scheme.base.group_size.map_or(-1, |n| n as i64)),
        sym: scheme.base.symmetric,
        desc_act: Some(scheme.desc_act),
        checkpoint_format: Some(scheme.checkpoint_format),
        quantizer: scheme.quantizer.clone(),
        weights: None,
    };
    if source.has_weights() {
        found.weights = Some(weigh(&PackedModel::open(source.dir(), scheme)?)?);
    }
    Ok(found)
}

fn weigh(model: &PackedModel) -> Result<PackedWeights> {
    let parameters =
        |name: &str| model.shape(name).map_or(0, |shape| shape.iter().map(|n| *n as u64).product::<u64>());
    let mut types: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    let mut add = |ty: String, bytes: u64| {
        let entry = types.entry(ty).or_default();
        *entry = (entry.0 + 1, entry.1 + bytes);
    };
    let (mut layer_weights, mut layer_bytes) = (0, 0);
    for (weight, linear) in model.linears() {
        let bytes = model.stored_bytes(linear);
        layer_weights += parameters(weight);
        layer_bytes += bytes;
        add(format!("{}-bit", linear.grid.bits), bytes);
    }
    let (mut weights, mut all_bytes) = (layer_weights, layer_bytes);
    for name in model.names() {
        if let (None, Some(info)) = (model.get(name), model.tensors().get(name)) {
            let bytes = model.tensors().bytes(info).len() as u64;
            weights += parameters(name);
            all_bytes += bytes;
            add(info.dtype.name().into(), bytes);
        }
    }
    let per_weight =
        |bytes: u64, weights: u64| if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 };
    Ok(PackedWeights {
        bits_per_weight: per_weight(all_bytes, weights),
        layer_bits_per_weight: per_weight(layer_bytes, layer_weights),
        act_order: model.has_act_order()?,
        types,
        parameters: weights,
        file_bytes: model.tensors().file_bytes(),
    })
}
