//! What the commands for GPTQ and AWQ share.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueEnum;

use super::Common;
use crate::backend::{self, Backend, Batch};
use crate::cli::Global;
use crate::cli::output::{duration, size, thousands};
use crate::cli::terminal::Terminal;
use crate::error::{Error, Kind, Result};
use crate::format::gguf::blocks::Simd;
use crate::html::quantized::Column;
use crate::pipeline::budget::GROUP_SIZES;
use crate::pipeline::checkpoint::Settings;
use crate::pipeline::convert::Wanted;
use crate::pipeline::layerwise::report::{Linear, Report, Summary};
use crate::pipeline::layerwise::{Grids, Options, matrices};
use crate::pipeline::profile::Profile;
use crate::pipeline::tune;
use crate::progress::Progress;
use crate::quant::Grid;
use crate::source::SourceModel;

/// Matrices that the report lists unless all are wanted.
const LISTED: usize = 10;

/// Options of GPTQ and AWQ
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "GPTQ and AWQ")]
pub(in crate::cli) struct LayerwiseOptions {
    /// Inputs that share a scale: 32, 64, 128, of GPTQ also 256, or -1 for a whole row [default: 128]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    group_size: Option<i64>,
    /// Keep linear layers whose name matches a regular expression in 16 bits; may be repeated
    #[arg(long, value_name = "PATTERN")]
    skip: Vec<String>,
    /// Keep less in memory, compute more
    #[arg(long)]
    low_memory: bool,
    /// Keep the hidden states of the calibration data on the disk of the checkpoint; implies --low-memory
    #[arg(long)]
    offload: bool,
    /// Learn codes and scales by gradients once they are there: of each layer against what the original one makes
    #[arg(long, value_name = "SCOPE", value_enum)]
    tune: Option<Scope>,
    /// Steps of tuning [default: 200 for each layer, or 280 for the whole model]
    #[arg(long, value_name = "N", requires = "tune")]
    tune_steps: Option<NonZeroUsize>,
    /// How far codes go at most in a step of tuning, in codes [default: 1 / steps, or 0.02 for the whole model;
    /// there less if weights are many for the tokens that are learned from]
    #[arg(long, value_name = "X", requires = "tune")]
    tune_rate: Option<f32>,
    /// What is tuned: all, the matrices whose name matches a regular expression, or (auto, of global tuning) those of the
    /// layers that the model has lost most by [default: all]
    #[arg(long, value_name = "all|auto|PATTERN", requires = "tune")]
    tune_layers: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scope {
    /// Layer by layer
    Block,
    /// All layers at once, against the original model's predictions
    Global,
}

impl LayerwiseOptions {
    /// The options that were given.
    pub(in crate::cli) fn given(&self) -> Vec<&'static str> {
        super::given(&[
            ("--group-size", self.group_size.is_some()),
            ("--skip", !self.skip.is_empty()),
            ("--low-memory", self.low_memory),
            ("--offload", self.offload),
            ("--tune", self.tune.is_some()),
        ])
    }

