//! Everything that is known before a model is quantized layer by layer, and the checkpoint that comes of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use regex::Regex;

use super::entries::{entries, leave_out};
use super::report::{Linear, Made, Times, share_errors};
use super::verify::verify;
use super::{LeftOut, Matrix, Sink, Walk, Watch, matrices};
use crate::arch::Model;
use crate::atomic;
use crate::backend::Backend;
use crate::calib::rows::Limits;
use crate::error::{Error, Kind, Result};
use crate::format::packed::{Container, Entry, Layout, PackedWriter, Target};
use crate::pipeline::model::{OpenModel, Origin};
use crate::progress::Progress;
use crate::quant::Grid;
use crate::source::dense::Dense;
use crate::source::folded::Folded;
use crate::source::tokenizer::encoder::Encoder;

/// Rows of a tensor that is copied that are in memory at a time: about so many weights.
const COPIED: usize = 1 << 22;

/// What every method asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The grid.
    pub grid: Grid,
    /// Linear layers that stay as they are.
    pub skip: Vec<Regex>,
    /// Whether less is kept in memory for the price of computing it again.
    pub low_memory: bool,
    /// The directory to write.
    pub output: PathBuf,
    /// Whether it may be overwritten.
    pub force: bool,
    /// Keys of `config.json` that are accepted whatever they say.
    pub ignore_config: Vec<String>,
    /// Worker threads.
    pub threads: usize,
    /// What quantizes the matrices.
    pub backend: Arc<dyn Backend>,
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
        let left_out = leave_out(&mut matrices, &container, options.grid, &options.skip);
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
        let entries = entries(&model, &*tensors, &matrices, &left_out, options.grid);
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

    pub(in crate::pipeline) fn tensors(&self) -> &dyn Dense {
        &*self.tensors
    }

    /// Bytes of the source's files.
    pub(super) fn original_size(&self) -> u64 {
        self.original_size
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn left_out(&self) -> &[LeftOut] {
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
        atomic::refuse_existing_dir(&self.options.output, self.options.force)?;
        let dir = self.options.output.parent().unwrap_or(Path::new("."));
        atomic::check_space(dir, bytes)
    }

    /// The way through the layers.
    pub(in crate::pipeline) fn walk<'a>(&'a self, watch: Watch<'a>) -> Walk<'a> {
        Walk {
            model: &self.model,
            weights: &*self.tensors,
            matrices: &self.matrices,
            keep: !self.options.low_memory,
            backend: &*self.options.backend,
            watch,
        }
    }

    /// Does `quantize`, which returns what it did to the matrices and how tensors were folded, on the worker threads, and
    /// writes the checkpoint; then opens it again and compares it with the source.
    ///
    /// # Errors
    /// What the data, the model or the disk do not allow; nothing is left behind then.
    pub(in crate::pipeline) fn run<'a, H: Send>(
        &'a self,
        watch: Watch<'_>,
        quantize: impl FnOnce(&mut Sink<'_>) -> Result<(Vec<Linear<H>>, Folded<'a>)> + Send,
    ) -> Result<Made<H>> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.options.threads)
            .build()
            .map_err(|e| Error::new(Kind::Resources, "cannot start worker threads").because(e))?;
        pool.install(|| {
            let started = Instant::now();
            let config = self.model.config.unquantized();
            let target = Target {
                force: self.options.force,
                ..Target::new(&self.options.output, self.origin.dir(), &config)
            };
            let mut writer = PackedWriter::create(target, &self.container, &self.entries)?;
            self.origin.write_rebuilt(writer.path())?;
            let (mut linears, folded) =
                quantize(&mut |matrix, linear, bias| writer.linear(&matrix.name, linear, bias))?;
            share_errors(&mut linears);
            self.copy(&folded, &mut writer, watch)?;
            let mut times = Times { quantize: started.elapsed(), ..Times::default() };
            verify(writer.path(), &folded, &linears, watch)?;
            times.validate = started.elapsed() - times.quantize;
            watch.cancel.check()?;
            let written = writer.finish()?;
            times.flush = started.elapsed() - times.quantize - times.validate;
            Ok(Made { linears, file_size: written.weight_bytes, times, moved: folded.into_moved() })
        })
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
