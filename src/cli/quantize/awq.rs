//! `llm-quantize quantize MODEL awq -q 4bit`.

use clap::ValueEnum;

use super::Common;
use super::layerwise::{LayerwiseOptions, describe_plan, describe_report};
use crate::cli::data::DataArgs;
use crate::cli::output::Output;
use crate::cli::terminal::Terminal;
use crate::cli::{CANCEL, Global};
use crate::error::{Error, Kind, Result};
use crate::pipeline::awq::report::{self, How, Method};
use crate::pipeline::awq::{Config, Job};
use crate::quant::Grid;

/// Options of AWQ alone
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "AWQ")]
pub(super) struct AwqOptions {
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
    /// The options that were given.
    pub(super) fn given(&self) -> Vec<&'static str> {
        super::given(&[("--solver", self.solver.is_some())])
    }
}

pub(super) fn run(
    common: &Common,
    layerwise: &LayerwiseOptions,
    args: &AwqOptions,
    data: &DataArgs,
    global: &Global,
    output: &Output,
    terminal: &Terminal,
) -> Result<()> {
    if !common.quant_level.eq_ignore_ascii_case("4bit") {
        let level = &common.quant_level;
        return Err(Error::new(Kind::Usage, format!("Invalid quantization level '{level}' for AWQ"))
            .hint("Valid levels: 4bit."));
    }
    let grid = Grid { bits: 4, group_size: layerwise.group_size(&[32, 64, 128])?, symmetric: false };
    let source = common.open(terminal)?;
    let config = Config {
        options: layerwise.options(grid, "awq", &source, common, global)?,
        solver: match args.solver {
            None | Some(Solver::Awq) => report::Solver::Awq,
            Some(Solver::Gptq) => report::Solver::Gptq,
        },
    };
    let job = Job::prepare(&source, config, terminal)?;
    let plan = job.plan();
    if common.dry_run {
        let summary = job.dry_run();
        output.result(&summary, &describe_plan(&summary, &plan.options().output.display().to_string()));
        return Ok(());
    }
    job.preflight()?;
    let rows = data.rows(plan.encoder(), plan.limits(), &CANCEL, terminal)?;
    let report = job.run(&rows, terminal, &CANCEL)?;
    if output.is_json() {
        output.result(&report, "");
    } else {
        let exponents = |how: &How| match how.method {
            Method::Awq | Method::Gptq { .. } => {
                format!("{:.2} {:.2}", how.activation_exponent, how.weight_exponent)
            }
            Method::FewTokens | Method::Searched => "search".into(),
        };
        output.note(&describe_report(&report, output.is_verbose(), ("scaling", exponents)));
    }
    Ok(())
}
