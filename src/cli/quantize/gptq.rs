//! `llm-quantize quantize MODEL gptq -q LEVEL`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::ValueEnum;

use super::Common;
use crate::cli::data::DataArgs;
use crate::cli::output::{Output, duration, size, thousands};
use crate::cli::terminal::Terminal;
use crate::cli::{CANCEL, Global};
use crate::error::{Error, Kind, Result};
use crate::format::gptq::Version;
use crate::pipeline::convert::Wanted;
use crate::pipeline::gptq::report::{How, Report, Summary};
use crate::pipeline::gptq::{Config, Job, linears};
use crate::quant::Grid;

/// Matrices that the report lists unless all are wanted.
const LISTED: usize = 10;

/// Options of GPTQ alone
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "GPTQ")]
pub(in crate::cli) struct GptqOptions {
    /// Inputs that share a scale: 32, 64, 128, 256, or -1 for a whole row [default: 128]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    group_size: Option<i64>,
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
    /// Version of the container [default: gptq, of asymmetric grids gptq_v2]
    #[arg(long, value_name = "FORMAT", value_enum)]
    checkpoint_format: Option<CheckpointFormat>,
    /// Keep linear layers whose name matches a regular expression in 16 bits; may be repeated
    #[arg(long, value_name = "PATTERN")]
    skip: Vec<String>,
    /// Keep less in memory, compute more
    #[arg(long)]
    low_memory: bool,
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
    pub(in crate::cli) fn config(&self, bits: u32) -> Result<Config> {
        Ok(Config {
            grid: Grid { bits, group_size: parse_group_size(self.group_size)?, symmetric: !self.asym },
            desc_act: self.desc_act,
            damp: parse_damp(self.damp)?,
            version: self.version(),
            skip: linears::parse_skips(&self.skip)?,
            low_memory: self.low_memory,
            output: PathBuf::new(),
            force: false,
            ignore_config: Vec::new(),
            threads: 1,
        })
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
    pub(in crate::cli) fn wanted(&self, bits: Option<u32>) -> Result<Wanted> {
        let other = [
            ("--desc-act", self.desc_act),
            ("--damp", self.damp.is_some()),
            ("--skip", !self.skip.is_empty()),
        ];
        Ok(Wanted {
            bits,
            group_size: self.group_size.map(|size| parse_group_size(Some(size))).transpose()?,
            symmetric: match (self.sym, self.asym) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => None,
            },
            version: self.version(),
            other: other.into_iter().find(|(_, given)| *given).map(|(name, _)| name),
        })
    }

    /// The options that were given.
    pub(in crate::cli) fn given(&self) -> Vec<&'static str> {
        super::given(&[
            ("--group-size", self.group_size.is_some()),
            ("--sym", self.sym),
            ("--asym", self.asym),
            ("--desc-act", self.desc_act),
            ("--damp", self.damp.is_some()),
            ("--checkpoint-format", self.checkpoint_format.is_some()),
            ("--skip", !self.skip.is_empty()),
            ("--low-memory", self.low_memory),
        ])
    }
}

pub(super) fn run(
    common: &Common,
    args: &GptqOptions,
    data: &DataArgs,
    global: &Global,
    output: &Output,
    terminal: &Terminal,
) -> Result<()> {
    let bits = parse_bits(&common.quant_level)?;
    let config = args.config(bits)?;
    let source = common.open(terminal)?;
    let name = match &common.output_name {
        Some(name) => name.clone(),
        None => format!("{}-gptq-{bits}bit", source.name()?),
    };
    let config = Config {
        output: common.output(&name)?,
        force: common.force,
        ignore_config: common.ignore_config.clone(),
        threads: global.threads(),
        ..config
    };
    let job = Job::prepare(source, config, terminal)?;
    if common.dry_run {
        let summary = job.dry_run();
        output.result(&summary, &describe_plan(&summary, &job.output().display().to_string()));
        return Ok(());
    }
    job.preflight()?;
    let rows = data.rows(job.encoder(), job.limits(), &CANCEL, terminal)?;
    let report = job.run(&rows, terminal, &CANCEL)?;
    if output.is_json() {
        output.result(&report, "");
    } else {
        output.note(&describe_report(&report, output.is_verbose()));
    }
    Ok(())
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

fn parse_group_size(size: Option<i64>) -> Result<usize> {
    match size.unwrap_or(128) {
        -1 => Ok(Grid::WHOLE_ROW),
        size @ (32 | 64 | 128 | 256) => Ok(size as usize),
        size => Err(Error::new(Kind::Usage, format!("--group-size {size} is not possible"))
            .hint("Group sizes are 32, 64, 128, 256 and -1, a whole row.")),
    }
}

fn parse_damp(damp: Option<f32>) -> Result<f32> {
    let damp = damp.unwrap_or(crate::quant::gptq::DAMP);
    if (0.0..1.0).contains(&damp) {
        return Ok(damp);
    }
    Err(Error::new(Kind::Usage, format!("--damp {damp} is not from 0 to below 1")))
}

fn describe_plan(summary: &Summary, path: &str) -> String {
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
    text
}

fn describe_report(report: &Report, verbose: bool) -> String {
    let summary = &report.metadata;
    let mut text = format!(
        "Complete: {} ({}, {:.3} bits per quantized weight, {:.2} of all)\n",
        report.output_path,
        size(report.file_size),
        summary.quantized_bits_per_weight,
        summary.bits_per_weight
    );
    let mut linears: Vec<_> = report.linears.iter().collect();
    if !verbose {
        linears.sort_by(|a, b| b.share.total_cmp(&a.share));
        linears.truncate(LISTED);
        let _ = writeln!(text, "The matrices with most of the error:");
    }
    let width = linears.iter().map(|l| l.name.len()).max().unwrap_or(0);
    let _ = writeln!(
        text,
        "{:<width$} {:>10} {:>6} {:>8} {:>8} {:>8}",
        "", "error", "share", "damping", "outliers", "seconds"
    );
    for linear in linears {
        let damp = match linear.how {
            How::Gptq { damp } => format!("{damp:.2}"),
            How::FewTokens | How::Singular => "search".into(),
        };
        let _ = writeln!(
            text,
            "{:<width$} {:>10.3e} {:>5.1}% {damp:>8} {:>8} {:>8.2}",
            linear.name,
            linear.relative_error,
            100.0 * linear.share,
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
    fn levels_and_group_sizes_are_those_of_the_container() {
        assert_eq!(["2bit", "3BIT", "4Bit", "8bit"].map(|l| parse_bits(l).unwrap()), [2, 3, 4, 8]);
        for level in ["Q4_K_M", "5bit", "4", ""] {
            assert_eq!(parse_bits(level).unwrap_err().kind(), Kind::Usage, "{level}");
        }
        assert_eq!(parse_group_size(None).unwrap(), 128);
        assert_eq!(parse_group_size(Some(-1)).unwrap(), Grid::WHOLE_ROW);
        assert_eq!(parse_group_size(Some(100)).unwrap_err().kind(), Kind::Usage);
        for damp in [-0.1, 1.0, f32::NAN] {
            assert_eq!(parse_damp(Some(damp)).unwrap_err().kind(), Kind::Usage, "{damp}");
        }
    }
}
