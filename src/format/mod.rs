//! The containers that quantized models are kept in. A format owns both its reading and its writing.

pub mod awq;
pub mod gguf;
mod companions;
pub mod gptq;
pub mod hf;
pub mod packed;
pub mod shards;
