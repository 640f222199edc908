//! A mixture of experts, `MixtralSparseMoeBlock` and `Qwen3MoeSparseMoeBlock` of transformers.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::activations::{Activations, elsewhere};
use super::feed_forward::FeedForward;
use super::linear::Linear;
use super::weights::{At, Weights};
use super::{Input, LinearId, Tap};
use crate::arch::Model;
use crate::backend::{Accelerator, ExpertRows};
use crate::error::{Error, Kind, Result};

/// The experts of one layer.
#[derive(Debug)]
pub(super) struct Experts {
    router: Linear,
    experts: Vec<FeedForward>,
    used: usize,
    /// Whether the weights of the chosen ones add up to 1.
    normalise: bool,
}

impl Experts {
    pub(super) fn load(model: &Model, weights: &Weights<'_>, at: At) -> Result<Experts> {
        let hyper = &model.hyper;
        let (all, used) = (hyper.experts, hyper.experts_used);
        if used == 0 || used > all {
            return Err(Error::new(
                Kind::Invalid,
                format!("config.json: `num_experts_per_tok` must be from 1 to {all}, found {used}"),
            ));
        }
        Ok(Experts {
            router: weights.need_linear("ffn_gate_inp", at)?,
            experts: (0..all)
                .map(|expert| FeedForward::load_expert(model, weights, At { expert, ..at }))
                .collect::<Result<_>>()?,
            used,
            normalise: model.spec.arithmetic.normalise_experts.map_or(Ok(true), |k| model.config.flag(k))?,
        })
    }

    /// How many there are, and how many each token goes to.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.experts.len(), self.used)
    }

    /// The matrices that one of its inputs goes into.
    pub(super) fn linears(&self, input: Input) -> Vec<(&'static str, &Linear)> {
        let expert = |e: usize| self.experts.get(e).map(FeedForward::linears);
        match input {
            Input::Router => vec![("ffn_gate_inp", &self.router)],
            Input::Expert(e) => expert(e)
                .map_or(Vec::new(), |[gate, up, _]| vec![("ffn_gate_exps", gate), ("ffn_up_exps", up)]),
            Input::ExpertDown(e) => expert(e).map_or(Vec::new(), |[.., down]| vec![("ffn_down_exps", down)]),
            _ => Vec::new(),
        }
    }

    /// The matrices that the weights of a name in GGUF (`ffn_up_exps`) of one expert are, with their rows of it.
    pub(super) fn parts(&mut self, stem: &str, expert: usize) -> Vec<(&mut Linear, Range<usize>)> {
        self.experts.get_mut(expert).map_or(Vec::new(), |expert| expert.parts(stem))
    }

    /// `[tokens, hidden]` in and out.
    pub(super) fn forward(&self, x: &Activations, layer: usize, tap: &mut dyn Tap) -> Result<Activations> {
        tap.input(LinearId { layer, input: Input::Router }, x)?;
        let mut parts = Vec::new();
        for (e, routed) in self.routes(x)? {
            let inputs = [Input::Expert(e), Input::ExpertDown(e)];
            let out = self.experts[e].forward(&select(x, &routed)?, layer, inputs, tap)?;
            parts.push((out, routed));
        }
        combine(&parts, x.shape()?, x)
    }

    /// Its matrices move to a device.
    pub(super) fn move_to(&mut self, device: &Arc<dyn Accelerator>) -> Result<()> {
        self.router.move_to(device)?;
        self.experts.iter_mut().try_for_each(|expert| expert.move_to(device))
    }

    /// Shows `tap` what goes into the router and into gate and up of each expert.
    pub(super) fn show_inputs(&self, x: &Activations, layer: usize, tap: &mut dyn Tap) -> Result<()> {
        tap.input(LinearId { layer, input: Input::Router }, x)?;
        for (e, routed) in self.routes(x)? {
            tap.input(LinearId { layer, input: Input::Expert(e) }, &select(x, &routed)?)?;
        }
        Ok(())
    }

    /// What goes into down of each expert: `[tokens, hidden]` in.
    pub(super) fn gated(&self, x: &Activations) -> Result<Vec<Gated>> {
        let gated = |(expert, routed): (usize, Vec<Routed>)| {
            let gated = self.experts[expert].gated(&select(x, &routed)?)?;
            Ok(Gated { expert, routed, gated })
        };
        self.routes(x)?.map(gated).collect()
    }

    /// What comes out of all experts: `[tokens, hidden]`, where `hidden`, of this shape, is.
    pub(super) fn output(&self, all: &[Gated], hidden: &Activations) -> Result<Activations> {
        let output = |Gated { expert, routed, gated }: &Gated| {
            Ok((self.experts[*expert].output(gated)?, routed.clone()))
        };
        let parts = all.iter().map(output).collect::<Result<Vec<_>>>()?;
        combine(&parts, hidden.shape()?, hidden)
    }

    /// The tokens of each expert that has any, with their weights. The choice is the processor's: it takes little, and needs
    /// them in memory.
    fn routes(&self, x: &Activations) -> Result<impl Iterator<Item = (usize, Vec<Routed>)> + use<>> {
        let mut all = vec![Vec::new(); self.experts.len()];
        for (token, logits) in self.router.forward(x)?.tensor()?.to_vec2::<f32>()?.iter().enumerate() {
            for (expert, weight) in route(logits, self.used, self.normalise) {
                all[expert].push((token as u32, weight));
            }
        }
        Ok(all.into_iter().enumerate().filter(|(_, routed)| !routed.is_empty()))
    }
}

