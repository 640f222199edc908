//! From one format to another: through weights in float32 and the target's own quantizer, or, where both have the same grid,
//! with the codes as they are.

mod carry;
mod export;
mod impact;
mod measure;
mod original;
mod result;

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::checkpoint::{Checkpoint, Settings};
use super::detect::{Detected, Format, detect};
use super::evaluate::{self, Evaluated, TextConfig, in_pool};
use super::layerwise::Options;
use super::model::{OpenModel, Origin, packed};
use super::outcome::{Made, Outcome};
use super::quiet::Quiet;
use super::{awq, gguf, gptq};
use crate::arch::decoder::Compute;
use crate::atomic::{Staged, refuse_existing_output};
use crate::calib::rows::{Limits, Rows};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::source::Need;
use crate::source::folded::Moved;
use crate::source::safetensors::FloatType;
use crate::source::tokenizer::encoder::Encoder;
use carry::{CarryOver, To};

pub use carry::Wanted;
pub use impact::Impact;
pub use measure::{TensorError, WeightErrors};
pub use result::ConversionResult;

/// Cuts rows of calibration data for a model.
pub type CutRows<'a> = dyn Fn(&Encoder, Limits) -> Result<Rows> + 'a;

/// What to do.
pub struct Config<'a> {
    /// The model: a GGUF file, a directory, or a name on the Hub.
    pub source: String,
    /// What it becomes.
    pub target: Target,
    /// What the user asks of codes that could be carried over; none to quantize again in any case.
    pub carry_over: Option<Wanted>,
    /// Calibration data for targets that need it.
    pub rows: &'a CutRows<'a>,
    /// The file or directory to write.
    pub output: PathBuf,
    /// Whether it may be overwritten.
    pub force: bool,
    /// Whether and where there is a checkpoint.
    pub checkpoint: Settings,
    /// The text to measure perplexity and KL divergence on, if they are wanted.
    pub evaluate: Option<TextConfig>,
    /// The mean KL divergence from which on the result is not kept.
    pub max_kld: Option<f64>,
    /// Keys of `config.json` or metadata that are accepted whatever they say.
    pub ignore_config: Vec<String>,
    /// Worker threads.
    pub threads: usize,
}

/// What a model becomes.
#[derive(Debug)]
pub enum Target {
    /// A GGUF file; its `output` and `force` do not count here.
    Gguf(Box<gguf::Config>),
    /// A GPTQ directory; its `output` and `force` do not count here.
    Gptq(Box<gptq::Config>),
    /// An AWQ directory; its `output` and `force` do not count here.
    Awq(Box<awq::Config>),
    /// A directory of weights in this type; none for that of the source's own floats.
    Hf(Option<FloatType>),
}

impl Target {
    /// The format.
    pub fn format(&self) -> Format {
        match self {
            Target::Gguf(_) => Format::Gguf,
            Target::Gptq(_) => Format::Gptq,
            Target::Awq(_) => Format::Awq,
            Target::Hf(_) => Format::Hf,
        }
    }

    /// The level, as `quantize` takes it.
    fn level(&self) -> Option<String> {
        match self {
            Target::Gguf(config) => Some(config.level.name.to_owned()),
            Target::Gptq(config) => Some(format!("{}bit", config.options.grids.base.bits)),
            Target::Awq(_) => Some("4bit".to_owned()),
            Target::Hf(_) => None,
        }
    }
}

