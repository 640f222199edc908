//! GGUF, the file format of llama.cpp.

pub mod blocks;
pub mod card;
pub mod level;
pub mod metadata;
pub mod mix;
pub mod reader;
pub mod types;
pub mod vocab;
pub mod writer;

pub use metadata::{Array, Metadata, Value};
pub use types::GgmlType;
