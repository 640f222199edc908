//! `llm-quantize analyze importance MODEL -o FILE`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::calib::imatrix;
use crate::cli::checkpoints::CheckpointArgs;
use crate::cli::compute::Compute;
use crate::cli::data::DataArgs;
use crate::cli::output::{Output, duration, size, thousands};
use crate::cli::terminal::Terminal;
use crate::cli::{CANCEL, Global};
use crate::error::Result;
use crate::pipeline::importance::{self, Collect, Config, Report};

/// Make an importance matrix: how strongly each column of each weight is used on a text
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Directory of a Hugging Face model, or its name on the Hub (org/name); none to add up files only
    #[arg(required_unless_present = "merge")]
    model: Option<String>,
    /// The importance matrix to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Overwrite the file if it exists
    #[arg(long)]
    force: bool,
    /// Format of the file; llama-quantize takes both [default: dat if the file ends so, else gguf]
    #[arg(long, value_name = "FORMAT", value_enum)]
    output_format: Option<FileFormat>,
    /// Text to compute on: .txt, .jsonl, .json or .parquet (.gz too, except .parquet), a directory of these, or a data set
    /// on the Hub as org/name [default: a text that is built in]
    #[arg(long, value_name = "FILE|DIR|DATASET", requires = "model")]
    calibration_data: Option<String>,
    /// Configuration (subset) of a data set on the Hub
    #[arg(long, value_name = "NAME", requires = "calibration_data")]
    dataset_config: Option<String>,
    /// Split of a data set on the Hub [default: train, or the only one]
    #[arg(long, value_name = "NAME", requires = "calibration_data")]
    dataset_split: Option<String>,
    /// Column or key of the text or the messages [default: text, content or messages]
    #[arg(long, value_name = "NAME", requires = "calibration_data")]
    text_column: Option<String>,
    /// Tokens in each chunk of the text [default: 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ctx: Option<u32>,
    /// At most this many chunks, from the beginning of the text [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "model")]
    chunks: Option<u32>,
    /// Take special tokens that the text spells out for what they mean
    #[arg(long, requires = "model")]
    parse_special: bool,
    /// Collect the input of output.weight too, if the model has one
    #[arg(long, requires = "model")]
    process_output: bool,
    /// What matrices are multiplied in
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = Compute::Stored, requires = "model")]
    compute: Compute,
    /// Importance matrices that are added, GGUF or .dat
    #[arg(long, value_name = "FILE", num_args = 1..)]
    merge: Vec<PathBuf>,
    /// Accept a key of config.json that is not understood; may be repeated
    #[arg(long, value_name = "KEY")]
    ignore_config: Vec<String>,
    #[command(flatten)]
    checkpoints: CheckpointArgs,
}

const EXAMPLES: &str = "\
Examples:
  llm-quantize analyze importance ./Llama-3.1-8B --calibration-data text.txt -o imatrix.gguf
  llm-quantize analyze importance ./Llama-3.1-8B --calibration-data more.txt --merge imatrix.gguf -o both.gguf
  llm-quantize analyze importance --merge a.gguf b.gguf -o both.gguf
  llm-quantize quantize ./Llama-3.1-8B gguf -q Q4_K_M --imatrix imatrix.gguf

A text file is cut as llama-imatrix cuts it: tokenized as a whole, in chunks of --ctx tokens, each beginning with BOS if the
model wants it; what is left at the end is not used.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FileFormat {
    /// Sums and counts
    Gguf,
    /// The older one: means
    Dat,
}

pub(super) fn run(args: &Args, global: &Global, output: &Output, terminal: &Terminal) -> Result<()> {
    let data = DataArgs {
        calibration_data: args.calibration_data.clone(),
        dataset_config: args.dataset_config.clone(),
        dataset_split: args.dataset_split.clone(),
        text_column: args.text_column.clone(),
        ..DataArgs::default()
    };
    let collect = |model: &String| -> Result<Collect> {
        Ok(Collect {
            model: model.clone(),
            data: data.dataset(&CANCEL, terminal)?,
            chunks: args.chunks.map(|n| n as usize),
            parse_special: args.parse_special,
            process_output: args.process_output,
            compute: args.compute.into(),
            ignore_config: args.ignore_config.clone(),
        })
    };
    let config = Config {
        collect: args.model.as_ref().map(collect).transpose()?,
        merge: args.merge.clone(),
        ctx: args.ctx.map(|n| n as usize),
        output: args.output.clone(),
        format: match args.output_format {
            None => imatrix::Format::of(&args.output),
            Some(FileFormat::Gguf) => imatrix::Format::Gguf,
            Some(FileFormat::Dat) => imatrix::Format::Dat,
        },
        force: args.force,
        checkpoint: args.checkpoints.settings("analyze importance", &args.output),
        threads: global.threads(),
    };
    let report = importance::run(&config, &CANCEL, terminal)?;
    if output.is_json() {
        output.result(&report, "");
    } else {
        output.note(&describe(&report, output.is_verbose()));
    }
    Ok(())
}

fn describe(report: &Report, verbose: bool) -> String {
    let mut text = format!(
        "Complete: {} ({} tensors, {} chunks of {} tokens, {})\n",
        report.output_path,
        report.tensors,
        thousands(report.chunks.into()),
        thousands(report.chunk_size.into()),
        size(report.file_size)
    );
    if verbose {
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name}: {value}");
        };
        line("Duration", duration(report.duration_seconds));
        line("Tokens", thousands(report.tokens));
        line("Dropped rows", thousands(report.dropped_rows));
        line("Data", report.datasets.join(", "));
        if let Some(bytes) = report.peak_memory_bytes {
            line("Peak memory", size(bytes));
        }
    }
    text
}
