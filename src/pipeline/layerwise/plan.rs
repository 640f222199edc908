//! Everything that is known before a model is quantized layer by layer, and the checkpoint that comes of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use regex::Regex;
use serde_json::json;

use super::entries::{entries, leave_out};
use super::need::{Frugality, Need};
use super::report::{Report, Times, share_errors};
use super::verify::verify;
use super::{Grids, LeftOut, Matrix, Method, Results, Walk, Watch, matrices};
use crate::arch::Model;
use crate::atomic;
use crate::backend::Backend;
use crate::calib::rows::{Limits, Rows};
use crate::error::{Error, Kind, Result};
use crate::format::packed::{Container, Entry, Layout, PackedWriter, Target};
use crate::pipeline::checkpoint::{Checkpoint, Identity, Settings};
use crate::pipeline::memory::Budget;
use crate::pipeline::model::{OpenModel, Origin};
use crate::pipeline::outcome::{Made, Outcome, Unnamed};
use crate::pipeline::tune;
use crate::progress::{Progress, Silent};
use crate::source::dense::Dense;
use crate::source::folded::Folded;
use crate::source::tokenizer::encoder::Encoder;

/// Rows of a tensor that is copied that are in memory at a time: about so many weights.
const COPIED: usize = 1 << 22;

/// What every method asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The grid of each matrix.
    pub grids: Grids,
    /// Linear layers that stay as they are.
    pub skip: Vec<Regex>,
    /// Whether less is kept in memory for the price of computing it again.
    pub low_memory: bool,
    /// Whether hidden states are kept on the disk, and no more of them in memory than is being computed.
    pub offload: bool,
    /// The directory to write.
    pub output: PathBuf,
    /// Whether it may be overwritten.
    pub force: bool,
    /// Whether and where there is a checkpoint.
    pub checkpoint: Settings,
    /// Keys of `config.json` that are accepted whatever they say.
    pub ignore_config: Vec<String>,
    /// Worker threads.
    pub threads: usize,
    /// What quantizes the matrices.
    pub backend: Arc<dyn Backend>,
    /// How the quantized matrices are tuned, if they are.
    pub tune: Option<tune::Settings>,
}

/// A model, understood, and what is to become of each of its tensors.
#[derive(Debug)]
pub struct Plan {
    model: Model,
    tensors: Box<dyn Dense>,
    encoder: Encoder,
    origin: Origin,
    original_size: u64,
    matrices: Vec<Vec<Matrix>>,
    left_out: Vec<LeftOut>,
    entries: Vec<Entry>,
    container: Container,
    options: Options,
}

impl Plan {
    /// Understands a model that is open, in whatever format it is, and decides what is quantized. No tensor is read yet.
    ///
    /// # Errors
    /// `Unsupported` for a model that cannot be computed, `Invalid` for a damaged one.
    pub fn of(
        opened: OpenModel,
        container: Container,
        options: Options,
        progress: &dyn Progress,
    ) -> Result<Plan> {
        let OpenModel { model, weights: tensors, encoder, origin, file_bytes: original_size, .. } = opened;
        let mut matrices = matrices::find(&model, &*tensors)?;
        let all: usize = matrices.iter().map(Vec::len).sum();
        options.grids.check(&matrices)?;
        let left_out = leave_out(&mut matrices, &container, &options.grids, &options.skip);
        progress.info(&format!(
            "Architecture: {} ({} layers, {} of {all} matrices are quantized)",
            model.config.architecture()?,
            model.hyper.layers,
            all - left_out.len()
        ));
        for LeftOut { name, reason } in &left_out {
            progress.detail(&format!("{name} stays in 16 bits: {reason}"));
        }
        if all == left_out.len() {
            return Err(Error::new(Kind::Unsupported, "no matrix of the model can be quantized")
                .hint(format!("The first stays in 16 bits because of this: {}.", left_out[0].reason)));
        }
        let mut refused = left_out.iter().filter(|l| !l.reason.starts_with("--skip"));
        if let Some(first) = refused.next() {
            progress.warn(&format!(
                "{} of {all} matrices cannot be stored in {} and stay in 16 bits, the first of them {}: {}",
                1 + refused.count(),
                container.name(),
                first.name,
                first.reason
            ));
        }
        if let Some(tune) = &options.tune {
            tune.check_model(&model)?;
        }
        let entries = entries(&model, &*tensors, &matrices, &left_out, &options.grids);
        Ok(Plan {
            model,
            tensors,
            encoder,
            origin,
            original_size,
            matrices,
            left_out,
            entries,
            container,
            options,
        })
    }

