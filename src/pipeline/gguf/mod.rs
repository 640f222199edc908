//! A Hugging Face model in, a GGUF file out.

mod chunk;
mod metadata;
mod need;
mod params;
mod plan;
pub mod report;
mod rows;
mod stream;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::arch::Model;
use crate::atomic::{self, AtomicFile, start_writeback};
use crate::backend::Backend;
use crate::calib::imatrix::Imatrix;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::blocks::Simd;
use crate::format::gguf::level::Level;
use crate::format::gguf::mix::{self, Candidate, Choice, Facts, Overrides};
use crate::format::gguf::writer::Layout;
use crate::format::gguf::{GgmlType, Metadata};
use crate::pipeline::checkpoint::stream::{Stream, steps};
use crate::pipeline::checkpoint::{Checkpoint, Identity, Settings, hash};
use crate::pipeline::outcome::{Made, Outcome, Unnamed};
use crate::progress::{Progress, Unit};
use crate::source::SourceModel;
use crate::source::dense::Dense;
use crate::source::folded::Moved;
use crate::source::safetensors::Tensors;
use crate::source::tokenizer::{self, VocabScheme};
use metadata::Setting;
use plan::Planned;
pub(crate) use plan::RowOrder;
pub(in crate::pipeline) use plan::plan;
use report::{Report, Summary, Times};
use rows::RowSource;
use stream::Destination;

/// What to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// The level.
    pub level: Level,
    /// The file to write.
    pub output: PathBuf,
    /// Whether it may be overwritten.
    pub force: bool,
    /// Whether and where there is a checkpoint.
    pub checkpoint: Settings,
    /// Types that the user chose.
    pub overrides: Overrides,
    /// Importance weights.
    pub imatrix: Option<Imatrix>,
    /// `KEY=VALUE` settings of metadata.
    pub metadata: Vec<String>,
    /// Keys of `config.json` that are accepted whatever they say.
    pub ignore_config: Vec<String>,
    /// Worker threads.
    pub threads: usize,
    /// The instruction set of what the processor does; the result does not depend on it.
    pub simd: Simd,
    /// What encodes; the result does not depend on it.
    pub backend: Arc<dyn Backend>,
}

/// One tensor on its way into the file.
struct Target<'a> {
    planned: &'a Planned,
    ty: GgmlType,
    source: RowSource<'a>,
    /// One weight per column and expert.
    importance: Option<&'a [f32]>,
}

impl Target<'_> {
    /// Whether its rows go from the checkpoint to the file as they are, through no buffer.
    fn is_direct(&self) -> bool {
        self.source.is_direct(self.ty)
    }
}

/// Everything that is known before the work starts.
pub struct Job {
    model: Model,
    weights: Box<dyn Dense>,
    /// Bytes of the source's files.
    original_size: u64,
    planned: Vec<Planned>,
    choices: Vec<Choice>,
    metadata: Metadata,
    layout: Layout,
    config: Config,
}

impl Job {
    /// Reads the model, understands it, and chooses the type of every tensor. No tensor is read yet.
    pub fn prepare(source: &SourceModel, config: Config, progress: &dyn Progress) -> Result<Job> {
        let model = Model::read(source.config()?, &config.ignore_config)?;
        model.warnings.iter().for_each(|w| progress.warn(w));
        let tensors = Tensors::open(source.dir())?;
        let original_size = tensors.file_bytes();
        Job::of(source, model, Box::new(tensors), original_size, config, progress)
    }

