//! Options that say whether and on what a result is measured.

use std::path::PathBuf;

use super::evaluate::CutArgs;
use crate::error::{Error, Kind, Result};
use crate::pipeline::evaluate::{Evaluated, TextConfig};

/// What is measured
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Measurement")]
pub(super) struct MeasureArgs {
    /// Measure perplexity and KL divergence of the result against the source
    #[arg(long)]
    evaluate: bool,
    /// Text to evaluate on [default: a text that is built in]
    #[arg(long, value_name = "FILE", visible_alias = "eval-data")]
    data: Option<PathBuf>,
    #[command(flatten)]
    cut: CutArgs,
}

impl MeasureArgs {
    /// The text that a limit is measured on, if one was named.
    ///
    /// # Errors
    /// `Usage` for options that are of no use then.
    pub(super) fn limit_text(&self) -> Result<Option<TextConfig>> {
        let useless =
            |option: &str, why: &str| Err(Error::new(Kind::Usage, format!("{option} is of no use {why}")));
        if self.evaluate {
            return useless(
                "--evaluate",
                "with --max-kld or --max-ppl-increase: the result is measured anyway",
            );
        }
        match (&self.data, self.cut.given()) {
            (None, Some(option)) => {
                useless(option, "without --eval-data: held-out rows are measured as they are")
            }
            (data, _) => Ok(data.clone().map(|data| self.cut.text(Some(data)))),
        }
    }

    /// The text to evaluate on, if that is wanted, here or (`needed`) by another option.
    ///
    /// # Errors
    /// `Usage` for a text without a use.
    pub(super) fn text(&self, needed: bool) -> Result<Option<TextConfig>> {
        let wanted = self.evaluate || needed;
        if self.data.is_some() && !wanted {
            return Err(Error::new(Kind::Usage, "--data is of no use without --evaluate").hint(
                "It is the text that the result is measured on; calibration data is passed as --calibration-data.",
            ));
        }
        Ok(wanted.then(|| self.cut.text(self.data.clone())))
    }
}

/// An evaluation for people.
pub(super) fn describe_evaluation(found: &Evaluated) -> String {
    format!(
        "Perplexity: {:.4}, of the source {:.4} ({:+.2} %), on {} tokens of {}\n\
         KL divergence: {:.6} ± {:.6} nats; same next token in {:.2} %\n",
        found.perplexity,
        found.source_perplexity,
        found.perplexity_change_percent,
        found.tokens,
        found.data,
        found.kl_divergence,
        found.kl_divergence_stderr,
        100.0 * found.top1_agreement
    )
}
