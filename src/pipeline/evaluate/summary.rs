//! An evaluation in a few figures, as a part of other reports.

use serde::{Deserialize, Serialize};

use super::Report;
use crate::eval::report::Evaluation;

/// A model and its source on a text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluated {
    /// The text.
    pub data: String,
    /// Tokens that were scored.
    pub tokens: usize,
    /// Perplexity of the source.
    pub source_perplexity: f64,
    /// Perplexity of the model.
    pub perplexity: f64,
    /// Their difference, in percent of the source's.
    pub perplexity_change_percent: f64,
    /// Mean of `KL(source || model)` in nats.
    pub kl_divergence: f64,
    /// Its standard error.
    pub kl_divergence_stderr: f64,
    /// Share of the tokens where both find the same next token most likely.
    pub top1_agreement: f64,
}

impl Evaluated {
    /// Of an evaluation with the source as the reference; none if there was no reference.
    pub fn of(report: &Report) -> Option<Evaluated> {
        Evaluated::on(&report.evaluation, &report.data)
    }

    /// The same of figures on a text that is called `data`.
    pub(super) fn on(found: &Evaluation, data: &str) -> Option<Evaluated> {
        let compared = found.comparison.as_ref()?;
        Some(Evaluated {
            data: data.to_owned(),
            tokens: found.tokens,
            source_perplexity: compared.reference_perplexity,
            perplexity: found.perplexity,
            perplexity_change_percent: 100.0 * (found.perplexity / compared.reference_perplexity - 1.0),
            kl_divergence: compared.kl_divergence,
            kl_divergence_stderr: compared.kl_divergence_stderr,
            top1_agreement: compared.top1_agreement,
        })
    }
}