/// A token and the weight that an expert has for it.
type Routed = (u32, f32);

/// What goes into down of one expert.
#[derive(Debug)]
pub(super) struct Gated {
    pub(super) expert: usize,
    pub(super) routed: Vec<Routed>,
    /// `[tokens routed there, feed_forward]`.
    pub(super) gated: Activations,
}

/// The rows of the tokens that an expert gets.
fn select(x: &Activations, routed: &[Routed]) -> Result<Activations> {
    let tokens: Vec<u32> = routed.iter().map(|(token, _)| *token).collect();
    x.select(&tokens)
}

/// The sum of what experts have made of their tokens, where `there` is.
fn combine<'a>(
    parts: &'a [(Activations, Vec<Routed>)],
    [rows, columns]: [usize; 2],
    there: &Activations,
) -> Result<Activations> {
    match there {
        Activations::Memory(_) => {
            let mut sum = vec![0.0; rows * columns];
            for (out, routed) in parts {
                add(&mut sum, &out.tensor()?, routed)?;
            }
            Ok(Activations::Memory(Tensor::from_vec(sum, (rows, columns), &Device::Cpu)?))
        }
        Activations::Device(device, _) => {
            let part = |(out, routed): &'a (Activations, Vec<Routed>)| match out {
                Activations::Device(_, values) => Ok(ExpertRows { values, routed }),
                Activations::Memory(_) => Err(elsewhere()),
            };
            let parts = parts.iter().map(part).collect::<Result<Vec<_>>>()?;
            Ok(Activations::Device(device.clone(), device.combine(rows, columns, &parts)?))
        }
    }
}

/// Adds what an expert has made of its tokens.
fn add(sum: &mut [f32], out: &Tensor, routed: &[Routed]) -> Result<()> {
    let width = out.dim(1)?;
    let out = out.flatten_all()?.to_vec1::<f32>()?;
    for ((token, weight), out) in routed.iter().zip(out.chunks_exact(width)) {
        let sum = &mut sum[*token as usize * width..][..width];
        sum.iter_mut().zip(out).for_each(|(sum, v)| *sum += v * weight);
    }
    Ok(())
}

/// The `used` most likely experts and their weights: the softmax over all experts, of the chosen ones divided by their
/// sum if that is to be 1.
fn route(logits: &[f32], used: usize, normalise: bool) -> Vec<(usize, f32)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut chosen: Vec<(usize, f32)> = logits.iter().map(|l| (l - max).exp()).enumerate().collect();
    let total: f32 = chosen.iter().map(|(_, p)| p).sum();
    chosen.sort_by(|a, b| b.1.total_cmp(&a.1));
    chosen.truncate(used);
    let divisor = if normalise { chosen.iter().map(|(_, p)| p).sum() } else { total };
    chosen.iter_mut().for_each(|(_, p)| *p /= divisor);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_experts_share_the_weight() {
        let logits = [1.0f32, 3.0, 2.0, 0.0].map(f32::ln);
        let near = |found: Vec<(usize, f32)>, expected: [(usize, f32); 2]| {
            found.iter().zip(expected).all(|(f, e)| f.0 == e.0 && (f.1 - e.1).abs() < 1e-6)
        };
        assert!(near(route(&logits, 2, true), [(1, 0.6), (2, 0.4)]));
        assert!(near(route(&logits, 2, false), [(1, 0.5), (2, 1.0 / 3.0)]));
        assert_eq!(route(&[f32::NAN, 1.0], 1, true).len(), 1);
    }
}
