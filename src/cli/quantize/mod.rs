//! `llm-quantize quantize MODEL FORMAT -q LEVEL`.

pub(super) mod awq;
mod budget;
mod finish;
mod formats;
pub(super) mod gguf;
pub(super) mod gptq;
pub(super) mod layerwise;

use std::path::{Path, PathBuf};

pub(super) use budget::bits;
use finish::Finish;
pub(super) use formats::{FormatOptions, OutputFormat};

use super::checkpoints::CheckpointArgs;
use super::data::DataArgs;
use super::output::Output;
use super::terminal::Terminal;
use super::{CANCEL, Global};
use crate::error::{Error, Kind, Result};
use crate::pipeline::profile::Profile;
use crate::progress::Progress;
use crate::source::{Need, SourceModel};

/// Quantize a model
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    formats: FormatOptions,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    report: finish::ReportArgs,
}

/// What every format has.
#[derive(Debug, clap::Args)]
struct Common {
    /// Directory of a Hugging Face model, or its name on the Hub: org/name or org/name@revision
    model: String,
    /// Container of the result
    #[arg(value_enum, ignore_case = true)]
    output_format: OutputFormat,
    /// Level, in any case: of GGUF by llama.cpp's name (Q4_K_M, Q8_0, BF16, ...), of GPTQ 2bit, 3bit, 4bit or 8bit, of AWQ 4bit
    #[arg(short, long, visible_alias = "quantization", value_name = "LEVEL")]
    #[arg(required_unless_present_any = ["target_bpw", "profile"])]
    quant_level: Option<String>,
    /// Directory for the result, made if it is not there
    #[arg(short, long, value_name = "DIR", default_value = ".", visible_alias = "output")]
    output_dir: PathBuf,
    /// Name of the result in that directory [default: MODEL-LEVEL.gguf, or a directory MODEL-FORMAT-LEVEL]
    #[arg(short = 'n', long, value_name = "NAME")]
    output_name: Option<String>,
    /// Overwrite the result if it exists
    #[arg(long)]
    force: bool,
    /// Print sizes and types, do nothing
    #[arg(long)]
    dry_run: bool,
    /// Accept a key of config.json that is not understood; may be repeated
    #[arg(long, value_name = "KEY")]
    ignore_config: Vec<String>,
    #[command(flatten)]
    checkpoints: CheckpointArgs,
    #[command(flatten)]
    budget: budget::BudgetArgs,
}

pub(super) fn run(args: &Args, global: &Global, output: &Output, terminal: &Terminal) -> Result<()> {
    let Args { common, formats, data, report } = args;
    common.budget.check()?;
    let format = common.output_format;
    let mut useless = formats.of_others(Some(format));
    if format == OutputFormat::Gguf {
        // Only what is measured needs data.
        useless.extend(if common.budget.is_given() { Vec::new() } else { data_given(data) });
        useless.extend(report.given());
    }
    refuse(&useless, format.title())?;
    let finish = Finish::prepare(common, report, global, output, terminal)?;
    match format {
        OutputFormat::Gguf => gguf::run(common, &formats.gguf, data, global, finish, output, terminal),
        OutputFormat::Gptq => {
            gptq::run(common, &formats.layerwise, &formats.gptq, data, global, finish, output, terminal)
        }
        OutputFormat::Awq => {
            awq::run(common, &formats.layerwise, &formats.awq, data, global, finish, output, terminal)
        }
    }
}

impl Common {
    fn open(&self, terminal: &Terminal) -> Result<SourceModel> {
        terminal.info(&format!("Loading model {}", self.model));
        SourceModel::open(&self.model, Need::Weights, &CANCEL, terminal)
    }

    /// What the result is called by its precision: `level`, unless bits per weight or a profile say it.
    fn precision_name(&self, level: &str, profile: Option<&Profile>) -> String {
        let bits = self.budget.target_bpw.or(profile.map(|profile| profile.bits_per_weight));
        bits.map_or_else(|| level.to_owned(), |bits| format!("{bits:.2}bpw"))
    }

    /// The path of the result.
    fn output(&self, name: &str) -> Result<PathBuf> {
        place(&self.output_dir, name)
    }
}

/// The path of a result in its directory.
pub(super) fn place(dir: &Path, name: &str) -> Result<PathBuf> {
    if name.contains(['/', '\\']) || ["", ".", ".."].contains(&name) {
        return Err(not_plain(name));
    }
    Ok(dir.join(name))
}

fn not_plain(name: &str) -> Error {
    Error::new(Kind::Usage, format!("--output-name '{name}' is not a plain file name"))
        .hint("Put the directory into --output-dir.")
}

/// The names of those options that were given.
pub(super) fn given(options: &[(&'static str, bool)]) -> Vec<&'static str> {
    options.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect()
}

pub(super) fn data_given(data: &DataArgs) -> Vec<&'static str> {
    given(&[
        ("--calibration-data", data.calibration_data.is_some()),
        ("--calibration-samples", data.calibration_samples.is_some()),
        ("--seq-len", data.seq_len.is_some()),
        ("--seed", data.seed.is_some()),
        ("--dataset-config", data.dataset_config.is_some()),
        ("--dataset-split", data.dataset_split.is_some()),
        ("--text-column", data.text_column.is_some()),
    ])
}

/// An option that would be of no effect is a mistake.
pub(super) fn refuse(given: &[&str], what: &str) -> Result<()> {
    match given.first() {
        None => Ok(()),
        Some(option) => Err(Error::new(Kind::Usage, format!("{option} is not an option of {what}"))
            .hint("Leave it out; --help lists the options of each format.")),
    }
}
