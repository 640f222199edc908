//! Each operation gives on a GPU, or on the GPU twin, the bits that it gives in memory; whole layers are compared in
//! `tests/it/cuda_decoder.rs`. Without either the tests say so and pass, unless REQUIRE_GPU is set.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::activations::Activations;
use super::feed_forward::Gate;
use super::linear::Linear;
use super::norm::Norm;
use super::product::of_each;
use super::softmax::CausalSoftmax;
use crate::arch::spec::Activation;
use crate::backend::{Accelerator, Angles, Attention, Backend, Cuda, ExpertRows};
use crate::noise::noise;

fn gpu() -> Option<Arc<dyn Accelerator>> {
    if !Cuda::is_there() && std::env::var_os("REQUIRE_GPU").is_none() {
        return None;
    }
    Cuda::open(0).expect("there is a GPU that can be used").accelerator()
}

/// Numbers of all sizes, zeros of both signs, and what is none.
fn odd(n: usize) -> Vec<f32> {
    let special =
        [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 1e-45, -1e-40, 88.5];
    let size = |i: usize| 10f32.powi((i % 9) as i32 - 4);
    let value = |(i, v): (usize, f32)| if i % 7 == 3 { special[i / 7 % special.len()] } else { v * size(i) };
    noise(5, n).into_iter().enumerate().map(value).collect()
}

#[track_caller]
fn assert_same(of_gpu: &[f32], of_cpu: &[f32], what: &str) {
    assert_eq!(of_gpu.len(), of_cpu.len(), "{what}");
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    let at = of_gpu.iter().zip(of_cpu).position(|pair| !same(pair));
    assert_eq!(at.map(|at| (at, of_gpu[at], of_cpu[at])), None, "{what}");
}

fn tensor(values: &[f32], columns: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / columns, columns), &Device::Cpu).unwrap()
}

fn all(x: &Activations) -> Vec<f32> {
    x.tensor().unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn norms_are_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for (rows, width) in [(1, 1), (3, 15), (9, 16), (5, 17), (17, 100)] {
        for (x, what) in [(noise(3, rows * width), "noise"), (odd(rows * width), "odd values")] {
            let weight = Tensor::from_vec(noise(11, width), width, &Device::Cpu).unwrap();
            let of_cpu = Norm::new(weight.clone(), 1e-6);
            let mut of_gpu = Norm::new(weight, 1e-6);
            of_gpu.move_to(&gpu).unwrap();
            let x = Activations::Memory(tensor(&x, width));
            let there = x.clone().moved_to(Some(&gpu)).unwrap();
            let [of_gpu, of_cpu] = [of_gpu.forward(&there), of_cpu.forward(&x)].map(|y| all(&y.unwrap()));
            assert_same(&of_gpu, &of_cpu, &format!("{rows} rows of {width}, {what}"));
        }
    }
}

#[test]
fn gates_and_sums_are_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let (mut gate, up) = (odd(1200), noise(7, 1200));
    gate.iter_mut().skip(600).enumerate().for_each(|(i, v)| *v = (i as f32 - 300.0) / 3.0);
    let [on_gpu, up_on_gpu] = [&gate, &up].map(|v| gpu.upload(v, 40).unwrap());
    let (gate, up) = (tensor(&gate, 40), tensor(&up, 40));
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let of_cpu = Activations::Memory(gate.apply_op2_no_bwd(&up, &Gate(activation)).unwrap());
        let of_gpu = gpu.gate(activation, &on_gpu, &up_on_gpu).unwrap();
        assert_same(&gpu.fetch(&of_gpu).unwrap(), &all(&of_cpu), &format!("{activation:?}"));
    }
    let sum = Activations::Memory((gate + up).unwrap());
    assert_same(&gpu.fetch(&gpu.add(&on_gpu, &up_on_gpu).unwrap()).unwrap(), &all(&sum), "sum");
}

#[test]
fn matrices_with_and_without_bias_are_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for (rows, inner, outer) in [(1, 3, 300), (1, 600, 5), (65, 513, 66), (70, 1030, 3), (2, 64, 64)] {
        for bias in [false, true] {
            let bias = bias.then(|| Tensor::from_vec(noise(13, outer), outer, &Device::Cpu).unwrap());
            let linear =
                || Linear::new(tensor(&noise(3, outer * inner), inner), bias.clone(), false).unwrap();
            let (of_cpu, mut of_gpu) = (linear(), linear());
            of_gpu.move_to(&gpu).unwrap();
            let x = Activations::Memory(tensor(&noise(5, rows * inner), inner));
            let there = x.clone().moved_to(Some(&gpu)).unwrap();
            let [of_gpu, of_cpu] = [of_gpu.forward(&there), of_cpu.forward(&x)].map(|y| all(&y.unwrap()));
            assert_same(&of_gpu, &of_cpu, &format!("{rows} x {inner} x {outer}"));
        }
    }
}

