//! Compiles kernels/*.cu to PTX for the `cuda` feature. Without that feature it does nothing.
//!
//! PTX of the oldest architecture runs on every later one: the driver compiles it for the GPU it finds. It is embedded in
//! the program, so nothing is looked for when it runs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest GPUs that kernels run on: Ampere.
const ARCHITECTURE: &str = "compute_80";

/// One file for each operation.
const KERNELS: [&str; 7] = ["affine", "awq", "decoder", "gemm", "gptq", "gram", "kquant"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let Some(nvcc) = find_nvcc() else {
        println!(
            "cargo::error=the `cuda` feature needs NVIDIA's compiler: install the CUDA toolkit 13.0 or set NVCC or \
             CUDA_HOME to where it is, or fetch nvcc alone with scripts/cuda-home.sh"
        );
        return;
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for kernel in KERNELS {
        let source = Path::new("kernels").join(kernel).with_extension("cu");
        let ptx = out.join(kernel).with_extension("ptx");
        if let Err(message) = compile(&nvcc, &source, &ptx) {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
        }
    }
}

/// nvcc by `NVCC`, `CUDA_HOME`, `PATH` or the place where toolkits install it.
fn find_nvcc() -> Option<PathBuf> {
    if let Some(nvcc) = env::var_os("NVCC") {
        return Some(nvcc.into()).filter(|p: &PathBuf| p.exists());
    }
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let places =
        home.into_iter().chain(env::split_paths(&path)).chain([PathBuf::from("/usr/local/cuda/bin")]);
    places.map(|dir| dir.join("nvcc")).find(|nvcc| nvcc.exists())
}

fn compile(nvcc: &Path, source: &Path, ptx: &Path) -> Result<(), String> {
    let output = Command::new(nvcc)
        // Sums and products are rounded one by one, as on the CPU: the bytes must be the same.
        .args(["-ptx", "-O3", "-std=c++17", "--fmad=false", "-Werror", "all-warnings", "-Ikernels"])
        .arg(format!("-arch={ARCHITECTURE}"))
        .arg("-o")
        .args([ptx, source])
        .output()
        .map_err(|e| format!("cannot run {}: {e}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let log = [output.stdout, output.stderr].concat();
    Err(format!("{} does not compile:\n{}", source.display(), String::from_utf8_lossy(&log)))
}
