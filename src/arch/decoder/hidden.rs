//! The hidden states of all windows between two layers.

use std::io::{self, Read, Write};

use candle_core::{Device, Tensor};

use super::layer::Held;
use super::{Activations, Context, Decoder, Layer, Spill, Tap};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};

/// Tokens that go through a layer at a time: enough for fast matrix products, and their activations are small beside the
/// layer's weights.
pub const BATCH_TOKENS: usize = 2048;

/// What the layers have made of some windows of tokens so far. Every window is a sequence of its own, from position 0;
/// windows are never padded.
#[derive(Debug)]
pub struct Hidden {
    batches: Vec<Batch>,
    /// Where the states are if they are not in memory.
    spill: Option<Spill>,
    residency: Residency,
}

/// What stays in the memory of the device that computes it, instead of going through that of the machine between steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    /// The states.
    pub states: bool,
    /// What a step leaves for the next.
    pub held: bool,
}

#[derive(Debug)]
struct Batch {
    /// Windows, tokens, width.
    shape: [usize; 3],
    states: States,
    context: Context,
    /// What a step of a layer has left for the next.
    held: Option<Held>,
}

/// The states of a batch.
#[derive(Debug)]
enum States {
    /// `[windows * tokens, hidden]`, in memory or on a device.
    Here(Activations),
    /// From this byte of the file on.
    Disk(u64),
}

/// How far into a layer. Each step computes what goes into the next matrices from what went into those before, so that a
/// method which changes matrices one after the other sees what the changed ones make, and computes each of them once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To the input of query, key and value. Needs no matrix.
    Attention,
    /// To the input of the projection after attention, through query, key and value.
    AttentionOutput,
    /// To the inputs of gate and up, through the projection after attention.
    FeedForward,
    /// To the inputs of down, through gate and up.
    Down,
    /// To the next layer, through down.
    End,
}

impl Step {
    /// All steps, in the order in which they must be taken.
    pub const ALL: [Step; 5] =
        [Step::Attention, Step::AttentionOutput, Step::FeedForward, Step::Down, Step::End];

    /// Whether the hidden states are others after it: it adds to them.
    fn changes_states(self) -> bool {
        matches!(self, Step::FeedForward | Step::End)
    }
}

impl Hidden {
    /// The embeddings of `windows`.
    ///
    /// # Errors
    /// As [`Decoder::embed`].
    pub fn embed(decoder: &Decoder<'_>, windows: &[Vec<u32>]) -> Result<Hidden> {
        Hidden::embed_in(decoder, windows, None)
    }

    /// The same with the states on the disk, if there is a place for [`Hidden::bytes_of`] these windows.
    ///
    /// # Errors
    /// As [`Decoder::embed`]; `Resources` if they cannot be written.
    pub fn embed_in(decoder: &Decoder<'_>, windows: &[Vec<u32>], spill: Option<Spill>) -> Result<Hidden> {
        Hidden::of(decoder, windows, spill, |batch| decoder.embed(batch))
    }