    /// The model's tokenizer.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// What rows of calibration data the model can take.
    pub fn limits(&self) -> Limits {
        let hyper = &self.model.hyper;
        Limits { context: hyper.context.unwrap_or(usize::MAX), vocab: hyper.vocab }
    }

    /// What was asked for.
    pub fn options(&self) -> &Options {
        &self.options
    }

    pub(in crate::pipeline) fn model(&self) -> &Model {
        &self.model
    }

    /// Bytes of the source's files.
    pub(super) fn original_size(&self) -> u64 {
        self.original_size
    }

    pub(in crate::pipeline) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(in crate::pipeline) fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    pub(super) fn layout(&self) -> Box<dyn Layout> {
        self.container.layout()
    }

    /// Checks that need no work: the output may be written, and the disk has room for `bytes`.
    ///
    /// # Errors
    /// `Usage` if the output exists and may not be replaced, `Resources` if the disk is full.
    pub(in crate::pipeline) fn preflight(&self, bytes: u64) -> Result<()> {
        let Options { checkpoint, output, force, .. } = &self.options;
        checkpoint.check_output(|| atomic::refuse_existing_dir(output, *force))?;
        let dir = self.options.output.parent().unwrap_or(Path::new("."));
        atomic::check_space(dir, bytes)
    }

    /// Checks that the job fits in the memory that it may take.
    ///
    /// # Errors
    /// `Resources`, saying how much is missing.
    pub(in crate::pipeline) fn check_memory(&self, rows: &Rows) -> Result<()> {
        self.frugality(rows, &Silent).map(drop)
    }

    /// What decides the result whatever the method.
    pub(in crate::pipeline) fn identity(&self) -> Identity {
        let Options { grids, skip, checkpoint, backend, tune, .. } = &self.options;
        let identity = Identity::new(&checkpoint.command)
            .with("bits", grids.base.bits)
            .with("group-size", i64::try_from(grids.base.group_size).unwrap_or(-1))
            .with("symmetric", grids.base.symmetric)
            .with("grids", grids.identity())
            .with("skip", json!(skip.iter().map(Regex::as_str).collect::<Vec<_>>()))
            // Sums of other devices differ in their last bits.
            .with("device", backend.name());
        match tune {
            Some(tune) => tune.identify(identity),
            None => identity,
        }
    }

