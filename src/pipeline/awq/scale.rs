//! The matrices at which a layer stops, scaled and quantized.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::fold::Divided;
use super::report::{How, Linear, Method, Solver};
use crate::arch::decoder::{Input, Layer};
use crate::arch::fold::{Fold, Source};
use crate::error::Result;
use crate::pipeline::layerwise::report::Seen;
use crate::pipeline::layerwise::{Matrix, Method as Layerwise, Names, Results, Stop, Walk};
use crate::quant::awq::clip;
use crate::quant::awq::scales::{Consumer, Scales, Trial, choose};
use crate::quant::gptq::{self, Loss, Problem, Settings};
use crate::quant::gram::Gram;
use crate::quant::{Grid, QuantizedLinear};
use crate::source::folded::Folded;

/// Rows that factors are chosen with, of all matrices that share them. More tell no more.
const SAMPLED: usize = 512;

/// The method. Matrices are final as soon as it is known what they are divided by.
///
/// The layer computes with the quantized matrices, but as if nothing were folded: what is divided here is multiplied there.
pub(super) struct Scaler<'a> {
    walk: Walk<'a>,
    names: Names<'a>,
    settings: Settings,
    solver: Solver,
    /// The weights with what was moved in the present layer.
    folded: Folded<'a>,
    /// Matrices whose rows may still be divided.
    waiting: Vec<Waiting>,
}

/// A quantized matrix.
struct Waiting {
    matrix: Matrix,
    linear: QuantizedLinear,
    how: How,
    loss: Loss,
    seen: Seen,
    time: Duration,
}

impl Layerwise for Scaler<'_> {
    const STAGE: &'static str = "Quantizing to AWQ";

    type How = How;

    fn quantize(&mut self, stop: Stop<'_>, layer: &mut Layer, results: &mut Results<How>) -> Result<()> {
        let Stop { layer: index, matrices, mut grams } = stop;
        for fold in Fold::all(self.walk.model) {
            let inputs = fold.inputs.iter();
            let here: BTreeMap<Input, Gram> =
                inputs.filter_map(|input| Some((*input, grams.remove(input)?))).collect();
            if !here.is_empty() {
                let matrices = matrices.iter().copied().filter(|m| fold.inputs.contains(&m.input));
                self.scale(&fold, index, &matrices.collect::<Vec<_>>(), here, layer, results)?;
            }
        }
        Ok(())
    }

    fn finish_layer(&mut self, results: &mut Results<How>) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().try_for_each(|waiting| self.finish(waiting, None, results))?;
        results.moved(self.folded.take_moved());
        Ok(())
    }
}

