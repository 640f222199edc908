//! Quantization itself: weights and statistics in, codes out. Knows nothing of files.

pub mod codes;

pub use codes::{CodesError, Grid, QuantizedLinear};
