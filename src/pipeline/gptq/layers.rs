//! Layer by layer: what goes into the matrices, the matrices quantized, and what the quantized ones make of it.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::{CpuStorage, Storage, Tensor};

use super::linears::{self, Matrix};
use super::report::{How, Linear, Seen};
use crate::arch::Model;
use crate::arch::decoder::{Decoder, Hidden, Input, LinearId, Step};
use crate::calib::guard::{Guard, Statistic};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::blocks::Simd;
use crate::progress::{Progress, Unit};
use crate::quant::QuantizedLinear;
use crate::quant::gptq::{Method, Problem, Settings};
use crate::quant::gram::Gram;
use crate::source::dense::Dense;
use crate::source::overlay::Overlay;

/// An expert that sees fewer tokens than this share of its inputs is quantized without error propagation: what its few tokens
/// have in common would be taken for how all inputs are correlated.
const EXPERT_TOKENS_PER_INPUT: f64 = 0.25;

/// Takes a finished matrix.
pub type Sink<'a> = dyn FnMut(&Matrix, QuantizedLinear) -> Result<()> + 'a;

/// Quantizes `matrices` (those of each layer) and gives each to `sink` as soon as it is done.
///
/// Every matrix is calibrated on inputs that the quantized matrices before it have made, and each layer is computed once: a layer
/// goes through in steps, and the matrices at which a step stops are quantized before the next begins.
///
/// # Errors
/// `Invalid` if what goes into a matrix is not a number; else what the decoder, `sink` or `cancel` return.
#[allow(
    clippy::too_many_arguments,
    reason = "the model, the data, what to do with them, and where to report"
)]
pub fn quantize(
    model: &Model,
    weights: &dyn Dense,
    windows: &[Vec<u32>],
    matrices: &[Vec<Matrix>],
    settings: &Settings,
    keep: bool,
    sink: &mut Sink<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<Linear>> {
    let total = matrices.iter().flatten().map(|m| (m.shape[0] * m.shape[1]) as u64).sum();
    progress.begin("Quantizing to GPTQ", total, Unit::Weights);
    let mut work = Work { model, weights, settings, sink, progress, linears: Vec::new() };
    let done = work.all_layers(windows, matrices, keep, cancel);
    progress.end();
    done.map(|()| work.linears)
}

struct Work<'a, 's> {
    model: &'a Model,
    weights: &'a dyn Dense,
    settings: &'a Settings,
    sink: &'a mut Sink<'s>,
    progress: &'a dyn Progress,
    linears: Vec<Linear>,
}

impl Work<'_, '_> {
    fn all_layers(
        &mut self,
        windows: &[Vec<u32>],
        matrices: &[Vec<Matrix>],
        keep: bool,
        cancel: &Cancel,
    ) -> Result<()> {
        let mut hidden = Hidden::embed(&Decoder::new(self.model, self.weights)?, windows)?;
        let mut overlay = Overlay::new(self.weights);
        for (layer, matrices) in matrices.iter().enumerate() {
            for step in Step::ALL {
                let last = layer + 1 == self.model.hyper.layers;
                if step == Step::End && last {
                    break;
                }
                let here: Vec<&Matrix> =
                    matrices.iter().filter(|m| linears::step_of(m.input) == Some(step)).collect();
                let mut grams = Grams::new(&here);
                let decoder = Decoder::new(self.model, &overlay)?;
                let mut guard = Guard::new(&mut grams);
                hidden.step(step, &decoder.layer(layer)?, keep, &mut guard, cancel)?;
                guard.finish(self.model.spec, self.progress)?;
                for (input, gram) in grams.0 {
                    let sharing = here.iter().copied().filter(|m| m.input == input);
                    self.quantize_sharing(&sharing.collect::<Vec<_>>(), gram, &mut overlay, cancel)?;
                }
            }
            overlay.clear();
        }
        Ok(())
    }

    /// Quantizes the matrices that share an input.
    fn quantize_sharing(
        &mut self,
        matrices: &[&Matrix],
        gram: Gram,
        overlay: &mut Overlay<'_>,
        cancel: &Cancel,
    ) -> Result<()> {
        let Some(first) = matrices.first() else { return Ok(()) };
        let started = Instant::now();
        let dead_inputs = gram.diagonal().iter().filter(|d| **d == 0.0).count();
        let seen = Seen { tokens: gram.tokens(), dead_inputs };
        let is_expert = matches!(first.input, Input::Expert(_) | Input::ExpertDown(_));
        let rare = is_expert && (seen.tokens as f64) < EXPERT_TOKENS_PER_INPUT * gram.size() as f64;
        let problem = Problem::new(gram, self.settings, !rare);
        let prepared = started.elapsed();
        let how = match problem.method() {
            Method::Propagated { damp } => How::Gptq { damp },
            Method::Searched if rare => How::FewTokens,
            Method::Searched => How::Singular,
        };
        let share = 1.0 / matrices.len() as f64;
        for matrix in matrices {
            cancel.check()?;
            self.progress.item(&matrix.name);
            self.warn(matrix, how, seen.tokens);
            let started = Instant::now();
            let mut weights = vec![0.0; matrix.shape[0] * matrix.shape[1]];
            self.weights.read(&matrix.tensor(), 0..matrix.shape[0], &mut weights)?;
            let (linear, loss) = problem.quantize(&weights, Simd::best());
            let quantized = linear.dequantize();
            let seconds = prepared.as_secs_f64() * share + started.elapsed().as_secs_f64();
            self.linears.push(Linear::new(matrix, how, loss, seen, &weights, &quantized, seconds));
            overlay.replace(&matrix.tensor(), quantized);
            (self.sink)(matrix, linear)?;
            self.progress.advance(weights.len() as u64);
        }
        Ok(())
    }

    fn warn(&self, matrix: &Matrix, how: How, tokens: usize) {
        let name = &matrix.name;
        match how {
            How::Gptq { damp } if damp > self.settings.damp => {
                self.progress.warn(&format!("{name}: its Hessian needed damping {damp:.2} instead of {}", self.settings.damp));
            }
            How::Gptq { .. } => {}
            How::FewTokens => self.progress.warn(&format!(
                "{name} saw {tokens} tokens, too few for error propagation; it is quantized by the scale search alone"
            )),
            How::Singular => self.progress.warn(&format!(
                "{name}: its Hessian is singular beyond repair; it is quantized by the scale search alone"
            )),
        }
    }
}

/// Sums up the inputs of some matrices.
struct Grams(BTreeMap<Input, Gram>);

impl Grams {
    fn new(matrices: &[&Matrix]) -> Grams {
        Grams(matrices.iter().map(|m| (m.input, Gram::new(m.shape[1]))).collect())
    }
}

impl Statistic for Grams {
    fn add(&mut self, linear: LinearId, rows: &Tensor) -> Result<()> {
        let Some(gram) = self.0.get_mut(&linear.input) else { return Ok(()) };
        let rows = rows.contiguous()?;
        let (storage, layout) = rows.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) =
            (&*storage, layout.contiguous_offsets())
        else {
            return Err(Error::new(Kind::Other, "the decoder's states are float32 in memory"));
        };
        gram.add(&values[start..end]);
        Ok(())
    }
}