    /// The same of a model that is open: `weights` may be stored in any way, configuration and tokenizer are those of `source`.
    ///
    /// # Errors
    /// As [`Job::prepare`].
    pub fn of(
        source: &SourceModel,
        model: Model,
        weights: Box<dyn Dense>,
        original_size: u64,
        config: Config,
        progress: &dyn Progress,
    ) -> Result<Job> {
        let settings = config.metadata.iter().map(|s| s.parse::<Setting>()).collect::<Result<Vec<_>>>()?;
        let embedding_rows = match model.spec.vocab {
            VocabScheme::Gemma3 => tokenizer::known_tokens(source.dir())?,
            _ => None,
        };
        let planned = plan(&model, &*weights, embedding_rows)?;
        progress.info(&format!(
            "Architecture: {} ({} layers, {} tensors)",
            model.config.architecture()?,
            model.hyper.layers,
            planned.len()
        ));
        let choices = choose_types(&model, &planned, &config)?;
        for (p, choice) in planned.iter().zip(&choices) {
            if let Some(wanted) = choice.instead_of {
                progress.detail(&format!(
                    "{}: rows of {} weights do not fit {wanted}; {} is used",
                    p.name, p.shape[0], choice.ty
                ));
            }
        }
        let fallbacks = choices.iter().filter(|c| c.instead_of.is_some()).count();
        if fallbacks > 0 {
            progress.warn(&format!(
                "{fallbacks} of {} tensors have rows that {} cannot hold and get a larger type",
                planned.len(),
                config.level.base
            ));
        }
        let metadata = metadata::build(&model, source, &planned, &config, settings, progress)?;
        let names = planned.iter().zip(&choices).map(|(p, c)| (p.name.clone(), p.shape.clone(), c.ty));
        let layout = Layout::new(&metadata, names);
        Ok(Job { model, weights, original_size, planned, choices, metadata, layout, config })
    }

    /// Sizes and types without any work.
    pub fn dry_run(&self) -> Summary {
        Summary::new(&self.model, self.original_size, &self.planned, &self.choices, self.layout.file_bytes())
    }

    /// The file that will be written.
    pub fn output(&self) -> &Path {
        &self.config.output
    }

