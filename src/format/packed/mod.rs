//! What GPTQ and AWQ directories share: a Hugging Face checkpoint in which some linear layers are integers with scales and
//! zero points.

pub mod config;
pub mod layers;
pub mod layout;
pub mod model;
pub mod scheme;
pub mod writer;

pub use layout::Layout;
pub use model::PackedModel;
pub use scheme::Scheme;
pub use writer::{Container, Entry, Flushed, Packed, PackedWriter, Target};

/// What made a checkpoint, in the form that GPTQModel has for it.
pub const QUANTIZER: &str = concat!("llm-quantize:", env!("CARGO_PKG_VERSION"));
