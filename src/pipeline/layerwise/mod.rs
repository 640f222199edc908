//! What the methods that quantize a model layer by layer have in common: which matrices there are, the way through the layers,
//! and the checkpoint with its report.

mod entries;
mod grams;
mod grids;
mod loader;
pub mod matrices;
mod names;
mod need;
pub mod part;
mod placement;
mod plan;
pub mod report;
mod results;
mod verify;
mod walk;

pub use entries::LeftOut;
pub(super) use grams::Grams;
pub use grids::Grids;
pub use matrices::Matrix;
pub(super) use names::Names;
pub(super) use placement::Placement;
pub use plan::{Options, Plan};
pub(super) use results::Results;
pub(super) use walk::{Method, Stop, Walk};

use crate::cancel::Cancel;
use crate::progress::Progress;

/// Where progress goes, and whether to stop.
#[derive(Clone, Copy)]
pub(super) struct Watch<'a> {
    pub(super) progress: &'a dyn Progress,
    pub(super) cancel: &'a Cancel,
}
