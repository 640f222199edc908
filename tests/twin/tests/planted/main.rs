//! Bugs put into the project's own kernels, each of which is caught: by a fault, or by results that differ from those of the
//! kernel as it is.
//!
//! Needs nvcc (`NVCC`, `CUDA_HOME` or `PATH`); without it the tests say so and pass, unless REQUIRE_GPU is set.

mod case;
mod decoder;
mod kquant;
mod rows;

use std::path::{Path, PathBuf};
use std::process::Command;

use gpu_twin::Order;

const ORDERS: [Order; 3] = [Order::Forward, Order::Reverse, Order::Seeded(5)];

#[allow(clippy::print_stderr, reason = "a test that tests nothing says so")]
fn nvcc() -> Option<PathBuf> {
    let home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("nvcc"));
    let named = std::env::var_os("NVCC").map(PathBuf::from);
    let found = named.into_iter().chain(home).chain(on_path).find(|nvcc| nvcc.exists());
    assert!(
        found.is_some() || std::env::var_os("REQUIRE_GPU").is_none(),
        "REQUIRE_GPU is set, and there is no nvcc"
    );
    if found.is_none() {
        eprintln!("no nvcc: nothing is tested");
    }
    found
}

/// A change of a kernel: the file, what is in it, and what takes its place.
type Change<'a> = (&'a str, &'a str, &'a str);

/// The PTX of a source that includes the kernels' files, of which one is changed.
fn compile(nvcc: &Path, source: &str, change: Option<Change<'_>>) -> String {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let dir = tempfile::tempdir().unwrap();
    let mut changed = false;
    for name in ["", "awq", "gptq", "kquant", "rows"] {
        let to = dir.path().join(name);
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(kernels.join(name)).unwrap() {
            let path = entry.unwrap().path();
            let Some(file) = path.file_name().filter(|_| path.is_file()) else { continue };
            let mut text = std::fs::read_to_string(&path).unwrap();
            if let Some((_, old, new)) = change.filter(|(file, ..)| path.ends_with(file)) {
                assert!(text.contains(old), "{old:?} is in {}", path.display());
                text = text.replace(old, new);
                changed = true;
            }
            std::fs::write(to.join(file), text).unwrap();
        }
    }
    assert_eq!(changed, change.is_some(), "the file is there");
    let (cu, ptx) = (dir.path().join("test.cu"), dir.path().join("test.ptx"));
    std::fs::write(&cu, source).unwrap();
    let output = Command::new(nvcc)
        .args(["-ptx", "-O3", "-std=c++17", "--fmad=false", "-arch=compute_80", "-o"])
        .args([&ptx, &cu])
        .arg("-I")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(ptx).unwrap()
}

fn floats(n: usize, of: impl Fn(f32) -> f32) -> Vec<u8> {
    (0..n).flat_map(|i| of(i as f32).to_le_bytes()).collect()
}
