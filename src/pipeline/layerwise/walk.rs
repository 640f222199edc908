//! The way through the layers: what goes into the matrices, the matrices quantized, and what the quantized ones make of it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::grams::Grams;
use super::loader::Loader;
use super::matrices::step_of;
use super::placement::Placement;
use super::{Matrix, Names, Results, Watch};
use crate::arch::Model;
use crate::arch::decoder::{Decoder, Hidden, Input, Layer, Spill, Step};
use crate::backend::Backend;
use crate::calib::guard::Guard;
use crate::error::{Error, Kind, Result};
use crate::pipeline::tune::{self, Blocks, Store, Whole};
use crate::progress::Unit;
use crate::quant::gram::Gram;
use crate::source::dense::Dense;
use crate::source::folded::{Folded, Moved};

/// A way of quantizing the matrices of a layer.
pub(in crate::pipeline) trait Method {
    /// The name of the stage.
    const STAGE: &'static str;

    /// How a matrix was quantized.
    type How: Serialize + DeserializeOwned + Send;

    /// Quantizes the matrices at which a layer has stopped, and has the layer compute with the quantized ones. `results`
    /// takes each as soon as it is final.
    ///
    /// # Errors
    /// What stops the work.
    fn quantize(&mut self, stop: Stop<'_>, layer: &mut Layer, results: &mut Results<Self::How>)
    -> Result<()>;

    /// All matrices of the layer are quantized: `results` takes the rest.
    ///
    /// # Errors
    /// What stops the work.
    fn finish_layer(&mut self, results: &mut Results<Self::How>) -> Result<()>;
}

/// Where a layer has stopped.
pub(in crate::pipeline) struct Stop<'a> {
    /// The layer, from 0.
    pub(in crate::pipeline) layer: usize,
    /// The matrices that are to be quantized now.
    pub(in crate::pipeline) matrices: Vec<&'a Matrix>,
    /// What all tokens have put into them.
    pub(in crate::pipeline) grams: BTreeMap<Input, Gram>,
}

/// The way through all layers.
#[derive(Clone, Copy)]
pub(in crate::pipeline) struct Walk<'a> {
    pub(in crate::pipeline) model: &'a Model,
    pub(in crate::pipeline) weights: &'a dyn Dense,
    /// Those of each layer that are quantized.
    pub(in crate::pipeline) matrices: &'a [Vec<Matrix>],
    /// Whether the inputs of down are kept in memory between two steps, or computed twice.
    pub(in crate::pipeline) keep: bool,
    /// What quantizes the matrices.
    pub(in crate::pipeline) backend: &'a dyn Backend,
    /// How layers are tuned, if they are.
    pub(in crate::pipeline) tune: Option<&'a tune::Settings>,
    pub(in crate::pipeline) watch: Watch<'a>,
}

