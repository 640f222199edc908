//! Tokens per second of the forward pass, logits included, as `scripts/compare-transformers.py` measures transformers.
//!
//! `cargo bench --bench forward -- MODEL [--windows 8] [--length 512] [--threads 2] [--rounds 3] [--compute f32|bf16]`

#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use llm_quantize::Result;
use llm_quantize::arch::decoder::{Compute, Hidden};
use llm_quantize::cancel::Cancel;
use llm_quantize::pipeline::memory;
use llm_quantize::pipeline::model::OpenModel;
use llm_quantize::progress::Silent;

/// Tokens of the vocabulary whose logits are computed at a time, as in an evaluation.
const HEAD_ROWS: usize = 8192;

fn main() -> Result<()> {
    memory::keep_freed();
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option = |name: &str, default: usize| {
        let at = args.iter().position(|a| a == name);
        at.map_or(default, |at| args[at + 1].parse().expect("a number"))
    };
    // `cargo test --benches` passes nothing.
    let Some(model) = args.first().filter(|a| !a.starts_with("--")) else { return Ok(()) };
    let (windows, length) = (option("--windows", 8), option("--length", 512));
    let (threads, rounds) = (option("--threads", 2), option("--rounds", 3));
    let bf16 = args.windows(2).any(|pair| pair == ["--compute", "bf16"]);
    let compute = if bf16 { Compute::Bf16 } else { Compute::F32 };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
    let open = OpenModel::open(model, &[], &Cancel::new(), &Silent)?;
    let vocab = open.model.hyper.vocab;
    let tokens: Vec<Vec<u32>> = (0..windows)
        .map(|w| (0..length).map(|i| ((w * 7919 + i * 104_729) % vocab) as u32).collect())
        .collect();
    pool.install(|| {
        let mut best = Duration::MAX;
        for _ in 0..rounds {
            let cpu = cpu_seconds();
            let (took, layers) = pass(&open, &tokens, compute)?;
            best = best.min(took);
            println!(
                "{:.0} tokens/s, {:.2} s, layers {:.2} s, processor {:.2} s",
                (windows * length) as f64 / took.as_secs_f64(),
                took.as_secs_f64(),
                layers.as_secs_f64(),
                cpu_seconds() - cpu
            );
        }
        println!(
            "best {:.0} tokens/s with {threads} threads",
            (windows * length) as f64 / best.as_secs_f64()
        );
        Ok(())
    })
}

/// One pass over all windows: the time it took, and that of the layers alone.
fn pass(open: &OpenModel, windows: &[Vec<u32>], compute: Compute) -> Result<(Duration, Duration)> {
    let started = Instant::now();
    let decoder = open.decoder()?.compute_in(compute);
    let mut hidden = Hidden::embed(&decoder, windows)?;
    for i in 0..decoder.layers() {
        hidden.advance(&decoder.layer(i)?, &mut (), &Cancel::new())?;
    }
    let layers = started.elapsed();
    let normed =
        (0..hidden.windows()).map(|i| decoder.norm(&hidden.window(i)?)).collect::<Result<Vec<_>>>()?;
    for start in (0..decoder.vocab()).step_by(HEAD_ROWS) {
        let head = decoder.head_rows(start..(start + HEAD_ROWS).min(decoder.vocab()))?;
        for normed in &normed {
            std::hint::black_box(head.forward(normed)?);
        }
    }
    Ok((started.elapsed(), layers))
}

/// Processor time of all threads so far.
fn cpu_seconds() -> f64 {
    // SAFETY: the call fills the structure it is given.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
