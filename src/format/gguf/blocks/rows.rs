//! What an encoder reads: whole rows of weights, and how much each column matters.

use super::lanes::{Floats, Lanes, MAX_LANES};

/// Rows of weights, one after the other, with one importance per column where it is known.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// The weights; a multiple of `n_per_row`.
    pub(super) src: &'a [f32],
    /// Weights per row; a multiple of the block length.
    pub(super) n_per_row: usize,
    /// One importance per column.
    pub(super) importance: Option<&'a [f32]>,
}

/// Where the blocks of one group of lanes begin.
pub(super) struct Group {
    /// Lanes in use; the ones after them repeat the last block.
    pub(super) used: usize,
    /// Start of each lane's block in `src`.
    pub(super) starts: [usize; MAX_LANES],
    /// Start of each lane's block in its row, and so in `importance`.
    pub(super) columns: [usize; MAX_LANES],
}

impl Rows<'_> {
    /// The group of `lanes` blocks from block `first` on. Blocks have `block_len` weights.
    #[inline(always)]
    pub(super) fn group(&self, first: usize, lanes: usize, block_len: usize) -> Group {
        let blocks = self.src.len() / block_len;
        let mut group =
            Group { used: lanes.min(blocks - first), starts: [0; MAX_LANES], columns: [0; MAX_LANES] };
        let mut column = first * block_len % self.n_per_row;
        for s in 0..lanes {
            if s < group.used {
                group.starts[s] = (first + s) * block_len;
                group.columns[s] = column;
                column += block_len;
                if column == self.n_per_row {
                    column = 0;
                }
            } else {
                group.starts[s] = group.starts[s - 1];
                group.columns[s] = group.columns[s - 1];
            }
        }
        group
    }

    /// Mean of the squares of each row, summed from left to right.
    #[inline(always)]
    pub(super) fn mean_squares<V: Lanes>(&self, tile: &mut [V; 32]) -> Vec<f32> {
        let n = self.n_per_row;
        let rows = self.src.len() / n;
        let mut means = vec![0.0; rows + V::N];
        let mut first = 0;
        while first < rows {
            let mut sum = V::splat(0.0);
            for column in (0..n).step_by(32) {
                let mut starts = [0; MAX_LANES];
                for (s, start) in starts.iter_mut().enumerate() {
                    *start = (first + s).min(rows - 1) * n + column;
                }
                V::transpose(self.src, &starts, tile);
                for &x in tile.iter() {
                    sum = sum + x * x;
                }
            }
            (sum / V::splat(n as f32)).store(&mut means[first..]);
            first += V::N;
        }
        means
    }
}

/// The importance of each weight as most encoders use it: `importance * sqrt(sigma2 + x * x)`. `weights` holds the
/// importance on entry and the product on return.
#[inline(always)]
pub(super) fn scale_importance<V: Floats>(weights: &mut [V], x: &[V], sigma2: V) {
    for (w, &x) in weights.iter_mut().zip(x) {
        *w = *w * (sigma2 + x * x).sqrt();
    }
}

/// Sum from the first to the last.
#[inline(always)]
pub(super) fn sum<V: Floats>(v: &[V]) -> V {
    let mut sum = V::splat(0.0);
    for &v in v {
        sum = sum + v;
    }
    sum
}

/// Sum of squares from the first to the last.
#[inline(always)]
pub(super) fn sum_of_squares<V: Floats>(v: &[V]) -> V {
    let mut sum = V::splat(0.0);
    for &v in v {
        sum = sum + v * v;
    }
    sum
}
