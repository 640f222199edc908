//! The threads that a job works with.

use crate::error::{Error, Kind, Result};

/// Runs `work` on so many threads.
///
/// # Errors
/// `Resources` if they cannot be started; else those of `work`.
pub(super) fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::new(Kind::Resources, "cannot start worker threads").because(e))?;
    pool.install(work)
}
