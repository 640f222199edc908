//! `--compute`.

use clap::ValueEnum;

use crate::arch::decoder::Compute;

/// The choice of what matrices are multiplied in, to flatten into a command's arguments.
#[derive(Debug, clap::Args)]
pub(super) struct ComputeArgs {
    /// What matrices are multiplied in
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = Type::F32)]
    compute: Type,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Type {
    /// Float32
    F32,
    /// Bfloat16 with sums in float32: faster and less exact; needs a processor with AVX512-BF16
    Bf16,
}

impl ComputeArgs {
    pub(super) fn compute(&self) -> Compute {
        match self.compute {
            Type::F32 => Compute::F32,
            Type::Bf16 => Compute::Bf16,
        }
    }
}
