//! Where the error arises: what each matrix makes of the reference's own inputs, and how far the hidden states have drifted.

use std::collections::BTreeMap;

use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::arch::decoder::{Activations, Hidden, Layer, LinearId, Tap};
use crate::error::{Error, Kind, Result};

/// Tokens whose outputs are compared at a time.
const TOKENS: usize = 512;

/// One layer of a model beside the same layer of its reference.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerError {
    /// The layer, from 0.
    pub layer: usize,
    /// Of the hidden states after it, when each model goes its own way from the embeddings on: the squares of the
    /// differences over the squares of the reference's states.
    pub nmse: f64,
    /// The same for each token by itself, then the mean: a few tokens with huge states do not hide the others.
    pub token_nmse: f64,
    /// Its matrices, in the order of the computation.
    pub linears: Vec<LinearError>,
}

/// The outputs of one matrix, its bias included, on the inputs that it has in the reference.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinearError {
    /// Its name in GGUF, without layer and ending: `attn_q`. Experts count together.
    pub name: String,
    /// The squares of the differences over the squares of the reference's outputs.
    pub nmse: f64,
}

/// Squares of differences, and of what they are differences from.
#[derive(Clone, Copy, Debug, Default)]
struct Squares {
    error: f64,
    energy: f64,
    /// Sum of both's ratio for each row.
    ratios: f64,
    rows: usize,
}

impl Squares {
    /// Adds two matrices `[rows, width]`, row by row in order.
    fn add(&mut self, reference: &Tensor, model: &Tensor) -> Result<()> {
        let (rows, width) = reference.dims2()?;
        let values = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        let (reference, model) = (values(reference)?, values(model)?);
        let squares: Vec<(f64, f64)> = reference
            .par_chunks_exact(width)
            .zip(model.par_chunks_exact(width))
            .map(|(a, b)| {
                let square = |v: f64| v * v;
                let error = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
                (error, a.iter().map(|a| square(f64::from(*a))).sum())
            })
            .collect();
        for (error, energy) in squares {
            self.error += error;
            self.energy += energy;
            self.ratios += ratio(error, energy);
        }
        self.rows += rows;
        Ok(())
    }

    fn nmse(&self) -> f64 {
        ratio(self.error, self.energy)
    }
}

/// Equal values have no error, zeros included.
fn ratio(error: f64, energy: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / energy }
}

/// Sees the inputs of the reference's matrices, and compares what the two layers' matrices make of them.
pub struct LinearErrors<'a> {
    reference: &'a Layer,
    model: &'a Layer,
    sums: BTreeMap<LinearId, Vec<(&'static str, Squares)>>,
}

impl<'a> LinearErrors<'a> {
    /// For one layer of both.
    pub fn new(reference: &'a Layer, model: &'a Layer) -> Self {
        LinearErrors { reference, model, sums: BTreeMap::new() }
    }

    /// What was found. Experts are added up; those that no token came to have no part in it.
    pub fn finish(self) -> Vec<LinearError> {
        let mut order: Vec<(&'static str, Squares)> = Vec::new();
        for (name, squares) in self.sums.into_values().flatten() {
            let place = order.iter().position(|(n, _)| *n == name).unwrap_or_else(|| {
                order.push((name, Squares::default()));
                order.len() - 1
            });
            order[place].1.error += squares.error;
            order[place].1.energy += squares.energy;
        }
        order
            .into_iter()
            .map(|(name, squares)| LinearError { name: name.into(), nmse: squares.nmse() })
            .collect()
    }
}

impl Tap for LinearErrors<'_> {
    fn input(&mut self, linear: LinearId, x: &Activations) -> Result<()> {
        let (reference, model) = (self.reference.linears(linear.input), self.model.linears(linear.input));
        let sums = self
            .sums
            .entry(linear)
            .or_insert_with(|| reference.iter().map(|(name, _)| (*name, Squares::default())).collect());
        let x = x.tensor()?;
        let rows = x.dim(0)?;
        for start in (0..rows).step_by(TOKENS) {
            let x = Activations::Memory(x.narrow(0, start, TOKENS.min(rows - start))?);
            for (((_, squares), (_, reference)), (_, model)) in sums.iter_mut().zip(&reference).zip(&model) {
                squares.add(&reference.forward(&x)?.tensor()?, &model.forward(&x)?.tensor()?)?;
            }
        }
        Ok(())
    }
}

/// NMSE of all windows' hidden states, and the mean of each token's.
///
/// # Errors
/// `Invalid` if states are not finite.
pub fn compare_hidden(reference: &Hidden, model: &Hidden) -> Result<(f64, f64)> {
    let mut squares = Squares::default();
    for i in 0..reference.windows() {
        squares.add(&reference.window(i)?, &model.window(i)?)?;
    }
    let found = (squares.nmse(), squares.ratios / squares.rows as f64);
    if !(found.0.is_finite() && found.1.is_finite()) {
        return Err(Error::new(
            Kind::Invalid,
            "the hidden states of the two models cannot be compared: they are not finite",
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn errors_are_relative_to_the_reference() {
        let tensor = |rows: &[[f32; 2]]| {
            Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu).unwrap()
        };
        let mut squares = Squares::default();
        squares.add(&tensor(&[[100.0, 0.0], [0.0, 1.0]]), &tensor(&[[100.0, 0.0], [0.0, 0.0]])).unwrap();
        squares.add(&tensor(&[[0.0, 0.0]]), &tensor(&[[0.0, 0.0]])).unwrap();
        assert_eq!(squares.nmse(), 1.0 / 10001.0);
        assert_eq!((squares.ratios, squares.rows), (1.0, 3));
    }
}
