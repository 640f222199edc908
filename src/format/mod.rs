//! The containers that quantized models are kept in. A format owns both its reading and its writing.

pub mod awq;
mod companions;
pub mod gguf;
pub mod gptq;
pub mod hf;
pub mod packed;
pub mod shards;
