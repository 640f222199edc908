//! Quantizes until a limit is kept: stage after stage, each entered only if the one before is over it.

mod forecast;
mod limit;
mod overlap;
mod search;
mod stage;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use forecast::{Forecast, StageForecast, Tokens, forecast};
pub use limit::Limit;
pub use stage::{Attempt, BudgetReport, Stage};

use super::checkpoint::{Checkpoint, Settings};
use super::evaluate::{Judge, TextConfig, in_pool};
use super::layerwise::matrices;
use super::model::OpenModel;
use super::profile::{self, Profile, Sensitivities};
use super::quiet::Quiet;
use super::recipe::{Finished, Job, Recipe, Run};
use crate::atomic::{self, Staged};
use crate::backend::Backend;
use crate::calib::rows::{Limits, Rows};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::eval::windows::Windows;
use crate::format::gguf::GgmlType;
use crate::progress::Progress;
use crate::source::SourceModel;
use crate::source::safetensors::FloatType;
use crate::source::tokenizer::encoder::Encoder;
use overlap::Overlap;
use search::Search;

/// Group sizes of GPTQ that bits are chosen with, beside the one that was asked for.
pub const GROUP_SIZES: [usize; 3] = [128, 64, 32];

/// Of calibration data: the rows to calibrate with, and two rows or more to measure on.
pub type CutRows<'a> = dyn Fn(&Encoder, Limits) -> Result<(Rows, Rows)> + 'a;

/// What to do.
pub struct Config<'a> {
    /// The model, as it was given.
    pub model: String,
    /// Its directory.
    pub source: SourceModel,
    /// What it is quantized to.
    pub recipe: Recipe,
    /// Bits per weight, if precisions are to be chosen by what units lose.
    pub target: Option<f64>,
    /// What the result may lose, if it is measured.
    pub limit: Option<Limit>,
    /// What it is measured on; none for a part of the calibration data.
    pub text: Option<TextConfig>,
    /// Whether every precision is measured to choose precisions, or most are estimated.
    pub measured: bool,
    /// Group sizes of GPTQ to choose from, beside the recipe's own.
    pub group_sizes: Vec<usize>,
    /// Calibration data.
    pub rows: &'a CutRows<'a>,
    /// Keys of `config.json` that are accepted whatever they say.
    pub ignore_config: Vec<String>,
    /// Worker threads.
    pub threads: usize,
    /// What quantizes.
    pub backend: Arc<dyn Backend>,
}

/// What was done.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {
    /// The report of the result that is kept.
    pub report: Finished,
    /// What was tried to keep to the limit, if there is one.
    pub budget: Option<BudgetReport>,
}

/// Quantizes, and gives the result its name; where no result keeps to the limit, to the best.
///
/// # Errors
/// `Usage` if the output exists or the bits cannot be had; what quantization and measurement fail with. A limit that is not kept
/// is no error here: the report says so.
pub fn quantize(config: &Config<'_>, progress: &dyn Progress, cancel: &Cancel) -> Result<Done> {
    let (output, force) = config.recipe.output();
    config.recipe.checkpoint().check_output(|| match config.recipe.calibrates() {
        true => atomic::refuse_existing_dir(output, force),
        false => atomic::refuse_existing(output, force),
    })?;
    let opened = OpenModel::unquantized(config.source.clone(), &config.ignore_config, progress)?;
    let staged = Staged::create(output, force)?;
    let work = Work { config, opened: &opened, progress, cancel, staged: &staged, data: None, count: 0 };
    let (mut done, mut checkpoint) = match work.run()? {
        Ended::Made(done, checkpoint) => (*done, checkpoint),
        Ended::Before(checkpoint) => return checkpoint.take_report(progress),
    };
    done.report.moved(output);
    if let Some(checkpoint) = &mut checkpoint {
        checkpoint.seal(&staged.path(), serde_json::to_value(&done).expect("a report is plain data"))?;
    }
    staged.commit()?;
    if let Some(checkpoint) = checkpoint {
        checkpoint.remove(progress);
    }
    Ok(done)
}

