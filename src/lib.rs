//! Quantizes Hugging Face language models to GGUF, byte for byte as llama.cpp does.
//!
//! Data goes one way: [`source`] reads the model, [`arch`] understands it, [`mod@format`] encodes and writes it, [`eval`]
//! measures what was lost, and [`pipeline`] knows the order. [`cli`] turns arguments into the pipeline's configuration and is
//! the only place that prints. Containers and encoders know nothing of models; models know nothing of files, except that the decoder reads its
//! weights from the checkpoint.

pub mod arch;
pub mod atomic;
pub mod calib;
pub mod cancel;
pub mod cli;
pub mod error;
pub mod eval;
pub mod format;
pub mod pipeline;
pub mod progress;
pub mod quant;
pub mod source;

pub use error::{Error, Kind, Result};
