//! What a conversion made, and what it cost.

use serde::{Deserialize, Serialize};

use super::{Impact, WeightErrors};
use crate::pipeline::evaluate::Evaluated;

/// The result of a conversion.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConversionResult {
    /// `success`, unless the result is worse than asked for.
    pub status: String,
    /// The file or directory that was written.
    pub output_path: String,
    /// The source, as it was given.
    pub source_path: String,
    /// Its format.
    pub source_format: String,
    /// The format of the result.
    pub target_format: String,
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
