//! Quantization itself: weights and statistics in, codes out. Knows nothing of files.

pub mod awq;
mod cholesky;
pub mod codes;
pub mod gptq;
pub mod gram;
mod lanes;
pub mod learned;
mod scale_search;

pub use codes::{CodesError, Grid, QuantizedLinear};
