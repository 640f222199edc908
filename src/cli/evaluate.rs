//! `llm-quantize evaluate MODEL --data FILE`.

use std::path::PathBuf;

use clap::ValueEnum;

use super::checkpoints::CheckpointArgs;
use super::compute::Compute;
use super::output::{Output, duration, fields, thousands};
use super::terminal::Terminal;
use super::{CANCEL, Global};
use crate::error::{Error, Kind, Result};
use crate::eval::report::{Comparison, Evaluation};
use crate::eval::windows;
use crate::pipeline::evaluate::{Config, Report, ReportFile, TextConfig, evaluate};

/// Measure a model's perplexity on a text, and its KL divergence from a reference
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A .gguf file, the directory of a Hugging Face model, or its name on the Hub (org/name)
    model: String,
    /// What the model is compared with: usually the one that it was quantized from
    #[arg(long, value_name = "MODEL")]
    reference: Option<String>,
    /// Text to evaluate on: UTF-8, or the texts of a .jsonl, .json or .parquet file (column text or content)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    cut: CutArgs,
    /// What matrices are multiplied in
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = Compute::F32)]
    compute: Compute,
    /// Write the result as JSON into a file too
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the file if it exists
    #[arg(long)]
    force: bool,
    /// Exit with 11 if the perplexity is larger
    #[arg(long, value_name = "X", value_parser = limit)]
    max_ppl: Option<f64>,
    /// Exit with 11 if the mean KL divergence (nats) is larger
    #[arg(long, value_name = "X", value_parser = limit, requires = "reference")]
    max_kld: Option<f64>,
    /// Accept a key of config.json that is not understood; may be repeated
    #[arg(long, value_name = "KEY")]
    ignore_config: Vec<String>,
    #[command(flatten)]
    checkpoints: CheckpointArgs,
}

const EXAMPLES: &str = "\
Examples:
  llm-quantize evaluate ./Llama-3.1-8B --data wiki.test.raw
  llm-quantize evaluate ./Llama-3.1-8B --data wiki.test.raw --protocol llama.cpp --chunks 32
  llm-quantize evaluate Llama-3.1-8B-Q4_K_M.gguf --reference ./Llama-3.1-8B --data wiki.test.raw --max-kld 0.05

Perplexities can be compared only if text, protocol and window are the same.";

/// How a text is cut.
#[derive(Debug, clap::Args)]
pub(super) struct CutArgs {
    /// How the text is cut, and what is scored
    #[arg(long, value_enum, default_value_t = Protocol::Full)]
    protocol: Protocol,
    /// Tokens in each window [default: 2048 for full, 512 for llama.cpp, or the model's context if that is shorter]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    ctx: Option<u32>,
    /// At most this many windows, from the beginning of the text [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// Windows back to back, the next token scored at every position, as for the tables of papers
    Full,
    /// As llama-perplexity: BOS before each window, its second half scored
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

impl CutArgs {
    /// An option that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        let given = [
            ("--protocol", self.protocol != Protocol::Full),
            ("--ctx", self.ctx.is_some()),
            ("--chunks", self.chunks.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    /// The text of a file, or the one that is built in.
    pub(super) fn text(&self, data: Option<PathBuf>) -> TextConfig {
        TextConfig {
            data,
            protocol: match self.protocol {
                Protocol::Full => windows::Protocol::Full,
                Protocol::LlamaCpp => windows::Protocol::LlamaCpp,
            },
            ctx: self.ctx.map(|n| n as usize),
            chunks: self.chunks.map(|n| n as usize),
        }
    }
}

pub(super) fn run(args: &Args, global: &Global, output: &Output, terminal: &Terminal) -> Result<()> {
    let config = Config {
        model: args.model.clone(),
        reference: args.reference.clone(),
        text: args.cut.text(Some(args.data.clone())),
        ignore_config: args.ignore_config.clone(),
        compute: args.compute.into(),
        output: args.output.clone().map(|path| ReportFile { path, force: args.force }),
        checkpoint: args.checkpoints.settings_beside("evaluate", args.output.as_deref())?,
        threads: global.threads(),
    };
    let report = evaluate(&config, &CANCEL, terminal)?;
    let verdict = judge(args, &report.evaluation);
    if verdict.is_err() && output.is_json() {
        // One object holds both what was measured and what is wrong with it.
        return verdict.map_err(|e| e.details(&report));
    }
    output.result(&report, &describe(&report));
    verdict
}

/// # Errors
/// `Quality` if the model is worse than asked for.
fn judge(args: &Args, found: &Evaluation) -> Result<()> {
    let worse = |what: &str, found: f64, option: &str, limit: f64| {
        Err(Error::new(Kind::Quality, format!("the {what} is {found:.6}, larger than {option} {limit}"))
            .hint("Quantize with more bits, smaller groups or better calibration data."))
    };
    if let Some(limit) = args.max_ppl.filter(|limit| found.perplexity > *limit) {
        return worse("perplexity", found.perplexity, "--max-ppl", limit);
    }
    if let (Some(limit), Some(comparison)) = (args.max_kld, &found.comparison)
        && comparison.kl_divergence > limit
    {
        return worse("mean KL divergence", comparison.kl_divergence, "--max-kld", limit);
    }
    Ok(())
}

pub(super) fn limit(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x| *x >= 0.0).ok_or_else(|| "not a number from 0 on".into())
}

fn describe(report: &Report) -> String {
    let mut rows = vec![("Model", format!("{} ({})", report.model, report.format))];
    if let (Some(name), Some(format)) = (&report.reference, &report.reference_format) {
        rows.push(("Reference", format!("{name} ({format})")));
    }
    rows.push(("Data", report.data.clone()));
    rows.extend(figures(&report.evaluation));
    rows.push(("Time", duration(report.duration_seconds)));
    fields(&rows)
}

/// The figures of an evaluation and what they are called.
pub(super) fn figures(found: &Evaluation) -> Vec<(&'static str, String)> {
    let windows = thousands(found.windows as u64);
    let tokens = thousands(found.tokens as u64);
    let protocol = found.protocol.name();
    let mut rows = vec![
        ("Protocol", format!("{protocol}: {windows} windows of {} tokens, {tokens} scored", found.ctx)),
        ("Perplexity", format!("{:.4} ± {:.4}", found.perplexity, found.perplexity_stderr)),
    ];
    rows.extend(found.comparison.iter().flat_map(comparison));
    rows
}

fn comparison(c: &Comparison) -> Vec<(&'static str, String)> {
    let p = &c.kl_divergence_percentiles;
    let (agreement, stderr) = (100.0 * c.top1_agreement, 100.0 * c.top1_agreement_stderr);
    vec![
        ("  of reference", format!("{:.4} ± {:.4}", c.reference_perplexity, c.reference_perplexity_stderr)),
        ("  ratio", format!("{:.6} ± {:.6}", c.perplexity_ratio, c.perplexity_ratio_stderr)),
        ("KL divergence", format!("{:.6} ± {:.6} nats", c.kl_divergence, c.kl_divergence_stderr)),
        ("  50, 90, 95 %", format!("{:.6}, {:.6}, {:.6}", p.p50, p.p90, p.p95)),
        ("  99 %, maximum", format!("{:.6}, {:.6}", p.p99, c.kl_divergence_max)),
        ("Top-1 agreement", format!("{agreement:.3} ± {stderr:.3} %")),
    ]
}
