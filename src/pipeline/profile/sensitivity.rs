//! How much the model's predictions change when one unit alone is quantized: measured by computing the model with it, from its
//! layer on, and estimated from the error of its outputs.
//!
//! The hidden states of the unchanged model go along layer by layer. At each layer every trial starts from them, and goes through
//! this layer with other weights and through all that follow, side by side with others, so that a layer is read once for many
//! trials. A trial costs the layers that remain and one head.
//!
//! The estimate needs one trial per kind of matrix and layer, whatever the number of precisions: random errors are added to the
//! weights, and the divergence that they cause per squared error of the outputs is taken for that of all errors there. To second
//! order the divergence is `1/2 e^T J^T F J e` for an error `e` of the outputs, with `J` what later layers make of it and `F` the
//! Fisher information of the predictions; random signs find the mean of `J^T F J` as in Hutchinson's estimator of a trace.

use std::collections::BTreeMap;

use super::UnitProfile;
use super::precision::Precision;
use super::trials::Method;
use super::unit::Unit;
use crate::arch::decoder::{Decoder, Hidden, Input, Layer};
use crate::backend::Backend;
use crate::calib::guard::Guard;
use crate::calib::random::SplitMix64;
use crate::error::Result;
use crate::eval::score::{Computed, score};
use crate::eval::windows::Windows;
use crate::pipeline::layerwise::{Grams, Matrix, Placement, Watch};
use crate::pipeline::model::OpenModel;
use crate::progress::{Silent, Unit as Counted};
use crate::quant::gram::Gram;

/// Bytes of hidden states of trials that are on their way together.
const TRIAL_BYTES: u64 = 1 << 30;

/// The size of random errors, as a share of the root mean square of a row's weights: about that of 4 bits. Smaller ones would be
/// lost in the rounding of float32, larger ones would leave the region where the divergence grows with their square.
const PROBE: f32 = 0.1;

/// What is profiled, and with what.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) opened: &'a OpenModel,
    pub(super) method: &'a Method,
    pub(super) units: &'a [Unit],
    pub(super) backend: &'a dyn Backend,
    /// What the quantizers calibrate with.
    pub(super) calibration: &'a [Vec<u32>],
    /// What the divergence is measured on.
    pub(super) held_out: &'a Windows,
    /// Whether every precision is measured, or only what the estimate needs.
    pub(super) measured: bool,
    pub(super) watch: Watch<'a>,
}

/// One change of a layer.
enum Trial<'a> {
    /// A unit at a precision, by their places.
    Option(usize, usize),
    /// Random errors in all matrices of one kind.
    Probe(&'static str, Vec<&'a Matrix>),
}

/// A trial on its way.
struct Running {
    /// Its place in the layer's list.
    trial: usize,
    hidden: Hidden,
}

impl<'a> Job<'a> {
    /// Takes the model through everything.
    ///
    /// # Errors
    /// What the model, the data or the device do not allow; `Interrupted`.
    pub(super) fn run(&self) -> Result<Vec<UnitProfile>> {
        let decoder = self.opened.decoder()?;
        let layers: Vec<Vec<usize>> = (0..decoder.layers())
            .map(|layer| (0..self.units.len()).filter(|i| self.units[*i].layer == layer).collect())
            .collect();
        let mut states = Hidden::embed(&decoder, self.held_out.inputs())?;
        let mut calibration = Hidden::embed(&decoder, self.calibration)?;
        let tokens = states.tokens() as u64;
        let trials = |layer: usize| self.trials(&layers[layer]).len() as u64;
        let steps: u64 = (0..layers.len()).map(|l| trials(l) * (layers.len() - l) as u64).sum();
        self.watch.progress.begin(
            "Measuring sensitivity",
            (steps + layers.len() as u64) * tokens,
            Counted::Tokens,
        );
        let mut done = || {
            let mut reference = states.copy(&decoder)?;
            for i in 0..layers.len() {
                reference.advance(&decoder.layer(i)?, &mut (), self.watch.cancel)?;
                self.watch.progress.advance(tokens);
            }
            let mut found = vec![None; self.units.len()];
            for (i, units) in layers.iter().enumerate() {
                let mut layer = decoder.layer(i)?;
                let grams = self.grams(units, &layer, &mut calibration)?;
                let profiles = self.layer(&decoder, units, &grams, &mut layer, &states, &reference)?;
                units.iter().zip(profiles).for_each(|(unit, profile)| found[*unit] = Some(profile));
                // Every trial has put back the layer's own weights.
                states.advance(&layer, &mut (), self.watch.cancel)?;
            }
            Ok(found.into_iter().flatten().collect())
        };
        let found = done();
        self.watch.progress.end();
        found
    }

