//! A format and how a model is quantized to it, whichever format it is.

use std::path::{Path, PathBuf};

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, Settings};
use super::layerwise::Plan;
use super::outcome::{Made, Outcome};
use super::profile::{Choice, Method, Precision};
use super::{awq, gguf, gptq, tune};
use crate::arch::Model;
use crate::calib::rows::Rows;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::GgmlType;
use crate::format::packed::Entry;
use crate::progress::Progress;
use crate::quant::Grid;
use crate::source::SourceModel;

/// A format, and how it is quantized to.
#[derive(Clone, Debug)]
pub enum Recipe {
    /// GPTQ.
    Gptq(Box<gptq::Config>),
    /// AWQ.
    Awq(Box<awq::Config>),
    /// GGUF.
    Gguf(Box<gguf::Config>),
}

/// What a finished job reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finished {
    /// GPTQ.
    Gptq(Box<gptq::report::Report>),
    /// AWQ.
    Awq(Box<awq::report::Report>),
    /// GGUF.
    Gguf(Box<gguf::report::Report>),
}

impl Recipe {
    /// How precisions are tried. `group_sizes` are those of GPTQ beside its own.
    pub fn method(&self, group_sizes: &[usize]) -> Method {
        match self {
            Recipe::Gptq(config) => {
                let grid = config.options.grids.base;
                let mut sizes: Vec<usize> = group_sizes.iter().copied().chain([grid.group_size]).collect();
                // Larger groups first: fewer bytes.
                sizes.sort_by(|a, b| b.cmp(a));
                sizes.dedup();
                Method::Gptq { settings: config.settings(), group_sizes: sizes }
            }
            Recipe::Awq(config) => {
                Method::Awq { group_size: config.options.grids.base.group_size, solver: config.solver }
            }
            Recipe::Gguf(config) => Method::Gguf { imatrix: config.imatrix.clone() },
        }
    }

    /// The same with other precisions. `whole` is the type of GGUF for what is not quantized.
    pub fn with(&self, choice: &Choice, whole: GgmlType) -> Recipe {
        let mut recipe = self.clone();
        match &mut recipe {
            Recipe::Gptq(config) => choice.apply(&mut config.options),
            Recipe::Awq(config) => choice.apply(&mut config.options),
            Recipe::Gguf(config) => choice.clone().with_types(whole).apply_types(&mut config.overrides),
        }
        recipe
    }

    /// The same with the layers tuned that the model has lost most by. None where tuning is not possible, or asked for already.
    pub(super) fn tuned(&self, model: &Model) -> Option<Recipe> {
        let mut recipe = self.clone();
        let options = match &mut recipe {
            Recipe::Gptq(config) => &mut config.options,
            Recipe::Awq(config) => &mut config.options,
            Recipe::Gguf(_) => return None,
        };
        if options.tune.is_some() || options.offload || !tune::can_tune(model) {
            return None;
        }
        options.tune = Some(tune::Settings::worst());
        Some(recipe)
    }

    /// The same with the result elsewhere, and another checkpoint or none.
    pub(super) fn placed(&self, output: PathBuf, checkpoint: Settings) -> Recipe {
        let mut recipe = self.clone();
        let place = match &mut recipe {
            Recipe::Gptq(config) => {
                let options = &mut config.options;
                (&mut options.output, &mut options.force, &mut options.checkpoint)
            }
            Recipe::Awq(config) => {
                let options = &mut config.options;
                (&mut options.output, &mut options.force, &mut options.checkpoint)
            }
            Recipe::Gguf(config) => (&mut config.output, &mut config.force, &mut config.checkpoint),
        };
        (*place.0, *place.1, *place.2) = (output, false, checkpoint);
        recipe
    }

    /// Where the result goes, and whether something there may be replaced.
    pub fn output(&self) -> (&Path, bool) {
        match self {
            Recipe::Gptq(config) => (&config.options.output, config.options.force),
            Recipe::Awq(config) => (&config.options.output, config.options.force),
            Recipe::Gguf(config) => (&config.output, config.force),
        }
    }

    /// Whether and where there is a checkpoint.
    pub(super) fn checkpoint(&self) -> &Settings {
        match self {
            Recipe::Gptq(config) => &config.options.checkpoint,
            Recipe::Awq(config) => &config.options.checkpoint,
            Recipe::Gguf(config) => &config.checkpoint,
        }
    }

    /// Linear layers that stay as they are.
    pub(super) fn skip(&self) -> &[Regex] {
        match self {
            Recipe::Gptq(config) => &config.options.skip,
            Recipe::Awq(config) => &config.options.skip,
            Recipe::Gguf(_) => &[],
        }
    }

    /// Whether quantization looks at calibration data.
    pub fn calibrates(&self) -> bool {
        !matches!(self, Recipe::Gguf(_))
    }

    /// Understands the model.
    ///
    /// # Errors
    /// As the formats' own jobs.
    pub(super) fn prepare(self, source: &SourceModel, progress: &dyn Progress) -> Result<Job> {
        Ok(match self {
            Recipe::Gptq(config) => Job::Gptq(gptq::Job::prepare(source.clone(), *config, progress)?),
            Recipe::Awq(config) => Job::Awq(awq::Job::prepare(source.clone(), *config, progress)?),
            Recipe::Gguf(config) => Job::Gguf(Box::new(gguf::Job::prepare(source, *config, progress)?)),
        })
    }
}

