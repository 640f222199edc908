//! How many chunks may wait in memory for their turn to be written.

use super::Target;
use super::chunk::chunks;
use super::stream::buffers;
use crate::arch::Model;
use crate::backend::Batch;
use crate::error::Result;
use crate::pipeline::memory::{self, Budget};

/// As many as are of use, or as fit the memory that this process may take. Every thread works on one, so there is one for each
/// at least.
///
/// # Errors
/// `Resources` if those do not fit.
pub(super) fn affordable_buffers(model: &Model, targets: &[Target<'_>], batch: Batch) -> Result<usize> {
    let (budget, most, threads) = (Budget::of_process(), buffers(batch), rayon::current_num_threads());
    let Some(allowed) = budget.bytes() else { return Ok(most) };
    let chunks = chunks(targets, batch);
    let largest = chunks.iter().filter(|chunk| !targets[chunk.tensor].is_direct());
    // Encoded, and for each thread the weights in float32.
    let (encoded, weights) =
        largest.fold((1, 1), |(bytes, weights), chunk| (bytes.max(chunk.bytes), weights.max(chunk.weights)));
    let fixed = memory::program(model, threads) + (4 * weights * threads) as u64;
    let hint = "Give it more memory, or take fewer --threads.";
    budget.require(fixed + (threads * encoded) as u64, hint)?;
    let fitting = usize::try_from((allowed - fixed) / encoded as u64).unwrap_or(usize::MAX);
    Ok(fitting.min(most))
}
