//! The weights of a checkpoint as tensors in float32, by the names that they have in GGUF.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Device, Tensor};

use super::compute::Compute;
use super::linear::Linear;
use super::norm::Norm;
use crate::arch::Model;
use crate::arch::spec::Need;
use crate::error::{Error, Kind, Result};
use crate::source::dense::Dense;
use crate::source::safetensors::FloatType;

/// Which of the tensors of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct At {
    pub(super) layer: usize,
    pub(super) expert: usize,
}

/// A tensor of the checkpoint, whose shape is that of its rule.
#[derive(Debug)]
pub(super) struct Found<'a> {
    name: &'a str,
    shape: &'a [usize],
}

/// The tensors of a checkpoint under the names that the rules use.
#[derive(Debug)]
pub(super) struct Weights<'a> {
    model: &'a Model,
    tensors: &'a dyn Dense,
    canonical: BTreeMap<String, &'a str>,
    pub(super) compute: Compute,
}

impl<'a> Weights<'a> {
    pub(super) fn new(model: &'a Model, tensors: &'a dyn Dense) -> Self {
        let canonical = tensors
            .names()
            .into_iter()
            .filter_map(|name| Some((model.spec.canonical(name)?, name)))
            .collect();
        Weights { model, tensors, canonical, compute: Compute::F32 }
    }

    /// The tensor with the name `gguf`, where `{}` stands for the layer, if the family and the model have it.
    pub(super) fn find(&self, gguf: &str, at: At) -> Result<Option<Found<'a>>> {
        let Some(rule) = self.model.spec.rule(gguf) else { return Ok(None) };
        let hyper = &self.model.hyper;
        let canonical = rule.hf.replace("{}", &at.layer.to_string()).replace("{e}", &at.expert.to_string());
        let found = self.canonical.get(&canonical).and_then(|name| Some((*name, self.tensors.shape(name)?)));
        let Some((name, shape)) = found else {
            return match rule.need {
                Need::Optional => Ok(None),
                Need::UnlessTied if hyper.tied => Ok(None),
                _ => Err(missing(&canonical)),
            };
        };
        let expected: Vec<usize> = rule.shape.iter().map(|dim| dim.size(hyper)).collect();
        if shape != expected {
            return Err(Error::new(
                Kind::Invalid,
                format!("tensor {name} has shape {shape:?}; config.json implies {expected:?}"),
            ));
        }
        Ok(Some(Found { name, shape }))
    }

    /// The same, if the computation cannot do without.
    pub(super) fn need(&self, gguf: &str, at: At) -> Result<Found<'a>> {
        self.find(gguf, at)?.ok_or_else(|| missing(&gguf.replace("{}", &at.layer.to_string())))
    }

    /// Reads `rows` of a tensor into `out`.
    ///
    /// # Errors
    /// `Invalid` if a weight is not finite.
    pub(super) fn read(&self, found: &Found<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.tensors.read(found.name, rows, out)
    }

    /// `rows` of a tensor, as a tensor.
    pub(super) fn load(&self, found: &Found<'_>, rows: Range<usize>) -> Result<Tensor> {
        let mut shape = found.shape.to_vec();
        if let Some(first) = shape.first_mut() {
            *first = rows.len();
        }
        let mut values = vec![0.0; shape.iter().product()];
        self.read(found, rows, &mut values)?;
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    fn load_all(&self, found: &Found<'_>) -> Result<Tensor> {
        self.load(found, 0..found.shape.first().copied().unwrap_or(1))
    }

    /// The norm of this name, with the family's offset.
    pub(super) fn norm(&self, gguf: &str, at: At) -> Result<Option<Norm>> {
        let Some(found) = self.find(gguf, at)? else { return Ok(None) };
        let weight = (self.load_all(&found)? + f64::from(self.model.spec.norm_offset))?;
        Ok(Some(Norm::new(weight, self.model.hyper.rms_epsilon as f32)))
    }

    /// The same, if the computation cannot do without.
    pub(super) fn need_norm(&self, gguf: &str, at: At) -> Result<Norm> {
        self.norm(gguf, at)?.ok_or_else(|| missing(&gguf.replace("{}", &at.layer.to_string())))
    }

    /// The matrix `blk.{}.STEM.weight` with its bias, if it has one.
    pub(super) fn linear(&self, stem: &str, at: At) -> Result<Option<Linear>> {
        let Some(weight) = self.find(&format!("blk.{{}}.{stem}.weight"), at)? else { return Ok(None) };
        let bias = match self.find(&format!("blk.{{}}.{stem}.bias"), at)? {
            Some(bias) => Some(self.load_all(&bias)?),
            None => None,
        };
        Ok(Some(Linear::new(self.load_all(&weight)?, bias, self.rounds(&weight, stem))?))
    }

    /// The same, if the computation cannot do without.
    pub(super) fn need_linear(&self, stem: &str, at: At) -> Result<Linear> {
        self.linear(stem, at)?.ok_or_else(|| missing(&format!("blk.{}.{stem}.weight", at.layer)))
    }

    /// Some rows of the matrix `blk.{}.STEM.weight`, which holds several.
    pub(super) fn need_rows(&self, stem: &str, rows: Range<usize>, at: At) -> Result<Linear> {
        let found = self.need(&format!("blk.{{}}.{stem}.weight"), at)?;
        Linear::new(self.load(&found, rows)?, None, self.rounds(&found, stem))
    }

    /// Whether this matrix and its inputs are rounded to bfloat16. Routers never are: a token would go to another expert.
    pub(super) fn rounds(&self, found: &Found<'_>, stem: &str) -> bool {
        stem != "ffn_gate_inp"
            && match self.compute {
                Compute::F32 => false,
                Compute::Stored => self.tensors.float_type(found.name) == Some(FloatType::BF16),
                Compute::Bf16 => true,
            }
    }

    /// Whether the family has this matrix in its layers.
    pub(super) fn has(&self, stem: &str) -> bool {
        self.model.spec.rule(&format!("blk.{{}}.{stem}.weight")).is_some()
    }
}

fn missing(name: &str) -> Error {
    Error::new(Kind::Invalid, format!("tensor {name} is missing from the model"))
        .hint("The download may be incomplete, or config.json belongs to another model.")
}
