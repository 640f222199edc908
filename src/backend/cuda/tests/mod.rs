//! The GPU gives the CPU's bytes. Without a GPU the tests say so and pass, unless REQUIRE_GPU is set.

mod awq;
mod gptq;
mod kquant;
mod products;
mod staging;

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Cuda;
use crate::error::Kind;

/// The first GPU, for one test at a time: the GPU twin takes all cores for each.
fn gpu() -> Option<(Cuda, MutexGuard<'static, ()>)> {
    static ONE: Mutex<()> = Mutex::new(());
    if !Cuda::is_there() && std::env::var_os("REQUIRE_GPU").is_none() {
        return None;
    }
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    Some((Cuda::open(0).expect("there is a GPU that can be used"), one))
}

#[test]
fn a_gpu_that_is_not_there_is_named() {
    let Some((_, _one)) = gpu() else { return };
    let e = Cuda::open(1000).unwrap_err();
    assert_eq!(e.kind(), Kind::Usage);
    assert!(e.to_string().contains("cuda:1000") && e.to_string().contains("cuda:0"), "{e}");
}
