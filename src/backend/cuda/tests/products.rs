//! Products of matrices, and Gram matrices.

use super::gpu;
use crate::backend::Backend;
use crate::backend::cuda::kernels::Matrices;
use crate::matmul::{View, multiply};
use crate::noise::noise;
use crate::quant::gram::Gram;

#[test]
fn products_are_those_of_the_cpu_to_the_bit() {
    let Some((gpu, _one)) = gpu() else { return };
    let value = |i: usize| ((i * 7919 + i * i * 31) % 1009) as f32 / 500.0 - 1.0;
    for [m, k, n] in [[16, 1, 1], [64, 64, 64], [17, 515, 128], [96, 30, 65], [70, 512, 3], [1, 1100, 40]] {
        for count in [1, 3] {
            // Factors are parts of larger matrices, which lie one after the other.
            let (a_stride, b_stride) = (k + 3, n + 5);
            let (a_step, b_step) = ((m + 2) * a_stride, (k + 1) * b_stride);
            let a: Vec<f32> = (0..count * a_step).map(value).collect();
            let mut b: Vec<f32> = (0..count * b_step).map(|i| value(i + 5)).collect();
            if n == 65 {
                // What is not a number, or none that is there.
                (b[3], b[70], b[200]) = (f32::NAN, f32::INFINITY, 1e-45);
            }
            let mut expected = vec![0.0; count * m * n];
            for (z, out) in expected.chunks_exact_mut(m * n).enumerate() {
                let left = View::block(&a[z * a_step..][..a_step], a_stride, 2..m + 2, 1..k + 1);
                let right = View::block(&b[z * b_step..][..b_step], b_stride, 1..k + 1, 4..n + 4);
                multiply(out, n, 0.0, 1.0, left, right);
            }
            let [a, b] = [&a, &b].map(|v| gpu.stream.clone_htod(v).unwrap());
            let left = Matrices { values: &a, start: 2 * a_stride + 1, step: a_step, stride: a_stride };
            let right = Matrices { values: &b, start: b_stride + 4, step: b_step, stride: b_stride };
            let found = gpu.kernels.few_columns(&gpu.stream, (count, [m, n, k]), left, right).unwrap();
            let found = gpu.stream.clone_dtoh(&found).unwrap();
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            let is_same = found.len() == expected.len() && found.iter().zip(&expected).all(same);
            assert!(is_same, "{count} times {m} x {k} x {n}");
        }
    }
}

#[test]
fn gram_matrices_are_those_of_the_cpu_to_the_bit() {
    let Some((gpu, _one)) = gpu() else { return };
    for (tokens, size) in [(1, 1), (2, 70), (600, 65), (70, 200), (1025, 16)] {
        let mut x = noise(3, tokens * size);
        x[0] = 1e-30;
        let mut of_cpu = Gram::new(size);
        let mut of_gpu = gpu.gram(size).unwrap();
        // In two calls, of which the first ends within a chunk.
        let (first, second) = x.split_at(tokens / 3 * size);
        for x in [first, second] {
            of_cpu.add(x);
            of_gpu.add(x).unwrap();
        }
        let of_gpu = of_gpu.finish().unwrap();
        assert_eq!((of_gpu.tokens(), of_gpu.size()), (tokens, size));
        let bits = |gram: Gram| gram.into_symmetric().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert!(bits(of_gpu) == bits(of_cpu), "{tokens} inputs of {size} channels");
    }
}
