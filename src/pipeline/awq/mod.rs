//! A Hugging Face model in, an AWQ checkpoint out.

mod fold;
pub mod report;
mod scale;

use super::layerwise::{Options, Plan, Watch};
use super::outcome::Outcome;
use crate::calib::rows::Rows;
use crate::cancel::Cancel;
use crate::error::Result;
use crate::format::awq::AwqConfig;
use crate::format::packed::Container;
use crate::pipeline::model::OpenModel;
use crate::progress::Progress;
use crate::quant::Grid;
use crate::source::SourceModel;
use report::{Report, Solver, Summary};
use scale::Scaler;

/// What to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// What every method asks for. The grid is asymmetric, of 4 bits.
    pub options: Options,
    /// What finds the codes.
    pub solver: Solver,
}

/// Everything that is known before the work starts.
#[derive(Debug)]
pub struct Job {
    plan: Plan,
    solver: Solver,
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
        let group_size = Some(config.options.grids.base.group_size).filter(|size| *size != Grid::WHOLE_ROW);
        let container = Container::Awq(AwqConfig { group_size });
        let plan = Plan::of(opened, container, config.options, progress)?;
        Ok(Job { plan, solver: config.solver })
    }

    /// The model, and what is to become of it.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Sizes without any work.
    pub fn dry_run(&self) -> Summary {
        Summary::new(&self.plan, self.reported())
    }

    fn reported(&self) -> report::Options {
        report::Options { solver: self.solver }
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
        let identity = self.plan.identity().with("solver", self.solver.name());
        let grid = self.plan.options().grids.base;
        self.plan.run(identity, rows, Watch { progress, cancel }, self.reported(), |walk| {
            Scaler::new(walk, grid, self.solver)
        })
    }
}
