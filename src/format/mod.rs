//! The containers that quantized models are kept in. A format owns both its reading and its writing.

pub mod gguf;
