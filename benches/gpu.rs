//! Times of the operations that a device does, on layers of the shapes of Llama 3.1 8B, beside what an H100 could do at best,
//! and what they come to for whole models.
//!
//! `cargo bench --features cuda --bench gpu -- --device cuda:0 [--scale 1] [--tokens 4096] [--rounds 2]`
//!
//! `--scale 32` divides all sizes by 32, to try the program itself.

#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use llm_quantize::Result;
use llm_quantize::backend::{self, Backend, BlockRows};
use llm_quantize::format::gguf::GgmlType;
use llm_quantize::format::gguf::blocks::Simd;
use llm_quantize::quant::Grid;
use llm_quantize::quant::awq::scales::{Consumer, Trial};
use llm_quantize::quant::gptq::{Problem, Settings};
use llm_quantize::quant::gram::Gram;

/// An H100: float32 operations and bytes of its memory in a second.
const FLOPS: f64 = 67e12;
const BYTES: f64 = 3.35e12;

/// Inputs, and the rows of all matrices that share them, of a layer; and how many layers.
struct Model {
    name: &'static str,
    layers: usize,
    shapes: [(usize, usize); 4],
}

const MODELS: [Model; 2] = [
    Model { name: "8B", layers: 32, shapes: [(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)] },
    Model { name: "70B", layers: 80, shapes: [(8192, 10240), (8192, 8192), (8192, 57344), (28672, 8192)] },
];

/// Candidates of AWQ's factors, and rows that they are tried on.
const CANDIDATES: usize = 30;
const SAMPLED: usize = 512;

/// An operation on all matrices of a layer.
struct Operation {
    name: &'static str,
    time: Duration,
    /// Floating-point operations that it cannot do without, for one layer of a model.
    operations: fn(&Model, usize) -> f64,
    /// Bytes that it must move through the device's memory.
    bytes: fn(&Model, usize) -> f64,
}

fn sum(model: &Model, of: impl Fn(f64, f64) -> f64) -> f64 {
    model.shapes.iter().map(|(inputs, rows)| of(*inputs as f64, *rows as f64)).sum()
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option = |name: &str| args.iter().position(|a| a == name).map(|at| args[at + 1].as_str());
    // `cargo test --benches` passes nothing.
    let Some(device) = option("--device") else { return Ok(()) };
    let number = |name: &str, default: usize| option(name).map_or(default, |v| v.parse().expect("a number"));
    let (scale, tokens) = (number("--scale", 1), number("--tokens", 4096) / number("--scale", 1));
    let backend = backend::open(&device.parse()?, Simd::best())?;
    println!("Device: {}; sizes divided by {scale}, {tokens} tokens", backend.name());
    let mut operations = operations();
    for round in 0..number("--rounds", 2) {
        let times = layer(&*backend, scale, tokens)?;
        for (operation, time) in operations.iter_mut().zip(times) {
            operation.time = if round == 0 { time } else { operation.time.min(time) };
        }
    }
    println!(
        "{:<30} {:>10} {:>10} {:>9} {:>10} {:>10}",
        "one layer", "seconds", "at best", "TFLOP/s", "8B", "70B"
    );
    for Operation { name, time, operations, bytes } in &operations {
        let seconds = time.as_secs_f64();
        if scale != 1 {
            println!("{name:<30} {seconds:>10.4}");
            continue;
        }
        let [of_layer, _] = &MODELS;
        let work = operations(of_layer, tokens);
        let best = (work / FLOPS).max(bytes(of_layer, tokens) / BYTES);
        // Products decide; where there are none, weights do.
        let cost = |model: &Model| operations(model, tokens).max(bytes(model, tokens));
        let [small, large] = MODELS.each_ref().map(|m| seconds * cost(m) / cost(of_layer) * m.layers as f64);
        let rate = work / seconds / 1e12;
        println!("{name:<30} {seconds:>10.4} {best:>10.4} {rate:>9.2} {small:>10.1} {large:>10.1}");
    }
    for model in &MODELS {
        println!(
            "{}: {} layers, extrapolated from one of 8B by operations, or bytes where there are none",
            model.name, model.layers
        );
    }
    Ok(())
}

