//! The way through the layers: what goes into the matrices, the matrices quantized, and what the quantized ones make of it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::grams::Grams;
use super::loader::Loader;
use super::matrices::step_of;
use super::placement::Placement;
use super::{Matrix, Results, Watch};
use crate::arch::Model;
use crate::arch::decoder::{Decoder, Hidden, Input, Layer, Spill, Step};
use crate::backend::Backend;
use crate::calib::guard::Guard;
use crate::error::{Error, Kind, Result};
use crate::progress::Unit;
use crate::quant::gram::Gram;
use crate::source::dense::Dense;

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
        if first == layers {
            return Ok(());
        }
        let decoder = Decoder::new(self.model, self.weights)?;
        let bytes = Hidden::bytes_of(&decoder, windows);
        results.check_space(&self.matrices[first..], bytes)?;
        let spill = offload.map(|disk| Spill::create(disk, bytes)).transpose()?;
        let mut hidden = results.hidden(&decoder, windows, spill)?;
        // A thread that reads is no worker: it does not count among the --threads that compute.
        let reader = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .map_err(|e| Error::new(Kind::Resources, "cannot start a thread").because(e))?;
        reader.in_place_scope(|scope| {
            let mut loader = Loader::new(&decoder, scope);
            let mut placement = Placement::new(self.backend, self.watch.progress);
            for (index, matrices) in self.matrices.iter().enumerate().skip(first) {
                let layer = loader.load(index, self.keep && placement.on_device())?;
                let mut layer = placement.place(layer, (&decoder, index), &mut hidden)?;
                // Nobody needs what the last layer makes.
                let is_last = index + 1 == layers;
                for step in Step::ALL {
                    if step == Step::End {
                        method.finish_layer(results)?;
                        if is_last {
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
                results.finish_layer(index, (!is_last).then_some(&hidden))?;
            }
            Ok(())
        })
    }
}
