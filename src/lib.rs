//! Quantizes Hugging Face language models: to GGUF, byte for byte as llama.cpp does, and to GPTQ and AWQ; and measures what was
//! lost.
//!
//! Data goes one way: [`source`] reads the model, [`arch`] understands it and computes it, [`calib`] turns texts into tokens
//! and activations into statistics, [`quant`] solves for codes, [`mod@format`] encodes, writes and reads containers, [`eval`]
//! measures what was lost, [`backend`] does the work that takes the time, and [`pipeline`] knows the order. [`cli`] turns arguments into the pipeline's configuration and is
//! the only place that prints. Containers and encoders know nothing of models.

pub mod arch;
pub mod atomic;
pub mod backend;
pub mod calib;
pub mod cancel;
pub mod cli;
pub mod error;
pub mod eval;
pub(crate) mod foreign;
pub mod format;
pub mod html;
pub(crate) mod matmul;
#[cfg(test)]
mod noise;
pub mod pipeline;
pub mod progress;
pub mod quant;
pub mod source;

pub use error::{Error, Kind, Result};