    /// What goes into the matrices of some units of a layer. The states go on to the next layer.
    fn grams(&self, units: &[usize], layer: &Layer, states: &mut Hidden) -> Result<BTreeMap<Input, Gram>> {
        let Watch { progress, cancel } = self.watch;
        let matrices: Vec<&Matrix> = units.iter().flat_map(|i| &self.units[*i].matrices).collect();
        let mut grams = Grams::new(&matrices, self.backend, &Placement::in_memory(progress), progress)?;
        let mut guard = Guard::new(&mut grams);
        states.advance(layer, &mut guard, cancel)?;
        guard.finish(self.opened.model.spec, progress)?;
        grams.finish()
    }

    /// All trials of a layer's units.
    fn trials(&self, units: &[usize]) -> Vec<Trial<'a>> {
        let mut kinds: Vec<(&'static str, Vec<&Matrix>)> = Vec::new();
        for matrix in units.iter().flat_map(|i| &self.units[*i].matrices) {
            match kinds.iter_mut().find(|(stem, _)| *stem == matrix.stem) {
                Some((_, matrices)) => matrices.push(matrix),
                None => kinds.push((matrix.stem, vec![matrix])),
            }
        }
        let options = units.iter().filter(|_| self.measured).flat_map(|unit| {
            let precisions = self.method.precisions(&self.units[*unit]).into_iter().enumerate();
            let quantized = precisions.filter(|(_, precision)| *precision != Precision::Whole);
            quantized.map(|(i, _)| Trial::Option(*unit, i))
        });
        options.chain(kinds.into_iter().map(|(stem, matrices)| Trial::Probe(stem, matrices))).collect()
    }

    /// The units of one layer.
    fn layer(
        &self,
        decoder: &Decoder<'_>,
        units: &[usize],
        grams: &BTreeMap<Input, Gram>,
        layer: &mut Layer,
        states: &Hidden,
        reference: &Hidden,
    ) -> Result<Vec<UnitProfile>> {
        let Some(first) = units.first() else { return Ok(Vec::new()) };
        let index = self.units[*first].layer;
        let trials = self.trials(units);
        let at_once = (TRIAL_BYTES / states.bytes().max(1)).max(1) as usize;
        let mut divergences = vec![0.0; trials.len()];
        // Of options the squared errors of each matrix, of probes that of all.
        let mut errors: Vec<Vec<f64>> = vec![Vec::new(); trials.len()];
        for first in (0..trials.len()).step_by(at_once) {
            let mut running = Vec::new();
            for (place, trial) in trials.iter().enumerate().skip(first).take(at_once) {
                self.watch.cancel.check()?;
                let (matrices, weights) = self.weights(trial, grams)?;
                errors[place] = self.errors(&matrices, &weights, grams)?;
                for (matrix, weights) in matrices.iter().zip(&weights) {
                    layer.replace(matrix.stem, matrix.expert, weights)?;
                }
                let mut hidden = states.copy(decoder)?;
                hidden.advance(layer, &mut (), self.watch.cancel)?;
                for matrix in matrices {
                    layer.replace(matrix.stem, matrix.expert, &matrix.read(&*self.opened.weights)?)?;
                }
                self.watch.progress.advance(hidden.tokens() as u64);
                running.push(Running { trial: place, hidden });
            }
            for next in index + 1..decoder.layers() {
                let layer = decoder.layer(next)?;
                for Running { hidden, .. } in &mut running {
                    hidden.advance(&layer, &mut (), self.watch.cancel)?;
                    self.watch.progress.advance(hidden.tokens() as u64);
                }
            }
            for Running { trial, hidden } in &running {
                divergences[*trial] = self.divergence(decoder, hidden, reference)?;
            }
        }
        let mut per_error: BTreeMap<&str, f64> = BTreeMap::new();
        for ((trial, divergence), errors) in trials.iter().zip(&divergences).zip(&errors) {
            if let Trial::Probe(stem, _) = trial {
                let error: f64 = errors.iter().sum();
                per_error.insert(stem, if error > 0.0 { divergence / error } else { 0.0 });
            }
        }
        let mut measured = BTreeMap::new();
        for ((trial, divergence), errors) in trials.iter().zip(divergences).zip(errors) {
            if let Trial::Option(unit, option) = trial {
                measured.insert((*unit, *option), (divergence, errors));
            }
        }
        units.iter().map(|unit| self.profile(*unit, &measured, &per_error, grams)).collect()
    }

