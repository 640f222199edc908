//! What a conversion made, and what it cost.

use serde::Serialize;

use super::{Impact, WeightErrors};
use crate::pipeline::evaluate::Report;

/// The result of a conversion.
#[derive(Clone, Debug, Serialize)]
pub struct ConversionResult {
    /// `success`, unless the result is worse than asked for.
    pub status: &'static str,
    /// The file or directory that was written.
    pub output_path: String,
    /// The source, as it was given.
    pub source_path: String,
    /// Its format.
    pub source_format: &'static str,
    /// The format of the result.
    pub target_format: &'static str,
    /// Its level, or the type of its weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization_level: Option<String>,
    /// Bytes of the files that hold its weights.
    pub file_size: u64,
    /// Whether any weight has changed: found by comparing the result with the source, both read from their files.
    pub is_lossy: bool,
    /// Whether codes were carried over, and nothing was quantized again.
    pub carried_over: bool,
    /// What the user should know, of a conversion that is lossy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning_message: Option<String>,
    /// What such a conversion costs as a rule.
    pub expected_impact: Impact,
    /// The model that the source says it was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_model: Option<String>,
    /// The command that loses less; `ORIGINAL` stands for a model that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
    /// How far the weights are from those of the source.
    pub weights: WeightErrors,
    /// How far the predictions are from those of the source, if it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluated>,
    /// All of the work.
    pub duration_seconds: f64,
}

/// Source and result on a text.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluated {
    /// The text.
    pub data: String,
    /// Tokens that were scored.
    pub tokens: usize,
    /// Perplexity of the source.
    pub source_perplexity: f64,
    /// Perplexity of the result.
    pub perplexity: f64,
    /// Their difference, in percent of the source's.
    pub perplexity_change_percent: f64,
    /// Mean of `KL(source || result)` in nats.
    pub kl_divergence: f64,
    /// Its standard error.
    pub kl_divergence_stderr: f64,
    /// Share of the tokens where both find the same next token most likely.
    pub top1_agreement: f64,
}

impl Evaluated {
    /// Of an evaluation with the source as the reference.
    pub(super) fn new(report: Report) -> Evaluated {
        let found = report.evaluation;
        let compared = found.comparison.expect("there is a reference");
        Evaluated {
            data: report.data,
            tokens: found.tokens,
            source_perplexity: compared.reference_perplexity,
            perplexity: found.perplexity,
            perplexity_change_percent: 100.0 * (found.perplexity / compared.reference_perplexity - 1.0),
            kl_divergence: compared.kl_divergence,
            kl_divergence_stderr: compared.kl_divergence_stderr,
            top1_agreement: compared.top1_agreement,
        }
    }
}
