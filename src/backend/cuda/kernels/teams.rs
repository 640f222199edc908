//! Launches of kernels whose threads share rows (`kernels/rows/team.cuh`).

use cudarc::driver::LaunchConfig;

use super::number;

/// Rows are padded to a multiple of this.
pub(super) const PADDING: usize = 16;
/// Threads that share a row.
pub(super) const TEAM: usize = 8;
/// Floats of a row's terms.
pub(super) const TERMS: usize = 136;
/// Shared memory that a block may have without asking.
const SHARED: usize = 48 << 10;

/// How many rows a thread block has, and how large their arrays are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Teams {
    rows: usize,
    /// Floats of a row's array in shared memory.
    pub(super) stride: usize,
    arrays: usize,
}

impl Teams {
    /// For rows with `arrays` arrays of `length` floats, if the shared memory of a thread block is large enough for one.
    pub(super) fn of(length: usize, arrays: usize) -> Option<Teams> {
        // 8 more than a multiple of 32, so that the teams of a warp use all banks.
        let stride = (length + 23) / 32 * 32 + 8;
        let of = |rows| Teams { rows, stride, arrays };
        [16, 8, 4, 2, 1].map(of).into_iter().find(|teams| teams.bytes() <= SHARED)
    }

    fn bytes(self) -> usize {
        self.rows * 4 * (self.arrays * self.stride + TERMS)
    }

    /// One thread block for so many rows, in each of two more directions.
    pub(super) fn launch(self, padded: usize, [y, z]: [usize; 2]) -> LaunchConfig {
        LaunchConfig {
            grid_dim: (number(padded / self.rows), number(y), number(z)),
            block_dim: (number(self.rows * TEAM), 1, 1),
            shared_mem_bytes: number(self.bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_fit_the_shared_memory_of_a_block() {
        for (length, arrays, rows, stride) in [
            (1, 3, 16, 8),
            (8, 3, 16, 8),
            (9, 3, 16, 40),
            (128, 3, 16, 136),
            (256, 3, 8, 264),
            (128, 6, 8, 136),
        ] {
            assert_eq!(Teams::of(length, arrays), Some(Teams { rows, stride, arrays }));
        }
        assert_eq!(Teams::of(4000, 3).map(|teams| teams.rows), Some(1));
        assert_eq!(Teams::of(4096, 3), None);
    }
}
