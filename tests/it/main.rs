//! Tests of the whole program.

/// An independent parser of what the program writes.
mod gguf_file;
/// Digests of llama.cpp's own files.
mod golden;
/// Downloads from a Hub on this machine.
#[cfg(feature = "hub")]
mod hub;
/// The Hub on this machine.
#[cfg(feature = "hub")]
mod hub_server;
/// Importance matrices that llama-imatrix wrote, and damaged ones.
mod imatrix;
/// The same bytes, however the work is done.
mod same_bytes;
/// What the tests share.
mod support;
