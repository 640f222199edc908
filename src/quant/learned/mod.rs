//! Codes and scales that gradients move: what is learned of a quantized matrix.
//!
//! Every weight has a position on the grid, a real number of which the nearest whole one is the code, and every group a
//! scale. Weights are computed from codes and from scales as float16 stores them, as any loader computes them; gradients go
//! through both roundings as if they were not there (straight-through: Bengio et al., arXiv 1308.3432). With `W` the weight,
//! `dL/dposition = dL/dW * scale` and `dL/dscale = sum(dL/dW * (code - zero))` over the group. Positions stay within half a
//! code of the grid, so that none is lost beyond it. Zero points stay as they are.
//!
//! SignRound (Cheng et al., arXiv 2309.05516) learns the same: an offset of at most half a code for each weight, and a factor
//! for each end of a group's range.

mod matrix;
mod moving;
mod norm;

pub use matrix::Learned;
pub use moving::{Rates, Rule};
pub use norm::LearnedNorm;
