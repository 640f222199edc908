//! GGUF, the file format of llama.cpp.

pub mod blocks;
pub mod card;
pub mod metadata;
pub mod types;
pub mod vocab;

pub use metadata::{Array, Metadata, Value};
pub use types::GgmlType;
