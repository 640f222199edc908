//! What calibration data says about a model.

pub mod imatrix;
