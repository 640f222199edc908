//! Sums of squares of all inputs of a model's matrices, layer by layer, with a checkpoint after each.

use std::path::PathBuf;

use serde_json::json;

use super::{Collect, Report};
use crate::arch::decoder::{Activations, Compute, Decoder, Hidden, Input, LinearId, Spill, Tap};
use crate::atomic::parent;
use crate::calib::chunks::{Chunking, chunks};
use crate::calib::guard::Guard;
use crate::calib::imatrix::{Format, Sums};
use crate::calib::squares::Squares;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::pipeline::checkpoint::{Checkpoint, Identity, Settings};
use crate::pipeline::memory::{self, Budget};
use crate::pipeline::model::OpenModel;
use crate::progress::{Progress, Unit};

/// What the checkpoint remembers as the report does.
const DROPPED: &str = "dropped_rows";

/// What the passes through all layers gave.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) sums: Sums,
    pub(super) layers: usize,
    pub(super) tokens: u64,
    pub(super) dropped: u64,
    pub(super) checkpoint: Option<Checkpoint>,
}

/// What came of it.
pub(super) enum Outcome {
    Collected(Box<Collected>),
    /// The output is there already: a run made it that was killed before its checkpoint was gone.
    Finished(Box<Report>),
}

/// Computes `job`'s model on its text, in chunks of `length` tokens.
pub(super) fn collect(
    job: &Collect,
    length: usize,
    settings: &Settings,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Outcome> {
    progress.info(&format!("Loading model {}", job.model));
    let open = OpenModel::open(&job.model, &job.ignore_config, cancel, progress)?;
    check_context(&open, length)?;
    let chunking = Chunking { length, limit: job.chunks, parse_special: job.parse_special };
    let windows = chunks(&job.data, &open.encoder, &chunking, cancel, progress)?;
    progress.info(&format!("Text: {} chunks of {length} tokens", windows.len()));

    let decoder = open.decoder()?.compute_in(job.compute);
    let identity = Identity::new(&settings.command)
        .with("ctx", length)
        .with("process-output", job.process_output)
        .with("compute", job.compute.name())
        .with_model(&open.model, &*open.weights)?
        .with_tokens(&windows);
    let on_disk = fit(&open, &windows, job.compute)?;
    let checkpoint = Checkpoint::open(settings, identity, decoder.layers(), progress)?;
    let checkpoint = match checkpoint {
        Some(made) if made.has_made() => {
            return Ok(Outcome::Finished(Box::new(made.take_report(progress)?)));
        }
        other => other,
    };
    let mut sums = Sums::new(u32::try_from(length).unwrap_or(u32::MAX));
    sums.datasets.push(job.data.source().to_owned());
    let head = job.process_output && has_head(&open, progress);
    let disk = on_disk.then(|| match &checkpoint {
        Some(checkpoint) => checkpoint.dir().to_owned(),
        None => parent(&settings.output).to_owned(),
    });
    let pass =
        Pass { open: &open, decoder, windows, head, disk, sums, dropped: 0, checkpoint, cancel, progress };
    Ok(Outcome::Collected(Box::new(pass.run()?)))
}

/// Whether hidden states must be on the disk so that the job fits the memory it may take.
///
/// # Errors
/// `Resources` if it does not fit even so.
fn fit(open: &OpenModel, windows: &[Vec<u32>], compute: Compute) -> Result<bool> {
    let budget = Budget::of_process();
    let model = &open.model;
    // The sums of two layers, and those of all as a file.
    let sums = 64 * (model.hyper.layers * (4 * model.hyper.hidden + memory::inner(model))) as u64;
    let program = memory::program(model, rayon::current_num_threads());
    let least = program + memory::computing(model, compute, windows) + sums;
    budget.require(least, "Give it more memory, or take fewer --threads or a shorter --ctx.")?;
    Ok(!budget.allows(least + memory::states(model, windows)))
}

fn check_context(open: &OpenModel, length: usize) -> Result<()> {
    match open.model.hyper.context {
        Some(context) if context < length => Err(Error::new(
            Kind::Usage,
            format!("--ctx {length} is longer than the context of {}, {context} tokens", open.name),
        )
        .hint(format!("Pass --ctx {context} or less."))),
        _ => Ok(()),
    }
}

/// Whether there is a head of the model's own.
fn has_head(open: &OpenModel, progress: &dyn Progress) -> bool {
    let spec = open.model.spec;
    let has = spec.rule("output.weight").is_some_and(|rule| {
        open.weights.names().into_iter().any(|name| spec.canonical(name).as_deref() == Some(rule.hf))
    });
    if !has {
        progress.warn("--process-output is of no effect: the head is the token embedding");
    }
    has
}

/// The work on all layers.
struct Pass<'a> {
    open: &'a OpenModel,
    decoder: Decoder<'a>,
    windows: Vec<Vec<u32>>,
    /// Whether the head's input is collected.
    head: bool,
    /// Where hidden states are kept if not in memory.
    disk: Option<PathBuf>,
    sums: Sums,
    dropped: u64,
    checkpoint: Option<Checkpoint>,
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
}