impl<'a> Scaler<'a> {
    pub(super) fn new(walk: Walk<'a>, grid: Grid, solver: Solver) -> Scaler<'a> {
        Scaler {
            walk,
            names: Names::new(walk.model, walk.weights),
            settings: Settings::new(grid),
            solver,
            folded: Folded::new(walk.weights),
            waiting: Vec::new(),
        }
    }

    /// Chooses the factors of one place, moves them, and quantizes the matrices behind it.
    fn scale(
        &mut self,
        fold: &Fold,
        index: usize,
        matrices: &[&Matrix],
        grams: BTreeMap<Input, Gram>,
        layer: &mut Layer,
        results: &mut Results<How>,
    ) -> Result<()> {
        let started = Instant::now();
        let divided = Divided::find(fold, self.walk.model, &self.names, self.walk.weights, index)?;
        let scales = self.choose(fold, &divided, matrices, &grams)?;
        divided.fold(fold, self.walk.model, &self.names, index, &scales.factors, &mut self.folded);
        let stored = divided.stored(&scales.factors);
        let time = started.elapsed() / matrices.len() as u32;
        self.finish_source(fold, &scales.factors, results)?;
        for (input, gram) in grams {
            let sharing: Vec<&Matrix> = matrices.iter().copied().filter(|m| m.input == input).collect();
            let factors: Vec<f32> = (0..gram.size()).map(|i| stored[fold.channel(i)]).collect();
            self.quantize_sharing(&sharing, gram, &factors, &scales, time, layer)?;
        }
        Ok(())
    }

    /// Chooses with all matrices whose inputs say enough; without any, there are no factors.
    fn choose(
        &self,
        fold: &Fold,
        divided: &Divided,
        matrices: &[&Matrix],
        grams: &BTreeMap<Input, Gram>,
    ) -> Result<Scales> {
        let speaks = |matrix: &&&Matrix| {
            let gram = &grams[&matrix.input];
            gram.is_finite() && !Seen::of(gram).are_few(matrix.input, gram.size())
        };
        let matrices: Vec<&&Matrix> = matrices.iter().filter(speaks).collect();
        let samples: Vec<Vec<f32>> =
            matrices.iter().map(|matrix| self.sample(matrix, matrices.len())).collect::<Result<_>>()?;
        let consumers = matrices.iter().zip(&samples);
        let consumers: Vec<Consumer<'_>> =
            consumers.map(|(m, weights)| Consumer { gram: &grams[&m.input], weights }).collect();
        let inputs = grams.values().next().map_or(0, Gram::size);
        let channels: Vec<usize> = (0..inputs).map(|input| fold.channel(input)).collect();
        let stored = |factors: &[f32]| divided.stored(factors);
        let losses = |trial: &Trial<'_>| self.walk.backend.awq_losses(trial);
        choose(&consumers, &channels, &stored, self.settings.grid, &losses)
    }

    /// Some rows of a matrix, evenly spread, where `matrices` share what can be looked at.
    fn sample(&self, matrix: &Matrix, matrices: usize) -> Result<Vec<f32>> {
        let [rows, width] = matrix.shape;
        let step = (rows * matrices).div_ceil(SAMPLED).min(rows);
        let weights = matrix.read(self.walk.weights)?;
        Ok(weights.chunks_exact(width).skip(step / 2).step_by(step).flatten().copied().collect())
    }

    /// Quantizes the matrices that share an input whose channels are divided by `factors`.
    fn quantize_sharing(
        &mut self,
        matrices: &[&Matrix],
        gram: Gram,
        factors: &[f32],
        scales: &Scales,
        chosen: Duration,
        layer: &mut Layer,
    ) -> Result<()> {
        let Some(first) = matrices.first() else { return Ok(()) };
        let watch = self.walk.watch;
        let started = Instant::now();
        let seen = Seen::of(&gram);
        let rare = seen.are_few(first.input, gram.size());
        let usable = gram.is_finite() && seen.dead_inputs < gram.size();
        let propagate = self.solver == Solver::Gptq && !rare;
        let problem = Problem::new(gram.divided(factors), &self.settings, propagate);
        let method = match (rare, usable, self.solver, problem.method()) {
            (true, ..) => Method::FewTokens,
            (false, true, Solver::Awq, _) => Method::Awq,
            (false, true, Solver::Gptq, gptq::Method::Propagated { damp }) => Method::Gptq { damp },
            _ => Method::Searched,
        };
        let solver = self.walk.backend.solver(std::slice::from_ref(&problem))?;
        let prepared = started.elapsed() / matrices.len() as u32;
        for matrix in matrices {
            watch.cancel.check()?;
            watch.progress.item(&matrix.name);
            self.warn(matrix, method, seen.tokens);
            let started = Instant::now();
            let mut weights = matrix.read(self.walk.weights)?;
            for row in weights.chunks_exact_mut(factors.len()) {
                row.iter_mut().zip(factors).for_each(|(weight, factor)| *weight *= factor);
            }
            let quantized = match method {
                Method::Awq => solver.awq(&[&weights])?,
                _ => solver.gptq(&[&weights])?,
            };
            let (linear, loss) = quantized.into_iter().next().expect("one matrix");
            let mut computed = linear.dequantize();
            for row in computed.chunks_exact_mut(factors.len()) {
                row.iter_mut().zip(factors).for_each(|(weight, factor)| *weight /= factor);
            }
            layer.replace(matrix.stem, matrix.expert, &computed)?;
            let how = How {
                method,
                activation_exponent: scales.activation_exponent,
                weight_exponent: scales.weight_exponent,
                clip: clip::covered(&linear, &weights),
            };
            let time = chosen + prepared + started.elapsed();
            self.waiting.push(Waiting { matrix: (*matrix).clone(), linear, how, loss, seen, time });
            watch.progress.advance(weights.len() as u64);
        }
        Ok(())
    }

    /// Divides the rows of what makes an input, if it is a matrix that was quantized, and gives it away.
    fn finish_source(&mut self, fold: &Fold, divisors: &[f32], results: &mut Results<How>) -> Result<()> {
        let Source::Rows { stem, expert, rows } = &fold.source else { return Ok(()) };
        let is_source = |w: &Waiting| w.matrix.stem == *stem && w.matrix.expert == *expert;
        match self.waiting.iter().position(is_source) {
            Some(at) => {
                let source = self.waiting.remove(at);
                self.finish(source, Some((rows.start, divisors)), results)
            }
            None => Ok(()),
        }
    }

    /// Gives a matrix away, some of its rows divided.
    fn finish(
        &self,
        waiting: Waiting,
        divided: Option<(usize, &[f32])>,
        results: &mut Results<How>,
    ) -> Result<()> {
        let Waiting { matrix, mut linear, how, loss, seen, time } = waiting;
        let started = Instant::now();
        if let Some((first, divisors)) = divided {
            linear.divide_rows(first, divisors);
        }
        let (weights, quantized) = (matrix.read(&self.folded)?, linear.dequantize());
        let bias = matrix.read_bias(&self.folded)?;
        let seconds = (time + started.elapsed()).as_secs_f64();
        let reported = Linear::new(&matrix, how, loss, seen, &weights, &quantized, seconds);
        results.add(&matrix, &linear, bias.as_deref(), reported)
    }

    fn warn(&self, matrix: &Matrix, method: Method, tokens: usize) {
        let (name, progress) = (&matrix.name, self.walk.watch.progress);
        match method {
            Method::Awq => {}
            Method::Gptq { damp } if damp > self.settings.damp => {
                progress.warn(&format!("{name}: its Hessian needed damping {damp:.2} instead of {}", self.settings.damp));
            }
            Method::Gptq { .. } => {}
            Method::FewTokens => progress.warn(&format!(
                "{name} saw {tokens} tokens, too few to tell how its inputs are correlated; its ranges are searched channel by channel"
            )),
            Method::Searched => progress.warn(&format!(
                "{name}: its inputs are always zero, overflow or are singular beyond repair; its ranges are searched channel by channel"
            )),
        }
    }
}
