//! `llm-quantize quantize MODEL gptq -q LEVEL`.

use std::sync::Arc;

use clap::ValueEnum;
use regex::Regex;

use super::budget::Run;
use super::finish::Finish;
use super::layerwise::{LayerwiseOptions, complete, describe_plan, open_device};
use super::{Common, given, refuse};
use crate::backend::Backend;
use crate::cli::data::DataArgs;
use crate::cli::output::Output;
use crate::cli::terminal::Terminal;
use crate::cli::{CANCEL, Global};
use crate::error::{Error, Kind, Result};
use crate::format::gptq::Version;
use crate::pipeline::convert::Wanted;
use crate::pipeline::gptq::report::How;
use crate::pipeline::gptq::{Config, Job};
use crate::pipeline::recipe::Recipe;
use crate::quant::Grid;

/// Group sizes of the container; -1 is a whole row.
const GROUP_SIZES: [i64; 5] = [32, 64, 128, 256, -1];

/// Options of GPTQ alone
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "GPTQ")]
pub(in crate::cli) struct GptqOptions {
    /// Zero points in the middle of the grid, the default
    #[arg(long, conflicts_with = "asym")]
    sym: bool,
    /// A zero point for each group
    #[arg(long)]
    asym: bool,
    /// Quantize columns by their importance whatever their group, with the scales of the original weights
    #[arg(long)]
    desc_act: bool,
    /// Share of the mean of the Hessian's diagonal that is added to it [default: 0.05]
    #[arg(long, value_name = "SHARE")]
    damp: Option<f32>,
    /// Bits and group size of the linear layers whose name matches a regular expression, as `down_proj=4bit` or
    /// `layers.0.mlp=4bit:64`; may be repeated, the first match wins
    #[arg(long, value_name = "PATTERN=BITS[:GROUP]")]
    linear_bits: Vec<String>,
    /// Version of the container [default: gptq, of asymmetric grids gptq_v2]
    #[arg(long, value_name = "FORMAT", value_enum)]
    checkpoint_format: Option<CheckpointFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CheckpointFormat {
    /// Zero points less one, 1 or more
    #[value(name = "gptq")]
    V1,
    /// Zero points as they are
    #[value(name = "gptq_v2")]
    V2,
}

impl GptqOptions {
    /// What they ask for, with so many bits; where it goes and the rest are to be filled in.
    ///
    /// # Errors
    /// `Usage` for an option that makes no sense.
    pub(in crate::cli) fn config(
        &self,
        layerwise: &LayerwiseOptions,
        bits: u32,
        backend: Arc<dyn Backend>,
    ) -> Result<Config> {
        let grid = Grid { bits, group_size: layerwise.group_size(&GROUP_SIZES)?, symmetric: !self.asym };
        let mut options = layerwise.options(grid, backend)?;
        options.grids.rules =
            self.linear_bits.iter().map(|text| parse_rule(text, grid)).collect::<Result<_>>()?;
        Ok(Config { options, desc_act: self.desc_act, damp: parse_damp(self.damp)?, version: self.version() })
    }

    fn version(&self) -> Option<Version> {
        self.checkpoint_format.map(|format| match format {
            CheckpointFormat::V1 => Version::V1,
            CheckpointFormat::V2 => Version::V2,
        })
    }

    /// What codes that are there already would have to be.
    ///
    /// # Errors
    /// `Usage` for a group size that makes no sense.
    pub(in crate::cli) fn wanted(&self, layerwise: &LayerwiseOptions, bits: Option<u32>) -> Result<Wanted> {
        let other = [
            ("--desc-act", self.desc_act),
            ("--damp", self.damp.is_some()),
            ("--linear-bits", !self.linear_bits.is_empty()),
        ];
        let symmetric = match (self.sym, self.asym) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        Ok(Wanted { symmetric, version: self.version(), ..layerwise.wanted(&GROUP_SIZES, bits, &other)? })
    }

    /// The options that were given.
    pub(in crate::cli) fn given(&self) -> Vec<&'static str> {
        super::given(&[
            ("--sym", self.sym),
            ("--asym", self.asym),
            ("--desc-act", self.desc_act),
            ("--damp", self.damp.is_some()),
            ("--linear-bits", !self.linear_bits.is_empty()),
            ("--checkpoint-format", self.checkpoint_format.is_some()),
        ])
    }
}

