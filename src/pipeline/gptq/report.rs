//! What GPTQ says of its work.

use serde::{Deserialize, Serialize};

use crate::pipeline::layerwise::report;

/// How a matrix was quantized.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum How {
    /// By GPTQ.
    Gptq {
        /// The share of the mean of the Hessian's diagonal that was added to it.
        damp: f32,
    },
    /// By the scale search alone, because this expert saw too few tokens.
    FewTokens,
    /// By the scale search alone, because the Hessian could not be factored.
    Singular,
}

/// What only GPTQ can be asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Whether the grid is symmetric.
    pub sym: bool,
    /// Whether columns are quantized by their importance whatever their group.
    pub desc_act: bool,
    /// How zero points are stored.
    pub checkpoint_format: String,
}

/// One matrix.
pub type Linear = report::Linear<How>;
/// Sizes.
pub type Summary = report::Summary<Options>;
/// The result of a finished job.
pub type Report = report::Report<Options, How>;
