//! A vocabulary as GGUF keys, and the way back.

mod read;
mod write;

pub use read::read_vocab;
pub use write::write_vocab;
