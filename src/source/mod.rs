//! The original model: weights, configuration and tokenizer, from a directory or from the Hub.

#[cfg(feature = "hub")]
pub mod hub;
pub mod vocab;