    /// The option of the group size, if it was given.
    pub(super) fn group_size_given(&self) -> Vec<&'static str> {
        super::given(&[("--group-size", self.group_size.is_some())])
    }

    /// Group sizes that precisions of GPTQ are chosen from, beside the one that was asked for: none if one was.
    pub(in crate::cli) fn group_sizes(&self) -> Vec<usize> {
        if self.group_size.is_some() { Vec::new() } else { GROUP_SIZES.to_vec() }
    }

    /// The group size, which must be one of `sizes`.
    pub(in crate::cli) fn group_size(&self, sizes: &[i64]) -> Result<usize> {
        Ok(self.asked_group_size(sizes)?.unwrap_or(128))
    }

    /// The group size that was asked for.
    pub(super) fn asked_group_size(&self, sizes: &[i64]) -> Result<Option<usize>> {
        let Some(asked) = self.group_size else { return Ok(None) };
        if sizes.contains(&asked) {
            return Ok(Some(usize::try_from(asked).unwrap_or(Grid::WHOLE_ROW)));
        }
        let sizes: Vec<String> = sizes.iter().map(i64::to_string).collect();
        Err(Error::new(Kind::Usage, format!("--group-size {asked} is not possible"))
            .hint(format!("Group sizes are {}; -1 is a whole row.", sizes.join(", "))))
    }

    /// What the library is asked for; where the result goes and the rest are to be filled in.
    pub(super) fn options(&self, grid: Grid, backend: Arc<dyn Backend>) -> Result<Options> {
        Ok(Options {
            grids: Grids::uniform(grid),
            skip: matrices::parse_skips(&self.skip)?,
            low_memory: self.low_memory,
            offload: self.offload,
            checkpoint: Settings::default(),
            output: PathBuf::new(),
            force: false,
            ignore_config: Vec::new(),
            threads: 1,
            backend,
            tune: self.tuning()?,
        })
    }

    fn tuning(&self) -> Result<Option<tune::Settings>> {
        let Some(scope) = self.tune else { return Ok(None) };
        if self.offload {
            return Err(Error::new(
                Kind::Usage,
                "--tune needs the hidden states in memory, without --offload",
            ));
        }
        let layers = match self.tune_layers.as_deref() {
            None | Some("all") => tune::Layers::All,
            Some("auto") if scope == Scope::Block => {
                return Err(Error::new(Kind::Usage, "--tune-layers auto is for --tune global")
                    .hint("Name the matrices by a regular expression, or tune all."));
            }
            Some("auto") => tune::Layers::Auto,
            Some(pattern) => tune::Layers::Matching(matrices::parse_pattern("--tune-layers", pattern)?),
        };
        let rate = self.tune_rate;
        if let Some(rate) = rate.filter(|rate| !(*rate > 0.0 && *rate <= 1.0)) {
            return Err(Error::new(Kind::Usage, format!("--tune-rate {rate} is not above 0 and up to 1")));
        }
        let steps = |usual| self.tune_steps.map_or(usual, NonZeroUsize::get);
        Ok(Some(match scope {
            Scope::Block => {
                tune::Settings { block_steps: steps(tune::BLOCK_STEPS), whole_steps: 0, rate, layers }
            }
            Scope::Global => {
                tune::Settings { block_steps: 0, whole_steps: steps(tune::WHOLE_STEPS), rate, layers }
            }
        }))
    }

    /// What codes that are there already would have to be; `other` are options that no such codes can meet.
    pub(super) fn wanted(
        &self,
        sizes: &[i64],
        bits: Option<u32>,
        other: &[(&'static str, bool)],
    ) -> Result<Wanted> {
        let own = [("--skip", !self.skip.is_empty()), ("--tune", self.tune.is_some())];
        let other = [&own[..], other].concat();
        Ok(Wanted {
            bits,
            group_size: self.asked_group_size(sizes)?,
            symmetric: None,
            version: None,
            other: other.into_iter().find(|(_, given)| *given).map(|(name, _)| name),
        })
    }
}

/// Opens the device that was asked for, and says what it does if it is a GPU.
pub(in crate::cli) fn open_device(global: &Global, terminal: &Terminal) -> Result<Arc<dyn Backend>> {
    let backend = backend::open(&global.device()?, Simd::best())?;
    if backend.batch() == Batch::All {
        terminal.info(&format!("Device: {}", backend.name()));
    }
    Ok(backend)
}

/// Fills in what does not depend on the method. `format` is part of the result's name unless that was given.
pub(super) fn complete(
    options: Options,
    format: &str,
    source: &SourceModel,
    common: &Common,
    profile: Option<&Profile>,
    global: &Global,
) -> Result<Options> {
    let level = format!("{}bit", options.grids.base.bits);
    let name = match &common.output_name {
        Some(name) => name.clone(),
        None => format!("{}-{format}-{}", source.name()?, common.precision_name(&level, profile)),
    };
    let output = common.output(&name)?;
    Ok(Options {
        checkpoint: common.checkpoints.settings(&format!("quantize {format}"), &output),
        output,
        force: common.force,
        ignore_config: common.ignore_config.clone(),
        threads: global.threads(),
        ..options
    })
}

pub(super) fn describe_plan<O>(summary: &Summary<O>, path: &str) -> String {
    let mut text = String::new();
    for left_out in &summary.left_out {
        let _ = writeln!(text, "{} stays in 16 bits: {}", left_out.name, left_out.reason);
    }
    let _ = writeln!(text, "{path} would be {} ({} bytes)", size(summary.file_size), summary.file_size);
    let _ = writeln!(
        text,
        "{} weights, {:.2} bits each; {} of them in {} matrices with {:.3} bits each",
        thousands(summary.parameters),
        summary.bits_per_weight,
        thousands(summary.quantized_parameters),
        summary.matrices,
        summary.quantized_bits_per_weight
    );
    text + &describe_grids(summary)
}

/// The grids, if there are several.
fn describe_grids<O>(summary: &Summary<O>) -> String {
    let mut text = String::new();
    for grid in &summary.grids {
        let group =
            if grid.group_size < 0 { "rows".into() } else { format!("groups of {}", grid.group_size) };
        let weights = thousands(grid.weights);
        let _ =
            writeln!(text, "  {} bits, {group}: {} matrices, {weights} weights", grid.bits, grid.matrices);
    }
    text
}

/// The result for people.
pub(super) fn describe_report<O, H>(
    report: &Report<O, H>,
    verbose: bool,
    (title, how): Column<'_, H>,
) -> String {
    let summary = &report.metadata;
    let mut text = format!(
        "Complete: {} ({}, {:.3} bits per quantized weight, {:.2} of all)\n",
        report.output_path,
        size(report.file_size),
        summary.quantized_bits_per_weight,
        summary.bits_per_weight
    );
    text += &describe_grids(summary);
    let mut linears: Vec<&Linear<H>> = report.linears.iter().collect();
    if !verbose {
        linears.sort_by(|a, b| b.share.total_cmp(&a.share));
        linears.truncate(LISTED);
        let _ = writeln!(text, "The matrices with most of the error:");
    }
    let width = linears.iter().map(|l| l.name.len()).max().unwrap_or(0);
    let _ = writeln!(
        text,
        "{:<width$} {:>10} {:>6} {title:>8} {:>8} {:>8}",
        "", "error", "share", "outliers", "seconds"
    );
    for linear in linears {
        let _ = writeln!(
            text,
            "{:<width$} {:>10.3e} {:>5.1}% {:>8} {:>8} {:>8.2}",
            linear.name,
            linear.relative_error,
            100.0 * linear.share,
            how(&linear.how),
            linear.outliers,
            linear.seconds
        );
    }
    if verbose {
        let _ = writeln!(
            text,
            "Duration: {} (quantizing {}, validating {})",
            duration(report.duration_seconds),
            duration(report.quantize_seconds),
            duration(report.validation_seconds)
        );
        if let Some(bytes) = report.peak_memory_bytes {
            let _ = writeln!(text, "Peak memory: {}", size(bytes));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_sizes_are_those_of_the_container() {
        let asked = |group_size| {
            LayerwiseOptions {
                group_size,
                skip: vec![],
                low_memory: false,
                offload: false,
                tune: None,
                tune_steps: None,
                tune_rate: None,
                tune_layers: None,
            }
            .group_size(&[64, 128, -1])
        };
        assert_eq!(asked(None).unwrap(), 128);
        assert_eq!(asked(Some(64)).unwrap(), 64);
        assert_eq!(asked(Some(-1)).unwrap(), Grid::WHOLE_ROW);
        assert_eq!(asked(Some(100)).unwrap_err().kind(), Kind::Usage);
    }
}
