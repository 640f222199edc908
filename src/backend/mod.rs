//! The operations that take the time, on whatever does them.
//!
//! The CPU defines each result; a GPU gives the same bytes. Which is asked for is a [`DeviceName`], and [`open`] gives the
//! [`Backend`] behind it.

mod accelerator;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device;

pub use accelerator::{Accelerator, Angles, Attention, DeviceMatrix, ExpertRows};
pub use cpu::Cpu;
#[cfg(feature = "cuda")]
pub use cuda::{Cuda, Gpus};
pub use device::{DeviceName, open};

use std::fmt::Debug;
use std::sync::Arc;

use crate::error::Result;
use crate::format::gguf::GgmlType;
use crate::quant::QuantizedLinear;
use crate::quant::awq::scales::Trial;
use crate::quant::gptq::{Loss, Problem};
use crate::quant::gram::Gram;

/// Whole rows of weights to encode as GGML blocks.
#[derive(Clone, Copy, Debug)]
pub struct BlockRows<'a> {
    /// The type of the blocks.
    pub ty: GgmlType,
    /// Rows of `columns` finite weights, one after the other.
    pub weights: &'a [f32],
    /// Weights of a row; whole blocks.
    pub columns: usize,
    /// One importance per column, used for every row.
    pub importance: Option<&'a [f32]>,
}

/// How much work an operation is best given at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// What fits the cache of a core; calls come from all threads.
    Core,
    /// Some million weights; calls come from all threads and take turns.
    All,
}

/// What does the work.
pub trait Backend: Debug + Send + Sync {
    /// What it is called in messages, such as `cpu`.
    fn name(&self) -> &str;

    /// How much work it is best given at once.
    fn batch(&self) -> Batch;

    /// Whether [`Backend::encode_blocks`] takes this type.
    fn encodes(&self, ty: GgmlType) -> bool;

    /// Encodes rows to `out`, exactly the bytes of their blocks. The bytes are those of
    /// [`crate::format::gguf::blocks::encode`].
    ///
    /// # Errors
    /// `Resources` if there is not enough memory, `Other` if the device fails.
    ///
    /// # Panics
    /// If sizes do not fit each other or the type is not one that it encodes.
    fn encode_blocks(&self, rows: BlockRows<'_>, out: &mut [u8]) -> Result<()>;

    /// What computes the layers of a decoder in its own memory; none where that is the processor's.
    fn accelerator(&self) -> Option<Arc<dyn Accelerator>>;

    /// Begins a Gram matrix of inputs of `size` channels.
    ///
    /// # Errors
    /// `Resources` if there is not enough memory, `Other` if the device fails.
    fn gram<'a>(&'a self, size: usize) -> Result<Box<dyn GramSum + 'a>>;

    /// How well each group keeps its outputs with each candidate of AWQ's factors, `[groups, candidates]`: [`Trial::losses`].
    ///
    /// # Errors
    /// As [`Backend::solver`].
    fn awq_losses(&self, trial: &Trial<'_>) -> Result<Vec<f64>>;

    /// How many problems of so many rows are best solved together: one, if the rows of one leave nothing idle.
    fn problems_at_once(&self, rows: usize) -> usize;

    /// Takes problems, to quantize the matrices that share each. Several are solved together.
    ///
    /// # Errors
    /// `Resources` if there is not enough memory, `Unsupported` for groups that are too long for it, `Other` if the device
    /// fails.
    ///
    /// # Panics
    /// If there is no problem, or some are not like the others ([`Problem::is_like`]).
    fn solver<'a>(&'a self, problems: &'a [Problem]) -> Result<Box<dyn Solver + 'a>>;
}

/// A Gram matrix that is being summed up: [`Gram::add`], wherever it runs.
pub trait GramSum: Debug {
    /// Adds inputs, `[tokens, size]` row-major.
    ///
    /// # Errors
    /// `Resources` if there is not enough memory, `Other` if the device fails.
    ///
    /// # Panics
    /// If `x` is not whole rows.
    fn add(&mut self, x: &[f32]) -> Result<()>;

    /// Adds inputs that are in a device's memory, which they leave only if the sum is elsewhere.
    ///
    /// # Errors
    /// As [`GramSum::add`].
    ///
    /// # Panics
    /// If rows of `x` are not of the matrix's size.
    fn add_from(&mut self, device: &dyn Accelerator, x: &DeviceMatrix) -> Result<()> {
        self.add(&device.fetch(x)?)
    }

    /// The sum.
    ///
    /// # Errors
    /// `Other` if the device fails.
    fn finish(self: Box<Self>) -> Result<Gram>;
}

/// Quantizes the matrices that share an input, or those of several inputs, such as the experts of a layer, together.
pub trait Solver {
    /// Quantizes a matrix of each problem, `[rows, size]` row-major and finite, by GPTQ. The codes, scales, zero points and
    /// the loss are those of [`Problem::quantize`].
    ///
    /// # Errors
    /// `Resources` if there is not enough memory, `Other` if the device fails.
    ///
    /// # Panics
    /// If there is not one matrix for each problem, or they are not as many whole rows.
    fn gptq(&self, weights: &[&[f32]]) -> Result<Vec<(QuantizedLinear, Loss)>>;

    /// The same by rounding to the nearest codes in the best ranges: [`awq::clip::quantize`](crate::quant::awq::clip::quantize).
    ///
    /// # Errors
    /// As [`Solver::gptq`].
    ///
    /// # Panics
    /// As [`Solver::gptq`].
    fn awq(&self, weights: &[&[f32]]) -> Result<Vec<(QuantizedLinear, Loss)>>;
}
