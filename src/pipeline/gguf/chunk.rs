//! Cutting a model into chunks, which are encoded in parallel and written in order.

use std::ops::Range;

use super::Target;
use crate::backend::Batch;

/// Weights in one chunk: many enough that taking one and putting it in line costs next to nothing.
const CHUNK: usize = 1 << 16;
/// Weights in one chunk that a device encodes: enough to keep it busy for longer than it takes to start.
const DEVICE_CHUNK: usize = 1 << 21;
/// Weights in one chunk of rows that go from the checkpoint to the file as they are, through no buffer.
const DIRECT_CHUNK: usize = 1 << 20;

/// Consecutive rows of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Index of the tensor.
    pub(super) tensor: usize,
    /// Its rows, all of one source matrix.
    pub(super) rows: Range<usize>,
    /// Bytes of the encoded tensor that come before it.
    pub(super) start: usize,
    /// Bytes it takes once encoded.
    pub(super) bytes: usize,
    /// Weights in it.
    pub(super) weights: usize,
}

/// All chunks of the file in order. Depends on nothing but shapes, types and `batch`, so that results can be summed in this order
/// whatever the number of threads.
pub(super) fn chunks(targets: &[Target<'_>], batch: Batch) -> Vec<Chunk> {
    let mut all = Vec::new();
    for (tensor, target) in targets.iter().enumerate() {
        let (row_len, row_count, each) =
            (target.source.row_len(), target.source.row_count(), target.source.rows_each());
        let row_bytes = target.ty.bytes_for(row_len as u64).expect("the type fits the row") as usize;
        let chunk = match batch {
            _ if target.is_direct() => DIRECT_CHUNK,
            Batch::Core => CHUNK,
            Batch::All => DEVICE_CHUNK,
        };
        let step = (chunk / row_len).max(1);
        let mut row = 0;
        while row < row_count {
            // A chunk stays within one expert: each has importance weights of its own.
            let end = (row + step).min((row / each + 1) * each);
            let n = end - row;
            all.push(Chunk {
                tensor,
                rows: row..end,
                start: row * row_bytes,
                bytes: n * row_bytes,
                weights: n * row_len,
            });
            row = end;
        }
    }
    all
}
