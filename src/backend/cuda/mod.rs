//! An NVIDIA GPU.
//!
//! The program finds the driver when it runs, so one build serves machines with and without a GPU. Kernels are compiled to
//! PTX when the program is built (`build.rs`) and by the driver, for the GPU that is there, when a device is opened.

mod awq;
mod decoder;
mod gptq;
mod gram;
mod kernels;
mod several;
mod solver;
mod staging;
#[cfg(test)]
mod tests;

pub use several::Gpus;

use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaStream, DriverError};

use self::kernels::Kernels;
use self::staging::Staging;
use super::{Accelerator, Backend, Batch, BlockRows, GramSum, Solver};
use crate::error::{Error, Kind, Result};
use crate::format::gguf::GgmlType;
use crate::quant::awq::scales::Trial;
use crate::quant::gptq::Problem;

/// A GPU with its kernels.
#[derive(Debug)]
pub struct Cuda {
    name: String,
    stream: Arc<CudaStream>,
    kernels: Arc<Kernels>,
    /// Held by the thread whose rows are on the GPU. Those of several would share its memory, and each might find too little.
    turn: Mutex<()>,
}

impl Cuda {
    /// Opens the GPU of this number, from 0.
    ///
    /// # Errors
    /// `Resources` if there is no driver or no GPU, or the driver is too old; `Usage` if there are fewer GPUs.
    pub fn open(number: usize) -> Result<Cuda> {
        let count = count().map_err(|e| match e {
            Absent::Driver => Error::new(
                Kind::Resources,
                format!("--device cuda:{number}: there is no NVIDIA driver on this machine"),
            )
            .hint("Install NVIDIA's driver (libcuda.so.1), or pass --device cpu."),
            Absent::Gpu(e) => no_gpu(number).because(e),
        })?;
        if count == 0 {
            return Err(no_gpu(number));
        }
        if number >= count {
            let last = count - 1;
            return Err(Error::new(
                Kind::Usage,
                format!("--device cuda:{number}: this machine has {count} GPUs, cuda:0 to cuda:{last}"),
            )
            .hint("CUDA_VISIBLE_DEVICES may hide others."));
        }
        let context = CudaContext::new(number).map_err(|e| failed("open the GPU", &e))?;
        let kernels = Kernels::load(&context).map_err(|e| match e.0 {
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUresult::CUDA_ERROR_INVALID_PTX => {
                failed("load the kernels", &e)
                    .hint("The driver is older than the CUDA that the program was built with: update it.")
            }
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => failed("load the kernels", &e)
                .hint("GPUs from compute capability 8.0 (Ampere) on are supported."),
            _ => failed("load the kernels", &e),
        })?;
        let model = context.name().map_err(|e| failed("open the GPU", &e))?;
        let stream = context.new_stream().map_err(|e| failed("open the GPU", &e))?;
        Ok(Cuda {
            name: format!("cuda:{number} ({model})"),
            stream,
            kernels: Arc::new(kernels),
            turn: Mutex::new(()),
        })
    }

    /// Whether there is a GPU.
    pub fn is_there() -> bool {
        count().is_ok_and(|count| count > 0)
    }

    /// Encodes rows in halves if the GPU's memory is too small for all at once.
    fn encode(&self, rows: BlockRows<'_>, out: &mut [u8]) -> Result<()> {
        let encoded = self.kernels.encode_blocks(&self.stream, rows, out);
        match encoded {
            Err(e) if is_out_of_memory(&e) && rows.weights.len() > rows.columns => {
                let count = rows.weights.len() / rows.columns;
                let half = count / 2;
                let (first, second) = rows.weights.split_at(half * rows.columns);
                let (first_out, second_out) = out.split_at_mut(out.len() / count * half);
                self.encode(BlockRows { weights: first, ..rows }, first_out)?;
                self.encode(BlockRows { weights: second, ..rows }, second_out)
            }
            encoded => encoded.map_err(|e| {
                let bytes = 4 * (rows.weights.len() + rows.columns + 1) + out.len();
                let what = format!("a row of {} weights", rows.columns);
                self.failed_to_hold(&what, bytes, &format!("encode {}", rows.ty), &e)
            }),
        }
    }

    /// The GPU for this thread alone.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().expect("no thread panics while it has its turn")
    }

    fn too_long(&self, columns: usize) -> Error {
        Error::new(
            Kind::Unsupported,
            format!("{}: groups of {columns} columns do not fit the GPU's shared memory", self.name),
        )
        .hint("Pass a smaller --group-size or --device cpu.")
    }

    /// What became of the smallest part of the work, which needs `bytes` bytes.
    fn failed_to_hold(&self, what: &str, bytes: usize, doing: &str, e: &DriverError) -> Error {
        failed_to_hold(&self.name, &self.stream, what, bytes, doing, e)
    }
}

impl Backend for Cuda {
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
        if rows.weights.is_empty() {
            return Ok(());
        }
        let _turn = self.turn();
        self.encode(rows, out)
    }

    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        let (name, stream, kernels) = (self.name.clone(), self.stream.clone(), self.kernels.clone());
        let staging = Mutex::new(Staging::new(stream.context(), staging::PIECE));
        Some(Arc::new(decoder::OnGpu { name, stream, kernels, staging }))
    }

    fn gram<'a>(&'a self, size: usize) -> Result<Box<dyn GramSum + 'a>> {
        Ok(Box::new(gram::OnGpu::new(self, size)?))
    }

    fn awq_losses(&self, trial: &Trial<'_>) -> Result<Vec<f64>> {
        self.losses(trial)
    }

    fn problems_at_once(&self, rows: usize) -> usize {
        solver::problems_at_once(rows, 1)
    }

    fn solver<'a>(&'a self, problems: &'a [Problem]) -> Result<Box<dyn Solver + 'a>> {
        Ok(Box::new(solver::OnGpus::new(std::slice::from_ref(self), problems)?))
    }
}

/// Why there is no GPU to count.
enum Absent {
    Driver,
    Gpu(DriverError),
}

fn count() -> Result<usize, Absent> {
    // SAFETY: loading the driver's library runs its initialisers, which any program that uses it has to trust.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(Absent::Driver);
    }
    let count = CudaContext::device_count().map_err(Absent::Gpu)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

fn no_gpu(number: usize) -> Error {
    Error::new(Kind::Resources, format!("--device cuda:{number}: the driver finds no GPU"))
        .hint("See what `nvidia-smi` says, or pass --device cpu.")
}

fn is_out_of_memory(e: &DriverError) -> bool {
    e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
}

/// What became of work on the GPU of this name that needs `bytes` bytes.
fn failed_to_hold(
    name: &str,
    stream: &Arc<CudaStream>,
    what: &str,
    bytes: usize,
    doing: &str,
    e: &DriverError,
) -> Error {
    if !is_out_of_memory(e) {
        return failed(doing, e);
    }
    let free = stream.context().mem_get_info().map_or(0, |(free, _)| free);
    Error::new(Kind::Resources, format!("{name}: {what} needs {bytes} bytes, {free} are free"))
        .hint("Stop what else uses the GPU, or pass --device cpu.")
}

fn failed(what: &str, e: &DriverError) -> Error {
    let text =
        e.error_string().map_or_else(|_| "no description".into(), |text| text.to_string_lossy().into_owned());
    let kind = if is_out_of_memory(e) { Kind::Resources } else { Kind::Other };
    Error::new(kind, format!("the GPU failed to {what}: {text} ({:?})", e.0))
}