/// Converts a model. The result gets its name when it has been compared with the source, and passed whatever was asked of it.
///
/// # Errors
/// `Unsupported` for a conversion that cannot be done, `Usage` if the output exists, `Quality` if the result is worse than asked
/// for; nothing is left behind then, and what was there is as it was.
pub fn convert(config: Config<'_>, progress: &dyn Progress, cancel: &Cancel) -> Result<ConversionResult> {
    let started = Instant::now();
    let format = config.target.format();
    config
        .checkpoint
        .check_output(|| refuse_existing_output(&config.output, format.is_dir(), config.force))?;
    let found = detect(&config.source, Need::Weights, cancel, progress)?;
    let from = found.format();
    progress.info(&format!("{} is {}", config.source, from.title()));
    refuse_same(from, format)?;
    refuse_source(&found, &config.output)?;
    let staged = Staged::create(&config.output, config.force)?;
    let output = staged.path();
    let opened = open(found, &config.ignore_config, progress)?;
    let original = original::original(&opened);
    let carrying = (config.ignore_config.as_slice(), &config.checkpoint);
    let carried = in_pool(config.threads, || match (&config.target, from, config.carry_over) {
        (Target::Awq(_), Format::Gptq, Some(wanted)) => {
            carry_over(&opened, To::Awq, wanted, carrying, &output, progress, cancel)
        }
        (Target::Gptq(_), Format::Awq, Some(wanted)) => {
            carry_over(&opened, To::Gptq, wanted, carrying, &output, progress, cancel)
        }
        _ => Ok(None),
    })?;
    let is_carried = carried.is_some();
    let impact = if is_carried { Impact::None } else { impact::expected(from, &config.target) };
    let level = config.target.level();
    let better = better_way(from, format, level.as_deref(), original.as_deref());
    let dtype = match config.target {
        Target::Hf(dtype) => Some(dtype.unwrap_or_else(|| export::natural_dtype(&opened))),
        _ => None,
    };
    if impact >= Impact::Small {
        progress.warn(&warning(from, format, impact, &better));
    }
    let work = match carried {
        Some(work) => work,
        None => {
            let settings = (config.threads, &config.checkpoint);
            make(config.target, opened, dtype, &output, config.rows, settings, progress, cancel)?
        }
    };
    let (moved, mut checkpoint) = match work {
        Work::Done { moved, checkpoint } => (moved, checkpoint),
        Work::Before(checkpoint) => return checkpoint.take_report(progress),
    };
    let measured = || {
        let source = open(
            detect(&config.source, Need::Weights, cancel, progress)?,
            &config.ignore_config,
            &Quiet(progress),
        )?;
        let made = OpenModel::open(&path_text(&output)?, &config.ignore_config, cancel, &Quiet(progress))?;
        let weights = in_pool(config.threads, || measure::compare(&source, moved, &made, progress, cancel))?;
        if is_carried && !weights.identical {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "the output failed validation: codes were carried over, and weights differ by {:e}",
                    weights.nmse
                ),
            )
            .hint("The disk or the memory may be faulty. Nothing was kept."));
        }
        let file_size = made.file_bytes;
        drop((source, made));
        let evaluated = match config.evaluate {
            None => None,
            Some(text) => {
                let settings = evaluate::Config {
                    model: path_text(&output)?,
                    reference: Some(config.source.clone()),
                    text,
                    ignore_config: config.ignore_config.clone(),
                    compute: Compute::F32,
                    output: None,
                    checkpoint: Settings::default(),
                    threads: config.threads,
                };
                Evaluated::of(&evaluate::evaluate(&settings, cancel, progress)?)
            }
        };
        let is_lossy = !weights.identical;
        let warning_message = is_lossy.then(|| warning(from, format, impact, &better));
        if let (Some(message), true) = (&warning_message, impact < Impact::Small) {
            progress.warn(message);
        }
        let result = ConversionResult {
            status: "success".into(),
            output_path: config.output.display().to_string(),
            source_path: config.source,
            source_format: from.name().into(),
            target_format: format.name().into(),
            quantization_level: dtype.map(|dtype| dtype.name().to_owned()).or(level),
            file_size,
            is_lossy,
            carried_over: is_carried,
            warning_message,
            expected_impact: impact,
            original_model: original,
            instead: better,
            weights,
            evaluation: evaluated,
            duration_seconds: started.elapsed().as_secs_f64(),
        };
        let kld = result.evaluation.as_ref().map(|found| found.kl_divergence);
        if let (Some(limit), Some(kld)) = (config.max_kld, kld)
        // NaN is below nothing.
        && !matches!(kld.partial_cmp(&limit), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal))
        {
            return Err(Error::new(
                Kind::Quality,
                format!(
                    "the mean KL divergence is {kld:.6}, larger than --max-kld {limit}; the result is removed"
                ),
            )
            .hint("Convert with more bits, or quantize the original.")
            .details(&result));
        }
        cancel.check()?;
        Ok(result)
    };
    let result = match (measured(), checkpoint.take()) {
        (Ok(result), found) => {
            checkpoint = found;
            result
        }
        (Err(e), Some(found)) => return Err(found.end_early(e, progress)),
        (Err(e), None) => return Err(e),
    };
    if let Some(checkpoint) = &mut checkpoint {
        checkpoint.seal(&output, serde_json::to_value(&result).expect("a result is plain data"))?;
    }
    staged.commit()?;
    if let Some(checkpoint) = checkpoint {
        checkpoint.remove(progress);
    }
    Ok(result)
}

/// What has come of making the result.
enum Work {
    /// It is there, in its place beside the output.
    Done {
        /// The factors that were moved between the source's tensors before.
        moved: Moved,
        /// What is of use until the result has its name.
        checkpoint: Option<Checkpoint>,
    },
    /// An earlier run has made the output.
    Before(Checkpoint),
}

impl Work {
    fn of<R>(outcome: Outcome<R>) -> Result<Work> {
        match outcome {
            Outcome::Finished(checkpoint) => Ok(Work::Before(*checkpoint)),
            Outcome::Made(made) => {
                let Made { moved, checkpoint, output, .. } = *made;
                output.commit()?;
                Ok(Work::Done { moved, checkpoint })
            }
        }
    }
}

/// Opens what was found.
fn open(found: Detected, ignore_config: &[String], progress: &dyn Progress) -> Result<OpenModel> {
    match found {
        Detected::Gguf(path) => super::model::gguf::open(&path, ignore_config, progress),
        Detected::Directory(source, _) => OpenModel::of(source, ignore_config, progress),
    }
}

