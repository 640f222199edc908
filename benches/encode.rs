//! Throughput of every encoder on one thread, in weights per second, for each instruction set of the machine.
//!
//! `cargo bench --bench encode -- Q4_K` runs those of one type.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use llm_quantize::format::gguf::GgmlType;
use llm_quantize::format::gguf::blocks::{Simd, bf16_to_f32, encode};

const COLUMNS: usize = 4096;
const ROWS: usize = 64;

/// Sums of twelve evenly spread numbers, about normally distributed as weights of a model are.
fn normal(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 16_777_216.0
    };
    (0..n).map(|_| ((0..12).map(|_| next()).sum::<f32>() - 6.0) * 0.02).collect()
}

fn encoders(c: &mut Criterion) {
    let src = normal(COLUMNS * ROWS);
    let importance: Vec<f32> = normal(COLUMNS).iter().map(|v| v * v).collect();
    for ty in GgmlType::all().filter(|ty| ty.is_writable()) {
        let mut group = c.benchmark_group(ty.name());
        group.throughput(Throughput::Elements(src.len() as u64)).sample_size(20);
        let mut dst = vec![0; src.len() / ty.block_len() * ty.block_bytes()];
        for simd in Simd::available() {
            for (name, weights) in [("plain", None), ("importance", Some(&importance[..]))] {
                group.bench_function(BenchmarkId::new(name, simd.name()), |b| {
                    b.iter(|| encode(ty, &src, COLUMNS, weights, &mut dst, simd));
                });
            }
        }
        group.finish();
    }
}

fn sources(c: &mut Criterion) {
    let bytes = vec![0x3f; 2 * COLUMNS * ROWS];
    let mut dst = vec![0.0; COLUMNS * ROWS];
    let mut group = c.benchmark_group("bf16_to_f32");
    group.throughput(Throughput::Elements(dst.len() as u64)).sample_size(20);
    for simd in Simd::available() {
        group.bench_function(simd.name(), |b| b.iter(|| bf16_to_f32(&bytes, &mut dst, simd)));
    }
    group.finish();
}

criterion_group!(benches, encoders, sources);
criterion_main!(benches);
