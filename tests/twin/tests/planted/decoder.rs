//! The kernels of a decoder's layers.

use gpu_twin::{Kind, Order};

use super::case::{Case, Given, assert_noticed, assert_races, faults, number, pointers, run};
use super::{ORDERS, compile, nvcc};

/// Rows of two thread blocks, the second not full.
const ROWS: usize = 13;
const WIDTH: usize = 37;

fn bytes(address: u64) -> Vec<u8> {
    address.to_le_bytes().to_vec()
}

fn count(n: usize) -> Vec<u8> {
    (n as u64).to_le_bytes().to_vec()
}

fn wave(i: f32) -> f32 {
    (i * 0.37).sin() * (2.0 + (i * 0.01).cos())
}

fn norm(given: &mut Given<'_>) -> Vec<Vec<u8>> {
    let (x, weight) = (given.floats(ROWS * WIDTH, wave), given.floats(WIDTH, |i| 1.0 + i / 50.0));
    let out = given.result(ROWS * WIDTH, |_| 0.0);
    let epsilon = 1e-5f32.to_le_bytes().to_vec();
    vec![bytes(x), bytes(weight), epsilon, number(ROWS), number(WIDTH), bytes(out)]
}

const NORM: Case = Case {
    source: "#include \"decoder.cu\"\n",
    kernel: "decoder_norm",
    grid: [2, 1, 1],
    block: 128,
    dynamic_shared: 0,
    arguments: norm,
};

/// Two heads of 21 queries, of which each sees 18 keys.
fn softmax(given: &mut Given<'_>) -> Vec<Vec<u8>> {
    let scores = given.result(2 * 21 * 21, wave);
    let numbers = [0.7f32.to_bits(), 3.0f32.to_bits(), 1, 21, 18];
    vec![bytes(scores), number(2 * 21), pointers(&[], &numbers.map(|n| n as usize))]
}

const SOFTMAX: Case = Case { kernel: "decoder_softmax", grid: [6, 1, 1], arguments: softmax, ..NORM };

/// Six rows of two heads of seven values, of which four are rotated by the angles of three positions.
fn rotate(given: &mut Given<'_>) -> Vec<Vec<u8>> {
    let [x, cos] = [6 * 14, 6].map(|n| given.floats(n, wave));
    let sin = given.floats(6, |i| 1.0 - i / 9.0);
    let out = given.result(6 * 14, |_| 0.0);
    let mut all = [x, cos, sin].map(bytes).to_vec();
    all.extend([3, 2, 7, 14].map(number));
    all.extend([count(6 * 14), bytes(out)]);
    all
}

const ROTATE: Case = Case { kernel: "decoder_rotate", grid: [1, 1, 1], arguments: rotate, ..NORM };

fn gate(given: &mut Given<'_>) -> Vec<Vec<u8>> {
    let (gate, up) = (given.floats(150, wave), given.floats(150, |i| i / 9.0));
    let out = given.result(150, |_| 0.0);
    vec![bytes(gate), bytes(up), count(150), bytes(out)]
}

const GATE: Case = Case { kernel: "decoder_gate_silu", grid: [2, 1, 1], arguments: gate, ..NORM };

fn add_rows(given: &mut Given<'_>) -> Vec<Vec<u8>> {
    let x = given.floats(3 * 20, wave);
    let rows = given.bytes(&pointers(&[], &[4, 0, 2]));
    let weights = given.floats(3, |i| 0.5 + i);
    let sum = given.result(5 * 20, |i| i / 7.0);
    vec![bytes(x), bytes(rows), bytes(weights), number(20), count(3 * 20), bytes(sum)]
}

const ADD_ROWS: Case = Case { kernel: "decoder_add_rows", grid: [1, 1, 1], arguments: add_rows, ..NORM };

fn finite_rows(given: &mut Given<'_>) -> Vec<Vec<u8>> {
    let x = given.floats(ROWS * WIDTH, |i| if i == 200.0 { f32::INFINITY } else { i });
    // As many bytes as rows, in words.
    let finite = given.result(ROWS.div_ceil(4), |_| 0.0);
    vec![bytes(x), number(ROWS), number(WIDTH), bytes(finite)]
}

const FINITE_ROWS: Case =
    Case { kernel: "decoder_finite_rows", grid: [2, 1, 1], arguments: finite_rows, ..NORM };

