//! What the way through the layers has made so far: written to the output, and kept in the checkpoint.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Matrix;
use super::part::Part;
use super::report::Linear;
use crate::arch::decoder::{Decoder, Hidden, Spill};
use crate::error::{Error, Kind, Result};
use crate::format::packed::{Flushed, Packed, PackedWriter};
use crate::pipeline::checkpoint::Checkpoint;
use crate::progress::Progress;
use crate::quant::QuantizedLinear;
use crate::source::dense::Dense;
use crate::source::folded::Moved;

/// Kinds of files in the checkpoint: the results of a layer, and the hidden states after it.
const LAYER: &str = "layer";
const HIDDEN: &str = "hidden";

/// The results of all layers that are done, and of the one that is being quantized.
#[derive(Debug)]
pub(in crate::pipeline) struct Results<H> {
    writer: PackedWriter,
    checkpoint: Option<Checkpoint>,
    /// Of layers that are done.
    linears: Vec<Linear<H>>,
    moved: Moved,
    /// Of the present layer.
    part: Part<H>,
}

impl<H: Serialize + DeserializeOwned> Results<H> {
    /// Takes up what the checkpoint holds; `matrices` are those of each layer.
    ///
    /// # Errors
    /// `Checkpoint` if it does not hold what it should, `Resources` if the disk is full.
    pub(super) fn restore(
        writer: PackedWriter,
        checkpoint: Option<Checkpoint>,
        matrices: &[Vec<Matrix>],
        weights: &dyn Dense,
    ) -> Result<Results<H>> {
        let mut results = Results {
            writer,
            checkpoint: None,
            linears: Vec::new(),
            moved: Moved::default(),
            part: Part::default(),
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

    /// All of this layer is there; `hidden` are the states after it, unless nobody needs them. Those before it go.
    ///
    /// # Errors
    /// `Resources` if the disk is full.
    pub(super) fn finish_layer(&mut self, layer: usize, hidden: Option<&Hidden>) -> Result<()> {
        let part = std::mem::take(&mut self.part);
        if let Some(checkpoint) = &mut self.checkpoint {
            let file = part.encode();
            checkpoint.put(&Checkpoint::name(LAYER, layer), file.bytes(), |out| file.write(out))?;
            if let Some(hidden) = hidden {
                let name = Checkpoint::name(HIDDEN, layer);
                checkpoint.put(&name, hidden.bytes(), |out| hidden.write(out))?;
            }
            if layer > 0 {
                checkpoint.forget(&Checkpoint::name(HIDDEN, layer - 1));
            }
            checkpoint.commit(layer + 1, Value::Null)?;
        }
        self.take(part)
    }

    fn take(&mut self, mut part: Part<H>) -> Result<()> {
        part.tensors.iter().try_for_each(|tensor| self.writer.bytes(&tensor.name, &tensor.bytes))?;
        self.linears.append(&mut part.linears);
        self.moved.append(part.moved);
        Ok(())
    }

    /// What is reported of all layers that are done.
    pub(super) fn linears(&mut self) -> &mut Vec<Linear<H>> {
        &mut self.linears
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

    /// Refuses to go on if the disk of the checkpoint has no room for all of its layers, those of `left`, and the states
    /// of two.
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

/// Whether these are the reports of these matrices, in any order.
fn is_of<H>(linears: &[Linear<H>], matrices: &[Matrix]) -> bool {
    let mut found: Vec<_> = linears.iter().map(|linear| (&linear.name, linear.shape)).collect();
    let mut expected: Vec<_> = matrices.iter().map(|matrix| (&matrix.name, matrix.shape)).collect();
    found.sort_unstable();
    expected.sort_unstable();
    found == expected
}
