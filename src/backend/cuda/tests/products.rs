//! Products of matrices, and Gram matrices.

use super::gpu;
use crate::backend::Backend;
use crate::backend::cuda::kernels::Factor;
use crate::matmul::{View, multiply};
use crate::noise::noise;
use crate::quant::gram::Gram;

#[test]
fn products_are_those_of_the_cpu_to_the_bit() {
    let Some((gpu, _one)) = gpu() else { return };
    let value = |i: usize| ((i * 7919 + i * i * 31) % 1009) as f32 / 500.0 - 1.0;
    for [m, k, n] in [[16, 1, 1], [64, 64, 64], [17, 515, 128], [96, 30, 65], [70, 512, 3], [1, 1100, 40]] {
        // Factors are parts of larger matrices.
        let (a_stride, b_stride) = (k + 3, n + 5);
        let a: Vec<f32> = (0..(m + 2) * a_stride).map(value).collect();
        let mut b: Vec<f32> = (0..(k + 1) * b_stride).map(|i| value(i + 5)).collect();
        if n == 65 {
            // What is not a number, or none that is there.
            (b[3], b[70], b[200]) = (f32::NAN, f32::INFINITY, 1e-45);
        }
        let mut expected = vec![0.0; m * n];
        let left = View::block(&a, a_stride, 2..m + 2, 1..k + 1);
        multiply(&mut expected, n, 0.0, 1.0, left, View::block(&b, b_stride, 1..k + 1, 4..n + 4));
        let [a, b] = [&a, &b].map(|v| gpu.stream.clone_htod(v).unwrap());
        let left = Factor { values: &a, stride: a_stride, rows: 2..m + 2, columns: 1..k + 1 };
        let right = Factor { values: &b, stride: b_stride, rows: 1..k + 1, columns: 4..n + 4 };
        let found = gpu.kernels.product(&gpu.stream, &left, &right).unwrap();
        let found = gpu.stream.clone_dtoh(&found).unwrap();
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(found.len() == m * n && found.iter().zip(&expected).all(same), "{m} x {k} x {n}");
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