impl Walk<'_> {
    /// Takes `windows` through all layers that are not done. Hidden states are kept on the disk of `offload`, if there is one.
    ///
    /// Every matrix is calibrated on inputs that the quantized matrices before it have made, and each layer is loaded and
    /// computed once: a layer goes through in steps, and the matrices at which a step stops are quantized before the next
    /// begins.
    ///
    /// # Errors
    /// `Invalid` if what goes into a matrix is not a number; else what the decoder, `method` or `results` return.
    pub(super) fn go<M: Method>(
        &self,
        windows: &[Vec<u32>],
        offload: Option<&Path>,
        method: &mut M,
        results: &mut Results<M::How>,
    ) -> Result<()> {
        let left = self.matrices.iter().skip(results.done());
        let total = left.flatten().map(|m| m.weights() as u64).sum();
        self.watch.progress.begin(M::STAGE, total, Unit::Weights);
        let done = self.all_layers(windows, offload, method, results);
        self.watch.progress.end();
        done
    }

    fn all_layers<M: Method>(
        &self,
        windows: &[Vec<u32>],
        offload: Option<&Path>,
        method: &mut M,
        results: &mut Results<M::How>,
    ) -> Result<()> {
        let (first, layers) = (results.done(), self.matrices.len());
        if first >= layers {
            return Ok(());
        }
        let decoder = Decoder::new(self.model, self.weights)?;
        let bytes = Hidden::bytes_of(&decoder, windows);
        let blocks = self.tune.filter(|settings| settings.block_steps > 0);
        results.check_space(&self.matrices[first..], if blocks.is_some() { 2 * bytes } else { bytes })?;
        let spill = offload.map(|disk| Spill::create(disk, bytes)).transpose()?;
        let mut hidden = results.hidden(&decoder, windows, spill)?;
        let begin = |settings| Blocks::new(settings, &decoder, windows, results.original(&decoder, windows)?);
        let mut blocks = blocks.map(begin).transpose()?;
        // A thread that reads is no worker: it does not count among the --threads that compute.
        let reader = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .map_err(|e| Error::new(Kind::Resources, "cannot start a thread").because(e))?;
        reader.in_place_scope(|scope| {
            let mut loader = Loader::new(&decoder, scope);
            let mut placement = Placement::new(self.backend, self.watch.progress);
            for (index, matrices) in self.matrices.iter().enumerate().skip(first) {
                // Nobody needs what the last layer makes.
                let is_last = index + 1 == layers;
                let before = blocks.as_ref().map(|_| hidden.copy(&decoder)).transpose()?;
                let layer = loader.load(index, self.keep && placement.on_device())?;
                let mut layer = placement.place(layer, (&decoder, index), &mut hidden)?;
                for step in Step::ALL {
                    if step == Step::End {
                        method.finish_layer(results)?;
                        if is_last || blocks.is_some() {
                            break;
                        }
                    }
                    let matrices: Vec<&Matrix> =
                        matrices.iter().filter(|m| step_of(m.input) == Some(step)).collect();
                    let mut grams = Grams::new(&matrices, self.backend, &placement, self.watch.progress)?;
                    let mut guard = Guard::new(&mut grams);
                    hidden.step(step, &layer, self.keep, &mut guard, self.watch.cancel)?;
                    guard.finish(self.model.spec, self.watch.progress)?;
                    let stop = Stop { layer: index, matrices, grams: grams.finish()? };
                    method.quantize(stop, &mut layer, results)?;
                }
                drop(layer);
                if let (Some(blocks), Some(before)) = (&mut blocks, before) {
                    let tuned = self.tune_layer(&decoder, index, &before, blocks, results)?;
                    // The steps up to here went through matrices that are others now.
                    hidden = before;
                    if !is_last {
                        hidden.advance(&tuned, &mut (), self.watch.cancel)?;
                    }
                }
                let original = blocks.as_ref().map(Blocks::original).filter(|_| !is_last);
                results.finish_layer(index, (!is_last).then_some(&hidden), original)?;
            }
            Ok(())
        })
    }

    /// Tunes a layer whose matrices are all quantized, on the hidden states before it, and returns it as it then is.
    fn tune_layer<H: Serialize + DeserializeOwned>(
        &self,
        decoder: &Decoder<'_>,
        index: usize,
        inputs: &Hidden,
        blocks: &mut Blocks<'_>,
        results: &mut Results<H>,
    ) -> Result<Layer> {
        let matrices = &self.matrices[index];
        let folded = Folded::with(self.weights, results.moved_in(None));
        let as_written = Decoder::new(self.model, &folded)?;
        let quantized = results.quantized(None, matrices)?;
        let (chosen, all) = blocks.settings().prepare(matrices, &quantized, &folded)?;
        let original = decoder.layer(index)?;
        if let Some((tuned, curve)) =
            blocks.tune(index, inputs, as_written.layer(index)?, &original, all, self.watch)?
        {
            results.replace(None, &chosen, &tuned, &folded, Moved::default())?;
            results.tuned(curve);
        }
        let mut layer = as_written.layer(index)?;
        for (matrix, linear) in matrices.iter().zip(results.quantized(None, matrices)?) {
            layer.replace(matrix.stem, matrix.expert, &linear.dequantize())?;
        }
        Ok(layer)
    }

    /// Tunes the whole model, all of whose layers are done and deferred.
    ///
    /// # Errors
    /// `Usage` if there are too few rows, `Unsupported` for a mixture of experts.
    pub(super) fn tune_whole<H: Serialize + DeserializeOwned>(
        &self,
        settings: &tune::Settings,
        windows: &[Vec<u32>],
        results: &mut Results<H>,
    ) -> Result<()> {
        let mut moved = Moved::default();
        (0..self.matrices.len()).for_each(|layer| moved.append(results.moved_in(Some(layer))));
        let folded = Folded::with(self.weights, moved);
        let (decoder, original) =
            (Decoder::new(self.model, &folded)?, Decoder::new(self.model, self.weights)?);
        let mut whole = Whole::new(settings, self.model, &decoder, &original);
        let mut chosen = Vec::with_capacity(self.matrices.len());
        for (layer, matrices) in self.matrices.iter().enumerate() {
            let quantized = results.quantized(Some(layer), matrices)?;
            let (here, all) = settings.prepare(matrices, &quantized, &folded)?;
            chosen.push(here);
            whole.add(all)?;
        }
        let layers = self.matrices.len();
        let mut store = results.tuning_store();
        let store = store.as_mut().map(|store| store as &mut dyn Store);
        let (kept, curve) = whole.tune(windows, store, self.watch)?;
        let names = Names::new(self.model, self.weights);
        let last = layers.saturating_sub(1);
        for (layer, (matrices, tuned)) in chosen.iter().zip(&kept.matrices).enumerate() {
            let mut moved = Moved::default();
            for (stem, norm) in &kept.norms[layer] {
                let name = names.find(&format!("blk.{{}}.{stem}.weight"), layer, 0);
                moved.replaced.extend(name.map(|name| (name.to_owned(), norm.clone())));
            }
            if layer == last {
                let name = names.find("output_norm.weight", layer, 0);
                moved.replaced.extend(name.map(|name| (name.to_owned(), kept.output_norm.clone())));
            }
            results.replace(Some(layer), matrices, tuned, &folded, moved)?;
        }
        results.tuned_all(curve);
        Ok(())
    }
}
