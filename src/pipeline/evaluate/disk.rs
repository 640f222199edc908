//! What an evaluation keeps on the disk: its checkpoint, and hidden states that do not fit into memory.

use std::path::Path;

use super::Config;
use crate::arch::Model;
use crate::arch::decoder::{Compute, Decoder, Hidden, Spill};
use crate::atomic::parent;
use crate::error::{Error, Result};
use crate::eval::windows::Windows;
use crate::pipeline::checkpoint::{Checkpoint, Identity};
use crate::pipeline::memory::{self, Budget};
use crate::pipeline::model::OpenModel;
use crate::progress::Progress;

/// What is computed: a model, and what it is compared with.
#[derive(Clone, Copy)]
pub(in crate::pipeline) struct Pair<'a> {
    pub(in crate::pipeline) model: &'a OpenModel,
    pub(in crate::pipeline) reference: Option<&'a OpenModel>,
    pub(in crate::pipeline) windows: &'a Windows,
    pub(in crate::pipeline) compute: Compute,
}

/// What is kept on the disk.
pub(in crate::pipeline) struct Disk<'a> {
    /// The checkpoint, if there is one.
    pub(in crate::pipeline) checkpoint: Option<Checkpoint>,
    /// Where hidden states are if not in memory.
    states: Option<&'a Path>,
}

impl<'a> Disk<'a> {
    /// Keeps nothing.
    pub(in crate::pipeline) fn none() -> Disk<'a> {
        Disk { checkpoint: None, states: None }
    }

    /// Opens the checkpoint of a job of so many `steps`, if there is to be one, after it is known that the job fits the memory it
    /// may take.
    ///
    /// # Errors
    /// `Resources` if it does not; those of [`Checkpoint::open`].
    pub(in crate::pipeline) fn open(
        config: &'a Config,
        pair: Pair<'_>,
        steps: usize,
        progress: &dyn Progress,
    ) -> Result<Disk<'a>> {
        let beside = config.output.as_ref().map(|file| parent(&file.path));
        let place = config.checkpoint.dir.as_deref().or(beside);
        let spills = pair.must_spill(place.is_some())?;
        let checkpoint = match &config.checkpoint.dir {
            None => None,
            Some(_) => {
                let identity = pair.identity(&config.checkpoint.command)?;
                Checkpoint::open(&config.checkpoint, identity, steps, progress)?
            }
        };
        Ok(Disk { checkpoint, states: place.filter(|_| spills) })
    }

    /// The hidden states of all windows after as many layers as are `done`, which are in the checkpoint under this name; those
    /// before the first layer if none are.
    ///
    /// # Errors
    /// `Checkpoint` if they are damaged, `Resources` if there is no room for them.
    pub(in crate::pipeline) fn hidden(
        &self,
        decoder: &Decoder<'_>,
        windows: &[Vec<u32>],
        kind: &str,
        done: usize,
    ) -> Result<Hidden> {
        let bytes = Hidden::bytes_of(decoder, windows);
        let spill = self.states.map(|place| Spill::create(place, bytes)).transpose()?;
        match &self.checkpoint {
            Some(checkpoint) if done > 0 => {
                let name = Checkpoint::name(kind, done - 1);
                checkpoint.get(&name, |input| Hidden::read(decoder, windows, spill, input))
            }
            _ => Hidden::embed_in(decoder, windows, spill),
        }
    }

    /// The job ends early: see [`Checkpoint::end_early`].
    pub(in crate::pipeline) fn end_early(&mut self, e: Error, progress: &dyn Progress) -> Error {
        match self.checkpoint.take() {
            Some(checkpoint) => checkpoint.end_early(e, progress),
            None => e,
        }
    }

    /// Adds the hidden states after a layer to the next commit, in the place of those before.
    ///
    /// # Errors
    /// `Resources` if the disk is full.
    pub(in crate::pipeline) fn keep(&mut self, kind: &str, layer: usize, hidden: &Hidden) -> Result<()> {
        let Some(checkpoint) = &mut self.checkpoint else { return Ok(()) };
        checkpoint.put(&Checkpoint::name(kind, layer), hidden.bytes(), |out| hidden.write(out))?;
        if layer > 0 {
            checkpoint.forget(&Checkpoint::name(kind, layer - 1));
        }
        Ok(())
    }
}

impl Pair<'_> {
    /// What decides the result.
    fn identity(&self, command: &str) -> Result<Identity> {
        let tokens: Vec<Vec<u32>> =
            self.windows.inputs().iter().chain(self.windows.targets()).cloned().collect();
        let identity = Identity::new(command)
            .with("protocol", self.windows.protocol().name())
            .with("ctx", self.windows.ctx())
            .with("compute", self.compute.name())
            .with("format", self.model.format)
            .with_model(&self.model.model, &*self.model.weights)?
            .with_tokens(&tokens);
        match self.reference {
            None => Ok(identity),
            Some(reference) => identity
                .with("reference's format", reference.format)
                .with_reference(&reference.model, &*reference.weights),
        }
    }

    /// Whether hidden states must be on the disk so that the job fits the memory it may take. `has_place` says whether there is one
    /// for them.
    fn must_spill(&self, has_place: bool) -> Result<bool> {
        const LESS: &str = "Give it more memory, or take fewer --threads or a shorter --ctx.";
        const PLACE: &str = "Pass --output or --checkpoint-dir: then hidden states can be on that disk. Or take fewer --chunks.";
        let budget = Budget::of_process();
        let models: Vec<&Model> =
            [Some(self.model), self.reference].into_iter().flatten().map(|open| &open.model).collect();
        let inputs = self.windows.inputs();
        // Both may be computed side by side.
        let computing =
            models.iter().map(|model| memory::computing(model, self.compute, inputs)).sum::<u64>();
        let programs = models.iter().map(|model| memory::program(model, rayon::current_num_threads()));
        let least = programs.sum::<u64>() + computing.max(memory::scoring(&models, self.windows));
        let all = least + models.iter().map(|model| memory::states(model, inputs)).sum::<u64>();
        match (budget.allows(all), has_place) {
            (true, _) => Ok(false),
            (false, true) => budget.require(least, LESS).map(|()| true),
            (false, false) => budget.require(all, PLACE).map(|()| false),
        }
    }
}
