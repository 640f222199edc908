//! Tokens per second of the forward pass, logits included, as `scripts/compare-transformers.py` measures transformers.
//!
//! `cargo bench --bench forward -- MODEL [--windows 8] [--length 512] [--threads 2] [--rounds 3]`

use std::time::{Duration, Instant};

use llm_quantize::arch::decoder::Hidden;
use llm_quantize::cancel::Cancel;
use llm_quantize::pipeline::model::OpenModel;
use llm_quantize::progress::Silent;

fn main() -> llm_quantize::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option = |name: &str, default: usize| {
        let at = args.iter().position(|a| a == name);
        at.map_or(default, |at| args[at + 1].parse().expect("a number"))
    };
    // `cargo test --benches` passes nothing.
    let Some(model) = args.first().filter(|a| !a.starts_with("--")) else { return Ok(()) };
    let (windows, length) = (option("--windows", 8), option("--length", 512));
    let (threads, rounds) = (option("--threads", 2), option("--rounds", 3));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
    let open = OpenModel::open(model, &[], &Cancel::new(), &Silent)?;
    let vocab = open.model.hyper.vocab;
    let tokens: Vec<Vec<u32>> =
        (0..windows).map(|w| (0..length).map(|i| ((w * 7919 + i * 104_729) % vocab) as u32).collect()).collect();
    pool.install(|| {
        let mut best = Duration::MAX;
        for _ in 0..rounds {
            let cpu = cpu_seconds();
            let (took, layers) = pass(&open, &tokens)?;
            best = best.min(took);
            println!(
                "{:.0} tokens/s, {:.2} s, layers {:.2} s, processor {:.2} s",
                (windows * length) as f64 / took.as_secs_f64(),
                took.as_secs_f64(),
                layers.as_secs_f64(),
                cpu_seconds() - cpu
            );
        }
        println!("best {:.0} tokens/s with {threads} threads", (windows * length) as f64 / best.as_secs_f64());
        Ok(())
    })
}

/// One pass over all windows: the time it took, and that of the layers alone.
fn pass(open: &OpenModel, windows: &[Vec<u32>]) -> llm_quantize::Result<(Duration, Duration)> {
    let started = Instant::now();
    let decoder = open.decoder()?;
    let mut hidden = Hidden::embed(&decoder, windows)?;
    for i in 0..decoder.layers() {
        hidden.advance(&decoder.layer(i)?, &mut (), &Cancel::new())?;
    }
    let layers = started.elapsed();
    for i in 0..hidden.windows() {
        std::hint::black_box(decoder.head(&hidden.window(i)?)?);
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
