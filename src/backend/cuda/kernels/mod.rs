//! The kernels of `kernels/*.cu`, one function for each, in one module for each file: the only place that launches them.
//!
//! A launch is unsafe because the compiler cannot see what the kernel does with its arguments. Each function here checks
//! the sizes that its kernel relies on, passes the arguments in the kernel's order, and says why that is enough.

mod affine;
mod awq;
mod decoder;
mod gemm;
mod gptq;
mod gram;
mod kquant;
mod teams;

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, DriverError, LaunchConfig};
use cudarc::nvrtc::Ptx;

pub(super) use affine::Rows;
pub(super) use awq::{Grams, Scored};
pub(super) use decoder::Softmax;
pub(super) use gemm::{Matrices, Products};
pub(super) use gptq::Block;
pub(super) use kquant::encoder;

/// The loaded kernels by name.
#[derive(Debug)]
pub(super) struct Kernels(HashMap<&'static str, CudaFunction>);

impl Kernels {
    /// Lets the driver compile the kernels for the GPU.
    pub(super) fn load(context: &Arc<CudaContext>) -> Result<Kernels, DriverError> {
        macro_rules! ptx {
            ($file:literal) => {
                include_str!(concat!(env!("OUT_DIR"), "/", $file, ".ptx"))
            };
        }
        let mut kernels = HashMap::new();
        let mut load = |ptx: &str, names: &mut dyn Iterator<Item = &'static str>| {
            let module = context.load_module(Ptx::from_src(ptx))?;
            for name in names {
                kernels.insert(name, module.load_function(name)?);
            }
            Ok(())
        };
        load(ptx!("kquant"), &mut kquant::names())?;
        load(ptx!("gemm"), &mut gemm::NAMES.into_iter())?;
        load(ptx!("decoder"), &mut decoder::NAMES.into_iter())?;
        load(ptx!("gptq"), &mut gptq::NAMES.into_iter())?;
        load(ptx!("awq"), &mut awq::NAMES.into_iter())?;
        load(ptx!("affine"), &mut affine::NAMES.into_iter())?;
        load(ptx!("gram"), &mut gram::NAMES.into_iter())?;
        Ok(Kernels(kernels))
    }

    fn named(&self, name: &str) -> &CudaFunction {
        self.0.get(name).expect("all kernels are loaded by their names")
    }
}

/// Sizes are 32-bit in kernels; a batch is far smaller than what that counts.
fn number(n: usize) -> u32 {
    u32::try_from(n).expect("sizes of a batch are below 2^32")
}

/// A launch of `threads` threads in all, in blocks of `block`.
fn grid(threads: usize, block: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (number(threads.div_ceil(block)), 1, 1),
        block_dim: (number(block), 1, 1),
        shared_mem_bytes: 0,
    }
}
