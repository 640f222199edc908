//! Knows the order in which things are done; nothing else does.

pub mod awq;
pub mod budget;
pub mod checkpoint;
pub mod convert;
pub mod detect;
pub mod evaluate;
pub mod gguf;
pub mod gptq;
pub mod importance;
pub mod inspect;
pub mod layerwise;
pub mod memory;
pub mod model;
pub mod outcome;
pub mod profile;
pub mod quality;
mod quiet;
pub mod recipe;
pub mod tune;
pub mod verify;
