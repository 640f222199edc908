//! `llm-quantize analyze quality MODEL --reference MODEL --data FILE`.

use std::fmt::Write;
use std::path::PathBuf;

use crate::calib::builtin;
use crate::cli::checkpoints::CheckpointArgs;
use crate::cli::compute::Compute;
use crate::cli::evaluate::{CutArgs, figures};
use crate::cli::output::{Output, duration, fields};
use crate::cli::result_file::ResultFile;
use crate::cli::terminal::Terminal;
use crate::cli::{CANCEL, Global};
use crate::error::Result;
use crate::eval::quality::Quality;
use crate::html;
use crate::pipeline::evaluate::{Config, ReportFile};
use crate::pipeline::quality::analyze;
use crate::progress::Progress;

/// Show what a quantized model has lost, and in which layers and matrices
#[derive(Debug, clap::Args)]
#[command(after_help = NOTES)]
pub(in crate::cli) struct Args {
    /// A .gguf file, the directory of a Hugging Face model, or its name on the Hub (org/name)
    model: String,
    /// The model that it was quantized from
    #[arg(long, value_name = "MODEL")]
    reference: String,
    /// Text to compare on: UTF-8, or the texts of a .jsonl, .json or .parquet file (column text or content) [default: a
    /// text that is built in]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    #[command(flatten)]
    cut: CutArgs,
    /// What matrices are multiplied in
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = Compute::F32)]
    compute: Compute,
    /// Write the result as JSON into a file too
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a page with plots, which needs no other file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Overwrite files that exist
    #[arg(long)]
    force: bool,
    /// Accept a key of config.json that is not understood; may be repeated
    #[arg(long, value_name = "KEY")]
    ignore_config: Vec<String>,
    #[command(flatten)]
    checkpoints: CheckpointArgs,
}

const NOTES: &str = "\
Example:
  llm-quantize analyze quality Llama-3.1-8B-Q4_K_M.gguf --reference ./Llama-3.1-8B --data wiki.test.raw --chunks 16 \\
    --html quality.html

Errors are normalised squares: of the difference, over those of the reference's values.
hidden     residual stream after the layer, when each model goes its own way from the embeddings on
attn_q ..  what the matrix makes of the inputs that it has in the reference; its own damage only
A matrix with a large error in a model with a small KL divergence does not matter much, and the other way round.";

pub(in crate::cli) fn run(args: &Args, global: &Global, output: &Output, terminal: &Terminal) -> Result<()> {
    let page = args.html.as_deref().map(|path| ResultFile::new(path, args.force)).transpose()?;
    let file = args.output.as_deref().or(args.html.as_deref());
    let config = Config {
        model: args.model.clone(),
        reference: Some(args.reference.clone()),
        text: args.cut.text(args.data.clone()),
        ignore_config: args.ignore_config.clone(),
        compute: args.compute.into(),
        output: args.output.clone().map(|path| ReportFile { path, force: args.force }),
        checkpoint: args.checkpoints.settings_beside("analyze quality", file)?,
        threads: global.threads(),
    };
    if args.data.is_none() {
        terminal.info(&format!("No --data: using the built-in text ({} kB)", builtin::size() / 1000));
    }
    let quality = analyze(&config, &CANCEL, terminal)?;
    if let Some(file) = page {
        file.write(&html::quality::page(&quality))?;
    }
    output.result(&quality, &describe(&quality));
    Ok(())
}

fn describe(quality: &Quality) -> String {
    let names = quality.linears();
    let mut table = format!("{:<6}{:>10}", "layer", "hidden");
    for name in &names {
        let _ = write!(table, "{name:>0$}", width(name));
    }
    for layer in &quality.layers {
        let _ = write!(table, "\n{:<6}{:>10}", layer.layer, format!("{:.2e}", layer.nmse));
        for name in &names {
            let nmse = layer.linears.iter().find(|l| l.name == *name).map(|l| format!("{:.2e}", l.nmse));
            let _ = write!(table, "{:>1$}", nmse.unwrap_or_default(), width(name));
        }
    }
    let bits = (quality.bits_per_weight, quality.reference_bits_per_weight);
    let mut rows = vec![
        ("Model", format!("{} ({})", quality.model, quality.format)),
        ("Reference", format!("{} ({})", quality.reference, quality.reference_format)),
        ("Bits per weight", format!("{:.3}, of the reference {:.3}", bits.0, bits.1)),
        ("Data", quality.data.clone()),
    ];
    rows.extend(figures(&quality.evaluation));
    rows.push(("Time", duration(quality.duration_seconds)));
    format!("{table}\n\n{}", fields(&rows))
}

/// Of a column.
fn width(name: &str) -> usize {
    name.len().max(8) + 2
}
