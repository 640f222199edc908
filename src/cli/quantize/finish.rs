//! What is done with a result that is written: it is measured if that is wanted, and reported.

use std::path::PathBuf;

use serde::Serialize;

use super::Common;
use super::layerwise::describe_report;
use crate::arch::decoder::Compute;
use crate::cli::measure::{MeasureArgs, describe_evaluation};
use crate::cli::output::Output;
use crate::cli::result_file::ResultFile;
use crate::cli::terminal::Terminal;
use crate::cli::{CANCEL, Global};
use crate::error::Result;
use crate::html::quantized::{self, Column};
use crate::pipeline::checkpoint::Settings;
use crate::pipeline::evaluate::{self, Evaluated, TextConfig, evaluate};
use crate::pipeline::layerwise::report::Report;
use crate::progress::Progress;

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
struct Finished<'a, R> {
    #[serde(flatten)]
    report: &'a R,
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluation: Option<Evaluated>,
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
        let text = args.measure.text(false)?;
        if let Some(text) = &text {
            // Hours of work should not end with a text that cannot be read.
            text.read(&CANCEL, terminal)?;
        }
        let page = args.html.as_deref().map(|path| ResultFile::new(path, common.force)).transpose()?;
        Ok(Finish { common, text, page, threads: global.threads(), output, terminal })
    }

    /// Of a model that was quantized layer by layer.
    pub(super) fn layerwise<O: Serialize, H: Serialize>(
        self,
        report: &Report<O, H>,
        how: Column<'_, H>,
    ) -> Result<()> {
        let evaluation = self.evaluate(&report.output_path)?;
        let Finish { page, output, .. } = self;
        if let Some(page) = page {
            page.write(&quantized::page(report, how, evaluation.as_ref()))?;
        }
        let human = || describe_report(report, output.is_verbose(), how);
        tell(output, report, human, evaluation.as_ref());
        Ok(())
    }

    /// Of anything else, described by `human`.
    pub(super) fn other(
        self,
        report: &impl Serialize,
        path: &str,
        human: impl FnOnce() -> String,
    ) -> Result<()> {
        let evaluation = self.evaluate(path)?;
        tell(self.output, report, human, evaluation.as_ref());
        Ok(())
    }

    fn evaluate(&self, path: &str) -> Result<Option<evaluate::Report>> {
        let Some(text) = self.text.clone() else { return Ok(None) };
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

fn tell(
    output: &Output,
    report: &impl Serialize,
    human: impl FnOnce() -> String,
    evaluation: Option<&evaluate::Report>,
) {
    let evaluation = evaluation.and_then(Evaluated::of);
    if output.is_json() {
        output.result(&Finished { report, evaluation }, "");
    } else {
        let measured = evaluation.as_ref().map(describe_evaluation).unwrap_or_default();
        output.note(&(human() + &measured));
    }
}