    /// The matrices that a trial changes, and their weights then.
    fn weights<'b>(
        &'b self,
        trial: &Trial<'b>,
        grams: &BTreeMap<Input, Gram>,
    ) -> Result<(Vec<&'b Matrix>, Vec<Vec<f32>>)> {
        match trial {
            Trial::Option(unit, option) => {
                let unit = &self.units[*unit];
                let precision = self.method.precisions(unit)[*option];
                self.watch.progress.item(&format!("{} {precision}", unit.name));
                Ok((unit.matrices.iter().collect(), self.quantize(unit, precision, grams)?))
            }
            Trial::Probe(stem, matrices) => {
                self.watch.progress.item(stem);
                let mut random = SplitMix64::new(0);
                let weights = matrices.iter().map(|matrix| {
                    let mut weights = matrix.read(&*self.opened.weights)?;
                    add_signs(&mut weights, matrix.shape[1], &mut random);
                    Ok(weights)
                });
                Ok((matrices.clone(), weights.collect::<Result<_>>()?))
            }
        }
    }

    fn quantize(
        &self,
        unit: &Unit,
        precision: Precision,
        grams: &BTreeMap<Input, Gram>,
    ) -> Result<Vec<Vec<f32>>> {
        self.method.quantize(unit, precision, &*self.opened.weights, grams, self.backend)
    }

    /// The squared error of each matrix's outputs, per token of the calibration data.
    fn errors(
        &self,
        matrices: &[&Matrix],
        weights: &[Vec<f32>],
        grams: &BTreeMap<Input, Gram>,
    ) -> Result<Vec<f64>> {
        let error = |(matrix, weights): (&&Matrix, &Vec<f32>)| {
            let mut difference = matrix.read(&*self.opened.weights)?;
            difference.iter_mut().zip(weights).for_each(|(d, w)| *d -= w);
            Ok(grams.get(&matrix.input).map_or(0.0, |gram| gram.energy(&difference)))
        };
        matrices.iter().zip(weights).map(error).collect()
    }

    /// Mean of `KL(original || changed)` over the held-out tokens, in nats.
    fn divergence(&self, decoder: &Decoder<'_>, hidden: &Hidden, reference: &Hidden) -> Result<f64> {
        let changed = Computed { decoder, hidden };
        let original = Computed { decoder, hidden: reference };
        let scores = score(changed, Some(original), self.held_out, self.watch.cancel, &Silent)?;
        let values = || scores.iter().flatten().filter_map(|score| score.compared);
        Ok(values().map(|compared| compared.kl_divergence).sum::<f64>() / values().count().max(1) as f64)
    }

    /// What was found of a unit.
    fn profile(
        &self,
        unit: usize,
        measured: &BTreeMap<(usize, usize), (f64, Vec<f64>)>,
        per_error: &BTreeMap<&str, f64>,
        grams: &BTreeMap<Input, Gram>,
    ) -> Result<UnitProfile> {
        let place = unit;
        let unit = &self.units[unit];
        let matrices: Vec<&Matrix> = unit.matrices.iter().collect();
        let mut profile = UnitProfile::unmeasured(unit, self.method);
        for (i, option) in profile.options.iter_mut().enumerate() {
            if option.precision == Precision::Whole {
                option.measured = self.measured.then_some(0.0);
                continue;
            }
            let found = measured.get(&(place, i));
            let errors = match found {
                Some((_, errors)) => errors.clone(),
                None => self.errors(&matrices, &self.quantize(unit, option.precision, grams)?, grams)?,
            };
            let of = |(matrix, error): (&&Matrix, &f64)| per_error.get(matrix.stem).unwrap_or(&0.0) * error;
            option.estimate = matrices.iter().zip(&errors).map(of).sum();
            option.measured = found.map(|(divergence, _)| *divergence);
        }
        Ok(profile)
    }
}

/// Adds an error of random sign to every weight, of a size that goes with its row.
fn add_signs(weights: &mut [f32], width: usize, random: &mut SplitMix64) {
    for row in weights.chunks_mut(width) {
        let squares: f64 = row.iter().map(|w| f64::from(*w).powi(2)).sum();
        let size = PROBE * (squares / width as f64).sqrt() as f32;
        for chunk in row.chunks_mut(64) {
            let bits = random.bits();
            for (i, weight) in chunk.iter_mut().enumerate() {
                *weight += if bits >> i & 1 == 1 { size } else { -size };
            }
        }
    }
}
