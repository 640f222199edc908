//! GPTQ.

use super::gpu;
use crate::backend::Backend;
use crate::format::gguf::blocks::Simd;
use crate::noise::noise;
use crate::quant::Grid;
use crate::quant::awq::clip;
use crate::quant::gptq::{Method, Ordering, Problem, Settings};
use crate::quant::gram::Gram;

/// That of inputs whose neighbouring channels are correlated, some of them much larger than others.
pub(super) fn gram(tokens: usize, size: usize) -> Gram {
    let mut x = noise(7, tokens * size);
    for row in x.chunks_exact_mut(size) {
        (1..size).for_each(|i| row[i] += 0.8 * row[i - 1]);
        row.iter_mut().enumerate().for_each(|(i, v)| *v *= 1.0 + (i % 17) as f32 / 4.0);
    }
    let mut gram = Gram::new(size);
    gram.add(&x);
    gram
}

pub(super) fn grid(bits: u32, group_size: usize, symmetric: bool) -> Grid {
    Grid { bits, group_size, symmetric }
}

/// Quantizes on both, and returns the method.
#[track_caller]
fn assert_same(problem: &Problem, weights: &[f32], what: &str) -> Option<Method> {
    let (gpu, _one) = gpu()?;
    let (of_cpu, loss_of_cpu) = problem.quantize(weights, Simd::best());
    let (of_gpu, loss_of_gpu) =
        gpu.solver(std::slice::from_ref(problem)).unwrap().gptq(&[weights]).unwrap().remove(0);
    let at = of_cpu.codes().iter().zip(of_gpu.codes()).position(|(a, b)| a != b);
    assert_eq!(
        at.map(|at| [at / of_cpu.in_features(), at % of_cpu.in_features()]),
        None,
        "first code that differs: {what}"
    );
    assert!(of_cpu == of_gpu, "scales or zero points: {what}");
    let bits = |loss: crate::quant::gptq::Loss| [loss.error.to_bits(), loss.energy.to_bits()];
    assert_eq!(bits(loss_of_cpu), bits(loss_of_gpu), "{loss_of_cpu:?} and {loss_of_gpu:?}: {what}");
    Some(problem.method())
}

#[test]
fn every_grid_has_the_codes_of_the_cpu() {
    let size = 136;
    for (bits, group_size, symmetric) in [
        (2, 32, true),
        (2, 64, false),
        (3, 32, false),
        (3, Grid::WHOLE_ROW, true),
        (4, 32, false),
        (4, 96, true),
        (4, 128, true),
        (4, Grid::WHOLE_ROW, false),
        (8, 64, true),
        (8, 128, false),
    ] {
        let settings = Settings { sweeps: 2, ..Settings::new(grid(bits, group_size, symmetric)) };
        let problem = Problem::new(gram(300, size), &settings, true);
        let what = format!("{bits} bits, groups of {group_size}, symmetric {symmetric}");
        let Some(method) = assert_same(&problem, &noise(3, 17 * size), &what) else { return };
        assert!(matches!(method, Method::Propagated { .. }));
    }
}

#[test]
fn groups_longer_than_a_block_have_the_codes_of_the_cpu() {
    let size = 300;
    let settings = Settings { sweeps: 1, ..Settings::new(grid(4, 256, false)) };
    assert_same(&Problem::new(gram(500, size), &settings, true), &noise(5, 4 * size), "groups of 256");
}

#[test]
fn the_order_and_the_lowest_zero_point_are_those_of_the_cpu() {
    let size = 136;
    // Positive weights want a zero point of 0.
    let weights: Vec<f32> = noise(37, 5 * size).iter().map(|w| w + 0.6).collect();
    for ordering in [Ordering::Descending, Ordering::GroupAware] {
        let settings = Settings { ordering, lowest_zero: 1, sweeps: 1, ..Settings::new(grid(4, 32, false)) };
        assert_same(&Problem::new(gram(300, size), &settings, true), &weights, &format!("{ordering:?}"));
    }
}

#[test]
fn any_shape_has_the_codes_of_the_cpu() {
    for (rows, size) in [(1, 1), (1, 7), (33, 8), (16, 33), (2, 129)] {
        let settings = Settings { sweeps: 1, ..Settings::new(grid(4, 32, true)) };
        assert_same(
            &Problem::new(gram(200, size), &settings, true),
            &noise(3, rows * size),
            &format!("{rows} x {size}"),
        );
    }
}

