//! How good a model is: perplexity on a text, and against a reference how far its predictions have moved.

pub mod bits;
pub mod divergence;
pub mod layers;
pub mod log_sum_exp;
pub mod quality;
pub mod rank;
pub mod report;
pub mod score;
pub mod statistics;
pub mod windows;