    /// The states of `windows` as [`Hidden::write`] has written them.
    ///
    /// # Errors
    /// `Other` if they cannot be read, `Invalid` if there are too few.
    pub fn read(
        decoder: &Decoder<'_>,
        windows: &[Vec<u32>],
        spill: Option<Spill>,
        input: &mut dyn Read,
    ) -> Result<Hidden> {
        let width = decoder.model.hyper.hidden;
        Hidden::of(decoder, windows, spill, |batch| {
            let length = batch[0].len();
            let mut values = vec![0f32; batch.len() * length * width];
            input.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => Error::new(Kind::Invalid, "there are too few hidden states"),
                _ => Error::io("cannot read hidden states", e),
            })?;
            values.iter_mut().for_each(|v| *v = f32::from_bits(u32::from_le(v.to_bits())));
            Ok(Tensor::from_vec(values, (batch.len(), length, width), &Device::Cpu)?)
        })
    }

    fn of(
        decoder: &Decoder<'_>,
        windows: &[Vec<u32>],
        spill: Option<Spill>,
        mut states: impl FnMut(&[Vec<u32>]) -> Result<Tensor>,
    ) -> Result<Hidden> {
        let mut at = 0;
        let batch = |windows: &[Vec<u32>]| {
            let states = states(windows)?;
            let mut batch = Batch {
                shape: states.dims3()?.into(),
                states: States::Disk(at),
                context: decoder.context(windows[0].len()),
                held: None,
            };
            at += batch.bytes();
            batch.set(states, spill.as_ref())?;
            Ok(batch)
        };
        let batches = batches(windows).map(batch).collect::<Result<_>>()?;
        Ok(Hidden { batches, spill, residency: Residency::default() })
    }

    /// The same states once more, in memory, to go another way from here.
    ///
    /// # Errors
    /// `Other` if they cannot be read from the disk.
    pub fn copy(&self, decoder: &Decoder<'_>) -> Result<Hidden> {
        let copy = |batch: &Batch| {
            Ok(Batch {
                shape: batch.shape,
                states: States::Here(batch.activations(self.spill.as_ref())?.into_memory()?),
                context: decoder.context(batch.shape[1]),
                held: None,
            })
        };
        let batches = self.batches.iter().map(copy).collect::<Result<_>>()?;
        Ok(Hidden { batches, spill: None, residency: Residency::default() })
    }

    /// How many bytes the states of `windows` take.
    pub fn bytes_of(decoder: &Decoder<'_>, windows: &[Vec<u32>]) -> u64 {
        let tokens: usize = windows.iter().map(Vec::len).sum();
        (tokens * decoder.model.hyper.hidden * size_of::<f32>()) as u64
    }

    /// Writes all states, window after window: float32, little-endian, [`Hidden::bytes`] of them.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for batch in &self.batches {
            let states = batch.get(self.spill.as_ref()).map_err(io::Error::other)?;
            let mut values =
                states.flatten_all().and_then(|s| s.to_vec1::<f32>()).map_err(io::Error::other)?;
            values.iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits().to_le()));
            out.write_all(bytemuck::cast_slice(&values))?;
        }
        Ok(())
    }

    /// How many bytes [`Hidden::write`] writes.
    pub fn bytes(&self) -> u64 {
        self.batches.iter().map(Batch::bytes).sum()
    }

    /// The states of all windows, batch by batch: `[windows, tokens, hidden]`.
    ///
    /// # Errors
    /// `Resources` or `Other` if they cannot be read from the disk.
    pub fn states(&self) -> impl Iterator<Item = Result<Tensor>> {
        self.batches.iter().map(|batch| batch.get(self.spill.as_ref()))
    }

    /// Takes all windows through one layer, in order; `tap` sees what goes into its matrices, batch by batch.
    ///
    /// # Errors
    /// `Interrupted`, or what `tap` returns.
    pub fn advance(&mut self, layer: &Layer, tap: &mut dyn Tap, cancel: &Cancel) -> Result<()> {
        for batch in &mut self.batches {
            cancel.check()?;
            let states = layer.forward(&batch.get(self.spill.as_ref())?, &batch.context, tap)?;
            batch.set(states, self.spill.as_ref())?;
        }
        Ok(())
    }

    /// Takes all windows one step further into a layer, in order; `tap` sees the inputs at which the step stops, batch by
    /// batch. The matrices of `layer` may be others at each step.
    ///
    /// Between [`Step::Down`] and [`Step::End`] the inputs of down are kept, which are several times as large as the states;
    /// with `keep` off they are computed a second time instead. That never changes a bit.
    ///
    /// # Errors
    /// As [`Hidden::advance`].
    pub fn step(
        &mut self,
        step: Step,
        layer: &Layer,
        keep: bool,
        tap: &mut dyn Tap,
        cancel: &Cancel,
    ) -> Result<()> {
        for batch in &mut self.batches {
            cancel.check()?;
            let mut states = batch.activations(self.spill.as_ref())?;
            layer.step(step, &mut states, &mut batch.held, &batch.context, tap)?;
            if step.changes_states() {
                batch.put(states, self.spill.as_ref(), self.residency.states)?;
            }
            batch.held = match batch.held.take() {
                Some(held) if keep && self.residency.held => Some(held),
                Some(held) if keep => Some(held.into_memory()?),
                _ => None,
            };
        }
        Ok(())
    }

    /// The states of one window: `[tokens, hidden]`.
    ///
    /// # Errors
    /// Those of candle.
    ///
    /// # Panics
    /// If there is no such window.
    pub fn window(&self, mut i: usize) -> Result<Tensor> {
        for batch in &self.batches {
            let here = batch.shape[0];
            if i < here {
                return Ok(batch.get(self.spill.as_ref())?.get(i)?);
            }
            i -= here;
        }
        panic!("there is no such window");
    }

    /// The states of some windows of one length: `[windows, tokens, hidden]`.
    ///
    /// # Errors
    /// As [`Hidden::window`].
    ///
    /// # Panics
    /// If there is no such window.
    pub fn windows_of(&self, windows: &[usize]) -> Result<Tensor> {
        let states = windows.iter().map(|i| self.window(*i)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&states, 0)?)
    }

    /// Says what stays on a device from the next step on. What is there already stays until then.
    pub fn reside(&mut self, residency: Residency) {
        self.residency = residency;
    }

    /// The most tokens of a batch, and of a window.
    pub fn largest_batch(&self) -> [usize; 2] {
        let tokens = self.batches.iter().map(|batch| batch.shape[0] * batch.shape[1]).max();
        let length = self.batches.iter().map(|batch| batch.shape[1]).max();
        [tokens, length].map(Option::unwrap_or_default)
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.batches.iter().map(|b| b.shape[0]).sum()
    }

    /// Number of tokens of all windows.
    pub fn tokens(&self) -> usize {
        self.batches.iter().map(|b| b.shape[0] * b.shape[1]).sum()
    }
}

