//! The matrices at which a layer stops, quantized by GPTQ.

use std::collections::BTreeMap;
use std::time::Instant;

use super::report::{How, Linear};
use crate::arch::decoder::Layer;
use crate::backend;
use crate::error::Result;
use crate::pipeline::layerwise::report::Seen;
use crate::pipeline::layerwise::{Grids, Matrix, Method as Layerwise, Results, Stop, Walk};
use crate::quant::QuantizedLinear;
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
        let mut batch: Vec<(Vec<&Matrix>, Gram)> = Vec::new();
        for (input, gram) in stop.grams {
            let sharing: Vec<&Matrix> = stop.matrices.iter().copied().filter(|m| m.input == input).collect();
            if sharing.is_empty() {
                continue;
            }
            if batch.first().is_some_and(|(first, _)| {
                batch.len() >= self.walk.backend.problems_at_once(first[0].shape[0])
                    || !self.are_like(first, &sharing)
            }) {
                self.quantize_batch(std::mem::take(&mut batch), layer, results)?;
            }
            batch.push((sharing, gram));
        }
        self.quantize_batch(batch, layer, results)
    }

    fn finish_layer(&mut self, _: &mut Results<How>) -> Result<()> {
        Ok(())
    }
}

/// A matrix that is quantized.
struct Solved<'a> {
    matrix: &'a Matrix,
    linear: QuantizedLinear,
    reported: Linear,
}

/// Matrices that share an input.
struct Sharing<'a> {
    matrices: Vec<&'a Matrix>,
    seen: Seen,
    how: How,
}

/// Problems that are solved together, and the numbers of the inputs that they are those of.
#[derive(Default)]
struct Set {
    problems: Vec<Problem>,
    inputs: Vec<usize>,
}

impl Solver<'_> {
    /// Whether the matrices of two inputs, such as two experts, are of the same shapes and grid.
    fn are_like(&self, one: &[&Matrix], other: &[&Matrix]) -> bool {
        one.len() == other.len()
            && one.iter().zip(other).all(|(a, b)| a.shape == b.shape)
            && self.grids.of(&one[0].name) == self.grids.of(&other[0].name)
    }

    /// Quantizes the matrices of inputs that are like each other. Those that share an input share a grid, as loaders join
    /// them.
    fn quantize_batch(
        &self,
        batch: Vec<(Vec<&Matrix>, Gram)>,
        layer: &mut Layer,
        results: &mut Results<How>,
    ) -> Result<()> {
        let started = Instant::now();
        let mut inputs = Vec::with_capacity(batch.len());
        let mut sets: Vec<Set> = Vec::new();
        for (matrices, gram) in batch {
            self.walk.watch.cancel.check()?;
            let seen = Seen::of(&gram);
            let rare = seen.are_few(matrices[0].input, gram.size());
            let settings = self.settings.with_grid(self.grids.of(&matrices[0].name));
            let problem = Problem::new(gram, &settings, !rare);
            let how = match problem.method() {
                Method::Propagated { damp } => How::Gptq { damp },
                Method::Searched if rare => How::FewTokens,
                Method::Searched => How::Singular,
            };
            let at = sets.iter().position(|set| set.problems[0].is_like(&problem)).unwrap_or_else(|| {
                sets.push(Set::default());
                sets.len() - 1
            });
            sets[at].problems.push(problem);
            sets[at].inputs.push(inputs.len());
            inputs.push(Sharing { matrices, seen, how });
        }
        let all: usize = inputs.iter().map(|input| input.matrices.len()).sum();
        let prepared = started.elapsed().as_secs_f64() / all.max(1) as f64;
        let mut order = inputs.iter().flat_map(|input| input.matrices.iter().copied());
        let mut next = order.next();
        let mut waiting = BTreeMap::new();
        for set in &sets {
            let solver = self.walk.backend.solver(&set.problems)?;
            for place in 0..inputs[set.inputs[0]].matrices.len() {
                let solved = self.solve(&*solver, set, place, &inputs, prepared, layer)?;
                waiting.extend(solved.into_iter().map(|solved| (solved.matrix.name.as_str(), solved)));
                // Results are taken in the order of the inputs, whichever were solved together.
                while let Some(matrix) = next
                    && let Some(Solved { linear, reported, .. }) = waiting.remove(matrix.name.as_str())
                {
                    let bias = matrix.read_bias(self.walk.weights)?;
                    results.add(matrix, &linear, bias.as_deref(), reported)?;
                    next = order.next();
                }
            }
        }
        Ok(())
    }

    /// Quantizes the matrices that have one place among those of each input of a set.
    fn solve<'m>(
        &self,
        solver: &dyn backend::Solver,
        set: &Set,
        place: usize,
        inputs: &[Sharing<'m>],
        prepared: f64,
        layer: &mut Layer,
    ) -> Result<Vec<Solved<'m>>> {
        let watch = self.walk.watch;
        watch.cancel.check()?;
        let started = Instant::now();
        let mut weights = Vec::with_capacity(set.inputs.len());
        for Sharing { matrices, seen, how } in set.inputs.iter().map(|input| &inputs[*input]) {
            watch.progress.item(&matrices[place].name);
            self.warn(matrices[place], *how, seen.tokens);
            weights.push(matrices[place].read(self.walk.weights)?);
        }
        let views: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        let quantized = solver.gptq(&views)?;
        let together = started.elapsed().as_secs_f64() / set.inputs.len() as f64;
        let mut solved = Vec::with_capacity(quantized.len());
        for ((input, weights), (linear, loss)) in set.inputs.iter().zip(&weights).zip(quantized) {
            let started = Instant::now();
            let Sharing { matrices, seen, how } = &inputs[*input];
            let (matrix, dequantized) = (matrices[place], linear.dequantize());
            layer.replace(matrix.stem, matrix.expert, &dequantized)?;
            let seconds = prepared + together + started.elapsed().as_secs_f64();
            let reported = Linear::new(matrix, *how, loss, *seen, weights, &dequantized, seconds);
            solved.push(Solved { matrix, linear, reported });
            watch.progress.advance(weights.len() as u64);
        }
        Ok(solved)
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
