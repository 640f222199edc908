//! How far the weights of a result are from those of its source, read from the files of both.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::arch::Model;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::blocks::{self, Simd};
use crate::pipeline::model::OpenModel;
use crate::progress::{Progress, Unit};
use crate::source::dense::Dense;
use crate::source::folded::{Folded, Moved};

/// Weights that are in memory at a time, of source and result each: about so many.
const COMPARED: usize = 1 << 22;

/// Weights whose squares one thread adds up at a time.
const PIECE: usize = 1 << 16;

/// Errors of all weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WeightErrors {
    /// Squared error of all weights per their energy.
    pub nmse: f64,
    /// Whether every weight is the same.
    pub identical: bool,
    /// Bits per weight of the source, scales and zero points included.
    pub source_bits_per_weight: f64,
    /// Bits per weight of the result.
    pub bits_per_weight: f64,
    /// Each tensor, by its name in the result's checkpoint.
    pub tensors: Vec<TensorError>,
}

/// One tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TensorError {
    /// Its name in Hugging Face's format.
    pub name: String,
    /// Squared error per energy; 0 if nothing has changed.
    pub nmse: f64,
    /// Bits per weight in the source.
    pub source_bits: f64,
    /// Bits per weight in the result.
    pub bits: f64,
}

/// Compares every tensor of `result` with that of `source`, in which the same factors are `moved` as before it was quantized:
/// they cancel out in what the model computes, and are no error. Sums are taken in a fixed order.
///
/// # Errors
/// `Invalid` if the result has a tensor that the source does not have, or not in this shape.
pub(super) fn compare(
    source: &OpenModel,
    moved: Moved,
    result: &OpenModel,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<WeightErrors> {
    let names = pairs(source, result)?;
    let meant = Folded::with(&*source.weights, moved);
    let weights =
        |name: &str| result.weights.shape(name).unwrap_or_default().iter().product::<usize>() as u64;
    let total: u64 = names.iter().map(|(name, _)| weights(name)).sum();
    progress.begin("Comparing weights", total, Unit::Weights);
    let compared = names.iter().map(|(name, other)| {
        progress.item(name);
        let sums = tensor(&meant, other, &*result.weights, name, cancel)?;
        progress.advance(weights(name));
        Ok((name, other, sums))
    });
    let compared: Result<Vec<_>> = compared.collect();
    progress.end();
    let (mut error, mut energy, mut bits, mut source_bits) = (0.0, 0.0, 0.0, 0.0);
    let mut tensors = Vec::new();
    for (name, other, (e, s)) in compared? {
        let n = weights(name) as f64;
        let of = |weights: &dyn Dense, name: &str| weights.bits(name).unwrap_or(0.0);
        let one = TensorError {
            name: name.clone(),
            nmse: nmse(e, s),
            source_bits: of(&*source.weights, other),
            bits: of(&*result.weights, name),
        };
        (error, energy) = (error + e, energy + s);
        (bits, source_bits) = (bits + one.bits * n, source_bits + one.source_bits * n);
        tensors.push(one);
    }
    let all = total.max(1) as f64;
    Ok(WeightErrors {
        nmse: nmse(error, energy),
        identical: error == 0.0,
        source_bits_per_weight: source_bits / all,
        bits_per_weight: bits / all,
        tensors,
    })
}

fn nmse(error: f64, energy: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / energy }
}

/// The tensors of the result, each with its name in the source.
fn pairs(source: &OpenModel, result: &OpenModel) -> Result<Vec<(String, String)>> {
    let canonical = |model: &Model, name: &str| model.spec.canonical(name).unwrap_or_else(|| name.to_owned());
    let mut by_name = std::collections::HashMap::new();
    for name in source.weights.names() {
        by_name.insert(canonical(&source.model, name), name);
    }
    let names = result.weights.names().into_iter();
    let pair = |name: &str| match by_name.get(&canonical(&result.model, name)) {
        Some(other) => Ok((name.to_owned(), (*other).to_owned())),
        None => Err(Error::new(
            Kind::Invalid,
            format!("the output failed validation: {name} is not a tensor of the source"),
        )),
    };
    names.map(pair).collect()
}

/// Squared error and energy of one tensor. A result may have fewer rows: some families cut the embedding to the vocabulary.
fn tensor(
    source: &dyn Dense,
    other: &str,
    result: &dyn Dense,
    name: &str,
    cancel: &Cancel,
) -> Result<(f64, f64)> {
    let (shape, found) = (source.shape(other).unwrap_or_default(), result.shape(name).unwrap_or_default());
    let rows = found.first().copied().unwrap_or(1);
    let fits =
        shape.len() == found.len() && shape.get(1..) == found.get(1..) && shape.first() >= found.first();
    if !fits {
        return Err(Error::new(
            Kind::Invalid,
            format!("the output failed validation: {name} has shape {found:?}, the source's {shape:?}"),
        ));
    }
    let width: usize = found.iter().skip(1).product();
    let at_a_time = (COMPARED / width.max(1)).max(1);
    let (mut error, mut energy) = (0.0, 0.0);
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for start in (0..rows).step_by(at_a_time) {
        cancel.check()?;
        let rows = start..(start + at_a_time).min(rows);
        before.resize(rows.len() * width, 0.0);
        after.resize(rows.len() * width, 0.0);
        source.read(other, rows.clone(), &mut before)?;
        result.read(name, rows, &mut after)?;
        let pieces = before.par_chunks(PIECE).zip(after.par_chunks(PIECE));
        let sums: Vec<(f64, f64)> = pieces.map(|(a, b)| blocks::difference(a, b, Simd::best())).collect();
        for (e, s) in sums {
            (error, energy) = (error + e, energy + s);
        }
    }
    Ok((error, energy))
}
