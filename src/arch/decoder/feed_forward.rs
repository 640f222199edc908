//! The gated feed-forward part, `LlamaMLP` and its kin in transformers.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::activations::{Activations, elsewhere};
use super::exp::{exp, tanh};
use super::linear::Linear;
use super::rows;
use super::weights::{At, Weights};
use super::{Input, LinearId, Tap};
use crate::arch::Model;
use crate::arch::spec::Activation;
use crate::backend::Accelerator;
use crate::error::Result;
use crate::format::gguf::blocks::Simd;

/// Values that one thread computes at a time.
const PIECE: usize = 1 << 12;

/// `down(activation(gate(x)) * up(x))`.
#[derive(Debug)]
pub(super) struct FeedForward {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
    /// Whether gate and up are one matrix in the checkpoint, the gate first.
    joined: bool,
    width: usize,
    hidden: usize,
}

impl FeedForward {
    /// That of a layer. Without a matrix for the gate, that for `up` holds both, the gate first.
    pub(super) fn load(model: &Model, weights: &Weights<'_>, at: At) -> Result<FeedForward> {
        let n = model.hyper.feed_forward;
        let joined = !weights.has("ffn_gate");
        let (gate, up) = if joined {
            (weights.need_rows("ffn_up", 0..n, at)?, weights.need_rows("ffn_up", n..2 * n, at)?)
        } else {
            (weights.need_linear("ffn_gate", at)?, weights.need_linear("ffn_up", at)?)
        };
        Ok(FeedForward {
            gate,
            up,
            down: weights.need_linear("ffn_down", at)?,
            activation: model.spec.arithmetic.activation,
            joined,
            width: n,
            hidden: model.hyper.hidden,
        })
    }

    /// That of one expert.
    pub(super) fn load_expert(model: &Model, weights: &Weights<'_>, at: At) -> Result<FeedForward> {
        let down = weights.need_linear("ffn_down_exps", at)?;
        Ok(FeedForward {
            gate: weights.need_linear("ffn_gate_exps", at)?,
            up: weights.need_linear("ffn_up_exps", at)?,
            width: down.inner()?,
            down,
            activation: model.spec.arithmetic.activation,
            joined: false,
            hidden: model.hyper.hidden,
        })
    }

    /// Gate, up and down.
    pub(super) fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// The matrices that the weights of a name in GGUF (`ffn_up`, or `ffn_up_exps` of an expert) are, with their rows of it.
    pub(super) fn parts(&mut self, stem: &str) -> Vec<(&mut Linear, Range<usize>)> {
        let (n, hidden) = (self.width, self.hidden);
        match stem {
            "ffn_gate" | "ffn_gate_exps" => vec![(&mut self.gate, 0..n)],
            "ffn_up" if self.joined => vec![(&mut self.gate, 0..n), (&mut self.up, n..2 * n)],
            "ffn_up" | "ffn_up_exps" => vec![(&mut self.up, 0..n)],
            "ffn_down" | "ffn_down_exps" => vec![(&mut self.down, 0..hidden)],
            _ => Vec::new(),
        }
    }

    /// What goes into down: `[tokens, hidden]` in, `[tokens, feed_forward]` out.
    pub(super) fn gated(&self, x: &Activations) -> Result<Activations> {
        match (self.gate.forward(x)?, self.up.forward(x)?) {
            (Activations::Memory(gate), Activations::Memory(up)) => {
                Ok(Activations::Memory(gate.apply_op2(&up, Gate(self.activation))?))
            }
            (Activations::Device(device, gate), Activations::Device(_, up)) => {
                let gated = device.gate(self.activation, &gate, &up)?;
                Ok(Activations::Device(device, gated))
            }
            _ => Err(elsewhere()),
        }
    }

    /// Its matrices move to a device.
    pub(super) fn move_to(&mut self, device: &Arc<dyn Accelerator>) -> Result<()> {
        [&mut self.gate, &mut self.up, &mut self.down].into_iter().try_for_each(|l| l.move_to(device))
    }

    /// What comes out of down: `[tokens, feed_forward]` in, `[tokens, hidden]` out.
    pub(super) fn output(&self, gated: &Activations) -> Result<Activations> {
        self.down.forward(gated)
    }

