//! `llm-quantize quantize MODEL awq -q 4bit`.

use std::sync::Arc;

use clap::ValueEnum;

use super::budget::Run;
use super::finish::Finish;
use super::layerwise::{LayerwiseOptions, complete, describe_plan, open_device};
use super::{Common, refuse};
use crate::backend::Backend;
use crate::cli::data::DataArgs;
use crate::cli::output::Output;
use crate::cli::terminal::Terminal;
use crate::cli::{CANCEL, Global};
use crate::error::{Error, Kind, Result};
use crate::pipeline::awq::report::{self, How, Method};
use crate::pipeline::awq::{Config, Job};
use crate::pipeline::convert::Wanted;
use crate::pipeline::recipe::Recipe;
use crate::quant::Grid;

/// Group sizes of the container.
const GROUP_SIZES: [i64; 3] = [32, 64, 128];

/// Options of AWQ alone
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "AWQ")]
pub(in crate::cli) struct AwqOptions {
    /// What finds the codes of the scaled weights [default: awq]
    #[arg(long, value_name = "SOLVER", value_enum)]
    solver: Option<Solver>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Solver {
    /// Each weight becomes the nearest code, in the range that is best for its group
    Awq,
    /// GPTQ: errors are made good by later columns; the container is the same
    Gptq,
}

impl AwqOptions {
    /// What they ask for; where it goes and the rest are to be filled in.
    ///
    /// # Errors
    /// `Usage` for an option that makes no sense.
    pub(in crate::cli) fn config(
        &self,
        layerwise: &LayerwiseOptions,
        backend: Arc<dyn Backend>,
    ) -> Result<Config> {
        let grid = Grid { bits: 4, group_size: layerwise.group_size(&GROUP_SIZES)?, symmetric: false };
        Ok(Config {
            options: layerwise.options(grid, backend)?,
            solver: match self.solver {
                None | Some(Solver::Awq) => report::Solver::Awq,
                Some(Solver::Gptq) => report::Solver::Gptq,
            },
        })
    }

    /// What codes that are there already would have to be.
    ///
    /// # Errors
    /// `Usage` for a group size that makes no sense.
    pub(in crate::cli) fn wanted(&self, layerwise: &LayerwiseOptions) -> Result<Wanted> {
        layerwise.wanted(&GROUP_SIZES, None, &[("--solver", self.solver.is_some())])
    }

    /// The options that were given.
    pub(in crate::cli) fn given(&self) -> Vec<&'static str> {
        super::given(&[("--solver", self.solver.is_some())])
    }
}

#[allow(clippy::too_many_arguments, reason = "the options by their groups, and where to report")]
pub(super) fn run(
    common: &Common,
    layerwise: &LayerwiseOptions,
    args: &AwqOptions,
    data: &DataArgs,
    global: &Global,
    finish: Finish<'_>,
    output: &Output,
    terminal: &Terminal,
) -> Result<()> {
    common.quant_level.as_deref().map_or(Ok(()), check_level)?;
    let profile = common.budget.profile("awq")?;
    let backend = open_device(global, terminal)?;
    let mut config = args.config(layerwise, backend.clone())?;
    if let Some(profile) = &profile {
        refuse(&layerwise.group_size_given(), "--profile, which says it")?;
        profile.choice.apply(&mut config.options);
    }
    let source = common.open(terminal)?;
    let options = complete(config.options, "awq", &source, common, profile.as_ref(), global)?;
    let config = Config { options, ..config };
    if common.budget.is_given() {
        let run =
            Run { source, group_sizes: Vec::new(), backend, common, data, global, finish, output, terminal };
        return run.go(Recipe::Awq(Box::new(config)));
    }
    let job = Job::prepare(source, config, terminal)?;
    let plan = job.plan();
    if common.dry_run {
        let summary = job.dry_run();
        output.result(&summary, &describe_plan(&summary, &plan.options().output.display().to_string()));
        return Ok(());
    }
    job.preflight()?;
    let rows = data.rows(plan.encoder(), plan.limits(), &CANCEL, terminal)?;
    let report = job.run(&rows, terminal, &CANCEL)?.commit(terminal)?;
    drop((job, rows));
    finish.layerwise(&report, ("scaling", &exponents), None)
}

/// What the report says of a matrix.
pub(super) fn exponents(how: &How) -> String {
    match how.method {
        Method::Awq | Method::Gptq { .. } => {
            format!("{:.2} {:.2}", how.activation_exponent, how.weight_exponent)
        }
        Method::FewTokens | Method::Searched => "search".into(),
    }
}

/// AWQ has one level.
pub(in crate::cli) fn check_level(level: &str) -> Result<()> {
    if level.eq_ignore_ascii_case("4bit") {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("Invalid quantization level '{level}' for AWQ"))
        .hint("Valid level: 4bit."))
}
