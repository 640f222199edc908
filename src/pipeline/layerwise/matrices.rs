//! Which matrices a model's layers have.

use regex::Regex;

use super::Names;
use crate::arch::Model;
use crate::arch::decoder::{Input, LinearId, Step};
use crate::error::{Error, Kind, Result};
use crate::source::dense::Dense;

/// One matrix of a layer.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Name of the linear layer in the checkpoint, without `.weight`.
    pub name: String,
    /// It is `blk.{}.STEM.weight` in GGUF.
    pub stem: &'static str,
    /// Of which expert, where GGUF has those of all experts in one.
    pub expert: usize,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// What goes into it.
    pub input: Input,
}

impl Matrix {
    /// Name of its weights in the checkpoint.
    pub fn tensor(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// Its weights, `[out, in]` row-major.
    ///
    /// # Errors
    /// `Invalid` if one is not finite.
    pub(in crate::pipeline) fn read(&self, weights: &dyn Dense) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.weights()];
        weights.read(&self.tensor(), 0..self.shape[0], &mut values)?;
        Ok(values)
    }

    /// Its bias, if it has one.
    ///
    /// # Errors
    /// `Invalid` if an element is not finite.
    pub(in crate::pipeline) fn read_bias(&self, weights: &dyn Dense) -> Result<Option<Vec<f32>>> {
        let name = format!("{}.bias", self.name);
        let Some(shape) = weights.shape(&name) else { return Ok(None) };
        let mut bias = vec![0.0; shape.iter().product()];
        weights.read(&name, 0..shape.first().copied().unwrap_or(1), &mut bias)?;
        Ok(Some(bias))
    }

    /// Number of its weights.
    pub fn weights(&self) -> usize {
        self.shape[0] * self.shape[1]
    }
}

/// The matrices of all layers, those of one layer in the order in which they are computed.
///
/// # Errors
/// `Invalid` if one is missing or has another shape than the configuration implies.
pub fn find(model: &Model, weights: &dyn Dense) -> Result<Vec<Vec<Matrix>>> {
    let names = Names::new(model, weights);
    let experts = 0..model.hyper.experts;
    let inputs: Vec<Input> = [Input::Attention, Input::AttentionOutput, Input::FeedForward]
        .into_iter()
        .chain(experts.clone().map(Input::Expert))
        .chain([Input::Down])
        .chain(experts.map(Input::ExpertDown))
        .collect();
    let layer = |layer: usize| {
        let mut matrices = Vec::new();
        for &input in &inputs {
            for rule in (LinearId { layer, input }).rules(model.spec) {
                let expert = expert_of(input);
                let expected: Vec<usize> = rule.shape.iter().map(|dim| dim.size(&model.hyper)).collect();
                let name = names.of(rule, layer, expert).map_err(|name| {
                    Error::new(Kind::Invalid, format!("tensor {name} is missing from the model"))
                        .hint("The download may be incomplete, or config.json belongs to another model.")
                })?;
                let shape = weights.shape(name).unwrap_or_default();
                if shape != expected {
                    return Err(Error::new(
                        Kind::Invalid,
                        format!("tensor {name} has shape {shape:?}; config.json implies {expected:?}"),
                    ));
                }
                let [outputs, inputs] = *shape else { continue };
                let name = name.strip_suffix(".weight").unwrap_or(name).to_owned();
                let stem = rule.gguf.trim_start_matches("blk.{}.").trim_end_matches(".weight");
                matrices.push(Matrix { name, stem, expert, shape: [outputs, inputs], input });
            }
        }
        Ok(matrices)
    };
    (0..model.hyper.layers).map(layer).collect()
}

/// The expert that an input goes into, or 0.
pub(in crate::pipeline) fn expert_of(input: Input) -> usize {
    match input {
        Input::Expert(expert) | Input::ExpertDown(expert) => expert,
        _ => 0,
    }
}

/// The step of a layer at whose end the inputs of a matrix are known; none for the head.
pub(in crate::pipeline) fn step_of(input: Input) -> Option<Step> {
    match input {
        Input::Attention => Some(Step::Attention),
        Input::AttentionOutput => Some(Step::AttentionOutput),
        Input::FeedForward | Input::Router | Input::Expert(_) => Some(Step::FeedForward),
        Input::Down | Input::ExpertDown(_) => Some(Step::Down),
        Input::Head => None,
    }
}

/// Patterns of linear layers that stay as they are.
///
/// # Errors
/// `Usage` for what is not a regular expression.
pub fn parse_skips(patterns: &[String]) -> Result<Vec<Regex>> {
    patterns.iter().map(|pattern| parse_pattern("--skip", pattern)).collect()
}

/// A pattern of linear layers, given with `option`.
///
/// # Errors
/// `Usage` for what is not a regular expression.
pub fn parse_pattern(option: &str, pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| {
        Error::new(Kind::Usage, format!("{option}: '{pattern}' is not a regular expression")).because(e)
    })
}
