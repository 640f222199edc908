//! What the solver promises, also where the numbers are against it.

use super::*;
use crate::noise::noise;

/// Inputs whose neighbouring channels are correlated, some of them much larger than others.
fn inputs(tokens: usize, size: usize) -> Vec<f32> {
    let mut x = noise(7, tokens * size);
    for row in x.chunks_exact_mut(size) {
        for i in 1..size {
            row[i] += 0.8 * row[i - 1];
        }
        row.iter_mut().enumerate().for_each(|(i, v)| *v *= 1.0 + (i % 17) as f32 / 4.0);
    }
    x
}

fn gram(x: &[f32], size: usize) -> Gram {
    let mut gram = Gram::new(size);
    gram.add(x);
    gram
}

fn grid(bits: u32, group_size: usize, symmetric: bool) -> Grid {
    Grid { bits, group_size, symmetric }
}

fn run(x: &[f32], weights: &[f32], size: usize, settings: &Settings) -> (QuantizedLinear, Loss, Method) {
    let problem = Problem::new(gram(x, size), settings, true);
    let (linear, loss) = problem.quantize(weights, Simd::best());
    (linear, loss, problem.method())
}

/// The squared error of the outputs per token, as it is defined.
fn error_of(linear: &QuantizedLinear, weights: &[f32], x: &[f32]) -> f64 {
    let size = linear.in_features();
    let difference: Vec<f32> = linear.dequantize().iter().zip(weights).map(|(q, w)| w - q).collect();
    let dot = |e: &[f32], x: &[f32]| e.iter().zip(x).map(|(e, x)| f64::from(*e) * f64::from(*x)).sum::<f64>();
    let errors =
        x.chunks_exact(size).map(|x| difference.chunks_exact(size).map(|e| dot(e, x).powi(2)).sum::<f64>());
    errors.sum::<f64>() / (x.len() / size) as f64
}

#[test]
fn every_grid_is_solved_and_the_loss_is_what_it_says() {
    let (size, rows) = (160, 20);
    let (x, weights) = (inputs(400, size), noise(3, rows * size));
    for symmetric in [true, false] {
        for group_size in [32, 64, 128, 256, Grid::WHOLE_ROW] {
            let mut last = f64::INFINITY;
            for bits in [2, 3, 4, 8] {
                let settings = Settings::new(grid(bits, group_size, symmetric));
                let (linear, loss, method) = run(&x, &weights, size, &settings);
                let what = format!("{bits} bits, groups of {group_size}, symmetric {symmetric}");
                assert_eq!(linear.groups(), size.div_ceil(group_size), "{what}");
                assert_eq!(linear.g_idx(), None, "{what}");
                assert_eq!(method, Method::Propagated { damp: settings.damp }, "{what}");
                assert!(loss.relative() < 0.5 * last, "{what}: {loss:?} after {last}");
                last = loss.relative();
                let error = error_of(&linear, &weights, &x);
                assert!(
                    (loss.error - error).abs() < 1e-3 * error + 1e-9,
                    "{what}: {} is {error}",
                    loss.error
                );
            }
            assert!(last < 1e-4);
        }
    }
}

#[test]
fn each_ingredient_lowers_the_loss() {
    let (size, rows) = (256, 48);
    let (x, weights) = (inputs(1000, size), noise(5, rows * size));
    for (bits, symmetric) in [(2, true), (3, true), (4, true), (4, false)] {
        let settings = Settings::new(grid(bits, 64, symmetric));
        let searched = Problem::new(gram(&x, size), &settings, false);
        assert_eq!(searched.method(), Method::Searched);
        let (_, searched) = searched.quantize(&weights, Simd::best());
        let (_, solved, _) = run(&x, &weights, size, &Settings { sweeps: 0, ..settings });
        let (_, descended, _) = run(&x, &weights, size, &settings);
        assert!(solved.error < 0.9 * searched.error, "{bits} bits: {solved:?} after {searched:?}");
        assert!(descended.error < 0.98 * solved.error, "{bits} bits: {descended:?} after {solved:?}");
    }
}

/// Algorithm 1 of the paper in float64, with given scales: columns in order, each error spread over the columns that follow by
/// the Cholesky factor of the inverse Hessian.
fn as_published(
    hessian: &[f64],
    order: &[usize],
    linear: &QuantizedLinear,
    row: usize,
    weights: &[f32],
) -> Vec<u8> {
    let n = order.len();
    let permuted: Vec<f64> = (0..n * n).map(|at| hessian[order[at / n] * n + order[at % n]]).collect();
    let upper = inverse_factor(&permuted, n);
    let mut w: Vec<f64> = order.iter().map(|column| f64::from(weights[*column])).collect();
    let mut codes = vec![0; n];
    for i in 0..n {
        let at = row * linear.groups() + linear.group_of(order[i]);
        let (scale, zero) = (linear.scales()[at].to_f64(), f64::from(linear.zeros()[at]));
        let code = ((w[i] / scale).round_ties_even() + zero).clamp(0.0, f64::from(linear.grid().max_code()));
        codes[order[i]] = code as u8;
        let error = (w[i] - scale * (code - zero)) / upper[i * n + i];
        for j in i..n {
            w[j] -= error * upper[i * n + j];
        }
    }
    codes
}

