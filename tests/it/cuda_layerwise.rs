//! GPTQ and AWQ on a GPU, or on the GPU twin: the same checkpoint as on the CPU. As in `cuda.rs`, without either the tests say so and
//! pass.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cuda::{gpu_is_there, is_twin};
use crate::support::{Outcome, data, entries, model, outcome, program, text};

/// Quantizes a model with a short calibration, in an environment with `variables`.
fn quantize(
    name: &str,
    format: &[&str],
    out: &Path,
    device: &str,
    extra: &[&str],
    variables: &[(&str, &str)],
) -> Outcome {
    let (model, out, data) = (text(&model(name)), text(out), text(&data("text/evaluation.txt")));
    let mut command = program();
    command.args(["quantize", &model]).args(format).args([
        "-o",
        &out,
        "-n",
        "q",
        "--calibration-data",
        &data,
    ]);
    if !extra.contains(&"--calibration-samples") {
        command.args(["--calibration-samples", "8"]);
    }
    command.args(["--seq-len", "32", "--device", device]).args(extra);
    command.envs(variables.iter().copied());
    outcome(command)
}

/// The files of a checkpoint.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let dir = dir.join("q");
    entries(&dir).into_iter().map(|name| (name.clone(), std::fs::read(dir.join(name)).unwrap())).collect()
}

#[track_caller]
fn assert_same_files(name: &str, format: &[&str], extra: &[&str], variables: &[(&str, &str)]) {
    if !gpu_is_there() {
        return;
    }
    assert_same_files_on("cuda:0", name, format, extra, variables);
}

#[track_caller]
fn assert_same_files_on(
    device: &str,
    name: &str,
    format: &[&str],
    extra: &[&str],
    variables: &[(&str, &str)],
) {
    let [of_cpu, of_gpu] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    quantize(name, format, of_cpu.path(), "cpu", extra, &[]).success();
    let outcome = quantize(name, format, of_gpu.path(), device, extra, variables);
    let stderr = outcome.success().stderr;
    // Little memory is the only reason not to compute the layers there.
    let bytes = variables.iter().find(|(name, _)| *name == "GPU_TWIN_MEMORY");
    let little = bytes.is_some_and(|(_, bytes)| bytes.parse::<u64>().unwrap() < LAYER);
    assert_eq!(stderr.contains("activations are computed on the CPU"), little, "{stderr}");
    let (of_cpu, of_gpu) = (files(of_cpu.path()), files(of_gpu.path()));
    assert!(of_cpu.keys().eq(of_gpu.keys()));
    for (name, bytes) in &of_cpu {
        assert!(bytes == &of_gpu[name], "{name} differs");
    }
}

/// Bytes of memory that a layer of the models needs at least to be computed on a GPU.
const LAYER: u64 = 1_000_000;

/// Matrices of one layer, so that the twin does not take long.
const ONE_LAYER: &[&str] = &["--skip", r"layers\.1\."];

#[test]
fn gptq_of_4_bits_is_the_same_checkpoint() {
    let extra = [ONE_LAYER, &["--group-size", "128"]].concat();
    assert_same_files("llama", &["gptq", "-q", "4bit"], &extra, &[]);
}

#[test]
fn gptq_with_zero_points_is_the_same_checkpoint() {
    let extra = ["--skip", r"layers\.0\.|mlp", "--group-size", "32", "--asym"];
    assert_same_files("llama", &["gptq", "-q", "3bit"], &extra, &[("GPU_TWIN_ORDER", "reverse")]);
}

#[test]
fn gptq_of_experts_in_the_order_of_importance_is_the_same_checkpoint() {
    let extra = ["--skip", r"layers\.0\.|self_attn|experts\.[123]", "--group-size", "-1", "--desc-act"];
    assert_same_files("mixtral", &["gptq", "-q", "4bit"], &extra, &[("GPU_TWIN_ORDER", "3")]);
}

