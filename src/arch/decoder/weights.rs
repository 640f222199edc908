//! The weights of a checkpoint as tensors in float32, by the names that they have in GGUF.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::linear::Linear;
use super::norm::Norm;
use crate::arch::Model;
use crate::arch::spec::Need;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::blocks::{self, Simd};
use crate::source::safetensors::{FloatType, TensorInfo, Tensors};

/// Weights that one thread widens at a time.
const PIECE: usize = 1 << 16;

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
    info: &'a TensorInfo,
}

/// The tensors of a checkpoint under the names that the rules use.
#[derive(Debug)]
pub(super) struct Weights<'a> {
    model: &'a Model,
    tensors: &'a Tensors,
    canonical: BTreeMap<String, (&'a str, &'a TensorInfo)>,
}

impl<'a> Weights<'a> {
    pub(super) fn new(model: &'a Model, tensors: &'a Tensors) -> Self {
        let canonical = tensors
            .iter()
            .filter_map(|(name, info)| Some((model.spec.canonical(name)?, (name, info))))
            .collect();
        Weights { model, tensors, canonical }
    }

    /// The tensor with the name `gguf`, where `{}` stands for the layer, if the family and the model have it.
    pub(super) fn find(&self, gguf: &str, at: At) -> Result<Option<Found<'a>>> {
        let Some(rule) = self.model.spec.rule(gguf) else { return Ok(None) };
        let hyper = &self.model.hyper;
        let canonical = rule.hf.replace("{}", &at.layer.to_string()).replace("{e}", &at.expert.to_string());
        let Some(&(name, info)) = self.canonical.get(&canonical) else {
            return match rule.need {
                Need::Optional => Ok(None),
                Need::UnlessTied if hyper.tied => Ok(None),
                _ => Err(missing(&canonical)),
            };
        };
        let expected: Vec<usize> = rule.shape.iter().map(|dim| dim.size(hyper)).collect();
        if info.shape != expected {
            return Err(Error::new(
                Kind::Invalid,
                format!("tensor {name} has shape {:?}; config.json implies {expected:?}", info.shape),
            ));
        }
        Ok(Some(Found { name, info }))
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
        let Found { name, info } = found;
        let size = info.dtype.bytes();
        let width = info.shape.iter().skip(1).product::<usize>() * size;
        let bytes = &self.tensors.bytes(info)[rows.start * width..rows.end * width];
        let widen = match info.dtype {
            FloatType::F32 => blocks::f32_from_le,
            FloatType::F16 => blocks::f16_to_f32,
            FloatType::BF16 => blocks::bf16_to_f32,
        };
        let simd = Simd::best();
        let finite = out
            .par_chunks_mut(PIECE)
            .zip(bytes.par_chunks(PIECE * size))
            .map(|(out, bytes)| {
                widen(bytes, out, simd);
                out.iter().fold(true, |finite, w| finite & w.is_finite())
            })
            .reduce(|| true, |a, b| a & b);
        if finite {
            return Ok(());
        }
        Err(Error::new(Kind::Invalid, format!("tensor {name} holds NaN or infinity"))
            .hint("The checkpoint is damaged or training diverged; a quantized copy would be useless."))
    }

    /// `rows` of a tensor, as a tensor.
    pub(super) fn load(&self, found: &Found<'_>, rows: Range<usize>) -> Result<Tensor> {
        let mut shape = found.info.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = rows.len();
        }
        let mut values = vec![0.0; shape.iter().product()];
        self.read(found, rows, &mut values)?;
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    fn load_all(&self, found: &Found<'_>) -> Result<Tensor> {
        self.load(found, 0..found.info.shape.first().copied().unwrap_or(1))
    }

    /// The norm of this name, with the family's offset.
    pub(super) fn norm(&self, gguf: &str, at: At) -> Result<Option<Norm>> {
        let Some(found) = self.find(gguf, at)? else { return Ok(None) };
        let weight = (self.load_all(&found)? + f64::from(self.model.spec.norm_offset))?;
        Ok(Some(Norm { weight, epsilon: self.model.hyper.rms_epsilon as f32 }))
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
        Ok(Some(Linear { weight: self.load_all(&weight)?, bias }))
    }

    /// The same, if the computation cannot do without.
    pub(super) fn need_linear(&self, stem: &str, at: At) -> Result<Linear> {
        self.linear(stem, at)?.ok_or_else(|| missing(&format!("blk.{}.{stem}.weight", at.layer)))
    }

    /// Some rows of the matrix `blk.{}.STEM.weight`, which holds several.
    pub(super) fn need_rows(&self, stem: &str, rows: Range<usize>, at: At) -> Result<Linear> {
        let found = self.need(&format!("blk.{{}}.{stem}.weight"), at)?;
        Ok(Linear { weight: self.load(&found, rows)?, bias: None })
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
