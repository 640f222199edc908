//! Rotary position embedding: frequencies as `modeling_rope_utils.py` of transformers computes them, and the rotation.

use std::f32::consts::TAU;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, InplaceOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::activations::Activations;
use super::rows;
use crate::arch::hyper::{Hyper, Rope, RopeScaling};
use crate::backend::Angles;
use crate::error::Result;

/// Cosine and sine of every position's angles.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Angles per position: half of the rotated dimensions.
    half: usize,
    /// `[positions, half]`.
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
}

/// The rope of layers with a sliding window: unscaled, where they have a base of their own.
pub(super) fn of_window(hyper: &Hyper) -> Rope {
    match hyper.rope_theta_swa {
        Some(theta) => Rope { theta, partial: hyper.rope.partial, scaling: RopeScaling::None },
        None => hyper.rope.clone(),
    }
}

impl Table {
    /// For positions from 0 to `sequence`.
    pub(super) fn new(rope: &Rope, hyper: &Hyper, sequence: usize) -> Table {
        let dims = (rope.partial * hyper.head_dim as f64) as usize;
        let (frequencies, factor) = frequencies(rope, dims, hyper.context, sequence);
        let angles = || (0..sequence).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        Table {
            half: frequencies.len(),
            cos: angles().map(|a| a.cos() * factor).collect(),
            sin: angles().map(|a| a.sin() * factor).collect(),
        }
    }

    /// Rotates heads of `head_dim` values in `x` (`[tokens, heads * head_dim]`, of sequences one after the other): in place,
    /// unless gradients are to flow through it.
    pub(super) fn rotate(&self, x: Activations, head_dim: usize) -> Result<Activations> {
        match x {
            Activations::Memory(x) => {
                let rotation = Rotation { table: self.clone(), head_dim, back: false };
                if x.track_op() {
                    return Ok(Activations::Memory(x.contiguous()?.apply_op1(rotation)?));
                }
                x.inplace_op1(&rotation)?;
                Ok(Activations::Memory(x))
            }
            Activations::Device(device, x) => {
                let angles = Angles { half: self.half, cos: &self.cos, sin: &self.sin };
                let x = device.rotate(&x, head_dim, angles)?;
                Ok(Activations::Device(device, x))
            }
        }
    }
}

