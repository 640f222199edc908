//! What the way through the layers has made so far: written to the output, and kept in the checkpoint.

use std::io::{self, Read, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Matrix;
use super::part::Part;
use super::report::Linear;
use crate::arch::decoder::{Decoder, Hidden, Spill};
use crate::error::{Error, Kind, Result};
use crate::format::packed::{Flushed, Packed, PackedWriter};
use crate::pipeline::checkpoint::Checkpoint;
use crate::pipeline::tune::Store;
use crate::pipeline::tune::report::Curve;
use crate::progress::Progress;
use crate::quant::QuantizedLinear;
use crate::source::dense::Dense;
use crate::source::folded::Moved;

/// Kinds of files in the checkpoint: the results of a layer, and the hidden states after it.
const LAYER: &str = "layer";
const HIDDEN: &str = "hidden";
/// The state of tuning the whole model.
const STATE: &str = "tuning";
/// What the checkpoint's note says of it: the step that it is of, and what the descent had come to.
const STEP: &str = "tuning_step";
const REACHED: &str = "reached";
/// And what the original layers have made, where layers are tuned.
const ORIGINAL: &str = "original";

/// The results of all layers that are done, and of the one that is being quantized.
#[derive(Debug)]
pub(in crate::pipeline) struct Results<H> {
    writer: PackedWriter,
    checkpoint: Option<Checkpoint>,
    /// Of layers that are done.
    linears: Vec<Linear<H>>,
    moved: Moved,
    curves: Vec<Curve>,
    /// Of the present layer.
    part: Part<H>,
    /// Layers that are done and may still change: they are written at the end.
    deferred: Option<Vec<Part<H>>>,
}

impl<H: Serialize + DeserializeOwned> Results<H> {
    /// Takes up what the checkpoint holds; `matrices` are those of each layer. If `defer`, layers are written only by
    /// [`Results::write_deferred`].
    ///
    /// # Errors
    /// `Checkpoint` if it does not hold what it should, `Resources` if the disk is full.
    pub(super) fn restore(
        writer: PackedWriter,
        checkpoint: Option<Checkpoint>,
        matrices: &[Vec<Matrix>],
        weights: &dyn Dense,
        defer: bool,
    ) -> Result<Results<H>> {
        let mut results = Results {
            writer,
            checkpoint: None,
            linears: Vec::new(),
            moved: Moved::default(),
            curves: Vec::new(),
            part: Part::default(),
            deferred: defer.then(Vec::new),
        };
        let done = checkpoint.as_ref().map_or(0, Checkpoint::done);
        for (layer, matrices) in matrices.iter().enumerate().take(done) {
            let file = checkpoint.as_ref().map(|checkpoint| checkpoint.read(&Checkpoint::name(LAYER, layer)));
            let specs: Vec<Packed> =
                matrices.iter().flat_map(|matrix| results.writer.specs(&matrix.name)).collect();
            let part = Part::decode(&file.expect("layers are done in a checkpoint")?, specs)?;
            if !part.moved.fits(weights) || !is_of(&part.linears, matrices) {
                return Err(Error::new(
                    Kind::Checkpoint,
                    format!("the checkpoint's layer {layer} is not of this model"),
                ));
            }
            results.take(part)?;
        }
        results.checkpoint = checkpoint;
        Ok(results)
    }

    /// Takes a finished matrix, with its bias, and what is to be said of it.
    ///
    /// # Errors
    /// `Invalid` if the container cannot hold a value.
    pub(in crate::pipeline) fn add(
        &mut self,
        matrix: &Matrix,
        linear: &QuantizedLinear,
        bias: Option<&[f32]>,
        reported: Linear<H>,
    ) -> Result<()> {
        self.part.tensors.extend(self.writer.pack(&matrix.name, linear, bias)?);
        self.part.linears.push(reported);
        Ok(())
    }

    /// Takes what was moved between the tensors of the layer.
    pub(in crate::pipeline) fn moved(&mut self, moved: Moved) {
        self.part.moved.append(moved);
    }

    /// The present layer, or one that is done and was deferred.
    fn part(&self, layer: Option<usize>) -> &Part<H> {
        match (layer, &self.deferred) {
            (Some(layer), Some(parts)) => &parts[layer],
            _ => &self.part,
        }
    }

    /// What was moved between the tensors of the present layer, or of a deferred one.
    pub(super) fn moved_in(&self, layer: Option<usize>) -> Moved {
        self.part(layer).moved.clone()
    }

    /// Some matrices of the present layer, or of a deferred one, as they were quantized.
    ///
    /// # Errors
    /// `Invalid` if they are not what was added.
    pub(super) fn quantized(
        &self,
        layer: Option<usize>,
        matrices: &[Matrix],
    ) -> Result<Vec<QuantizedLinear>> {
        let tensors = &self.part(layer).tensors;
        matrices.iter().map(|matrix| self.writer.unpack(&matrix.name, tensors)).collect()
    }

    /// Puts others in their place, which came of tuning; `weights` are what they stand for, `moved` are tensors that were
    /// tuned besides.
    ///
    /// # Errors
    /// As [`Results::add`].
    pub(super) fn replace(
        &mut self,
        layer: Option<usize>,
        matrices: &[Matrix],
        tuned: &[QuantizedLinear],
        weights: &dyn Dense,
        moved: Moved,
    ) -> Result<()> {
        let part = match (layer, &mut self.deferred) {
            (Some(layer), Some(parts)) => &mut parts[layer],
            _ => &mut self.part,
        };
        for (matrix, linear) in matrices.iter().zip(tuned) {
            self.writer.repack(&matrix.name, linear, &mut part.tensors)?;
            let original = matrix.read(weights)?;
            let reported = part.linears.iter_mut().filter(|reported| reported.name == matrix.name);
            reported.for_each(|reported| reported.retuned(&original, linear));
        }
        part.moved.append(moved);
        Ok(())
    }

    /// Where states of tuning the whole model are kept, if there is a checkpoint.
    pub(super) fn tuning_store(&mut self) -> Option<TuningStore<'_>> {
        self.checkpoint.as_mut().map(|checkpoint| TuningStore { checkpoint })
    }

    /// Takes how the present layer was tuned.
    pub(super) fn tuned(&mut self, curve: Curve) {
        self.part.curve = Some(curve);
    }

    /// Takes how all layers were tuned.
    pub(super) fn tuned_all(&mut self, curve: Curve) {
        self.curves.push(curve);
    }

    /// Writes the layers that were deferred.
    ///
    /// # Errors
    /// `Resources` if the disk is full.
    pub(super) fn write_deferred(&mut self) -> Result<()> {
        let own = std::mem::take(&mut self.curves);
        self.deferred.take().into_iter().flatten().try_for_each(|part| self.write(part))?;
        self.curves.extend(own);
        Ok(())
    }

    /// Layers that need not be computed.
    pub(super) fn done(&self) -> usize {
        self.checkpoint.as_ref().map_or(0, Checkpoint::done)
    }

    /// What goes into the first layer that is not done, on the disk if there is a place.
    pub(super) fn hidden(
        &self,
        decoder: &Decoder<'_>,
        windows: &[Vec<u32>],
        spill: Option<Spill>,
    ) -> Result<Hidden> {
        match &self.checkpoint {
            Some(checkpoint) if checkpoint.done() > 0 => {
                let name = Checkpoint::name(HIDDEN, checkpoint.done() - 1);
                checkpoint.get(&name, |input| Hidden::read(decoder, windows, spill, input))
            }
            _ => Hidden::embed_in(decoder, windows, spill),
        }
    }

    /// What the original layers before the first one that is not done have made.
    pub(super) fn original(&self, decoder: &Decoder<'_>, windows: &[Vec<u32>]) -> Result<Hidden> {
        match &self.checkpoint {
            Some(checkpoint) if checkpoint.done() > 0 => {
                let name = Checkpoint::name(ORIGINAL, checkpoint.done() - 1);
                checkpoint.get(&name, |input| Hidden::read(decoder, windows, None, input))
            }
            _ => Hidden::embed(decoder, windows),
        }
    }

    /// All of this layer is there; `hidden` are the states after it, unless nobody needs them, and `original` those of the
    /// original layers, if they are needed. Those before it go.
    ///
    /// # Errors
    /// `Resources` if the disk is full.
    pub(super) fn finish_layer(
        &mut self,
        layer: usize,
        hidden: Option<&Hidden>,
        original: Option<&Hidden>,
    ) -> Result<()> {
        let part = std::mem::take(&mut self.part);
        if let Some(checkpoint) = &mut self.checkpoint {
            let file = part.encode();
            checkpoint.put(&Checkpoint::name(LAYER, layer), file.bytes(), |out| file.write(out))?;
            for (kind, states) in [(HIDDEN, hidden), (ORIGINAL, original)] {
                if let Some(states) = states {
                    checkpoint
                        .put(&Checkpoint::name(kind, layer), states.bytes(), |out| states.write(out))?;
                }
                if layer > 0 {
                    checkpoint.forget(&Checkpoint::name(kind, layer - 1));
                }
            }
            checkpoint.commit(layer + 1, Value::Null)?;
        }
        self.take(part)
    }

    fn take(&mut self, part: Part<H>) -> Result<()> {
        match &mut self.deferred {
            Some(parts) => {
                parts.push(part);
                Ok(())
            }
            None => self.write(part),
        }
    }

    fn write(&mut self, mut part: Part<H>) -> Result<()> {
        part.tensors.iter().try_for_each(|tensor| self.writer.bytes(&tensor.name, &tensor.bytes))?;
        self.linears.append(&mut part.linears);
        self.moved.append(part.moved);
        self.curves.extend(part.curve);
        Ok(())
    }

    /// What is reported of all layers that are done.
    pub(super) fn linears(&mut self) -> &mut Vec<Linear<H>> {
        &mut self.linears
    }

    /// How layers that are done were tuned.
    pub(super) fn take_curves(&mut self) -> Vec<Curve> {
        std::mem::take(&mut self.curves)
    }

    /// What was moved in all layers that are done.
    pub(super) fn take_moved(&mut self) -> Moved {
        std::mem::take(&mut self.moved)
    }

    /// Where the output is made.
    pub(super) fn writer(&mut self) -> &mut PackedWriter {
        &mut self.writer
    }

    /// The directory of the checkpoint, if there is one.
    pub(super) fn checkpoint_dir(&self) -> Option<&Path> {
        self.checkpoint.as_ref().map(Checkpoint::dir)
    }

    /// Refuses to go on if the disk of the checkpoint has no room for all of its layers, those of `left`, and for `states` of
    /// two.
    ///
    /// # Errors
    /// `Resources`, saying how much is missing.
    pub(super) fn check_space(&self, left: &[Vec<Matrix>], states: u64) -> Result<()> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        let tensors = left.iter().flatten().flat_map(|matrix| self.writer.specs(&matrix.name));
        checkpoint.check_space(tensors.map(|tensor| tensor.size()).sum::<u64>() + 2 * states)
    }

    /// The work ends early.
    pub(super) fn end_early(&mut self, e: Error, progress: &dyn Progress) -> Error {
        match self.checkpoint.take() {
            Some(checkpoint) => checkpoint.end_early(e, progress),
            None => e,
        }
    }

    /// Flushes the output, which is complete.
    ///
    /// # Errors
    /// `Resources` if the disk does not take it.
    pub(super) fn flush(self) -> Result<(Flushed, Vec<Linear<H>>, Option<Checkpoint>)> {
        Ok((self.writer.flush()?, self.linears, self.checkpoint))
    }
}

