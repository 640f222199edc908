//! From products of queries and keys to weights: scale, soft cap, mask and softmax in one pass.

use candle_core::{CpuStorage, CustomOp1, InplaceOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::exp::{exp, tanh};
use super::rows;
use crate::error::Result;
use crate::format::gguf::blocks::Simd;

/// Softmax over the keys that a query may see. `[.., queries, keys]`, with as many queries as keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct CausalSoftmax {
    pub(super) scale: f32,
    /// Scores go through `cap * tanh(score / cap)`.
    pub(super) soft_cap: Option<f32>,
    /// A query sees this many tokens, itself included (`sliding_window_overlay`: `kv_idx > q_idx - sliding_window`).
    pub(super) window: Option<usize>,
}

impl CausalSoftmax {
    #[inline(always)]
    fn row(&self, query: usize, scores: &mut [f32]) {
        let first = self.window.map_or(0, |window| (query + 1).saturating_sub(window));
        let (before, rest) = scores.split_at_mut(first);
        let (seen, after) = rest.split_at_mut(query + 1 - first);
        before.fill(0.0);
        after.fill(0.0);
        let scale = self.scale;
        match self.soft_cap {
            Some(cap) => seen.iter_mut().for_each(|s| *s = tanh(*s * scale / cap) * cap),
            None => seen.iter_mut().for_each(|s| *s *= scale),
        }
        let max = largest(seen);
        seen.iter_mut().for_each(|s| *s = exp(*s - max));
        let sum = sum(seen);
        seen.iter_mut().for_each(|s| *s /= sum);
    }
}

/// Values that are reduced side by side, so that reductions compile to vector instructions; their number decides the order
/// of a sum and hence its bits.
const SIDE: usize = 16;

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut side = [f32::NEG_INFINITY; SIDE];
    let (chunks, rest) = values.as_chunks::<SIDE>();
    for chunk in chunks.iter() {
        for (m, v) in side.iter_mut().zip(chunk) {
            *m = if *v > *m { *v } else { *m };
        }
    }
    side.iter().chain(rest).fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m })
}

#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let mut side = [0.0; SIDE];
    let (chunks, rest) = values.as_chunks::<SIDE>();
    for chunk in chunks {
        for (s, v) in side.iter_mut().zip(chunk) {
            *s += *v;
        }
    }
    side.iter().chain(rest).sum()
}

impl CausalSoftmax {
    /// The weights of all scores: in place, unless gradients are to flow through them.
    pub(super) fn forward(&self, scores: Tensor) -> Result<Tensor> {
        if scores.track_op() {
            return Ok(scores.contiguous()?.apply_op1(*self)?);
        }
        scores.inplace_op1(self)?;
        Ok(scores)
    }

    fn all_rows(&self, scores: &mut [f32], layout: &Layout) -> candle_core::Result<()> {
        let [.., queries, keys] = *layout.dims() else { candle_core::bail!("scores are matrices") };
        if queries != keys || keys == 0 {
            candle_core::bail!("{queries} queries cannot attend causally to {keys} keys");
        }
        let simd = Simd::best();
        scores
            .par_chunks_exact_mut(keys)
            .enumerate()
            .for_each(|(row, scores)| simd.compile(|| self.row(row % queries, scores)));
        Ok(())
    }

    /// From the gradient of a row of weights to that of its scores. What is masked has weight 0, and so has its gradient.
    #[inline(always)]
    fn row_gradient(&self, scores: &[f32], weights: &[f32], grad: &mut [f32]) {
        let mut sums = [0.0; SIDE];
        let (chunks, rest) = weights.as_chunks::<SIDE>();
        for (chunk, grad) in chunks.iter().zip(grad.chunks_exact(SIDE)) {
            for ((sum, weight), grad) in sums.iter_mut().zip(chunk).zip(grad) {
                *sum += weight * grad;
            }
        }
        let done = weights.len() - rest.len();
        let mean = sums.iter().sum::<f32>() + rest.iter().zip(&grad[done..]).map(|(w, g)| w * g).sum::<f32>();
        for (grad, weight) in grad.iter_mut().zip(weights) {
            *grad = weight * (*grad - mean) * self.scale;
        }
        if let Some(cap) = self.soft_cap {
            for ((grad, score), weight) in grad.iter_mut().zip(scores).zip(weights) {
                // Masked scores may be anything.
                let slope = tanh(*score * self.scale / cap);
                *grad = if *weight > 0.0 { *grad * (1.0 - slope * slope) } else { 0.0 };
            }
        }
    }
}

impl InplaceOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        self.all_rows(rows::slice_mut(storage, layout)?, layout)
    }
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, scores: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut weights = rows::slice(scores, layout)?.to_vec();
        self.all_rows(&mut weights, layout)?;
        Ok((CpuStorage::F32(weights), layout.shape().clone()))
    }

    fn bwd(&self, scores: &Tensor, weights: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let keys = *scores.dims().last().unwrap_or(&1);
        let grad = grad.contiguous()?;
        let simd = Simd::best();
        let out = rows::with_slices([scores, weights, &grad], |[scores, weights, grad]| {
            let mut out = grad.to_vec();
            out.par_chunks_exact_mut(keys)
                .zip(scores.par_chunks_exact(keys).zip(weights.par_chunks_exact(keys)))
                .for_each(|(out, (scores, weights))| {
                    simd.compile(|| self.row_gradient(scores, weights, out));
                });
            out
        })?;
        Ok(Some(Tensor::from_vec(out, scores.shape(), scores.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn weights(softmax: CausalSoftmax, scores: [[f32; 4]; 4]) -> Vec<Vec<f32>> {
        let scores = Tensor::new(&scores, &Device::Cpu).unwrap();
        softmax.forward(scores).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn a_query_sees_the_past_up_to_its_window() {
        let all = CausalSoftmax { scale: 1.0, soft_cap: None, window: None };
        let third = 1.0 / 3.0;
        assert_eq!(
            weights(all, [[7.0; 4]; 4]),
            [[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [third, third, third, 0.0], [0.25; 4]]
        );
        let two = CausalSoftmax { window: Some(2), ..all };
        assert_eq!(
            weights(two, [[7.0; 4]; 4]),
            [[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.5, 0.5]]
        );
    }

    #[test]
    fn what_is_masked_does_not_matter_and_large_scores_do_not_overflow() {
        let softmax = CausalSoftmax { scale: 2.0, soft_cap: Some(50.0), window: None };
        let mut scores = [[1e30f32; 4]; 4];
        scores[0][1] = f32::NAN;
        scores[1] = [1.0, 3.0, f32::INFINITY, f32::NAN];
        let found = weights(softmax, scores);
        assert_eq!(found[0], [1.0, 0.0, 0.0, 0.0]);
        let expected = {
            let (a, b) = (50.0 * (2.0f64 / 50.0).tanh(), 50.0 * (6.0f64 / 50.0).tanh());
            1.0 / (1.0 + (b - a).exp())
        };
        assert!((f64::from(found[1][0]) - expected).abs() < 1e-6);
        assert_eq!(found[3], [0.25; 4]);
    }
}
