//! What a conversion costs as a rule. What one has cost is measured.

use serde::{Deserialize, Serialize};

use super::Target;
use crate::format::gguf::GgmlType;
use crate::pipeline::detect::Format;

/// How much is lost as a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Impact {
    /// Nothing.
    None,
    /// The rounding to a float type.
    Rounding,
    /// Little beside what the first quantization has lost.
    Small,
    /// About as much as the first quantization has lost.
    Medium,
    /// More than a quantization of the original to the same size loses.
    Large,
}

impl Impact {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Impact::None => "no loss",
            Impact::Rounding => "a loss by rounding alone",
            Impact::Small => "a small loss of quality",
            Impact::Medium => "a medium loss of quality",
            Impact::Large => "a large loss of quality",
        }
    }
}

/// The usual impact of quantizing what is in `source` for `target`.
pub(super) fn expected(source: Format, target: &Target) -> Impact {
    let bits = match target {
        Target::Hf(_) => return Impact::Rounding,
        Target::Gguf(config) => match config.level.base {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => return Impact::Rounding,
            ty => ty.block_bytes() as f64 * 8.0 / ty.block_len() as f64,
        },
        Target::Gptq(config) => f64::from(config.options.grids.base.bits),
        Target::Awq(_) => 4.0,
    };
    match (source, target) {
        _ if bits >= 8.0 => Impact::Small,
        _ if bits < 4.0 => Impact::Large,
        (Format::Hf, _) if bits > 5.0 => Impact::Small,
        (Format::Hf, _) => Impact::Medium,
        // The same kind of grid: most weights lie on it already, or near.
        (Format::Gptq | Format::Awq, Target::Gptq(_) | Target::Awq(_)) => Impact::Small,
        (_, Target::Gguf(_)) if bits > 6.0 => Impact::Small,
        (_, Target::Gguf(_)) => Impact::Medium,
        (_, _) => Impact::Large,
    }
}
