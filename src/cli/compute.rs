//! Values of `--compute`.

use clap::ValueEnum;

use crate::arch::decoder;

/// What matrices are multiplied in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Compute {
    /// Float32
    F32,
    /// Bfloat16 with sums in float32: less exact, and faster on processors with AVX512-BF16
    Bf16,
    /// Bfloat16 where weights are stored so, as llama.cpp does on a CPU; else float32
    Stored,
}

impl From<Compute> for decoder::Compute {
    fn from(compute: Compute) -> Self {
        match compute {
            Compute::F32 => decoder::Compute::F32,
            Compute::Bf16 => decoder::Compute::Bf16,
            Compute::Stored => decoder::Compute::Stored,
        }
    }
}
