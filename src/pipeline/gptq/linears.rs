//! Which matrices of a model are quantized.

use std::collections::BTreeMap;

use regex::Regex;

use crate::arch::Model;
use crate::arch::decoder::{Input, LinearId, Step};
use crate::error::{Error, Kind, Result};
use crate::source::dense::Dense;

/// One matrix of a layer.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Name of the linear layer in the checkpoint, without `.weight`.
    pub name: String,
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
}

/// The matrices of all layers, those of one layer in the order in which they are computed.
///
/// # Errors
/// `Invalid` if one is missing or has another shape than the configuration implies.
pub fn find(model: &Model, weights: &dyn Dense) -> Result<Vec<Vec<Matrix>>> {
    let canonical: BTreeMap<String, &str> =
        weights.names().into_iter().filter_map(|name| Some((model.spec.canonical(name)?, name))).collect();
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
            for gguf in (LinearId { layer, input }).tensors(model.spec) {
                let template = gguf.replacen(&format!("blk.{layer}."), "blk.{}.", 1);
                let rule = model.spec.rule(&template).expect("the tensor was named by its rule");
                let expert = match input {
                    Input::Expert(e) | Input::ExpertDown(e) => e,
                    _ => 0,
                };
                let name = rule.hf.replace("{}", &layer.to_string()).replace("{e}", &expert.to_string());
                let expected: Vec<usize> = rule.shape.iter().map(|dim| dim.size(&model.hyper)).collect();
                let found = canonical.get(&name).and_then(|name| Some((*name, weights.shape(name)?)));
                let Some((name, shape)) = found else {
                    return Err(Error::new(
                        Kind::Invalid,
                        format!("tensor {name} is missing from the model"),
                    )
                    .hint("The download may be incomplete, or config.json belongs to another model."));
                };
                let [outputs, inputs] = *shape else { continue };
                if shape != expected {
                    return Err(Error::new(
                        Kind::Invalid,
                        format!("tensor {name} has shape {shape:?}; config.json implies {expected:?}"),
                    ));
                }
                let name = name.strip_suffix(".weight").unwrap_or(name).to_owned();
                matrices.push(Matrix { name, shape: [outputs, inputs], input });
            }
        }
        Ok(matrices)
    };
    (0..model.hyper.layers).map(layer).collect()
}

/// The step of a layer at whose end the inputs of a matrix are known; none for the head.
pub(super) fn step_of(input: Input) -> Option<Step> {
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
    let parse = |pattern: &String| {
        Regex::new(pattern).map_err(|e| {
            Error::new(Kind::Usage, format!("--skip: '{pattern}' is not a regular expression")).because(e)
        })
    };
    patterns.iter().map(parse).collect()
}
