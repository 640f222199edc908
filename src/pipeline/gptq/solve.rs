//! The matrices at which a layer stops, quantized by GPTQ.

use std::time::Instant;

use super::report::{How, Linear};
use crate::arch::decoder::Layer;
use crate::error::Result;
use crate::pipeline::layerwise::report::Seen;
use crate::pipeline::layerwise::{Grids, Matrix, Method as Layerwise, Results, Stop, Walk};
use crate::quant::gptq::{Method, Problem, Settings};
use crate::quant::gram::Gram;

/// The method.
pub(super) struct Solver<'a> {
    pub(super) walk: Walk<'a>,
    /// Of the grid that most matrices have.
    pub(super) settings: &'a Settings,
    pub(super) grids: &'a Grids,
}

impl Layerwise for Solver<'_> {
    const STAGE: &'static str = "Quantizing to GPTQ";

    type How = How;

    fn quantize(&mut self, stop: Stop<'_>, layer: &mut Layer, results: &mut Results<How>) -> Result<()> {
        for (input, gram) in stop.grams {
            let sharing: Vec<&Matrix> = stop.matrices.iter().copied().filter(|m| m.input == input).collect();
            self.quantize_sharing(&sharing, gram, layer, results)?;
        }
        Ok(())
    }

    fn finish_layer(&mut self, _: &mut Results<How>) -> Result<()> {
        Ok(())
    }
}

impl Solver<'_> {
    /// Quantizes the matrices that share an input, and so a grid, as loaders join them.
    fn quantize_sharing(
        &self,
        matrices: &[&Matrix],
        gram: Gram,
        layer: &mut Layer,
        results: &mut Results<How>,
    ) -> Result<()> {
        let Some(first) = matrices.first() else { return Ok(()) };
        let watch = self.walk.watch;
        let started = Instant::now();
        let seen = Seen::of(&gram);
        let rare = seen.are_few(first.input, gram.size());
        let problem = Problem::new(gram, &self.settings.with_grid(self.grids.of(&first.name)), !rare);
        let solver = self.walk.backend.solver(&problem)?;
        let prepared = started.elapsed();
        let how = match problem.method() {
            Method::Propagated { damp } => How::Gptq { damp },
            Method::Searched if rare => How::FewTokens,
            Method::Searched => How::Singular,
        };
        let share = 1.0 / matrices.len() as f64;
        for matrix in matrices {
            watch.cancel.check()?;
            watch.progress.item(&matrix.name);
            self.warn(matrix, how, seen.tokens);
            let started = Instant::now();
            let weights = matrix.read(self.walk.weights)?;
            let (linear, loss) = solver.gptq(&weights)?;
            let quantized = linear.dequantize();
            layer.replace(matrix.stem, matrix.expert, &quantized)?;
            let seconds = prepared.as_secs_f64() * share + started.elapsed().as_secs_f64();
            let reported = Linear::new(matrix, how, loss, seen, &weights, &quantized, seconds);
            let bias = matrix.read_bias(self.walk.weights)?;
            results.add(matrix, &linear, bias.as_deref(), reported)?;
            watch.progress.advance(weights.len() as u64);
        }
        Ok(())
    }

    fn warn(&self, matrix: &Matrix, how: How, tokens: usize) {
        let (name, progress) = (&matrix.name, self.walk.watch.progress);
        match how {
            How::Gptq { damp } if damp > self.settings.damp => {
                progress.warn(&format!("{name}: its Hessian needed damping {damp:.2} instead of {}", self.settings.damp));
            }
            How::Gptq { .. } => {}
            How::FewTokens => progress.warn(&format!(
                "{name} saw {tokens} tokens, too few for error propagation; it is quantized by the scale search alone"
            )),
            How::Singular => progress.warn(&format!(
                "{name}: its Hessian is singular beyond repair; it is quantized by the scale search alone"
            )),
        }
    }
}