fn operations() -> [Operation; 7] {
    let of = |name, operations, bytes| Operation { name, time: Duration::ZERO, operations, bytes };
    [
        of(
            "Gram matrices",
            |m, tokens| sum(m, |n, _| tokens as f64 * n * n),
            |m, tokens| sum(m, |n, _| 4.0 * n * (tokens as f64 + n)),
        ),
        of("Cholesky factor (CPU)", |m, _| sum(m, |n, _| n * n * n / 3.0), |m, _| sum(m, |n, _| 8.0 * n * n)),
        // The solver's products, three sweeps of the descent, two losses.
        of(
            "GPTQ, 4 bits, groups of 128",
            |m, _| sum(m, |n, r| 11.0 * r * n * n),
            |m, _| sum(m, |n, r| 8.0 * r * n),
        ),
        // Products with all errors, and 123 ranges of each group, three times.
        of(
            "AWQ ranges, groups of 128",
            |m, _| sum(m, |n, r| 10.0 * r * n * n + 3.0 * 123.0 * 2.0 * 128.0 * r * n),
            |m, _| sum(m, |n, r| 8.0 * r * n),
        ),
        of(
            "AWQ factors, 30 candidates",
            |m, _| sum(m, |n, _| 2.0 * (CANDIDATES * SAMPLED) as f64 * 128.0 * n),
            |m, _| sum(m, |n, _| 4.0 * SAMPLED as f64 * n),
        ),
        of("Q4_K", |_, _| 0.0, |m, _| sum(m, |n, r| 4.6 * r * n)),
        of(
            "Activations: products",
            |m, tokens| sum(m, |n, r| 2.0 * tokens as f64 * n * r),
            |m, tokens| sum(m, |n, r| 4.0 * (tokens as f64 * (n + r) + n * r)),
        ),
    ]
}

/// The times of all operations on one layer.
fn layer(backend: &dyn Backend, scale: usize, tokens: usize) -> Result<[Duration; 7]> {
    let grid = Grid { bits: 4, group_size: 128, symmetric: true };
    let mut times = [Duration::ZERO; 7];
    for (inputs, rows) in MODELS[0].shapes.map(|(n, r)| ((n / scale).next_multiple_of(128), r / scale)) {
        let x = noise(7, tokens * inputs);
        let weights = noise(3, rows * inputs);
        let gram = timed(&mut times[0], || {
            let mut sum = backend.gram(inputs)?;
            sum.add(&x)?;
            sum.finish()
        })?;
        let (searched, factored) = (gram.clone(), gram.clone());
        let problem = timed(&mut times[1], || Ok(Problem::new(factored, &Settings::new(grid), true)))?;
        timed(&mut times[2], || backend.solver(std::slice::from_ref(&problem))?.gptq(&[&weights]))?;
        let asymmetric = Grid { symmetric: false, ..grid };
        let problem = Problem::new(searched, &Settings::new(asymmetric), false);
        timed(&mut times[3], || backend.solver(std::slice::from_ref(&problem))?.awq(&[&weights]))?;
        let sample = &weights[..rows.min(SAMPLED) * inputs];
        try_factors(backend, &gram, sample, asymmetric, &mut times[4])?;
        let ty = GgmlType::Q4_K;
        let columns = inputs / ty.block_len() * ty.block_len();
        if columns == inputs {
            let mut out = vec![0; weights.len() / ty.block_len() * ty.block_bytes()];
            let rows = BlockRows { ty, weights: &weights, columns, importance: None };
            timed(&mut times[5], || backend.encode_blocks(rows, &mut out))?;
        }
        if let Some(device) = backend.accelerator() {
            let (x, weights) = (device.upload(&x, inputs)?, device.upload(&weights, inputs)?);
            // Whoever asks for the rows that are finite waits for the product.
            timed(&mut times[6], || device.finite_rows(&device.linear(&x, &weights, None)?))?;
        }
    }
    Ok(times)
}

fn try_factors(
    backend: &dyn Backend,
    gram: &Gram,
    weights: &[f32],
    grid: Grid,
    time: &mut Duration,
) -> Result<()> {
    let factors: Vec<Vec<f32>> = (0..CANDIDATES)
        .map(|c| noise(c as u32, gram.size()).iter().map(|v| 1.0 + v * c as f32 / 30.0).collect())
        .collect();
    let trial = Trial { consumer: Consumer { gram, weights }, factors: &factors, grid };
    timed(time, || backend.awq_losses(&trial)).map(|_| ())
}

fn timed<T>(total: &mut Duration, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let result = work()?;
    *total += started.elapsed();
    Ok(result)
}

/// Numbers from -0.5 to 0.5.
fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / 16777216.0 - 0.5
    };
    std::iter::repeat_with(next).take(n).collect()
}
