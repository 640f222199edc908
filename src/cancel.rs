//! A flag that asks a running job to stop at the next safe place.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Kind, Result};

/// Set from a signal handler, read between pieces of work.
#[derive(Debug, Default)]
pub struct Cancel(AtomicBool);

impl Cancel {
    /// A flag that is not set.
    pub const fn new() -> Self {
        Cancel(AtomicBool::new(false))
    }

    /// Asks the job to stop. Returns whether it had been asked before.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::Relaxed)
    }

    /// # Errors
    /// `Interrupted` once the job has been asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Interrupted, "interrupted; nothing was left behind"));
        }
        Ok(())
    }
}