/// The second chunk of two heads that share their keys, with a bias.
fn along(given: &mut Given<'_>) -> Vec<Vec<u8>> {
    let (m, n, k) = (5, 67, 24);
    let (a, b) = (given.floats(m * 2 * k, wave), given.floats(n * k, |i| (i * 0.9).cos()));
    let bias = given.floats(n, |i| i);
    let out = given.result(2 * m * n, |i| i / 3.0);
    let steps = [k as u64, 8, (m * n) as u64];
    vec![pointers(&[&[a, b, bias, out][..], &steps].concat(), &[2 * k, k, n, 2, m, n, 8, k])]
}

const ALONG: Case = Case {
    source: "#include \"gemm.cu\"\n",
    kernel: "gemm_along",
    grid: [2, 1, 2],
    block: 64,
    dynamic_shared: 0,
    arguments: along,
};

#[test]
fn the_kernels_as_they_are_have_no_fault_and_one_result() {
    let Some(nvcc) = nvcc() else { return };
    for case in [&NORM, &SOFTMAX, &ROTATE, &GATE, &ADD_ROWS, &FINITE_ROWS, &ALONG] {
        let ptx = compile(&nvcc, case.source, None);
        let results = ORDERS.map(|order| run(case, &ptx, order, None).unwrap());
        assert!(results.iter().all(|bytes| *bytes == results[0]), "{}", case.kernel);
    }
}

#[test]
fn a_removed_barrier_is_caught() {
    let before_multiplying = (
        "product.cuh",
        "        __syncthreads();\n        if (from + DEPTH < end) {",
        "        if (from + DEPTH < end) {",
    );
    assert_races(&ALONG, before_multiplying);
}

#[test]
fn threads_without_a_row_or_a_value_are_caught() {
    let row = ("decoder.cu", "        row = there ? row : 0;\n", "");
    let value =
        ("decoder.cu", "    if (at < values) {\n        out[at] = silu", "    {\n        out[at] = silu");
    for (case, change) in [(&NORM, row), (&FINITE_ROWS, row), (&GATE, value)] {
        let Some(kinds) = faults(case, change) else { return };
        assert_eq!(kinds, [Kind::OutOfBounds; 3], "{change:?}");
    }
}

#[test]
fn an_index_off_by_one_is_caught() {
    for (case, change) in [
        (
            &NORM,
            (
                "decoder.cu",
                "for (unsigned i = whole; i < width; ++i)",
                "for (unsigned i = whole + 1; i < width; ++i)",
            ),
        ),
        (&SOFTMAX, ("decoder.cu", "% softmax.sequence + 1;", "% softmax.sequence;")),
        (&SOFTMAX, ("decoder.cu", "lane < SIDE - 1; ++lane", "lane < SIDE - 2; ++lane")),
        (&ROTATE, ("decoder.cu", "x[at - half] * s", "x[at - half + 1] * s")),
        (&ADD_ROWS, ("decoder.cu", "size_t i = at / columns;", "size_t i = (at + 1) / columns;")),
        (&ALONG, ("gemm.cu", "p.start == 0 ? sum", "p.start <= 8 ? sum")),
        (&ALONG, ("gemm.cu", "z / p.share", "z")),
    ] {
        assert_noticed(case, change);
    }
    let reads = ("product.cuh", "row < size && depth < end", "row <= size && depth <= end");
    let Some(reads) = faults(&ALONG, reads) else { return };
    assert!(reads.contains(&Kind::OutOfBounds), "{reads:?}");
}

#[test]
fn arguments_in_the_wrong_order_are_caught() {
    let Some(nvcc) = nvcc() else { return };
    // Values and weights; rows and width; cosines and sines; dimensions of a head and of a row; gate and up.
    for (case, swapped) in [
        (&NORM, [0, 1]),
        (&NORM, [3, 4]),
        (&ROTATE, [1, 2]),
        (&ROTATE, [5, 6]),
        (&GATE, [0, 1]),
        (&ADD_ROWS, [1, 2]),
    ] {
        let ptx = compile(&nvcc, case.source, None);
        let expected = run(case, &ptx, Order::Forward, None).unwrap();
        let found = run(case, &ptx, Order::Forward, Some(swapped));
        assert!(found.is_err() || found.is_ok_and(|bytes| bytes != expected), "{} {swapped:?}", case.kernel);
    }
}