/// Upper `u` with `u^T u = a^-1`.
fn inverse_factor(a: &[f64], n: usize) -> Vec<f64> {
    // Gauss-Jordan, then Cholesky.
    let mut left = a.to_vec();
    let mut inverse = vec![0.0; n * n];
    (0..n).for_each(|i| inverse[i * n + i] = 1.0);
    for i in 0..n {
        let pivot = left[i * n + i];
        for j in 0..n {
            left[i * n + j] /= pivot;
            inverse[i * n + j] /= pivot;
        }
        for k in (0..n).filter(|k| *k != i) {
            let factor = left[k * n + i];
            for j in 0..n {
                left[k * n + j] -= factor * left[i * n + j];
                inverse[k * n + j] -= factor * inverse[i * n + j];
            }
        }
    }
    let mut u = vec![0.0; n * n];
    for i in 0..n {
        for j in i..n {
            let sum: f64 = inverse[i * n + j] - (0..i).map(|t| u[t * n + i] * u[t * n + j]).sum::<f64>();
            u[i * n + j] = if i == j { sum.sqrt() } else { sum / u[i * n + i] };
        }
    }
    u
}

#[test]
fn the_solver_decides_as_the_published_algorithm() {
    let (size, rows) = (150, 17);
    let (x, weights) = (inputs(500, size), noise(11, rows * size));
    for (ordering, group_size) in
        [(Ordering::Descending, 64), (Ordering::GroupAware, 64), (Ordering::GroupAware, Grid::WHOLE_ROW)]
    {
        let settings = Settings { sweeps: 0, ordering, ..Settings::new(grid(3, group_size, false)) };
        let (linear, _, _) = run(&x, &weights, size, &settings);
        let mut hessian: Vec<f64> = gram(&x, size).into_symmetric().into_iter().map(f64::from).collect();
        let mean = hessian.iter().step_by(size + 1).sum::<f64>() / size as f64;
        let diagonal: Vec<f32> = hessian.iter().step_by(size + 1).map(|d| *d as f32).collect();
        let order = Order::new(&diagonal, linear.grid(), ordering).columns;
        hessian.iter_mut().step_by(size + 1).for_each(|d| *d += f64::from(settings.damp) * mean);
        let mut different = 0;
        for (row, weights) in weights.chunks_exact(size).enumerate() {
            let expected = as_published(&hessian, &order, &linear, row, weights);
            let found = &linear.codes()[row * size..][..size];
            different += usize::from(expected != found);
        }
        // A weight halfway between two codes may go either way, and all after it with it.
        assert!(different <= 1, "{ordering:?}, groups of {group_size}: {different} of {rows} rows differ");
    }
}

#[test]
fn threads_and_instruction_sets_do_not_matter() {
    let (size, rows) = (300, 210);
    let (x, weights) = (inputs(600, size), noise(13, rows * size));
    for (symmetric, group_size) in [(true, 128), (false, 32), (true, Grid::WHOLE_ROW)] {
        let settings = Settings::new(grid(3, group_size, symmetric));
        let on = |threads: usize, simd: Simd| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Problem::new(gram(&x, size), &settings, true).quantize(&weights, simd))
        };
        let first = on(1, Simd::best());
        assert!(on(2, Simd::best()) == first && on(7, Simd::best()) == first);
        for simd in Simd::available() {
            assert!(on(2, simd) == first, "{}", simd.name());
        }
    }
}

#[test]
fn a_layer_of_zeros_stays_one() {
    let size = 96;
    for (symmetric, lowest_zero) in [(true, 0), (false, 0), (false, 1)] {
        let settings = Settings { lowest_zero, ..Settings::new(grid(4, 32, symmetric)) };
        let (linear, loss, _) = run(&inputs(100, size), &vec![0.0; 5 * size], size, &settings);
        assert!(linear.dequantize().iter().all(|w| *w == 0.0));
        assert_eq!((loss.error, loss.energy, loss.relative()), (0.0, 0.0, 0.0));
    }
}

