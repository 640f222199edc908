//! A Hugging Face model in, a GPTQ checkpoint out.

pub mod report;
mod solve;

use serde_json::{Map, json};

use super::layerwise::{Options, Plan, Watch};
use super::outcome::Outcome;
use crate::calib::rows::Rows;
use crate::cancel::Cancel;
use crate::error::Result;
use crate::format::gptq::{GptqConfig, Version};
use crate::format::packed::Container;
use crate::pipeline::model::OpenModel;
use crate::progress::Progress;
use crate::quant::gptq::{Ordering, Settings};
use crate::source::SourceModel;
use report::{Report, Summary};
use solve::Solver;

/// What to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// What every method asks for.
    pub options: Options,
    /// Whether columns are quantized by their importance whatever their group, with the scales of the original weights.
    pub desc_act: bool,
    /// Share of the mean of the Hessian's diagonal that is added to it.
    pub damp: f32,
    /// How zero points are stored; none is version 2 for an asymmetric grid, else version 1.
    pub version: Option<Version>,
}

impl Config {
    fn version(&self) -> Version {
        self.version.unwrap_or(if self.options.grids.base.symmetric { Version::V1 } else { Version::V2 })
    }

    /// The solver's, of the grid that most matrices have.
    pub(super) fn settings(&self) -> Settings {
        Settings {
            lowest_zero: u8::from(self.version() == Version::V1),
            ordering: if self.desc_act { Ordering::Descending } else { Ordering::GroupAware },
            damp: self.damp,
            ..Settings::new(self.options.grids.base)
        }
    }

    fn container(&self) -> Container {
        let mut meta = Map::new();
        meta.insert("act_group_aware".into(), json!(!self.desc_act));
        Container::Gptq(GptqConfig {
            grid: self.options.grids.base,
            version: self.version(),
            // Groups are those of neighbouring inputs in either order, so that no loader needs to gather.
            desc_act: false,
            static_groups: self.desc_act,
            true_sequential: true,
            damp_percent: f64::from((self.damp * 1e6).round()) / 1e6,
            meta,
        })
    }

    fn reported(&self) -> report::Options {
        report::Options {
            sym: self.options.grids.base.symmetric,
            desc_act: self.desc_act,
            checkpoint_format: self.version().name().into(),
        }
    }
}

/// Everything that is known before the work starts.
#[derive(Debug)]
pub struct Job {
    plan: Plan,
    settings: Settings,
    reported: report::Options,
}

impl Job {
    /// Reads the model, understands it, and decides what is quantized. No tensor is read yet.
    ///
    /// # Errors
    /// As [`Plan::of`].
    pub fn prepare(source: SourceModel, config: Config, progress: &dyn Progress) -> Result<Job> {
        Job::of(OpenModel::unquantized(source, &config.options.ignore_config, progress)?, config, progress)
    }

    /// The same of a model that is open, in whatever format it is.
    ///
    /// # Errors
    /// As [`Plan::of`].
    pub fn of(opened: OpenModel, config: Config, progress: &dyn Progress) -> Result<Job> {
        let (container, settings, reported) = (config.container(), config.settings(), config.reported());
        Ok(Job { plan: Plan::of(opened, container, config.options, progress)?, settings, reported })
    }

    /// The model, and what is to become of it.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Sizes without any work.
    pub fn dry_run(&self) -> Summary {
        Summary::new(&self.plan, self.reported.clone())
    }

    /// Checks that need no work: the output may be written, and the disk has room.
    ///
    /// # Errors
    /// `Usage` if the output exists and may not be replaced, `Resources` if the disk is full.
    pub fn preflight(&self) -> Result<()> {
        self.plan.preflight(self.dry_run().file_size)
    }

    /// Quantizes and writes the checkpoint, then opens it again and compares it with the source.
    ///
    /// # Errors
    /// What the data, the model or the disk do not allow; nothing but what a later run goes on from is left behind then.
    pub fn run(&self, rows: &Rows, progress: &dyn Progress, cancel: &Cancel) -> Result<Outcome<Report>> {
        let identity = self
            .plan
            .identity()
            .with("desc-act", self.reported.desc_act)
            .with("damp", self.settings.damp)
            .with("checkpoint-format", self.reported.checkpoint_format.as_str());
        let grids = &self.plan.options().grids;
        self.plan.run(identity, rows, Watch { progress, cancel }, self.reported.clone(), |walk| Solver {
            walk,
            settings: &self.settings,
            grids,
        })
    }
}
