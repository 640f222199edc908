//! The program on a GPU, or on the GPU twin (`scripts/gpu-twin.sh`). Without either the tests say so and pass, unless
//! REQUIRE_GPU is set.

use crate::support::{Outcome, arguments, imatrix, model, outcome, program, quantized, text};

/// Runs `quantize` of tiny-llama on the first GPU, in an environment with `variables`.
fn on_gpu(level: &str, extra: &[&str], variables: &[(&str, &str)]) -> (Outcome, Option<Vec<u8>>) {
    let out = tempfile::tempdir().unwrap();
    let mut args = arguments(&model("tiny-llama"), level, out.path(), &[&["-n", "out.gguf"], extra].concat());
    if !extra.contains(&"--device") {
        args.extend(["--device", "cuda:0"].map(String::from));
    }
    let mut command = program();
    command.args(args).envs(variables.iter().copied());
    let outcome = outcome(command);
    (outcome, std::fs::read(out.path().join("out.gguf")).ok())
}

/// Whether there is a GPU to test with.
#[allow(clippy::print_stderr, reason = "a test that tests nothing says so")]
pub(crate) fn gpu_is_there() -> bool {
    let there = llm_quantize::backend::Cuda::is_there();
    assert!(there || std::env::var_os("REQUIRE_GPU").is_none(), "REQUIRE_GPU is set, and there is no GPU");
    if !there {
        eprintln!("no GPU: nothing is tested");
    }
    there
}

/// Whether the GPU is the twin, which can be told what to be.
pub(crate) fn is_twin() -> bool {
    let (outcome, _) = on_gpu("Q8_0", &["--verbosity", "verbose"], &[]);
    outcome.stderr.contains("GPU twin")
}

#[track_caller]
fn assert_same_file(level: &str, extra: &[&str]) {
    if !gpu_is_there() {
        return;
    }
    let of_cpu = quantized(&model("tiny-llama"), level, extra);
    // The order of threads is the twin's; a GPU has its own.
    for order in ["forward", "reverse", "1"] {
        let (outcome, of_gpu) = on_gpu(level, extra, &[("GPU_TWIN_ORDER", order)]);
        outcome.success();
        assert!(of_gpu.unwrap() == of_cpu, "{level} {extra:?} differs, threads in order {order}");
    }
}

#[test]
fn q4_k_m_is_the_same_file() {
    assert_same_file("Q4_K_M", &[]);
}

#[test]
fn q2_k_with_an_importance_matrix_is_the_same_file() {
    assert_same_file("Q2_K", &["--imatrix", &imatrix()]);
}

#[test]
fn q4_0_with_an_importance_matrix_is_the_same_file() {
    assert_same_file("Q4_0", &["--imatrix", &imatrix()]);
}

#[test]
fn experts_are_the_same_file() {
    if !gpu_is_there() {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let mut args = arguments(&model("mixtral"), "Q5_0", out.path(), &["-n", "out.gguf"]);
    args.extend(["--device", "cuda:0"].map(String::from));
    crate::support::run(&args).success();
    assert!(std::fs::read(out.path().join("out.gguf")).unwrap() == quantized(&model("mixtral"), "Q5_0", &[]));
}

#[test]
fn little_memory_is_enough_and_less_is_an_error() {
    if !gpu_is_there() || !is_twin() {
        return;
    }
    // A tensor does not fit, parts of it do.
    let (outcome, of_gpu) = on_gpu("Q8_0", &[], &[("GPU_TWIN_MEMORY", "100000")]);
    outcome.success();
    assert!(of_gpu.unwrap() == quantized(&model("tiny-llama"), "Q8_0", &[]));
    let (outcome, of_gpu) = on_gpu("Q8_0", &[], &[("GPU_TWIN_MEMORY", "300")]);
    let said = outcome.failure(5, &["a row of 256 weights needs", "--device cpu"]).stderr;
    // Tables of the kernels take a part of the memory.
    let free = said.split(" are free").next().unwrap().rsplit(' ').next().unwrap();
    assert!((1..=300).contains(&free.parse::<u32>().unwrap()), "{said}");
    assert_eq!(of_gpu, None);
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    if !gpu_is_there() {
        return;
    }
    let (outcome, _) = on_gpu("Q8_0", &["--device", "cuda:77"], &[]);
    outcome.failure(2, &["cuda:77", "cuda:0"]);
    if is_twin() {
        let (outcome, _) = on_gpu("Q8_0", &[], &[("GPU_TWIN_DEVICES", "0")]);
        outcome.failure(5, &["cuda:0", "--device cpu"]);
        let (outcome, of_cpu) = on_gpu("Q8_0", &["--device", "auto"], &[("GPU_TWIN_DEVICES", "0")]);
        outcome.success();
        assert!(of_cpu.is_some());
    }
}

#[test]
fn a_machine_without_a_driver_is_an_error_and_auto_is_its_cpu() {
    if llm_quantize::backend::Cuda::is_there() && !is_twin() {
        return;
    }
    let (outcome, _) = on_gpu("Q8_0", &[], &[("LD_LIBRARY_PATH", "")]);
    outcome.failure(5, &["no NVIDIA driver", "--device cpu"]);
    let (outcome, file) = on_gpu("Q8_0", &["--device", "auto"], &[("LD_LIBRARY_PATH", "")]);
    outcome.success();
    assert!(file.is_some());
}

#[test]
fn what_runs_on_the_cpu_only_says_so() {
    let gguf = text(&model("tiny-llama"));
    let outcome = crate::support::run(&["info", &gguf, "--device", "cuda:0"]);
    outcome.failure(8, &["--device cuda:0", "CPU only"]);
}