#[allow(clippy::too_many_arguments, reason = "the options by their groups, and where to report")]
pub(super) fn run(
    common: &Common,
    layerwise: &LayerwiseOptions,
    args: &GptqOptions,
    data: &DataArgs,
    global: &Global,
    finish: Finish<'_>,
    output: &Output,
    terminal: &Terminal,
) -> Result<()> {
    let profile = common.budget.profile("gptq")?;
    // Where precisions are chosen, none of the matrices keeps this one.
    let bits = common.quant_level.as_deref().map_or(Ok(4), parse_bits)?;
    let backend = open_device(global, terminal)?;
    let mut config = args.config(layerwise, bits, backend.clone())?;
    let linear_bits = [("--linear-bits", !args.linear_bits.is_empty())];
    if let Some(profile) = &profile {
        refuse(&[layerwise.group_size_given(), given(&linear_bits)].concat(), "--profile, which says it")?;
        profile.choice.apply(&mut config.options);
    } else if common.budget.target_bpw.is_some() {
        refuse(&given(&linear_bits), "--target-bpw, which chooses it")?;
    }
    let source = common.open(terminal)?;
    let options = complete(config.options, "gptq", &source, common, profile.as_ref(), global)?;
    let config = Config { options, ..config };
    if common.budget.is_given() {
        let group_sizes = layerwise.group_sizes();
        let run = Run { source, group_sizes, backend, common, data, global, finish, output, terminal };
        return run.go(Recipe::Gptq(Box::new(config)));
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
    finish.layerwise(&report, ("damping", &damping), None)
}

/// What the report says of a matrix.
pub(super) fn damping(how: &How) -> String {
    match how {
        How::Gptq { damp } => format!("{damp:.2}"),
        How::FewTokens | How::Singular => "search".into(),
    }
}

pub(in crate::cli) fn parse_bits(level: &str) -> Result<u32> {
    match level.to_lowercase().as_str() {
        "2bit" => Ok(2),
        "3bit" => Ok(3),
        "4bit" => Ok(4),
        "8bit" => Ok(8),
        _ => Err(Error::new(Kind::Usage, format!("Invalid quantization level '{level}' for GPTQ"))
            .hint("Valid levels: 2bit, 3bit, 4bit, 8bit.")),
    }
}

/// A pattern, and the grid of what it matches.
fn parse_rule(text: &str, base: Grid) -> Result<(Regex, Grid)> {
    let form = || {
        Error::new(Kind::Usage, format!("--linear-bits '{text}' is not of the form PATTERN=BITS[:GROUP]"))
            .hint("For example down_proj=4bit:64.")
    };
    let (pattern, grid) =
        text.rsplit_once('=').filter(|(pattern, _)| !pattern.is_empty()).ok_or_else(form)?;
    let (bits, group) = grid.split_once(':').map_or((grid, None), |(bits, group)| (bits, Some(group)));
    let group_size = match group.map(str::parse) {
        None => base.group_size,
        Some(Ok(size)) if GROUP_SIZES.contains(&size) => usize::try_from(size).unwrap_or(Grid::WHOLE_ROW),
        Some(_) => return Err(form().hint("Group sizes are 32, 64, 128, 256, -1; -1 is a whole row.")),
    };
    let pattern = Regex::new(pattern).map_err(|e| {
        Error::new(Kind::Usage, format!("--linear-bits: '{pattern}' is not a regular expression")).because(e)
    })?;
    Ok((pattern, Grid { bits: parse_bits(bits)?, group_size, ..base }))
}

fn parse_damp(damp: Option<f32>) -> Result<f32> {
    let damp = damp.unwrap_or(crate::quant::gptq::DAMP);
    if (0.0..1.0).contains(&damp) {
        return Ok(damp);
    }
    Err(Error::new(Kind::Usage, format!("--damp {damp} is not from 0 to below 1")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_those_of_the_container() {
        assert_eq!(["2bit", "3BIT", "4Bit", "8bit"].map(|l| parse_bits(l).unwrap()), [2, 3, 4, 8]);
        for level in ["Q4_K_M", "5bit", "4", ""] {
            assert_eq!(parse_bits(level).unwrap_err().kind(), Kind::Usage, "{level}");
        }
        let base = Grid { bits: 3, group_size: 128, symmetric: true };
        let (pattern, grid) = parse_rule("a=b=4bit:-1", base).unwrap();
        assert_eq!((pattern.as_str(), grid.bits, grid.group_size), ("a=b", 4, Grid::WHOLE_ROW));
        assert_eq!(parse_rule("o_proj=8bit", base).unwrap().1, Grid { bits: 8, ..base });
        for rule in ["o_proj", "=4bit", "o=5bit", "o=4bit:48", "(=4bit"] {
            assert_eq!(parse_rule(rule, base).unwrap_err().kind(), Kind::Usage, "{rule}");
        }
        for damp in [-0.1, 1.0, f32::NAN] {
            assert_eq!(parse_damp(Some(damp)).unwrap_err().kind(), Kind::Usage, "{damp}");
        }
    }
}