/// A job that is prepared.
pub(super) enum Job {
    Gptq(gptq::Job),
    Awq(awq::Job),
    Gguf(Box<gguf::Job>),
}

impl Job {
    fn plan(&self) -> Option<&Plan> {
        match self {
            Job::Gptq(job) => Some(job.plan()),
            Job::Awq(job) => Some(job.plan()),
            Job::Gguf(_) => None,
        }
    }

    /// Bytes of the output.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Job::Gptq(job) => job.dry_run().file_size,
            Job::Awq(job) => job.dry_run().file_size,
            Job::Gguf(job) => job.dry_run().file_size,
        }
    }

    /// Weights of the output.
    pub(super) fn parameters(&self) -> u64 {
        match self {
            Job::Gptq(job) => job.dry_run().parameters,
            Job::Awq(job) => job.dry_run().parameters,
            Job::Gguf(job) => job.dry_run().parameters,
        }
    }

    /// The precision of each linear layer, or of each tensor in GGUF with its bytes.
    pub(super) fn precisions(&self) -> Vec<(String, Precision, u64)> {
        let codes = |grid: &Grid| Precision::Codes { bits: grid.bits, group_size: grid.group_size };
        match (self, self.plan()) {
            (Job::Gguf(job), _) => {
                let tensors = job.dry_run().tensors.into_iter();
                let of = |ty: &str| GgmlType::from_name(ty).map_or(Precision::Whole, Precision::Blocks);
                tensors.map(|tensor| (tensor.name, of(&tensor.ty), tensor.bytes)).collect()
            }
            (_, Some(plan)) => {
                let left_out = plan.left_out().iter().map(|l| (l.name.clone(), Precision::Whole, 0));
                let quantized = plan.entries().iter().filter_map(|entry| match entry {
                    Entry::Linear { name, grid, .. } => Some((name.clone(), codes(grid), 0)),
                    Entry::Dense { .. } => None,
                });
                quantized.chain(left_out).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Checks that need no work.
    ///
    /// # Errors
    /// As the formats' own jobs.
    pub(super) fn preflight(&self) -> Result<()> {
        match self {
            Job::Gptq(job) => job.preflight(),
            Job::Awq(job) => job.preflight(),
            Job::Gguf(job) => job.preflight(),
        }
    }

    /// Checks that quantizing with `rows` fits in the memory that it may take. Formats that take little are not looked at.
    ///
    /// # Errors
    /// `Resources`, saying how much is missing.
    pub(super) fn check_memory(&self, rows: &Rows) -> Result<()> {
        self.plan().map_or(Ok(()), |plan| plan.check_memory(rows))
    }

    /// Quantizes, and gives the output the name that the job has for it.
    ///
    /// # Errors
    /// As the formats' own jobs; `Usage` without rows where they are needed.
    pub(super) fn run(&self, rows: Option<&Rows>, progress: &dyn Progress, cancel: &Cancel) -> Result<Run> {
        let rows = || rows.ok_or_else(|| Error::new(Kind::Usage, "there are no rows to calibrate with"));
        match self {
            Job::Gptq(job) => Run::of(job.run(rows()?, progress, cancel)?, |r| Finished::Gptq(Box::new(r))),
            Job::Awq(job) => Run::of(job.run(rows()?, progress, cancel)?, |r| Finished::Awq(Box::new(r))),
            Job::Gguf(job) => Run::of(job.run(progress, cancel)?, |r| Finished::Gguf(Box::new(r))),
        }
    }
}

/// What has come of a job.
pub(super) enum Run {
    /// Its output is in its place.
    Done { report: Finished, checkpoint: Option<Checkpoint> },
    /// An earlier run, which was killed at its very end, has made all there is to make.
    Before(Checkpoint),
}

impl Run {
    fn of<R>(outcome: Outcome<R>, finished: impl FnOnce(R) -> Finished) -> Result<Run> {
        match outcome {
            Outcome::Finished(checkpoint) => Ok(Run::Before(*checkpoint)),
            Outcome::Made(made) => {
                let Made { report, output, checkpoint, .. } = *made;
                output.commit()?;
                Ok(Run::Done { report: finished(report), checkpoint })
            }
        }
    }
}

impl Finished {
    /// Bytes of the output.
    pub fn file_size(&self) -> u64 {
        match self {
            Finished::Gptq(report) => report.file_size,
            Finished::Awq(report) => report.file_size,
            Finished::Gguf(report) => report.file_size,
        }
    }

    /// Bits per weight of all that is in the output.
    pub fn bits_per_weight(&self) -> f64 {
        match self {
            Finished::Gptq(report) => report.metadata.bits_per_weight,
            Finished::Awq(report) => report.metadata.bits_per_weight,
            Finished::Gguf(report) => report.metadata.bits_per_weight,
        }
    }

    /// Says that the output lies elsewhere.
    pub(super) fn moved(&mut self, output: &Path) {
        let path = match self {
            Finished::Gptq(report) => &mut report.output_path,
            Finished::Awq(report) => &mut report.output_path,
            Finished::Gguf(report) => &mut report.output_path,
        };
        *path = output.display().to_string();
    }
}
