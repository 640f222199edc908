//! The original model: weights, configuration and tokenizer, from a directory or from the Hub.

pub mod card;
pub mod tokenizer;
pub mod vocab;
