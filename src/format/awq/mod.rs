//! AWQ checkpoints.

pub mod config;
pub mod layout;

pub use config::AwqConfig;
pub use layout::AwqLayout;