#[test]
fn odd_weights_have_the_codes_of_the_cpu() {
    let size = 64;
    let mut weights = noise(3, 6 * size);
    weights[..size].fill(0.0);
    weights[size..2 * size].fill(-0.0);
    weights[2 * size..3 * size].fill(0.25);
    weights[3 * size..4 * size].iter_mut().for_each(|w| *w *= 1e-40);
    weights[4 * size..5 * size].iter_mut().for_each(|w| *w *= 1e30);
    for symmetric in [true, false] {
        let settings = Settings::new(grid(4, 32, symmetric));
        let problem = Problem::new(gram(200, size), &settings, true);
        assert_same(&problem, &weights, &format!("symmetric {symmetric}"));
    }
}

/// Inputs of zeros, of which one is not a number, and of which one channel is always 0; and those that are not to be used.
#[test]
fn odd_hessians_have_the_codes_of_the_cpu() {
    let size = 64;
    let of = |change: &dyn Fn(usize) -> f32| {
        let x: Vec<f32> = noise(7, 100 * size).iter().enumerate().map(|(i, v)| v * change(i)).collect();
        let mut gram = Gram::new(size);
        gram.add(&x);
        gram
    };
    let infinite = of(&|i| if i == 70 { f32::INFINITY } else { 1.0 });
    let dead = of(&|i| f32::from(u8::from(i % size != 40)));
    for (gram, propagate, searched) in [
        (of(&|_| 0.0), true, true),
        (infinite, true, true),
        (dead, true, false),
        (gram(2, size), true, false),
        (gram(100, size), false, true),
    ] {
        for symmetric in [true, false] {
            let settings = Settings { sweeps: 1, ..Settings::new(grid(4, 32, symmetric)) };
            let problem = Problem::new(gram.clone(), &settings, propagate);
            let Some(method) = assert_same(&problem, &noise(9, 20 * size), "an odd Hessian") else { return };
            assert_eq!(method == Method::Searched, searched);
        }
    }
}

/// The experts of a layer, some of them alike in numbers only, in rows that want padding.
#[test]
fn problems_that_are_solved_together_have_the_codes_of_the_cpu() {
    let Some((gpu, _one)) = gpu() else { return };
    let inputs = |seed: u32, size: usize| {
        let mut gram = Gram::new(size);
        let x = noise(seed, 200 * size);
        gram.add(
            &x.iter().enumerate().map(|(i, v)| v * (1 + (i + seed as usize) % 11) as f32).collect::<Vec<_>>(),
        );
        gram
    };
    for (size, grid, ordering) in [
        (136, grid(4, 34, true), Ordering::GroupAware),
        (160, grid(3, 32, false), Ordering::GroupAware),
        (600, grid(2, 60, true), Ordering::Descending),
        (136, grid(4, Grid::WHOLE_ROW, true), Ordering::GroupAware),
    ] {
        for propagate in [true, false] {
            let settings = Settings { ordering, sweeps: 1, ..Settings::new(grid) };
            let problems: Vec<Problem> =
                (0..3).map(|seed| Problem::new(inputs(40 + seed, size), &settings, propagate)).collect();
            let weights: Vec<Vec<f32>> = (0..3).map(|seed| noise(50 + seed, 21 * size)).collect();
            let views: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
            let solver = gpu.solver(&problems).unwrap();
            // AWQ moves zero points, which a symmetric grid has none of.
            let by_awq = (!grid.symmetric).then(|| (true, solver.awq(&views)));
            for (by_awq, found) in std::iter::once((false, solver.gptq(&views))).chain(by_awq) {
                for ((problem, weights), (linear, loss)) in problems.iter().zip(&views).zip(found.unwrap()) {
                    let of_cpu = if by_awq {
                        clip::quantize(problem, weights, Simd::best())
                    } else {
                        problem.quantize(weights, Simd::best())
                    };
                    assert!(of_cpu == (linear, loss), "{size} inputs, {grid:?}, {propagate}, AWQ {by_awq}");
                }
            }
        }
    }
}
