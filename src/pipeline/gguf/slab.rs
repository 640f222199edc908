//! Cutting a model into pieces: slabs, which are written at once, made of chunks, which are encoded in parallel.

use std::ops::Range;

use super::Target;

/// Weights in one chunk: its float32 rows fit a core's second-level cache.
const CHUNK: usize = 1 << 15;
/// Weights in one slab: once encoded, they are still in the last-level cache when they are written. Three slabs are in
/// flight (one encoded, one waiting, one written), at most 4 bytes a weight.
const SLAB: usize = 1 << 21;

/// Consecutive rows of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Index of the tensor.
    pub(super) tensor: usize,
    /// Its rows, all of one source matrix.
    pub(super) rows: Range<usize>,
    /// Bytes they take once encoded.
    pub(super) bytes: usize,
    /// Weights in them.
    pub(super) weights: usize,
}

/// Chunks that are encoded together.
pub(super) type Slab = Vec<Chunk>;

/// All slabs of the file in order. Depends on nothing but shapes and types, so that results can be summed in this order
/// whatever the number of threads.
pub(super) fn slabs(targets: &[Target<'_>]) -> Vec<Slab> {
    let mut all = Vec::new();
    let mut slab = Vec::new();
    let mut weights = 0;
    for (tensor, target) in targets.iter().enumerate() {
        let (row_len, row_count, each) =
            (target.source.row_len(), target.source.row_count(), target.source.rows_each());
        let row_bytes = target.ty.bytes_for(row_len as u64).expect("the type fits the row") as usize;
        let step = (CHUNK / row_len).max(1);
        let mut row = 0;
        while row < row_count {
            // A chunk stays within one expert: each has importance weights of its own.
            let end = (row + step).min((row / each + 1) * each);
            let n = end - row;
            slab.push(Chunk { tensor, rows: row..end, bytes: n * row_bytes, weights: n * row_len });
            weights += n * row_len;
            if weights >= SLAB {
                all.push(std::mem::take(&mut slab));
                weights = 0;
            }
            row = end;
        }
    }
    if !slab.is_empty() {
        all.push(slab);
    }
    all
}
