//! AWQ (Lin et al., arXiv 2306.00978) through Gram matrices.
//!
//! Channels whose inputs are large are multiplied before their weights are rounded, and the inputs divided, so that the rounding
//! weighs less where it matters more. Both halves of the method are searches, of the factors ([`scales`]) and of the range of
//! each group ([`clip`]), and both need the error of a layer's outputs. With `G = X^T X` of the inputs that error is
//! `tr(E G E^T)` for the difference `E` of the weights, so that no candidate costs a forward pass.

pub mod clip;
pub mod scales;
