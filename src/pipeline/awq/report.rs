//! What AWQ says of its work.

use serde::{Deserialize, Serialize};

use crate::pipeline::layerwise::report;

/// How a matrix was quantized.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct How {
    /// How its codes were found.
    #[serde(flatten)]
    pub method: Method,
    /// The exponent of the inputs in the factors of its channels, on average over the groups; 0 is no influence.
    pub activation_exponent: f64,
    /// The exponent of the weights.
    pub weight_exponent: f64,
    /// The part of the weights' range that the grid covers, on average over rows and groups.
    pub clip: f64,
}

/// How codes were found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Method {
    /// By AWQ's own search of ranges.
    Awq,
    /// By GPTQ.
    Gptq {
        /// The share of the mean of the Hessian's diagonal that was added to it.
        damp: f32,
    },
    /// By the search that looks at each channel alone, because this expert saw too few tokens.
    FewTokens,
    /// By the same search, because the inputs are always zero or beyond float32, or the Hessian could not be factored.
    Searched,
}

/// What only AWQ can be asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// What finds the codes.
    pub solver: Solver,
}

/// What finds the codes behind the factors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// AWQ's search of ranges; every weight becomes the nearest code.
    #[default]
    Awq,
    /// GPTQ, with errors made good by later columns.
    Gptq,
}

impl Solver {
    /// Its name, as the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Solver::Awq => "awq",
            Solver::Gptq => "gptq",
        }
    }
}

/// One matrix.
pub type Linear = report::Linear<How>;
/// Sizes.
pub type Summary = report::Summary<Options>;
/// The result of a finished job.
pub type Report = report::Report<Options, How>;
