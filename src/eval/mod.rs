//! How good a model is: perplexity on a text, and against a reference how far its predictions have moved.

pub mod divergence;
pub mod log_sum_exp;
pub mod report;
pub mod score;
pub mod statistics;
pub mod windows;