#[test]
fn experts_are_solved_together_if_there_is_room_for_their_hessians() {
    if !gpu_is_there() || !is_twin() {
        return;
    }
    let log = tempfile::NamedTempFile::new().unwrap();
    let extra = ["--skip", r"layers\.0\.|self_attn|w2", "--group-size", "64"];
    let path = text(log.path());
    assert_same_files("mixtral", &["gptq", "-q", "4bit"], &extra, &[("GPU_TWIN_LOG", &path)]);
    let launches = std::fs::read_to_string(log.path()).unwrap();
    let blocks = launches.lines().filter(|line| line.contains("gptq_solve_block")).count();
    assert_eq!(blocks, 2, "w1 and w3 of all experts, whose inputs are one block:\n{launches}");
    // The Hessians of four experts and their factors are 512 KiB.
    let memory = [("GPU_TWIN_MEMORY", "400000")];
    assert_same_files("mixtral", &["gptq", "-q", "4bit"], &extra, &memory);
}

#[test]
fn gptq_with_little_memory_is_the_same_checkpoint_and_with_less_an_error() {
    if !gpu_is_there() || !is_twin() {
        return;
    }
    // The Hessian of 128 inputs and its factor are 128 KiB; 32 rows of weights with all that goes with them do not fit.
    let extra = ["--skip", r"layers\.0\.|mlp|[qkv]_proj", "--group-size", "64"];
    assert_same_files("llama", &["gptq", "-q", "4bit"], &extra, &[("GPU_TWIN_MEMORY", "220000")]);
    for (samples, memory, what) in [
        ("8", "100000", "256 inputs of 128 channels"),
        ("1", "100000", "Hessian of 128 inputs"),
        ("1", "140000", "16 rows of 128 weights"),
    ] {
        let out = tempfile::tempdir().unwrap();
        let extra = [&extra[..], &["--calibration-samples", samples]].concat();
        let memory = [("GPU_TWIN_MEMORY", memory)];
        let outcome = quantize("llama", &["gptq", "-q", "4bit"], out.path(), "cuda:0", &extra, &memory);
        outcome.failure(5, &[what, "are free", "--device cpu"]);
    }
}

#[test]
fn states_that_do_not_fit_beside_a_layer_come_from_memory() {
    if !gpu_is_there() || !is_twin() {
        return;
    }
    // A layer and a batch take 1.9 MB; what goes with them would take 1.8 MB more.
    let extra = ["--skip", r"layers\.0\.|mlp|[qkv]_proj", "--group-size", "64"];
    let memory = [("GPU_TWIN_MEMORY", "2600000")];
    assert_same_files("llama", &["gptq", "-q", "4bit"], &extra, &memory);
    let low = [&extra[..], &["--low-memory"]].concat();
    assert_same_files("llama", &["gptq", "-q", "4bit"], &low, &memory);
}

#[test]
fn awq_is_the_same_checkpoint() {
    // Factors are moved to a norm and to the values.
    let extra = ["--skip", r"layers\.0\.|mlp", "--group-size", "32"];
    assert_same_files("llama", &["awq", "-q", "4bit"], &extra, &[("GPU_TWIN_ORDER", "reverse")]);
}

#[test]
fn awq_by_gptq_is_the_same_checkpoint() {
    let extra = ["--skip", r"layers\.0\.|mlp|[qkv]_proj", "--group-size", "64", "--solver", "gptq"];
    assert_same_files("llama", &["awq", "-q", "4bit"], &extra, &[]);
}

#[test]
fn two_gpus_share_the_rows() {
    if !gpu_is_there() || !is_twin() {
        return;
    }
    let extra = ["--skip", r"layers\.0\.|mlp|[qkv]_proj", "--group-size", "64"];
    let two = [("GPU_TWIN_DEVICES", "2")];
    assert_same_files_on("cuda:0,cuda:1", "llama", &["gptq", "-q", "4bit"], &extra, &two);
    let out = tempfile::tempdir().unwrap();
    let outcome = quantize("llama", &["gptq", "-q", "4bit"], out.path(), "cuda:0,cuda:0", &extra, &two);
    outcome.failure(2, &["twice"]);
}
