//! The numbers that matrices are multiplied in.

/// What the decoder multiplies its matrices in. Everything else is float32 either way: sums, norms, positions, softmax, the
/// products of attention, routers and the residual stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// Float32.
    #[default]
    F32,
    /// Weights and inputs of all matrices rounded to bfloat16: less exact, since inputs keep 8 significant bits, and faster
    /// on processors that multiply bfloat16.
    Bf16,
    /// The same for matrices that are stored in bfloat16 and no others, as llama.cpp does on a CPU.
    Stored,
}

impl Compute {
    /// The name that commands have for it.
    pub fn name(self) -> &'static str {
        match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
            Compute::Stored => "stored",
        }
    }
}