#[test]
fn a_dead_input_keeps_its_weights_and_harms_no_other() {
    let (size, rows) = (96, 20);
    let mut x = inputs(300, size);
    x.iter_mut().skip(40).step_by(size).for_each(|v| *v = 0.0);
    let weights = noise(17, rows * size);
    let (linear, loss, method) = run(&x, &weights, size, &Settings::new(grid(4, 32, true)));
    assert!(matches!(method, Method::Propagated { .. }));
    assert!(loss.relative() < 0.01, "{loss:?}");
    for (row, (found, weights)) in linear.dequantize().chunks(size).zip(weights.chunks(size)).enumerate() {
        let scale = linear.scales()[row * 3 + 1].to_f32().abs();
        assert!(
            (found[40] - weights[40]).abs() <= scale * 1.01,
            "row {row}: {} for {}",
            found[40],
            weights[40]
        );
    }
}

#[test]
fn inputs_that_say_little_are_borne() {
    let (size, rows) = (128, 10);
    let weights = noise(19, rows * size);
    let constant = vec![2.0; 50 * size];
    let one = inputs(1, size);
    for x in [&constant, &one] {
        for symmetric in [true, false] {
            let (linear, loss, method) = run(x, &weights, size, &Settings::new(grid(4, 32, symmetric)));
            assert!(matches!(method, Method::Propagated { .. }));
            // One direction of inputs alone can be met nearly exactly, and weights must still be theirs.
            assert!(loss.relative() < 1e-3, "{loss:?}");
            let error: f32 = linear.dequantize().iter().zip(&weights).map(|(q, w)| (q - w).powi(2)).sum();
            assert!(error < 0.05 * weights.iter().map(|w| w * w).sum::<f32>(), "{error}");
        }
    }
}

#[test]
fn a_hessian_beyond_repair_leaves_the_search() {
    let (size, rows) = (64, 10);
    let weights = noise(23, rows * size);
    let zeros = vec![0.0; 4 * size];
    let infinite = vec![1e25; 4 * size];
    for x in [&zeros, &infinite] {
        let (linear, loss, method) = run(x, &weights, size, &Settings::new(grid(4, 32, true)));
        assert_eq!(method, Method::Searched);
        assert_eq!(loss, Loss::default());
        let error: f32 = linear.dequantize().iter().zip(&weights).map(|(q, w)| (q - w).powi(2)).sum();
        assert!(error < 0.01 * weights.iter().map(|w| w * w).sum::<f32>(), "{error}");
    }
}

#[test]
fn more_damping_is_tried_where_none_is_too_little() {
    let size = 64;
    // One direction, computed with rounding: not positive definite without damping.
    let x: Vec<f32> =
        (0..30).flat_map(|t| noise(29, size).into_iter().map(move |v| v * (t as f32 - 14.3))).collect();
    let settings = Settings { damp: 0.0, ..Settings::new(grid(4, 32, true)) };
    let (_, loss, method) = run(&x, &noise(31, 10 * size), size, &settings);
    let Method::Propagated { damp } = method else { panic!("{method:?}") };
    assert!(damp > 0.0 && damp < 0.1, "{damp}");
    assert!(loss.relative() < 1e-2, "{loss:?}");
}

#[test]
fn zero_points_stay_above_the_lowest() {
    let size = 64;
    // Positive weights want a zero point of 0.
    let weights: Vec<f32> = noise(37, 10 * size).iter().map(|w| w + 0.6).collect();
    for lowest_zero in [0, 1] {
        let settings = Settings { lowest_zero, ..Settings::new(grid(4, 32, false)) };
        let (linear, _, _) = run(&inputs(200, size), &weights, size, &settings);
        assert_eq!(linear.zeros().iter().min(), Some(&lowest_zero));
    }
}

#[test]
fn problems_are_alike_whose_steps_are() {
    let size = 80;
    let problem = |grid, change: &dyn Fn(usize) -> f32, propagate| {
        let x: Vec<f32> = inputs(200, size).iter().enumerate().map(|(i, v)| v * change(i % size)).collect();
        Problem::new(gram(&x, size), &Settings::new(grid), propagate)
    };
    let falling = |i: usize| 1.0 / (1 + i) as f32;
    let rising = |i: usize| (1 + i) as f32;
    let one = problem(grid(4, 40, true), &falling, true);
    let other = problem(grid(4, 40, true), &rising, true);
    assert_ne!(one.order.columns, other.order.columns);
    assert!(one.is_like(&other), "the order is a matter of numbers");
    assert!(!one.is_like(&problem(grid(3, 40, true), &falling, true)), "bits");
    assert!(!one.is_like(&problem(grid(4, 40, false), &falling, true)), "zero points");
    assert!(!one.is_like(&problem(grid(4, 40, true), &falling, false)), "without error propagation");
    // Three groups of which the last is shorter: 64 and 16, or 16 and 64, after the first block.
    let size = 144;
    let ragged = |change: fn(usize) -> f32| {
        let x: Vec<f32> = inputs(300, size).iter().enumerate().map(|(i, v)| v * change(i % size)).collect();
        Problem::new(gram(&x, size), &Settings::new(grid(4, 64, true)), true)
    };
    assert!(!ragged(falling).is_like(&ragged(rising)), "blocks of other lengths");
}
