//! The numbers that matrices are multiplied in.

use super::bf16;
use crate::error::{Error, Kind, Result};

/// What the decoder multiplies its matrices in. Everything else is float32 either way: sums, norms, positions, softmax, the
/// products of attention and the residual stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// Float32.
    #[default]
    F32,
    /// Weights and inputs of matrices rounded to bfloat16. Faster, and less exact: inputs keep 8 significant bits.
    Bf16,
}

impl Compute {
    /// The name that commands have for it.
    pub fn name(self) -> &'static str {
        match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        }
    }

    /// # Errors
    /// `Unsupported` if this processor lacks the instructions.
    pub fn check(self) -> Result<()> {
        if self == Compute::Bf16 && !bf16::is_available() {
            return Err(Error::new(Kind::Unsupported, "this processor has no AVX512-BF16")
                .hint("Compute in f32, the default, or on a processor of AMD's Zen 4 or Intel's Cooper Lake and later."));
        }
        Ok(())
    }
}