/// Angle per position and pair of dimensions, and the factor of cosine and sine. `dims` are rotated, `context` is the
/// model's longest, `sequence` the one at hand.
fn frequencies(rope: &Rope, dims: usize, context: Option<usize>, sequence: usize) -> (Vec<f32>, f32) {
    let theta = rope.theta as f32;
    // The wavelength of each pair, as a power of the base.
    let powers = (0..dims / 2).map(|i| theta.powf((2 * i) as f32 / dims as f32));
    match &rope.scaling {
        RopeScaling::None => (powers.map(f32::recip).collect(), 1.0),
        RopeScaling::Linear { factor } => (powers.map(|p| p.recip() / *factor as f32).collect(), 1.0),
        RopeScaling::Yarn { factor, original_context, attention_factor, beta_fast, beta_slow, .. } => {
            let attention = match attention_factor {
                Some(f) => *f,
                None if *factor <= 1.0 => 1.0,
                None => 0.1 * factor.ln() + 1.0,
            };
            // The dimension whose wavelength turns so many times within the original context.
            let dimension = |turns: f64| {
                dims as f64 * (*original_context as f64 / (turns * std::f64::consts::TAU)).ln()
                    / (2.0 * rope.theta.ln())
            };
            let or = |beta: &Option<f64>, otherwise: f64| beta.filter(|b| *b != 0.0).unwrap_or(otherwise);
            let low = dimension(or(beta_fast, 32.0)).floor().max(0.0);
            let mut high = dimension(or(beta_slow, 1.0)).ceil().min(dims as f64 - 1.0);
            if low == high {
                high += 0.001;
            }
            let frequency = |(i, power): (usize, f32)| {
                let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let extrapolated = 1.0 - ramp;
                (*factor as f32 * power).recip() * (1.0 - extrapolated) + power.recip() * extrapolated
            };
            (powers.enumerate().map(frequency).collect(), attention as f32)
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let context = *original_context as f64;
            let (factor, low, high) = (*factor as f32, *low_freq_factor as f32, *high_freq_factor as f32);
            let frequency = |power: f32| {
                let frequency = power.recip();
                let wavelength = TAU / frequency;
                if wavelength > (context / low_freq_factor) as f32 {
                    frequency / factor
                } else if wavelength < (context / high_freq_factor) as f32 {
                    frequency
                } else {
                    let smooth = (context as f32 / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            };
            (powers.map(frequency).collect(), 1.0)
        }
        RopeScaling::LongRope { short, long, original_context, factor } => {
            let original = *original_context as f64;
            let factor = factor.or(context.map(|context| context as f64 / original)).unwrap_or(1.0);
            let attention = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
            let factors = if sequence > *original_context { long } else { short };
            (powers.zip(factors).map(|(p, f)| (*f as f32 * p).recip()).collect(), attention as f32)
        }
    }
}

/// `apply_rotary_pos_emb`: the first half of the rotated dimensions pairs with the second, the rest stays.
struct Rotation {
    table: Table,
    head_dim: usize,
    /// By the negative angles, which is the gradient's way.
    back: bool,
}

impl Rotation {
    fn rotate(&self, values: &mut [f32], layout: &Layout) -> candle_core::Result<()> {
        let (_, columns) = layout.shape().dims2()?;
        let Table { half, cos, sin } = &self.table;
        let width = self.head_dim;
        if columns == 0 || *half == 0 || 2 * half > width || !columns.is_multiple_of(width) {
            candle_core::bail!("heads of {width} in rows of {columns} cannot be rotated by {half} angles");
        }
        let sign = if self.back { -1.0 } else { 1.0 };
        values.par_chunks_exact_mut(columns).enumerate().for_each(|(token, heads)| {
            let at = token % (cos.len() / half) * half;
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            for head in heads.chunks_exact_mut(width) {
                let (first, second) = head[..2 * half].split_at_mut(*half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    let sin = sign * sin;
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        });
        Ok(())
    }
}

impl InplaceOp1 for Rotation {
    fn name(&self) -> &'static str {
        "rotation"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        self.rotate(rows::slice_mut(storage, layout)?, layout)
    }
}

impl CustomOp1 for Rotation {
    fn name(&self) -> &'static str {
        "rotation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut out = rows::slice(x, layout)?.to_vec();
        self.rotate(&mut out, layout)?;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let back = Rotation { table: self.table.clone(), head_dim: self.head_dim, back: !self.back };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Compares with what `ROPE_INIT_FUNCTIONS` of transformers 5.23 gives.
    #[track_caller]
    fn check(theta: f64, scaling: RopeScaling, dims: usize, sequence: usize, expected: &[f64], factor: f64) {
        let rope = Rope { theta, partial: 1.0, scaling };
        let (found, attention) = frequencies(&rope, dims, Some(131072), sequence);
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f64::from(*f) / e - 1.0).abs() < 3e-7, "{found:?}");
        }
        assert!((f64::from(attention) - factor).abs() < 1e-6, "{attention}");
    }

    #[test]
    fn yarn_is_that_of_transformers() {
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 1024,
            extrapolation_factor: None,
            attention_factor: None,
            beta_fast: None,
            beta_slow: None,
        };
        let expected = [
            1.0,
            0.3162277638912201,
            0.08125000447034836,
            0.019764237105846405,
            0.0043750000186264515,
            0.0007905694656074047,
            0.0002500000118743628,
            7.905694656074047e-05,
        ];
        check(1e4, yarn, 16, 8, &expected, 1.138629436111989);
    }

    #[test]
    fn llama3_and_linear_are_those_of_transformers() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 64,
        };
        let expected = [
            1.0,
            0.07940301299095154,
            0.004700753837823868,
            0.0009115831344388425,
            0.00017677668074611574,
            3.428102354519069e-05,
            6.647869668086059e-06,
            1.289173155782919e-06,
        ];
        check(5e5, llama3, 16, 8, &expected, 1.0);
        let expected = [0.3333333432674408, 0.03333333507180214, 0.003333333181217313, 0.0003333333588670939];
        check(1e4, RopeScaling::Linear { factor: 3.0 }, 8, 8, &expected, 1.0);
    }

    #[test]
    fn longrope_is_that_of_transformers_in_short_and_long_contexts() {
        let longrope = RopeScaling::LongRope {
            short: vec![1.0, 1.02, 1.05, 1.1, 1.2, 1.4],
            long: vec![1.0, 1.5, 3.0, 10.0, 30.0, 50.0],
            original_context: 4096,
            factor: None,
        };
        let short = [
            1.0,
            0.21121908724308014,
            0.04420560225844383,
            0.00909090880304575,
            0.0017953618662431836,
            0.0003315421345178038,
        ];
        let long = [
            1.0,
            0.14362896978855133,
            0.015471960417926311,
            0.0010000000474974513,
            7.181448017945513e-05,
            9.283178769692313e-06,
        ];
        check(1e4, longrope.clone(), 12, 4096, &short, 1.1902380714238083);
        check(1e4, longrope, 12, 4097, &long, 1.1902380714238083);
    }

    #[test]
    fn halves_are_paired_and_the_rest_of_a_head_stays() {
        let table = Table { half: 1, cos: [1.0, 0.0].into(), sin: [0.0, 1.0].into() };
        // Two sequences of two tokens with one head of three dimensions.
        let x = Tensor::new(&[[1.0f32, 2.0, 3.0]; 4], &Device::Cpu).unwrap();
        let x = table.rotate(Activations::Memory(x), 3).unwrap().tensor().unwrap();
        let x = x.to_vec2::<f32>().unwrap();
        assert_eq!(x, [[1.0, 2.0, 3.0], [-2.0, 1.0, 3.0], [1.0, 2.0, 3.0], [-2.0, 1.0, 3.0]]);
    }
}
