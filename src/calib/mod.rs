//! What calibration data says about a model, and the data itself: data sets, rows of tokens, importance matrices.

pub mod builtin;
pub mod chunks;
mod cutter;
pub mod dataset;
pub mod guard;
pub mod imatrix;
pub mod random;
pub mod rows;
pub mod squares;
