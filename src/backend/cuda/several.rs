//! Several GPUs as one device.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::solver::{OnGpus, problems_at_once};
use super::{Cuda, kernels};
use crate::backend::{Accelerator, Backend, Batch, BlockRows, GramSum, Solver};
use crate::error::Result;
use crate::format::gguf::GgmlType;
use crate::quant::awq::scales::Trial;
use crate::quant::gptq::Problem;

/// GPUs that share the work: the rows of each matrix are spread over them, Gram matrices and batches of rows to encode go to
/// one after the other. The result is that of one.
#[derive(Debug)]
pub struct Gpus {
    name: String,
    gpus: Vec<Cuda>,
    next: AtomicUsize,
}

impl Gpus {
    /// Opens the GPUs of these numbers.
    ///
    /// # Errors
    /// As [`Cuda::open`].
    ///
    /// # Panics
    /// If there are no numbers.
    pub fn open(numbers: &[usize]) -> Result<Gpus> {
        assert!(!numbers.is_empty(), "one GPU at least");
        let gpus: Vec<Cuda> = numbers.iter().map(|number| Cuda::open(*number)).collect::<Result<_>>()?;
        let names: Vec<&str> = gpus.iter().map(Backend::name).collect();
        Ok(Gpus { name: names.join(", "), gpus, next: AtomicUsize::new(0) })
    }

    fn next(&self) -> &Cuda {
        &self.gpus[self.next.fetch_add(1, Ordering::Relaxed) % self.gpus.len()]
    }
}

impl Backend for Gpus {
    fn name(&self) -> &str {
        &self.name
    }

    fn batch(&self) -> Batch {
        Batch::All
    }

    fn encodes(&self, ty: GgmlType) -> bool {
        kernels::encoder(ty).is_some()
    }

    fn encode_blocks(&self, rows: BlockRows<'_>, out: &mut [u8]) -> Result<()> {
        self.next().encode_blocks(rows, out)
    }

    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        self.gpus[0].accelerator()
    }

    fn gram<'a>(&'a self, size: usize) -> Result<Box<dyn GramSum + 'a>> {
        self.next().gram(size)
    }

    fn awq_losses(&self, trial: &Trial<'_>) -> Result<Vec<f64>> {
        self.next().awq_losses(trial)
    }

    fn problems_at_once(&self, rows: usize) -> usize {
        problems_at_once(rows, self.gpus.len())
    }

    fn solver<'a>(&'a self, problems: &'a [Problem]) -> Result<Box<dyn Solver + 'a>> {
        Ok(Box::new(OnGpus::new(&self.gpus, problems)?))
    }
}
