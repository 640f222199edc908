//! Quantizes language models.

pub mod error;
pub mod format;
pub mod progress;
pub mod source;

pub use error::{Error, Kind, Result};