/// Attention in memory, from the same pieces as the layer's.
fn attend(attention: &Attention, [query, key, value]: [&[f32]; 3]) -> Vec<f32> {
    let Attention { sequence, heads, kv_heads, head_dim, scale, soft_cap, window } = *attention;
    let part = |x: &[f32], heads: usize| {
        let x = Tensor::from_slice(x, (sequence, heads, head_dim), &Device::Cpu).unwrap();
        x.transpose(0, 1).unwrap().contiguous().unwrap()
    };
    let rows = heads / kv_heads * sequence;
    let query = part(query, heads).reshape((kv_heads, rows, head_dim)).unwrap();
    let scores = of_each(&query, &part(key, kv_heads), true).unwrap();
    let scores = scores.reshape((heads, sequence, sequence)).unwrap();
    scores.inplace_op1(&CausalSoftmax { scale, soft_cap, window }).unwrap();
    let scores = scores.reshape((kv_heads, rows, sequence)).unwrap();
    let mixed = of_each(&scores, &part(value, kv_heads), false).unwrap();
    let mixed = mixed.reshape((heads, sequence, head_dim)).unwrap().transpose(0, 1).unwrap();
    mixed.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn attention_is_that_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for (sequence, heads, kv_heads, head_dim, soft_cap, window) in [
        (1, 2, 1, 4, None, None),
        (16, 4, 2, 8, None, Some(5)),
        (33, 3, 3, 5, Some(2.0), None),
        (70, 4, 1, 6, Some(30.0), Some(17)),
        (20, 2, 2, 8, None, Some(100)),
    ] {
        let attention = Attention { sequence, heads, kv_heads, head_dim, scale: 1.7, soft_cap, window };
        // Two sequences, of which the second has values that are no numbers.
        let [query, key, mut value] =
            [(3, heads), (5, kv_heads), (7, kv_heads)].map(|(s, h)| noise(s, 2 * sequence * h * head_dim));
        let last = value.len() - 1;
        (value[last], value[last - 2]) = (f32::NAN, f32::INFINITY);
        let columns = [heads, kv_heads, kv_heads].map(|h| h * head_dim);
        let all = [&query, &key, &value];
        let [q, k, v] = [0, 1, 2].map(|i| gpu.upload(all[i], columns[i]).unwrap());
        let of_gpu = gpu.fetch(&gpu.attend(&attention, &q, &k, &v).unwrap()).unwrap();
        let of_cpu: Vec<f32> = (0..2)
            .flat_map(|at| {
                let part = |i: usize| &all[i][at * sequence * columns[i]..][..sequence * columns[i]];
                attend(&attention, [part(0), part(1), part(2)])
            })
            .collect();
        assert_same(&of_gpu, &of_cpu, &format!("{attention:?}"));
    }
}

#[test]
fn rotations_go_round_and_leave_the_rest_of_a_head() {
    let Some(gpu) = gpu() else { return };
    // Two sequences of three tokens, two heads of seven values, of which four are rotated.
    let (x, cos, sin) = (noise(3, 6 * 14), noise(5, 6), noise(7, 6));
    let angles = Angles { half: 2, cos: &cos, sin: &sin };
    let found = gpu.rotate(&gpu.upload(&x, 14).unwrap(), 7, angles).unwrap();
    let mut expected = x.clone();
    for (token, row) in expected.chunks_exact_mut(14).enumerate() {
        for head in row.chunks_exact_mut(7) {
            for i in 0..2 {
                let (a, b, at) = (head[i], head[i + 2], token % 3 * 2 + i);
                head[i] = a * cos[at] - b * sin[at];
                head[i + 2] = b * cos[at] + a * sin[at];
            }
        }
    }
    assert_same(&gpu.fetch(&found).unwrap(), &expected, "rotation");
}

#[test]
fn rows_are_selected_combined_and_looked_at() {
    let Some(gpu) = gpu() else { return };
    let x = noise(3, 10 * 17);
    let on_gpu = gpu.upload(&x, 17).unwrap();
    let rows = [7, 0, 9, 9];
    let selected = gpu.fetch(&gpu.select(&on_gpu, &rows).unwrap()).unwrap();
    let expected: Vec<f32> = rows.iter().flat_map(|r| &x[*r as usize * 17..][..17]).copied().collect();
    assert_same(&selected, &expected, "selected rows");

    let parts = [vec![(2, 0.25), (0, 0.5), (1, 1.5)], vec![(1, -0.75), (3, 0.1)]];
    let values = [noise(5, 3 * 17), noise(7, 2 * 17)];
    let there: Vec<_> = values.iter().map(|v| gpu.upload(v, 17).unwrap()).collect();
    let experts: Vec<_> =
        there.iter().zip(&parts).map(|(values, routed)| ExpertRows { values, routed }).collect();
    let mut expected = vec![0.0; 5 * 17];
    for (values, routed) in values.iter().zip(&parts) {
        for ((row, weight), values) in routed.iter().zip(values.chunks_exact(17)) {
            let sum = &mut expected[*row as usize * 17..][..17];
            sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += v * weight);
        }
    }
    assert_same(&gpu.fetch(&gpu.combine(5, 17, &experts).unwrap()).unwrap(), &expected, "combined rows");

    for (columns, at) in [(17, 3), (1, 0), (64, 63)] {
        let mut x = noise(3, 21 * columns);
        (x[4 * columns + at], x[20 * columns], x[columns]) = (f32::NAN, f32::NEG_INFINITY, f32::MAX);
        let finite = gpu.finite_rows(&gpu.upload(&x, columns).unwrap()).unwrap();
        let expected: Vec<bool> = (0..21).map(|row| row != 4 && row != 20).collect();
        assert_eq!(finite, expected, "rows of {columns}");
    }
}
