//! The processor.

use super::{Backend, Batch, BlockRows};
use crate::error::Result;
use crate::format::gguf::GgmlType;
use crate::format::gguf::blocks::{self, Simd};

/// The processor, by one of its instruction sets.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// The instruction set; the results do not depend on it.
    pub simd: Simd,
}

impl Backend for Cpu {
    fn name(&self) -> &str {
        "cpu"
    }

    fn batch(&self) -> Batch {
        Batch::Core
    }

    fn encodes(&self, ty: GgmlType) -> bool {
        ty.is_writable()
    }

    fn encode_blocks(&self, rows: BlockRows<'_>, out: &mut [u8]) -> Result<()> {
        blocks::encode(rows.ty, rows.weights, rows.columns, rows.importance, out, self.simd);
        Ok(())
    }
}
