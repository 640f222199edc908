//! Weights as float32, whatever they are stored as.

use std::fmt::Debug;
use std::ops::Range;

use rayon::prelude::*;

use super::safetensors::{FloatType, Tensors};
use crate::error::{Error, Kind, Result};
use crate::format::gguf::blocks::{self, Simd};

/// Weights that one thread widens at a time.
const PIECE: usize = 1 << 16;

/// The weights of a model under the names of its Hugging Face checkpoint.
pub trait Dense: Debug + Send + Sync {
    /// The names of all tensors.
    fn names(&self) -> Vec<&str>;

    /// The tensor's shape, outermost dimension first; none if there is no such tensor.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// The type that the tensor's weights are stored in, if they are stored one by one.
    fn float_type(&self, _name: &str) -> Option<FloatType> {
        None
    }

    /// The checkpoint that the weights lie in one by one, just as they are, if they do.
    fn mapped(&self) -> Option<&Tensors> {
        None
    }

    /// Bits that each of the tensor's weights takes as it is stored, scales and zero points included; none if there is no
    /// such tensor.
    fn bits(&self, name: &str) -> Option<f64>;

    /// Reads `rows` of the outermost dimension into `out`, row-major.
    ///
    /// # Errors
    /// `Invalid` if a weight is not finite.
    ///
    /// # Panics
    /// If there is no such tensor or row, or `out` has another length.
    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()>;
}

impl Dense for Tensors {
    fn names(&self) -> Vec<&str> {
        self.iter().map(|(name, _)| name).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.get(name)?.shape)
    }

    fn float_type(&self, name: &str) -> Option<FloatType> {
        Some(self.get(name)?.dtype)
    }

    fn mapped(&self) -> Option<&Tensors> {
        Some(self)
    }

    fn bits(&self, name: &str) -> Option<f64> {
        Some(self.get(name)?.dtype.bytes() as f64 * 8.0)
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let info = self.get(name).expect("the caller knows that there is this tensor");
        let size = info.dtype.bytes();
        let width = info.shape.iter().skip(1).product::<usize>() * size;
        let bytes = &self.bytes(info)[rows.start * width..rows.end * width];
        assert_eq!(bytes.len(), out.len() * size, "{name}: rows {rows:?}");
        let widen = match info.dtype {
            FloatType::F32 => blocks::f32_from_le,
            FloatType::F16 => blocks::f16_to_f32,
            FloatType::BF16 => blocks::bf16_to_f32,
        };
        let simd = Simd::best();
        let finite = out
            .par_chunks_mut(PIECE)
            .zip(bytes.par_chunks(PIECE * size))
            .map(|(out, bytes)| widen(bytes, out, simd))
            .reduce(|| true, |a, b| a & b);
        if finite { Ok(()) } else { Err(not_finite(name)) }
    }
}

/// The error of a tensor that holds NaN or infinity.
pub fn not_finite(name: &str) -> Error {
    Error::new(Kind::Invalid, format!("tensor {name} holds NaN or infinity"))
        .hint("The checkpoint is damaged or training diverged; a quantized copy would be useless.")
}