impl Batch {
    fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * size_of::<f32>()) as u64
    }

    /// The states in memory, `[windows, tokens, hidden]`.
    fn get(&self, spill: Option<&Spill>) -> Result<Tensor> {
        Ok(self.activations(spill)?.tensor()?.reshape(self.shape.to_vec())?)
    }

    /// The states, `[windows * tokens, hidden]`, from the disk if they are there.
    fn activations(&self, spill: Option<&Spill>) -> Result<Activations> {
        let [windows, tokens, hidden] = self.shape;
        match (&self.states, spill) {
            (States::Here(states), _) => Ok(states.clone()),
            (States::Disk(at), Some(spill)) => {
                let states = spill.load(self.shape, *at)?;
                Ok(Activations::Memory(states.reshape((windows * tokens, hidden))?))
            }
            (States::Disk(_), None) => unreachable!("states are on the disk only if there is a place"),
        }
    }

    /// Puts other states of the same number where the last ones were, or into memory if there is no place on the disk.
    fn set(&mut self, states: Tensor, spill: Option<&Spill>) -> Result<()> {
        let [windows, tokens, hidden] = self.shape;
        let states = states.reshape((windows * tokens, hidden))?;
        self.put(Activations::Memory(states), spill, false)
    }

    /// The same; they stay on a device if they are there and may.
    fn put(&mut self, states: Activations, spill: Option<&Spill>, resident: bool) -> Result<()> {
        match (&self.states, spill) {
            (States::Disk(at), Some(spill)) => spill.store(&states.tensor()?, *at)?,
            _ if resident => self.states = States::Here(states),
            _ => self.states = States::Here(states.into_memory()?),
        }
        Ok(())
    }
}

/// Windows of one length that go through a layer together.
fn batches(windows: &[Vec<u32>]) -> impl Iterator<Item = &[Vec<u32>]> {
    windows
        .chunk_by(|a, b| a.len() == b.len())
        .flat_map(|equal| equal.chunks((BATCH_TOKENS / equal[0].len().max(1)).max(1)))
}
