//! What calibration data says about a model.

pub mod chunks;
pub mod guard;
pub mod imatrix;
pub mod squares;
