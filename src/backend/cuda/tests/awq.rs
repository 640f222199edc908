//! AWQ.

use super::gptq::{gram, grid};
use super::gpu;
use crate::backend::Backend;
use crate::format::gguf::blocks::Simd;
use crate::noise::noise;
use crate::quant::Grid;
use crate::quant::awq::clip;
use crate::quant::awq::scales::{Consumer, Trial};
use crate::quant::gptq::{Problem, Settings};
use crate::quant::gram::Gram;

#[track_caller]
fn assert_same(problem: &Problem, weights: &[f32], what: &str) {
    let Some((gpu, _one)) = gpu() else { return };
    let (of_cpu, loss_of_cpu) = clip::quantize(problem, weights, Simd::best());
    let (of_gpu, loss_of_gpu) =
        gpu.solver(std::slice::from_ref(problem)).unwrap().awq(&[weights]).unwrap().remove(0);
    let at = of_cpu.codes().iter().zip(of_gpu.codes()).position(|(a, b)| a != b);
    assert_eq!(at, None, "first code that differs: {what}");
    assert!(of_cpu == of_gpu, "scales or zero points: {what}");
    assert_eq!(loss_of_cpu, loss_of_gpu, "{what}");
}

#[test]
fn ranges_are_those_of_the_cpu() {
    for (bits, group_size, symmetric, rows, size) in [
        (4, 32, false, 17, 72),
        (4, 64, false, 5, 128),
        (3, 48, false, 3, 100),
        (4, Grid::WHOLE_ROW, false, 2, 37),
    ] {
        let settings = Settings::new(grid(bits, group_size, symmetric));
        let problem = Problem::new(gram(300, size), &settings, false);
        let what = format!("{bits} bits, groups of {group_size}, symmetric {symmetric}");
        assert_same(&problem, &noise(3, rows * size), &what);
    }
}

#[test]
fn ranges_of_odd_weights_are_those_of_the_cpu() {
    let size = 64;
    let mut weights = noise(3, 5 * size);
    weights[..size].fill(0.0);
    weights[size..2 * size].fill(0.25);
    weights[2 * size..3 * size].iter_mut().for_each(|w| *w *= 1e-40);
    weights[3 * size..4 * size].iter_mut().for_each(|w| *w *= 1e30);
    let settings = Settings::new(grid(4, 32, false));
    assert_same(&Problem::new(gram(200, size), &settings, false), &weights, "odd weights");
    // What goes in is always zero.
    let mut zeros = Gram::new(size);
    zeros.add(&vec![0.0; 10 * size]);
    assert_same(&Problem::new(zeros, &settings, false), &weights[4 * size..], "no inputs");
}

#[test]
fn losses_of_factors_are_those_of_the_cpu() {
    let Some((gpu, _one)) = gpu() else { return };
    for (group_size, rows, size) in [(32, 21, 80), (64, 4, 128), (Grid::WHOLE_ROW, 1, 30), (128, 16, 128)] {
        let (gram, mut weights) = (gram(300, size), noise(5, rows * size));
        weights[..size.min(40)].fill(0.0);
        // More than are tried together, and not a multiple of them.
        let factors: Vec<Vec<f32>> =
            (0..6).map(|c| noise(11 + c, size).iter().map(|v| 1.0 + v * c as f32 / 4.0).collect()).collect();
        let consumer = Consumer { gram: &gram, weights: &weights };
        let trial = Trial { consumer, factors: &factors, grid: grid(4, group_size, false) };
        let bits = |losses: Vec<f64>| losses.into_iter().map(f64::to_bits).collect::<Vec<_>>();
        let (of_cpu, of_gpu) = (bits(trial.losses(Simd::best())), bits(gpu.awq_losses(&trial).unwrap()));
        assert!(of_cpu.len() == 6 * size.div_ceil(group_size) && of_cpu == of_gpu, "{rows} x {size}");
    }
}