impl Pass<'_> {
    fn run(mut self) -> Result<Collected> {
        let layers = self.decoder.layers();
        let done = self.restore()?;
        self.progress.begin("Collecting activations", (layers - done) as u64, Unit::Layers);
        let through = self.through(done);
        self.progress.end();
        through.map_err(|e| match self.checkpoint.take() {
            Some(checkpoint) => checkpoint.end_early(e, self.progress),
            None => e,
        })?;
        Ok(Collected {
            sums: self.sums,
            layers,
            tokens: self.windows.iter().map(|window| window.len() as u64).sum(),
            dropped: self.dropped,
            checkpoint: self.checkpoint,
        })
    }

    /// Takes up what the checkpoint holds, and says of how many layers it is.
    fn restore(&mut self) -> Result<usize> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(0) };
        for layer in 0..checkpoint.done() {
            let name = Checkpoint::name("sums", layer);
            let sums = Sums::load(&checkpoint.path(&name)?, self.sums.chunk_size);
            self.sums.add(sums.map_err(|e| checkpoint.unusable(&name, &e))?)?;
        }
        self.dropped = checkpoint.note()[DROPPED].as_u64().unwrap_or(0);
        Ok(checkpoint.done())
    }

    /// All layers from the first that is not done, and the head.
    fn through(&mut self, done: usize) -> Result<()> {
        let layers = self.decoder.layers();
        if done == layers && !self.head {
            return Ok(());
        }
        let bytes = Hidden::bytes_of(&self.decoder, &self.windows);
        let spill = self.disk.as_deref().map(|disk| Spill::create(disk, bytes)).transpose()?;
        let mut hidden = match &self.checkpoint {
            Some(checkpoint) if done > 0 => checkpoint
                .get(&Checkpoint::name("hidden", done - 1), |input| {
                    Hidden::read(&self.decoder, &self.windows, spill, input)
                })?,
            _ => Hidden::embed_in(&self.decoder, &self.windows, spill)?,
        };
        for layer in done..layers {
            self.cancel.check()?;
            let weights = self.decoder.layer(layer)?;
            let (sums, dropped) = self.statistics(|tap| hidden.advance(&weights, tap, self.cancel))?;
            drop(weights);
            self.dropped += dropped;
            self.save(layer, &sums, &hidden)?;
            self.sums.add(sums)?;
            self.progress.advance(1);
        }
        if self.head {
            let head = LinearId { layer: layers, input: Input::Head };
            let (sums, dropped) = self.statistics(|tap| {
                hidden.states().try_for_each(|states| {
                    self.cancel.check()?;
                    let normed = self.decoder.norm(&states?)?.flatten(0, 1)?;
                    tap.input(head, &Activations::Memory(normed))
                })
            })?;
            self.dropped += dropped;
            self.sums.add(sums)?;
        }
        Ok(())
    }

    /// The sums of what `pass` shows to the tap, and how many rows were left out.
    fn statistics(&self, pass: impl FnOnce(&mut dyn Tap) -> Result<()>) -> Result<(Sums, u64)> {
        let model = &self.open.model;
        let mut squares = Squares::default();
        let mut guard = Guard::new(&mut squares);
        pass(&mut guard)?;
        let dropped = guard.finish(model.spec, self.progress)?;
        let mut sums = Sums::new(self.sums.chunk_size);
        sums.entries = squares.finish(model.spec, model.hyper.experts)?;
        Ok((sums, dropped))
    }

    /// Adds a layer to the checkpoint. The states after it take the place of those before.
    fn save(&mut self, layer: usize, sums: &Sums, hidden: &Hidden) -> Result<()> {
        let needed = self.head || layer + 1 < self.decoder.layers();
        let Some(checkpoint) = &mut self.checkpoint else { return Ok(()) };
        let bytes = Format::Gguf.encode(sums);
        checkpoint.put(&Checkpoint::name("sums", layer), bytes.len() as u64, |out| out.write_all(&bytes))?;
        if needed {
            checkpoint.put(&Checkpoint::name("hidden", layer), hidden.bytes(), |out| hidden.write(out))?;
        }
        if layer > 0 {
            checkpoint.forget(&Checkpoint::name("hidden", layer - 1));
        }
        checkpoint.commit(layer + 1, json!({DROPPED: self.dropped}))
    }
}