    /// `[tokens, hidden]` in and out. `inputs` are those of gate and up, and of down.
    pub(super) fn forward(
        &self,
        x: &Activations,
        layer: usize,
        inputs: [Input; 2],
        tap: &mut dyn Tap,
    ) -> Result<Activations> {
        let [input, input_down] = inputs;
        tap.input(LinearId { layer, input }, x)?;
        let gated = self.gated(x)?;
        tap.input(LinearId { layer, input: input_down }, &gated)?;
        self.output(&gated)
    }
}

/// `activation(a) * b`.
pub(super) struct Gate(pub(super) Activation);

impl CustomOp2 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (a, b) = (rows::slice(a, a_layout)?, rows::slice(b, b_layout)?);
        if a.len() != b.len() {
            candle_core::bail!("{} values cannot gate {}", a.len(), b.len());
        }
        let simd = Simd::best();
        let mut out = vec![0.0; a.len()];
        let pieces = out.par_chunks_mut(PIECE).zip(a.par_chunks(PIECE)).zip(b.par_chunks(PIECE));
        pieces.for_each(|((out, a), b)| {
            let each = out.iter_mut().zip(a).zip(b);
            match self.0 {
                Activation::Silu => simd.compile(|| each.for_each(|((out, a), b)| *out = silu(*a) * b)),
                Activation::GeluTanh => {
                    simd.compile(|| each.for_each(|((out, a), b)| *out = gelu_tanh(*a) * b));
                }
            }
        });
        Ok((CpuStorage::F32(out), a_layout.shape().clone()))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let simd = Simd::best();
        let (to_a, to_b) = rows::with_slices([a, b, &grad], |[a, b, grad]| {
            let (mut to_a, mut to_b) = (vec![0.0; a.len()], vec![0.0; a.len()]);
            let outs = to_a.par_chunks_mut(PIECE).zip(to_b.par_chunks_mut(PIECE));
            let ins = a.par_chunks(PIECE).zip(b.par_chunks(PIECE)).zip(grad.par_chunks(PIECE));
            outs.zip(ins).for_each(|((to_a, to_b), ((a, b), grad))| {
                let each = to_a.iter_mut().zip(to_b).zip(a.iter().zip(b).zip(grad));
                let gradients =
                    |(value, slope): (f32, f32), b: f32, grad: f32| (grad * b * slope, grad * value);
                match self.0 {
                    Activation::Silu => simd.compile(|| {
                        each.for_each(|((to_a, to_b), ((a, b), grad))| {
                            (*to_a, *to_b) = gradients(silu_and_slope(*a), *b, *grad);
                        });
                    }),
                    Activation::GeluTanh => simd.compile(|| {
                        each.for_each(|((to_a, to_b), ((a, b), grad))| {
                            (*to_a, *to_b) = gradients(gelu_tanh_and_slope(*a), *b, *grad);
                        });
                    }),
                }
            });
            (to_a, to_b)
        })?;
        let tensor = |values| Tensor::from_vec(values, a.shape(), a.device());
        Ok((Some(tensor(to_a)?), Some(tensor(to_b)?)))
    }
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn silu_and_slope(x: f32) -> (f32, f32) {
    let share = 1.0 / (1.0 + exp(-x));
    (x * share, share * (1.0 + x * (1.0 - share)))
}

/// The root of 2 / pi, and the share of the cube, in the approximation of GELU.
const ROOT: f32 = 0.797_884_6;
const CUBE: f32 = 0.044715;

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(ROOT * (x + CUBE * x * x * x)))
}

#[inline(always)]
fn gelu_tanh_and_slope(x: f32) -> (f32, f32) {
    let t = tanh(ROOT * (x + CUBE * x * x * x));
    let inner = ROOT * (1.0 + 3.0 * CUBE * x * x);
    (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_are_those_of_pytorch() {
        // torch.nn.functional.silu and gelu(approximate="tanh") in float64.
        for (x, s, g) in [
            (-4.0, -0.07194483984836623, -7.024594819227126e-05),
            (-0.5, -0.1887703343990727, -0.15428599017485606),
            (0.0, 0.0, 0.0),
            (1.0, 0.7310585786300049, 0.8411919906082768),
            (6.0, 5.985164261060192, 5.9999999999156035),
        ] {
            assert!((f64::from(silu(x)) - s).abs() < 1e-6, "{x}");
            assert!((f64::from(gelu_tanh(x)) - g).abs() < 1e-6, "{x}");
        }
        assert_eq!((silu(-1e3), gelu_tanh(-1e3)), (0.0, 0.0));
    }
}