/// Keeps states of tuning the whole model, all of whose layers are done.
pub(super) struct TuningStore<'a> {
    checkpoint: &'a mut Checkpoint,
}

impl TuningStore<'_> {
    /// The step after which the last state was kept.
    fn step(&self) -> Option<usize> {
        usize::try_from(self.checkpoint.note().get(STEP)?.as_u64()?).ok()
    }
}

impl Store for TuningStore<'_> {
    fn note(&self) -> Option<(usize, Value)> {
        Some((self.step()?, self.checkpoint.note().get(REACHED)?.clone()))
    }

    fn load(&self, read: &mut dyn FnMut(&mut dyn Read) -> Result<()>) -> Result<()> {
        let step = self.step().unwrap_or_default();
        self.checkpoint.get(&Checkpoint::name(STATE, step), |input| read(input))
    }

    fn save(
        &mut self,
        step: usize,
        note: Value,
        bytes: u64,
        write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        self.checkpoint.put(&Checkpoint::name(STATE, step), bytes, |out| write(out))?;
        if let Some(before) = self.step() {
            self.checkpoint.forget(&Checkpoint::name(STATE, before));
        }
        let done = self.checkpoint.done();
        self.checkpoint.commit(done, json!({ STEP: step, REACHED: note }))
    }
}

/// Whether these are the reports of these matrices, in any order.
fn is_of<H>(linears: &[Linear<H>], matrices: &[Matrix]) -> bool {
    let mut found: Vec<_> = linears.iter().map(|linear| (&linear.name, linear.shape)).collect();
    let mut expected: Vec<_> = matrices.iter().map(|matrix| (&matrix.name, matrix.shape)).collect();
    found.sort_unstable();
    expected.sort_unstable();
    found == expected
}
