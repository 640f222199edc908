//! What reads bytes of strangers, each as a function of those bytes. The fuzzers run them with bytes of their own making,
//! and `cargo test` with the corpus; both through [`run`], so that what was found once stays found.
//!
//! A function may refuse its input. It may not panic, and it has [`limit`] to keep to.

#[path = "targets/checkpoint.rs"]
mod checkpoint;
#[path = "targets/config.rs"]
mod config;
#[path = "targets/data.rs"]
mod data;
#[path = "targets/gguf.rs"]
mod gguf;
#[path = "targets/imatrix.rs"]
mod imatrix;
pub mod limit;
#[path = "targets/packed.rs"]
mod packed;
mod place;
#[path = "targets/safetensors.rs"]
mod safetensors;
#[path = "targets/tokenizer.rs"]
mod tokenizer;

use std::time::Duration;

/// What a fuzzer does with an input.
pub type Target = fn(&[u8]);

/// Every target: the name of its fuzzer and of its directory in `corpus`, and what it does.
pub const TARGETS: [(&str, Target); 9] = [
    ("chat_template", tokenizer::chat_template),
    ("checkpoint", checkpoint::checkpoint),
    ("config", config::config),
    ("data", data::data),
    ("gguf", gguf::gguf),
    ("imatrix", imatrix::imatrix),
    ("packed", packed::packed),
    ("safetensors", safetensors::safetensors),
    ("tokenizer", tokenizer::tokenizer),
];

/// Runs a target on an input, and says what it took of time and memory.
///
/// # Panics
/// If there is no such target, if it panics, or if it takes more than an input may.
pub fn run(name: &str, input: &[u8]) -> (Duration, usize) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of this name");
    limit::within(input, target)
}
