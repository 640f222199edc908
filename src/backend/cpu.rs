//! The processor.

use std::sync::Arc;

use super::{Accelerator, Backend, Batch, BlockRows, GramSum, Solver};
use crate::error::Result;
use crate::format::gguf::GgmlType;
use crate::format::gguf::blocks::{self, Simd};
use crate::quant::QuantizedLinear;
use crate::quant::awq::clip;
use crate::quant::awq::scales::Trial;
use crate::quant::gptq::{Loss, Problem};
use crate::quant::gram::Gram;

/// The processor, by one of its instruction sets.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// The instruction set; the results do not depend on it.
    pub simd: Simd,
}

impl Backend for Cpu {
    fn name(&self) -> &str {
        "cpu"
    }

    fn batch(&self) -> Batch {
        Batch::Core
    }

    fn encodes(&self, ty: GgmlType) -> bool {
        ty.is_writable()
    }

    fn encode_blocks(&self, rows: BlockRows<'_>, out: &mut [u8]) -> Result<()> {
        blocks::encode(rows.ty, rows.weights, rows.columns, rows.importance, out, self.simd);
        Ok(())
    }

    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        None
    }

    fn gram<'a>(&'a self, size: usize) -> Result<Box<dyn GramSum + 'a>> {
        Ok(Box::new(Gram::new(size)))
    }

    fn awq_losses(&self, trial: &Trial<'_>) -> Result<Vec<f64>> {
        Ok(trial.losses(self.simd))
    }

    fn problems_at_once(&self, _: usize) -> usize {
        1
    }

    fn solver<'a>(&'a self, problems: &'a [Problem]) -> Result<Box<dyn Solver + 'a>> {
        Ok(Box::new(OnCpu { problems, simd: self.simd }))
    }
}

impl GramSum for Gram {
    fn add(&mut self, x: &[f32]) -> Result<()> {
        Gram::add(self, x);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Gram> {
        Ok(*self)
    }
}

/// Problems, solved on the processor.
struct OnCpu<'a> {
    problems: &'a [Problem],
    simd: Simd,
}

impl OnCpu<'_> {
    fn each(
        &self,
        weights: &[&[f32]],
        quantize: fn(&Problem, &[f32], Simd) -> (QuantizedLinear, Loss),
    ) -> Vec<(QuantizedLinear, Loss)> {
        assert_eq!(weights.len(), self.problems.len(), "a matrix for each problem");
        self.problems
            .iter()
            .zip(weights)
            .map(|(problem, weights)| quantize(problem, weights, self.simd))
            .collect()
    }
}

impl Solver for OnCpu<'_> {
    fn gptq(&self, weights: &[&[f32]]) -> Result<Vec<(QuantizedLinear, Loss)>> {
        Ok(self.each(weights, Problem::quantize))
    }

    fn awq(&self, weights: &[&[f32]]) -> Result<Vec<(QuantizedLinear, Loss)>> {
        Ok(self.each(weights, clip::quantize))
    }
}