/// Finds where bits are worth most, and chooses precisions by it.
///
/// # Errors
/// As [`quantize`].
pub fn find_profile(
    config: &Config<'_>,
    target: f64,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Profile> {
    let opened = OpenModel::unquantized(config.source.clone(), &config.ignore_config, progress)?;
    let (output, _) = config.recipe.output();
    let recipe = config.recipe.placed(output.to_owned(), Settings::default());
    let job = recipe.prepare(&config.source, &Quiet(progress))?;
    let data = Data::cut(config, &opened)?;
    find_at(config, &opened, &job, (&data.rows, &data.held_out), target, progress, cancel)
}

/// A profile for bits per weight.
fn find_at(
    config: &Config<'_>,
    opened: &OpenModel,
    job: &Job,
    (rows, held_out): (&Rows, &Rows),
    target: f64,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Profile> {
    let matrices = matrices::find(&opened.model, &*opened.weights)?;
    let units = profile::sizes(&matrices, &config.recipe.method(&config.group_sizes), config.recipe.skip());
    let bytes = match &config.recipe {
        Recipe::Gguf(_) => {
            // The file as a whole takes so many bits; what is not chosen here has its size already.
            let tensors = job.precisions();
            let chosen = |name: &str| units.iter().any(|unit| unit.name == name);
            let others: u64 = tensors.iter().filter(|t| !chosen(&t.0)).map(|t| t.2).sum();
            target / 8.0 * job.parameters() as f64 - others as f64
        }
        _ => target / 8.0 * units.iter().map(|unit| unit.weights).sum::<u64>() as f64,
    };
    let what = format!("--target-bpw {target}");
    // What cannot be had is not measured for.
    profile::check_bytes(&units, bytes, &what)?;
    let found = sensitivities(config, opened, rows, held_out, progress, cancel)?;
    let allocation = found.allocate(bytes, &what)?;
    let level = match &config.recipe {
        Recipe::Gguf(config) => Some(config.level.name),
        _ => None,
    };
    let format = config.recipe.method(&[]).format();
    let profile = Profile::new(&config.model, format, target, level, found, &allocation);
    Ok(match level {
        Some(_) => Profile { choice: profile.choice.with_types(whole_type(opened)), ..profile },
        None => profile,
    })
}

fn sensitivities(
    config: &Config<'_>,
    opened: &OpenModel,
    rows: &Rows,
    held_out: &Rows,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Sensitivities> {
    let profile = profile::Config {
        method: config.recipe.method(&config.group_sizes),
        skip: config.recipe.skip(),
        measured: config.measured,
        threads: config.threads,
        backend: &*config.backend,
    };
    Sensitivities::find(opened, &profile, rows, held_out, progress, cancel)
}

/// The type that tensors of GGUF have if they are not quantized.
fn whole_type(opened: &OpenModel) -> GgmlType {
    let names = opened.weights.names();
    let is_bf16 = names.iter().any(|name| opened.weights.float_type(name) == Some(FloatType::BF16));
    if is_bf16 { GgmlType::BF16 } else { GgmlType::F16 }
}

/// What has come of the work.
enum Ended {
    /// The result is staged.
    Made(Box<Done>, Option<Checkpoint>),
    /// An earlier run has made it.
    Before(Checkpoint),
}

/// Rows to calibrate with, to find sensitivities on, and to judge by.
struct Data {
    rows: Rows,
    held_out: Rows,
    judged: Rows,
}

impl Data {
    fn cut(config: &Config<'_>, opened: &OpenModel) -> Result<Data> {
        let hyper = &opened.model.hyper;
        let limits = Limits { context: hyper.context.unwrap_or(usize::MAX), vocab: hyper.vocab };
        let (rows, held_out) = (config.rows)(&opened.encoder, limits)?;
        // What precisions are chosen by is not what the result is judged by.
        let half = held_out.rows.len() / 2;
        let (held_out, judged) = held_out.hold_out(half)?;
        Ok(Data { rows, held_out, judged })
    }
}

/// A result that is staged under some name.
struct Made {
    report: Finished,
    path: PathBuf,
    checkpoint: Option<Checkpoint>,
    seconds: f64,
}

struct Work<'a> {
    config: &'a Config<'a>,
    opened: &'a OpenModel,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    staged: &'a Staged,
    data: Option<Data>,
    /// Results so far.
    count: usize,
}

impl<'a> Work<'a> {
    fn run(mut self) -> Result<Ended> {
        let config = self.config;
        let mut profile_seconds = 0.0;
        let mut found = None;
        let mut predicted = None;
        let mut recipe = config.recipe.clone();
        if let Some(target) = config.target {
            let started = Instant::now();
            let profile = self.profile(target)?;
            profile_seconds = started.elapsed().as_secs_f64();
            recipe = recipe.with(&profile.choice, whole_type(self.opened));
            predicted = Some(profile.predicted_kl_divergence);
            found = Some(profile.sensitivities);
        }
        let made = match self.make(&recipe, true)? {
            Ok(made) => made,
            Err(checkpoint) => return Ok(Ended::Before(checkpoint)),
        };
        let Some(limit) = config.limit else {
            let Made { report, path, checkpoint, .. } = made;
            self.take(&path)?;
            return Ok(Ended::Made(Box::new(Done { report, budget: None }), checkpoint));
        };
        let precisions = self.prepare(&recipe)?.precisions();
        Search::new(self, limit, found)?.run(made, &precisions, profile_seconds, predicted)
    }

    /// The precisions for so many bits per weight.
    fn profile(&mut self, target: f64) -> Result<Profile> {
        let job = self.prepare(&self.config.recipe)?;
        let (config, opened, progress, cancel) = (self.config, self.opened, self.progress, self.cancel);
        let data = self.data()?;
        let rows = (&data.rows, &data.held_out);
        let profile = find_at(config, opened, &job, rows, target, progress, cancel)?;
        progress.info(&format!(
            "Precisions are chosen: {:.3} bits per weight, {} bytes; what units lose by themselves sums up to {:.6}",
            profile.bits_per_weight, profile.bytes, profile.predicted_kl_divergence
        ));
        Ok(profile)
    }

    /// What units lose.
    fn sensitivities(&mut self) -> Result<Sensitivities> {
        let (config, opened, progress, cancel) = (self.config, self.opened, self.progress, self.cancel);
        let data = self.data()?;
        sensitivities(config, opened, &data.rows, &data.held_out, progress, cancel)
    }

    fn prepare(&self, recipe: &Recipe) -> Result<Job> {
        let place = recipe.placed(self.staged.path(), Settings::default());
        place.prepare(&self.config.source, &Quiet(self.progress))
    }

    /// Checks that a result fits in the memory that it may take.
    ///
    /// # Errors
    /// `Resources`, saying how much is missing.
    fn check_memory(&mut self, recipe: &Recipe) -> Result<()> {
        let job = self.prepare(recipe)?;
        job.check_memory(&self.data()?.rows)
    }

    /// Quantizes; with a checkpoint only as it was asked for.
    fn make(&mut self, recipe: &Recipe, checkpoint: bool) -> Result<Result<Made, Checkpoint>> {
        let started = Instant::now();
        let settings = if checkpoint { recipe.checkpoint().clone() } else { Settings::default() };
        self.count += 1;
        // A directory of its own, so that each result has its own name.
        let staged = self.staged.path();
        let name = staged.file_name().unwrap_or_default().to_owned();
        let path = staged.with_file_name(format!("attempt-{}", self.count)).join(name);
        let placed = recipe.placed(path.clone(), settings);
        let first = self.count == 1;
        let quiet = Quiet(self.progress);
        let progress: &dyn Progress = if first { self.progress } else { &quiet };
        let job = placed.prepare(&self.config.source, progress)?;
        job.preflight()?;
        let cancel = self.cancel;
        let rows = if recipe.calibrates() { Some(&self.data()?.rows) } else { None };
        Ok(match job.run(rows, progress, cancel)? {
            Run::Before(checkpoint) => Err(checkpoint),
            Run::Done { report, checkpoint } => {
                Ok(Made { report, path, checkpoint, seconds: started.elapsed().as_secs_f64() })
            }
        })
    }

    /// Makes a result the one that is kept.
    fn take(&self, path: &Path) -> Result<()> {
        let staged = self.staged.path();
        remove(&staged)?;
        std::fs::rename(path, &staged)
            .map_err(|e| Error::output(format!("cannot rename {}", path.display()), e))
    }

    /// The rows, which are cut when they are first needed.
    fn data(&mut self) -> Result<&Data> {
        if self.data.is_none() {
            self.data = Some(Data::cut(self.config, self.opened)?);
        }
        Ok(self.data.as_ref().expect("it was just made"))
    }

    /// Takes the original through what results are measured on.
    fn judge(&mut self) -> Result<Judge<'a>> {
        let (config, opened, progress, cancel) = (self.config, self.opened, self.progress, self.cancel);
        let (windows, name) = match &config.text {
            Some(text) => {
                let windows = text.windows(&text.read(cancel, progress)?, opened, None)?;
                if config.recipe.calibrates() || config.target.is_some() {
                    let overlap = Overlap::of(&self.data()?.rows.rows, windows.inputs());
                    overlap.warning(&text.source()).iter().for_each(|warning| progress.warn(warning));
                }
                (windows, text.source())
            }
            None => {
                let judged = &self.data()?.judged;
                let name = format!("{} held-out rows of {}", judged.record.rows, judged.record.source);
                (Windows::of_rows(&judged.rows)?, name)
            }
        };
        in_pool(config.threads, || Judge::new(opened, windows, &name, progress, cancel))
    }
}

/// Removes a result, if there is one.
fn remove(path: &Path) -> Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
    };
    removed.map_err(|e| Error::output(format!("cannot remove {}", path.display()), e))
}