/// Carries codes over if both containers have the same grid.
fn carry_over(
    opened: &OpenModel,
    to: To,
    wanted: Wanted,
    (ignore_config, settings): (&[String], &Settings),
    output: &Path,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Option<Work>> {
    let Origin::Directory(source) = &opened.origin else { return Ok(None) };
    let Some((model, packed)) = packed::open(source, ignore_config)? else { return Ok(None) };
    match CarryOver::plan(&model, &packed, to, wanted, cancel)? {
        Ok(plan) => {
            progress.info("Both formats have the same grid: the codes are carried over as they are");
            plan.write(opened, output, settings, progress, cancel).map(Some)
        }
        Err(why) => {
            progress.info(&format!("The codes cannot be carried over: {why}"));
            Ok(None)
        }
    }
}

/// Makes the result by the target's own quantizer.
#[allow(
    clippy::too_many_arguments,
    reason = "a model, what to make of it, with what, where to, and where to report"
)]
fn make(
    target: Target,
    opened: OpenModel,
    dtype: Option<FloatType>,
    output: &Path,
    rows: &CutRows<'_>,
    (threads, checkpoint): (usize, &Settings),
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Work> {
    let options = |options: Options| Options {
        output: output.to_owned(),
        force: false,
        checkpoint: checkpoint.clone(),
        ..options
    };
    match target {
        Target::Gguf(config) => {
            let (output, checkpoint) = (output.to_owned(), checkpoint.clone());
            let config = gguf::Config { output, force: false, checkpoint, ..*config };
            let OpenModel { model, weights, origin, file_bytes, .. } = opened;
            let Origin::Directory(source) = origin else {
                return Err(Error::new(Kind::Unsupported, "a GGUF file is made from a directory"));
            };
            let job = gguf::Job::of(&source, model, weights, file_bytes, config, progress)?;
            job.preflight()?;
            Work::of(job.run(progress, cancel)?)
        }
        Target::Gptq(config) => {
            let options = options(config.options);
            let job = gptq::Job::of(opened, gptq::Config { options, ..*config }, progress)?;
            job.preflight()?;
            let rows = rows(job.plan().encoder(), job.plan().limits())?;
            Work::of(job.run(&rows, progress, cancel)?)
        }
        Target::Awq(config) => {
            let options = options(config.options);
            let job = awq::Job::of(opened, awq::Config { options, ..*config }, progress)?;
            job.preflight()?;
            let rows = rows(job.plan().encoder(), job.plan().limits())?;
            Work::of(job.run(&rows, progress, cancel)?)
        }
        Target::Hf(_) => {
            let dtype = dtype.expect("it is chosen for this target");
            in_pool(threads, || export::export(&opened, dtype, output, checkpoint, progress, cancel))
        }
    }
}

fn refuse_same(from: Format, to: Format) -> Result<()> {
    if from != to {
        return Ok(());
    }
    let title = from.title();
    let hint = match from {
        Format::Hf => "To quantize it, choose gguf, gptq or awq.",
        _ => {
            "A second level loses more than quantizing the original to it: use `quantize` with the original. To have plain \
              weights, choose hf."
        }
    };
    Err(Error::new(Kind::Unsupported, format!("the source is {title} already: there is nothing to convert"))
        .hint(hint))
}

/// The result must not take the place of what it is made from.
fn refuse_source(found: &Detected, output: &Path) -> Result<()> {
    let same = matches!((found.path().canonicalize(), output.canonicalize()), (Ok(a), Ok(b)) if a == b);
    match same {
        true => Err(Error::new(Kind::Usage, format!("output {} is the source itself", output.display()))
            .hint("Choose another place with --output-dir.")),
        false => Ok(()),
    }
}

/// What to do instead, as a command.
fn better_way(from: Format, to: Format, level: Option<&str>, original: Option<&str>) -> Option<String> {
    match (from, level) {
        (Format::Hf, _) | (_, None) => None,
        (_, Some(level)) => {
            let model = original.unwrap_or("ORIGINAL");
            Some(format!("llm-quantize quantize {model} {} -q {level}", to.name()))
        }
    }
}

fn warning(from: Format, to: Format, impact: Impact, better: &Option<String>) -> String {
    let (source, target, expect) = (from.title(), to.title(), impact.describe());
    match (from, better) {
        (Format::Hf, _) => format!("Quantizing to {target} loses precision: expect {expect}."),
        (_, None) => format!("Converting from {source} to {target}: expect {expect}."),
        (_, Some(command)) => format!(
            "Converting from {source} to {target} quantizes weights that have lost precision already: expect {expect}. \
             Quantizing the original loses less: {command}"
        ),
    }
}

fn path_text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::new(Kind::Usage, format!("the path {} is not UTF-8", path.display())))
}
