//! What is done with a result that is written: it is measured if that is wanted, and reported.

use std::path::PathBuf;

use serde::Serialize;

use super::gguf::describe_report as describe_gguf;
use super::layerwise::describe_report;
use super::{Common, awq, gptq};
use crate::arch::decoder::Compute;
use crate::cli::measure::{MeasureArgs, describe_evaluation};
use crate::cli::output::Output;
use crate::cli::result_file::ResultFile;
use crate::cli::terminal::Terminal;
use crate::cli::{CANCEL, Global};
use crate::error::{Error, Kind, Result};
use crate::html::quantized::{self, Column};
use crate::pipeline::budget::{BudgetReport, Done};
use crate::pipeline::checkpoint::Settings;
use crate::pipeline::evaluate::{self, Evaluated, TextConfig, evaluate};
use crate::pipeline::gguf::report as gguf;
use crate::pipeline::layerwise::report::Report;
use crate::pipeline::recipe::Finished;
use crate::progress::Progress;

/// Bits per code from which on a result is worth a warning.
const WARNED_BITS: u32 = 3;

/// Reports
#[derive(Debug, clap::Args)]
pub(super) struct ReportArgs {
    /// Write a page about the result, which needs no other file; of GPTQ and AWQ
    #[arg(long, value_name = "FILE", help_heading = "Measurement")]
    html: Option<PathBuf>,
    #[command(flatten)]
    measure: MeasureArgs,
}

impl ReportArgs {
    /// The options that were given and that say nothing of GGUF.
    pub(super) fn given(&self) -> Vec<&'static str> {
        super::given(&[("--html", self.html.is_some())])
    }
}

/// A job's own report, and what was measured.
#[derive(Serialize)]
struct Told<'a, R> {
    #[serde(flatten)]
    report: &'a R,
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluation: Option<Evaluated>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<&'a BudgetReport>,
}

/// What remains to be done, checked before the work.
pub(super) struct Finish<'a> {
    common: &'a Common,
    text: Option<TextConfig>,
    page: Option<ResultFile>,
    threads: usize,
    output: &'a Output,
    terminal: &'a Terminal,
}

impl<'a> Finish<'a> {
    /// # Errors
    /// `Usage` if a page may not be written or a text is of no use; the errors of reading the text.
    pub(super) fn prepare(
        common: &'a Common,
        args: &ReportArgs,
        global: &Global,
        output: &'a Output,
        terminal: &'a Terminal,
    ) -> Result<Finish<'a>> {
        let text = match common.budget.limit()? {
            Some(_) => args.measure.limit_text()?,
            None => args.measure.text(false)?,
        };
        if let Some(text) = &text {
            // Hours of work should not end with a text that cannot be read.
            text.read(&CANCEL, terminal)?;
        }
        let page = args.html.as_deref().map(|path| ResultFile::new(path, common.force)).transpose()?;
        Ok(Finish { common, text, page, threads: global.threads(), output, terminal })
    }

    /// The text that the result is measured on.
    pub(super) fn text(&self) -> Option<&TextConfig> {
        self.text.as_ref()
    }

    /// Of whatever came of stages.
    ///
    /// # Errors
    /// `Quality` if it does not keep to the limit.
    pub(super) fn done(self, done: Done) -> Result<()> {
        let budget = done.budget.as_ref();
        match &done.report {
            Finished::Gptq(report) => self.layerwise(report, ("damping", &gptq::damping), budget),
            Finished::Awq(report) => self.layerwise(report, ("scaling", &awq::exponents), budget),
            Finished::Gguf(report) => self.gguf(report, budget),
        }
    }

    /// Of a model that was quantized layer by layer; with what was tried to keep to a limit.
    pub(super) fn layerwise<O: Serialize, H: Serialize>(
        self,
        report: &Report<O, H>,
        how: Column<'_, H>,
        budget: Option<&BudgetReport>,
    ) -> Result<()> {
        let evaluation = self.evaluate(&report.output_path, budget)?;
        if let Some(page) = self.page {
            page.write(&quantized::page(report, how, evaluation.as_ref(), budget))?;
        }
        let found = evaluation.as_ref().and_then(Evaluated::of);
        if report.format == "gptq" && report.metadata.bits <= WARNED_BITS && report.tuning.is_empty() {
            let kept = budget.map(|budget| &budget.attempts[budget.kept].loss);
            let tune = format!(
                "llm-quantize quantize {} {} -q {} --tune global",
                self.common.model, report.format, report.quantization_level
            );
            self.terminal.warn(&few_bits(report.metadata.bits, found.as_ref().or(kept), &tune));
        }
        let output = self.output;
        let human = || describe_report(report, output.is_verbose(), how);
        tell(output, report, &report.output_path, human, found, budget)
    }

    /// Of a GGUF file.
    pub(super) fn gguf(self, report: &gguf::Report, budget: Option<&BudgetReport>) -> Result<()> {
        let evaluation = self.evaluate(&report.output_path, budget)?;
        let output = self.output;
        let human = || describe_gguf(report, output.is_verbose());
        let found = evaluation.as_ref().and_then(Evaluated::of);
        tell(output, report, &report.output_path, human, found, budget)
    }

    /// Measures the result, unless that was done on the way.
    fn evaluate(&self, path: &str, budget: Option<&BudgetReport>) -> Result<Option<evaluate::Report>> {
        let Some(text) = self.text.clone().filter(|_| budget.is_none()) else { return Ok(None) };
        let config = evaluate::Config {
            model: path.to_owned(),
            reference: Some(self.common.model.clone()),
            text,
            ignore_config: self.common.ignore_config.clone(),
            compute: Compute::F32,
            output: None,
            checkpoint: Settings::default(),
            threads: self.threads,
        };
        let measured = evaluate(&config, &CANCEL, self.terminal);
        if measured.is_err() {
            self.terminal.warn(&format!("{path} is written; only its measurement failed"));
        }
        measured.map(Some)
    }
}