    /// Takes `rows` through the model, has `method` quantize its matrices on the way, on the worker threads, and writes
    /// the checkpoint; then opens it again and compares it with the source. `identity` is what decides the result besides
    /// the model and the rows.
    ///
    /// # Errors
    /// What the data, the model or the disk do not allow; no more than a checkpoint is left behind then.
    pub(in crate::pipeline) fn run<'a, M: Method, O: Clone + Send + Sync>(
        &'a self,
        identity: Identity,
        rows: &Rows,
        watch: Watch<'a>,
        options: O,
        method: impl FnOnce(Walk<'a>) -> M + Send,
    ) -> Result<Outcome<Report<O, M::How>>> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.options.threads)
            .build()
            .map_err(|e| Error::new(Kind::Resources, "cannot start worker threads").because(e))?;
        pool.install(|| {
            let started = Instant::now();
            if let Some(tune) = &self.options.tune {
                tune.check_rows(rows.rows.len())?;
            }
            let frugal = self.frugality(rows, watch.progress)?;
            let identity = identity.with_model(&self.model, &*self.tensors)?.with_tokens(&rows.rows);
            let layers = self.matrices.len();
            let checkpoint = Checkpoint::open(&self.options.checkpoint, identity, layers, watch.progress)?;
            let checkpoint = match checkpoint {
                Some(made) if made.has_made() => return Ok(Outcome::Finished(Box::new(made))),
                other => other,
            };
            let whole = self.options.tune.as_ref().filter(|settings| settings.whole_steps > 0);
            let (writer, matrices) = (self.begin()?, &self.matrices);
            let mut results =
                Results::restore(writer, checkpoint, matrices, &*self.tensors, whole.is_some())?;
            let offload = frugal.offload.then(|| self.disk(results.checkpoint_dir()));
            let walk = Walk {
                model: &self.model,
                weights: &*self.tensors,
                matrices: &self.matrices,
                keep: !frugal.low_memory,
                backend: &*self.options.backend,
                tune: self.options.tune.as_ref(),
                watch,
            };
            let mut method = method(walk);
            let mut times = Times::default();
            let mut work = || {
                walk.go(&rows.rows, offload.as_deref(), &mut method, &mut results)?;
                if let Some(settings) = whole {
                    walk.tune_whole(settings, &rows.rows, &mut results)?;
                    results.write_deferred()?;
                }
                share_errors(results.linears());
                let folded = Folded::with(&*self.tensors, results.take_moved());
                self.copy(&folded, results.writer(), watch)?;
                times.quantize = started.elapsed();
                let dir = results.writer().path().to_owned();
                verify(&dir, &folded, results.linears(), watch)?;
                times.validate = started.elapsed() - times.quantize;
                watch.cancel.check()?;
                Ok(folded.into_moved())
            };
            let moved = work().map_err(|e| results.end_early(e, watch.progress))?;
            let tuning = results.take_curves();
            let (directory, linears, checkpoint) = results.flush()?;
            times.flush = started.elapsed() - times.quantize - times.validate;
            let (data, bytes) = (rows.record.clone(), directory.weight_bytes);
            let format = self.container.format();
            let report = Report::new(format, self, options, data, linears, tuning, bytes, times);
            Ok(Outcome::Made(Box::new(Made {
                report,
                moved,
                output: Unnamed::Directory(directory),
                checkpoint,
            })))
        })
    }

    /// Begins the output.
    fn begin(&self) -> Result<PackedWriter> {
        let config = self.model.config.unquantized();
        let target = Target {
            force: self.options.force,
            ..Target::new(&self.options.output, self.origin.dir(), &config)
        };
        let writer = PackedWriter::create(target, &self.container, &self.entries)?;
        self.origin.write_rebuilt(writer.path())?;
        Ok(writer)
    }

    /// What is kept in memory: what was asked for, or less if it would not fit.
    fn frugality(&self, rows: &Rows, progress: &dyn Progress) -> Result<Frugality> {
        let Options { low_memory, offload, threads, .. } = self.options;
        let (model, matrices, windows) = (&self.model, &self.matrices, &rows.rows);
        let asked = Frugality { low_memory: low_memory || offload, offload };
        let backend = &*self.options.backend;
        let tune = self.options.tune.as_ref();
        Need { model, matrices, windows, threads, backend, tune }.choose(
            asked,
            Budget::of_process(),
            progress,
        )
    }

    /// The disk for hidden states, if they are kept there: that of the checkpoint, or of the output.
    fn disk(&self, checkpoint: Option<&Path>) -> PathBuf {
        let beside = || match self.options.output.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        checkpoint.map_or_else(beside, Path::to_owned)
    }

    /// Writes the tensors that are not quantized.
    fn copy(&self, weights: &dyn Dense, writer: &mut PackedWriter, watch: Watch<'_>) -> Result<()> {
        for entry in &self.entries {
            let Entry::Dense { name, shape, .. } = entry else { continue };
            let rows = shape.first().copied().unwrap_or(1);
            let width: usize = shape.iter().skip(1).product();
            let at_a_time = (COPIED / width.max(1)).max(1);
            for start in (0..rows).step_by(at_a_time) {
                watch.cancel.check()?;
                let rows = start..(start + at_a_time).min(rows);
                let mut values = vec![0.0; rows.len() * width];
                weights.read(name, rows, &mut values)?;
                writer.dense(name, &values)?;
            }
        }
        Ok(())
    }
}
