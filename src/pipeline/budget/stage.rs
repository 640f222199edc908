//! What is tried to keep to a limit, and what came of it.

use serde::{Deserialize, Serialize};

use super::Limit;
use crate::pipeline::evaluate::Evaluated;

/// What is tried, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Quantization as it was asked for.
    Plain,
    /// More bits for the units that lose most by having few.
    MoreBits,
    /// Codes, scales and norms learned by gradients, in the layers that the model has lost most by.
    Tuning,
    /// Some units in 16 bits.
    Island,
}

impl Stage {
    /// What it is called.
    pub fn title(self) -> &'static str {
        match self {
            Stage::Plain => "plain quantization",
            Stage::MoreBits => "more bits where they matter",
            Stage::Tuning => "tuning of the worst layers",
            Stage::Island => "units in 16 bits",
        }
    }
}

/// One result on the way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// What was tried.
    pub stage: Stage,
    /// What it has lost.
    pub loss: Evaluated,
    /// Whether that keeps to the limit.
    pub met: bool,
    /// Whether every unit has the precision that loses least, 16 bits excepted.
    pub at_highest: bool,
    /// The KL divergence that was expected from what its units lose by themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_kl_divergence: Option<f64>,
    /// Bytes of the output.
    pub file_size: u64,
    /// Bits per weight of all of it.
    pub bits_per_weight: f64,
    /// Bytes more than the attempt before has; negative if it has fewer.
    pub bytes_added: i64,
    /// KL divergence less than the attempt before has; negative if it has more.
    pub kl_divergence_gained: f64,
    /// Seconds that finding sensitivities took, if they were found for it.
    pub profile_seconds: f64,
    /// Seconds that quantizing and writing took.
    pub quantize_seconds: f64,
    /// Seconds that measuring took; of the first attempt with the original's way through the text.
    pub measure_seconds: f64,
}

impl Attempt {
    /// Wall time.
    pub fn seconds(&self) -> f64 {
        self.profile_seconds + self.quantize_seconds + self.measure_seconds
    }

    /// For people.
    pub fn describe(&self, limit: Limit) -> String {
        let met = if self.met { "kept" } else { "over" };
        format!(
            "{}: {} ({met}), {} bytes ({:+}), {:.1} s",
            self.stage.title(),
            limit.describe(&self.loss),
            self.file_size,
            self.bytes_added,
            self.seconds()
        )
    }
}

/// All that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BudgetReport {
    /// What a result may lose.
    pub limit: Limit,
    /// Whether the result keeps to it.
    pub met: bool,
    /// The attempt that is kept, from 0.
    pub kept: usize,
    /// All of them, in order.
    pub attempts: Vec<Attempt>,
}
