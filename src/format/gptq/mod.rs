//! GPTQ checkpoints.

pub mod config;
mod fields;
pub mod layout;

pub use config::GptqConfig;
pub use layout::{GptqLayout, Version};
