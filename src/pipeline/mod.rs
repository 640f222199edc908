//! Knows the order in which things are done; nothing else does.

pub mod awq;
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
pub mod quality;
pub mod verify;
