//! The way through the layers: what goes into the matrices, the matrices quantized, and what the quantized ones make of it.

use std::collections::BTreeMap;

use super::grams::Grams;
use super::matrices::step_of;
use super::{Matrix, Watch};
use crate::arch::Model;
use crate::arch::decoder::{Decoder, Hidden, Input, Layer, Step};
use crate::backend::Backend;
use crate::calib::guard::Guard;
use crate::error::Result;
use crate::progress::Unit;
use crate::quant::gram::Gram;
use crate::source::dense::Dense;

/// A way of quantizing the matrices of a layer.
pub(in crate::pipeline) trait Method {
    /// Quantizes the matrices at which a layer has stopped, and has the layer compute with the quantized ones.
    ///
    /// # Errors
    /// What stops the work.
    fn quantize(&mut self, stop: Stop<'_>, layer: &mut Layer) -> Result<()>;

    /// All matrices of the layer are quantized.
    ///
    /// # Errors
    /// What stops the work.
    fn finish_layer(&mut self) -> Result<()>;
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
    /// Takes `windows` through all layers.
    ///
    /// Every matrix is calibrated on inputs that the quantized matrices before it have made, and each layer is loaded and
    /// computed once: a layer goes through in steps, and the matrices at which a step stops are quantized before the next
    /// begins.
    ///
    /// # Errors
    /// `Invalid` if what goes into a matrix is not a number; else what the decoder or `method` return.
    pub(in crate::pipeline) fn go(
        &self,
        stage: &str,
        windows: &[Vec<u32>],
        method: &mut dyn Method,
    ) -> Result<()> {
        let total = self.matrices.iter().flatten().map(|m| m.weights() as u64).sum();
        self.watch.progress.begin(stage, total, Unit::Weights);
        let done = self.all_layers(windows, method);
        self.watch.progress.end();
        done
    }

    fn all_layers(&self, windows: &[Vec<u32>], method: &mut dyn Method) -> Result<()> {
        let decoder = Decoder::new(self.model, self.weights)?;
        let mut hidden = Hidden::embed(&decoder, windows)?;
        for (index, matrices) in self.matrices.iter().enumerate() {
            let mut layer = decoder.layer(index)?;
            for step in Step::ALL {
                if step == Step::End {
                    method.finish_layer()?;
                    // Nobody needs what the last layer makes.
                    if index + 1 == self.matrices.len() {
                        break;
                    }
                }
                let matrices: Vec<&Matrix> =
                    matrices.iter().filter(|m| step_of(m.input) == Some(step)).collect();
                let mut grams = Grams::new(&matrices, self.backend, self.watch.progress)?;
                let mut guard = Guard::new(&mut grams);
                hidden.step(step, &layer, self.keep, &mut guard, self.watch.cancel)?;
                guard.finish(self.model.spec, self.watch.progress)?;
                method.quantize(Stop { layer: index, matrices, grams: grams.finish()? }, &mut layer)?;
            }
        }
        Ok(())
    }
}