    /// Encodes and writes the file, then opens it again and compares it with the source.
    ///
    /// # Errors
    /// What the model, the options or the disk do not allow; nothing but what a later run goes on from is left behind then.
    pub fn run(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<Outcome<Report>> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.config.threads)
            .build()
            .map_err(|e| Error::new(Kind::Resources, "cannot start worker threads").because(e))?;
        pool.install(|| self.run_here(progress, cancel))
    }

    fn run_here(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<Outcome<Report>> {
        let started = Instant::now();
        let targets = self.targets(progress)?;
        let buffers = need::affordable_buffers(&self.model, &targets, self.config.backend.batch())?;
        let steps = steps(self.layout.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor.bytes())));
        let checkpoint = match self.open_checkpoint(&targets, steps.len(), progress)? {
            Some(made) if made.has_made() => return Ok(Outcome::Finished(Box::new(made))),
            other => other,
        };
        let mut file = AtomicFile::create(&self.config.output, self.layout.file_bytes(), self.config.force)?;
        let mut kept = Stream::new(checkpoint, steps);
        match self.make(&mut file, (&targets, buffers), &mut kept, started, progress, cancel) {
            Ok(report) => Ok(Outcome::Made(Box::new(Made {
                report,
                moved: Moved::default(),
                output: Unnamed::File(file),
                checkpoint: kept.into_checkpoint(),
            }))),
            Err(e) => Err(kept.end_early(e, progress)),
        }
    }

    /// Fills the file, validates and flushes it.
    fn make(
        &self,
        file: &mut AtomicFile,
        (targets, buffers): (&[Target<'_>], usize),
        kept: &mut Stream,
        started: Instant,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Report> {
        kept.check_space()?;
        let (backend, simd) = (&*self.config.backend, self.config.simd);
        let left = self.planned[kept.done()..].iter().map(Planned::len).sum();
        progress.begin(&format!("Quantizing to GGUF {}", self.config.level.name), left, Unit::Weights);
        let destination = Destination { file: file.file(), layout: self.layout.clone(), kept };
        let written = stream::write_all(destination, targets, backend, simd, buffers, progress, cancel);
        progress.end();
        let anonymous = written?;
        let mut times = Times { encode: started.elapsed(), ..Times::default() };
        // The disk works while the file is validated.
        start_writeback(file.file(), 0, self.layout.file_bytes());

        let weights = self.planned.iter().map(Planned::len).sum();
        progress.begin("Validating output", weights, Unit::Weights);
        let verified = verify::verify(file.path(), &self.metadata, targets, simd, progress, cancel);
        progress.end();
        let losses = verified?;
        times.validate = started.elapsed() - times.encode;
        file.sync()?;
        times.flush = started.elapsed() - times.encode - times.validate;
        cancel.check()?;

        let losses = losses.iter().map(|l| (l.error, l.energy, l.nmse())).collect();
        Ok(Report::new(self.dry_run(), self, losses, times, anonymous))
    }

    /// The checkpoint, if there is to be one: the job is what is in the file's header, and what the weights are rounded by.
    fn open_checkpoint(
        &self,
        targets: &[Target<'_>],
        steps: usize,
        progress: &dyn Progress,
    ) -> Result<Option<Checkpoint>> {
        let settings = &self.config.checkpoint;
        if settings.dir.is_none() {
            return Ok(None);
        }
        let importance: Vec<u8> = targets
            .iter()
            .flat_map(|target| target.importance.unwrap_or_default())
            .flat_map(|weight| weight.to_le_bytes())
            .collect();
        let identity = Identity::new(&settings.command)
            .with("level", self.config.level.name)
            .with("types and metadata", hash(self.layout.header()))
            .with("importance matrix", hash(&importance))
            .with_model(&self.model, &*self.weights)?;
        Checkpoint::open(settings, identity, steps, progress)
    }

    fn targets(&self, progress: &dyn Progress) -> Result<Vec<Target<'_>>> {
        let mut without = 0;
        let mut targets = Vec::with_capacity(self.planned.len());
        for (planned, choice) in self.planned.iter().zip(&self.choices) {
            let source = RowSource::new(planned, &*self.weights);
            let importance = match &self.config.imatrix {
                Some(imatrix) if choice.ty.is_quantized() => importance(imatrix, planned)?,
                _ => None,
            };
            if importance.is_none() && choice.ty.is_quantized() && self.config.imatrix.is_some() {
                without += 1;
                progress.detail(&format!("the importance matrix has no entry for {}", planned.name));
            }
            if importance.is_none() && choice.needs_imatrix {
                return Err(needs_imatrix(&planned.name, choice.ty));
            }
            targets.push(Target { planned, ty: choice.ty, source, importance });
        }
        if without > 0 {
            progress.info(&format!(
                "{without} quantized tensors have no importance weights and are quantized without"
            ));
        }
        Ok(targets)
    }

    /// Checks that need no work: the output may be written, the disk has room, an importance matrix is there if needed.
    pub fn preflight(&self) -> Result<()> {
        let Config { checkpoint, output, force, .. } = &self.config;
        checkpoint.check_output(|| atomic::refuse_existing(output, *force))?;
        let dir = self.config.output.parent().unwrap_or(Path::new("."));
        atomic::check_space(dir, self.layout.file_bytes())?;
        let in_need = || self.planned.iter().zip(&self.choices).find(|(_, c)| c.needs_imatrix);
        match (&self.config.imatrix, in_need()) {
            (None, Some((p, c))) => Err(needs_imatrix(&p.name, c.ty)),
            _ => Ok(()),
        }
    }
}

fn needs_imatrix(name: &str, ty: GgmlType) -> Error {
    Error::new(
        Kind::Usage,
        format!("this level needs an importance matrix: {name} as {ty} would be useless without"),
    )
    .hint("Pass --imatrix FILE, or take Q2_K, which spends more bits where they matter.")
}

fn choose_types(model: &Model, planned: &[Planned], config: &Config) -> Result<Vec<Choice>> {
    let h = &model.hyper;
    let tied = !planned.iter().any(|p| p.name == "output.weight");
    let facts = Facts::new(model.spec.gguf, h.layers, h.heads, h.kv_heads, h.experts, tied);
    let candidates: Vec<Candidate<'_>> =
        planned.iter().map(|p| Candidate { name: &p.name, shape: &p.shape, source: p.natural }).collect();
    mix::choose(config.level, &facts, &config.overrides, config.imatrix.is_some(), &candidates)
}

/// The importance weights of a tensor: one per column, for each expert.
///
/// # Errors
/// `Invalid` if the entry has another size than the tensor. The embedding alone may differ, as in llama-quantize.
fn importance<'a>(imatrix: &'a Imatrix, planned: &Planned) -> Result<Option<&'a [f32]>> {
    let Some(weights) = imatrix.get(&planned.name) else { return Ok(None) };
    let expected = planned.shape[0] * planned.shape.get(2).unwrap_or(&1);
    if weights.len() as u64 == expected {
        return Ok(Some(weights));
    }
    if planned.name == "token_embd.weight" {
        return Ok(None);
    }
    Err(Error::new(
        Kind::Invalid,
        format!(
            "the importance matrix has {} weights for {}, which needs {expected}",
            weights.len(),
            planned.name
        ),
    )
    .hint("The importance matrix belongs to another model."))
}
