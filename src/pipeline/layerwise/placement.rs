//! Where a layer is computed: on the device if that has room for it, else in memory, with the same result.

use std::sync::Arc;

use crate::arch::decoder::{Decoder, Footprint, Hidden, Layer, Residency};
use crate::backend::{Accelerator, Backend};
use crate::error::{Kind, Result};
use crate::progress::Progress;

/// The device that computes layers, as long as they fit there.
pub(in crate::pipeline) struct Placement<'a> {
    device: Option<Arc<dyn Accelerator>>,
    /// Bytes that a batch needs besides the weights, which nothing else may take.
    batch: u64,
    /// What stays on the device between steps, once a layer was there.
    residency: Option<Residency>,
    progress: &'a dyn Progress,
}

impl<'a> Placement<'a> {
    pub(super) fn new(backend: &dyn Backend, progress: &'a dyn Progress) -> Placement<'a> {
        Placement { device: backend.accelerator(), batch: 0, residency: None, progress }
    }

    /// Layers are computed in memory.
    pub(in crate::pipeline) fn in_memory(progress: &'a dyn Progress) -> Placement<'a> {
        Placement { device: None, batch: 0, residency: None, progress }
    }

    /// Whether there is a device that computes layers, so that their weights do not stay in memory.
    pub(super) fn on_device(&self) -> bool {
        self.device.is_some()
    }

    /// Moves layer `index` to the device if it has room for it and for the largest batch of `hidden`. If not, this layer and
    /// those that follow are computed in memory.
    ///
    /// What remains free decides what of `hidden` stays there between steps.
    ///
    /// # Errors
    /// `Other` if the device fails.
    pub(super) fn place(
        &mut self,
        mut layer: Layer,
        (decoder, index): (&Decoder<'_>, usize),
        hidden: &mut Hidden,
    ) -> Result<Layer> {
        let Some(device) = &self.device else { return Ok(layer) };
        let [tokens, length] = hidden.largest_batch();
        let footprint = layer.footprint(tokens, length)?;
        let free = device.free_bytes()?;
        let needed = footprint.weights + footprint.batch;
        if needed <= free && has_moved(&mut layer, device)? {
            self.batch = footprint.batch;
            if self.residency.is_none() {
                let residency = residency(&footprint, free - needed, hidden);
                hidden.reside(residency);
                self.residency = Some(residency);
            }
            return Ok(layer);
        }
        self.progress.warn(&format!(
            "{}: layer {index} with a batch of {tokens} tokens needs {needed} bytes, {free} are free; activations are \
             computed on the CPU, with the same result",
            device.name()
        ));
        self.device = None;
        self.batch = 0;
        hidden.reside(Residency::default());
        decoder.layer(index)
    }

    /// Whether the device has room for so many bytes besides what a batch needs.
    ///
    /// # Errors
    /// `Other` if the device fails.
    pub(super) fn has_room(&self, bytes: u64) -> Result<bool> {
        match &self.device {
            Some(device) => Ok(device.free_bytes()? >= bytes + self.batch),
            None => Ok(true),
        }
    }
}

/// What of the states can stay on the device, with `free` bytes left besides a layer and a batch. Gram matrices come first, and
/// as much again twice over for what solvers make of them: the Hessian, its factor and rows of weights.
fn residency(footprint: &Footprint, free: u64, hidden: &Hidden) -> Residency {
    let left = free.saturating_sub(3 * footprint.grams + footprint.weights);
    let states = hidden.bytes();
    let held = hidden.tokens() as u64 * footprint.held_by_token;
    Residency { states: states <= left, held: states + held <= left }
}

/// Moves a layer to a device, unless its memory is too small.
fn has_moved(layer: &mut Layer, device: &Arc<dyn Accelerator>) -> Result<bool> {
    match layer.move_to(device) {
        Err(e) if e.kind() == Kind::Resources => Ok(false),
        moved => moved.map(|()| true),
    }
}