/// What fewer bits than usual cost as long as each matrix is only made to keep its own outputs, and what makes it less.
fn few_bits(bits: u32, found: Option<&Evaluated>, tune: &str) -> String {
    let measured = match found {
        Some(found) => format!("a KL divergence of {:.4} nats on {}", found.kl_divergence, found.data),
        None => "much of the model, as --evaluate would show".into(),
    };
    format!(
        "quantization to {bits} bits costs {measured}. To tune what was found (no mixture of experts can be): {tune}. --target-bpw \
         spends the same bits where they matter most, --max-kld X goes on until no more is lost than X"
    )
}

/// Reports to whoever asked; a result that does not keep to its limit is an error then.
fn tell(
    output: &Output,
    report: &impl Serialize,
    path: &str,
    human: impl FnOnce() -> String,
    evaluation: Option<Evaluated>,
    budget: Option<&BudgetReport>,
) -> Result<()> {
    let verdict = budget.map_or(Ok(()), |budget| judge(budget, path));
    if output.is_json() {
        let all = Told { report, evaluation, budget };
        verdict.map_err(|e| e.details(&all))?;
        output.result(&all, "");
        return Ok(());
    }
    let mut text = human();
    if let Some(budget) = budget {
        let lines = budget.attempts.iter().map(|attempt| attempt.describe(budget.limit) + "\n");
        text.extend(lines);
        text += &describe_evaluation(&budget.attempts[budget.kept].loss);
    }
    text += &evaluation.as_ref().map(describe_evaluation).unwrap_or_default();
    output.note(&text);
    verdict
}

/// # Errors
/// `Quality` if the limit is not kept.
fn judge(budget: &BudgetReport, path: &str) -> Result<()> {
    if budget.met {
        return Ok(());
    }
    let best = &budget.attempts[budget.kept];
    let tried = budget.attempts.last().map_or(best.stage, |last| last.stage).title();
    Err(Error::new(
        Kind::Quality,
        format!(
            "no stage keeps to {}: of {} results, the last of them by {tried}, the best has {}; it is kept as {path}",
            budget.limit,
            budget.attempts.len(),
            budget.limit.describe(&best.loss)
        ),
    )
    .hint(match budget.attempts.iter().find(|attempt| attempt.at_highest) {
        Some(highest) => format!(
            "The limit is below what the highest precision in all matrices gives ({}): allow more, or keep the model in 16 bits.",
            budget.limit.describe(&highest.loss)
        ),
        None => "Allow more, or keep the model in 16 bits.".into(),
    }))
}
