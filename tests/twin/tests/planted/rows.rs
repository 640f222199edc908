//! The kernels whose threads share rows: GPTQ's solver and descent, AWQ's ranges, and products of matrices.

use gpu_twin::{Kind, Order};

use super::case::{Case, Given, assert_noticed, assert_races, faults, number, pointers, run};
use super::{ORDERS, compile, nvcc};

/// Rows of a thread block, twice, so that warps and blocks have neighbours.
const ROWS: usize = 32;
/// Columns, in two groups.
const SIZE: usize = 64;
const GROUP: usize = 32;
/// Floats of a row's array in shared memory.
const STRIDE: usize = 72;
const BLOCK: u32 = 128;

/// 4 bits with zero points.
fn grid() -> Vec<u8> {
    pointers(&[], &[4, GROUP, 0, 0])
}

fn weight(i: f32) -> f32 {
    (i * 0.37).sin() * (1.0 + (i * 0.01).cos())
}

/// A matrix with a strong diagonal.
fn hessian(i: f32) -> f32 {
    let (row, column) = ((i as usize / SIZE) as f32, (i as usize % SIZE) as f32);
    2.0 / (1.0 + (row - column).abs())
}

/// Those of two problems, each of which has half of the rows.
fn of_problem(i: f32) -> f32 {
    let values = (SIZE * SIZE) as f32;
    if i < values { hessian(i) } else { 1.5 * hessian(i - values) }
}

fn solve(given: &mut Given<'_>) -> Vec<Vec<u8>> {
    let weights = given.floats(ROWS * SIZE, weight);
    let product = given.floats(ROWS * SIZE, |i| (i * 0.11).cos() * 0.1);
    let factor = given.floats(2 * SIZE * SIZE, of_problem);
    let conditional = given.floats(2 * SIZE, |i| 1.0 + i / 10.0);
    let reversed = (0..SIZE as u32).rev();
    let columns: Vec<u8> = reversed.chain(0..SIZE as u32).flat_map(u32::to_le_bytes).collect();
    let columns = given.bytes(&columns);
    let groups = [1, 0, GROUP, 0, GROUP, SIZE, 0, 0, GROUP, 1, GROUP, SIZE];
    let groups = given.bytes(&pointers(&[], &groups));
    let block =
        pointers(&[weights, product, factor, conditional, columns, groups], &[2, ROWS / 2, SIZE, 0, SIZE, 0]);
    let [codes, errors] = [(); 2].map(|()| given.result(ROWS * SIZE, |_| 0.0));
    let [scales, zeros] = [(); 2].map(|()| given.result(ROWS * 2, |_| 0.0));
    vec![block, number(STRIDE), grid(), pointers(&[codes, errors, scales, zeros], &[])]
}

const SOLVE: Case = Case {
    source: "#include \"gptq/solve.cuh\"\n",
    kernel: "gptq_solve_block",
    grid: [2, 1, 1],
    block: BLOCK,
    dynamic_shared: 16 * 4 * (3 * STRIDE + 136),
    arguments: solve,
};

fn descend(given: &mut Given<'_>) -> Vec<Vec<u8>> {
    let weights = given.floats(ROWS * SIZE, weight);
    let product = given.floats(ROWS * SIZE, |i| (i * 0.11).cos() * 0.3);
    let hessian = given.floats(2 * SIZE * SIZE, of_problem);
    let row_sums = given.floats(4 * SIZE, |i| 1.0 + i * 0.02);
    let totals = given.floats(4, |i| 40.0 + i);
    let numbers = [ROWS / 2, SIZE, 0, SIZE, 1, 0];
    let block = pointers(&[weights, product, hessian, row_sums, totals], &numbers);
    let codes = given.result(ROWS * SIZE, |i| (i * 1.3).sin().mul_add(4.0, 0.5).floor());
    let errors = given.result(ROWS * SIZE, |_| 0.0);
    let scales = given.result(ROWS * 2, |_| 0.25);
    let zeros = given.result(ROWS * 2, |_| 7.0);
    vec![block, number(STRIDE), grid(), pointers(&[codes, errors, scales, zeros], &[])]
}

const DESCEND: Case = Case {
    source: "#include \"gptq/descent.cuh\"\n",
    kernel: "gptq_descend_block",
    arguments: descend,
    ..SOLVE
};

fn clip(given: &mut Given<'_>) -> Vec<Vec<u8>> {
    let weights = given.floats(ROWS * SIZE, weight);
    let product = given.floats(ROWS * GROUP, |i| (i * 0.11).cos() * 0.3);
    let grams = given.floats(4 * GROUP * GROUP, |i| 1.0 / (1.0 + (i % 33.0)));
    let codes = given.result(ROWS * SIZE, |i| (i * 1.3).sin().mul_add(4.0, 0.5).floor());
    let errors = given.result(ROWS * SIZE, |i| (i * 0.7).cos() * 0.1);
    let scales = given.result(ROWS * 2, |_| 0.25);
    let zeros = given.result(ROWS * 2, |_| 7.0);
    let mut all = [weights, product, grams].map(|a| a.to_le_bytes().to_vec()).to_vec();
    all.extend([ROWS / 2, SIZE, 1, GROUP, 40].map(number));
    all.push(grid());
    all.extend([codes, errors, scales, zeros].map(|a| a.to_le_bytes().to_vec()));
    all
}

const CLIP: Case = Case {
    source: "#include \"awq/clip.cuh\"\n",
    kernel: "awq_clip_group",
    dynamic_shared: 16 * 4 * (6 * 40 + 136),
    arguments: clip,
    ..SOLVE
};

fn score(given: &mut Given<'_>) -> Vec<Vec<u8>> {
    let weights = given.floats(ROWS * SIZE, weight);
    let factors = given.floats(3 * SIZE, |i| 1.0 + (i * 0.3).sin() / 2.0);
    let grams = given.floats(2 * GROUP * GROUP, |i| 1.0 / (1.0 + (i % 33.0)));
    let mut all = [weights, factors, grams].map(|a| a.to_le_bytes().to_vec()).to_vec();
    all.extend([ROWS, SIZE, 3, GROUP, 40].map(number));
    all.push(grid());
    all.push(given.result(3 * 2 * ROWS, |_| 0.0).to_le_bytes().to_vec());
    all
}

const SCORE: Case = Case {
    source: "#include \"awq/score.cuh\"\n",
    kernel: "awq_score",
    grid: [2, 2, 1],
    arguments: score,
    ..CLIP
};

fn product(given: &mut Given<'_>) -> Vec<Vec<u8>> {
    let (m, n, k) = (ROWS, SIZE + 3, 40);
    let a = given.floats(2 * m * k, weight);
    let b = given.floats(2 * k * n, |i| (i * 0.9).cos());
    let out = given.result(2 * m * n, |_| 0.0);
    vec![
        a.to_le_bytes().to_vec(),
        (m * k).to_le_bytes().to_vec(),
        number(k),
        b.to_le_bytes().to_vec(),
        (k * n).to_le_bytes().to_vec(),
        number(n),
        number(m),
        number(n),
        number(k),
        number(512),
        out.to_le_bytes().to_vec(),
    ]
}

const PRODUCT: Case = Case {
    source: "#include \"gemm.cu\"\n",
    kernel: "gemm_chunks",
    grid: [2, 1, 2],
    block: 64,
    dynamic_shared: 0,
    arguments: product,
};

#[test]
fn the_kernels_as_they_are_have_no_fault_and_one_result() {
    let Some(nvcc) = nvcc() else { return };
    for case in [&SOLVE, &DESCEND, &CLIP, &SCORE, &PRODUCT] {
        let ptx = compile(&nvcc, case.source, None);
        let results = ORDERS.map(|order| run(case, &ptx, order, None).unwrap());
        assert!(results.iter().all(|bytes| *bytes == results[0]), "{}", case.kernel);
    }
}

#[test]
fn a_removed_barrier_is_caught() {
    let before_sum =
        ("rows/team.cuh", "        __syncwarp();\n        if (me.lane < 2) {", "        if (me.lane < 2) {");
    assert_races(&SOLVE, before_sum);
    assert_races(&DESCEND, before_sum);
    let before_search =
        ("gptq/solve.cuh", "    __syncwarp();\n    const float* importance", "    const float* importance");
    assert_races(&SOLVE, before_search);
    let before_curvature = (
        "gptq/descent.cuh",
        "    __syncwarp();\n    const float* hessian = block.hessian + static_cast<size_t>(block.start) *",
        "    const float* hessian = block.hessian + static_cast<size_t>(block.start) *",
    );
    assert_races(&DESCEND, before_curvature);
    let before_forms =
        ("awq/clip.cuh", "        __syncwarp();\n        float own_cost", "        float own_cost");
    assert_races(&CLIP, before_forms);
    let before_ranges =
        ("awq/score.cuh", "        __syncwarp();\n        Scale scale", "        Scale scale");
    assert_races(&SCORE, before_ranges);
    let before_multiplying = (
        "product.cuh",
        "        __syncthreads();\n        if (from + DEPTH < end) {",
        "        if (from + DEPTH < end) {",
    );
    assert_races(&PRODUCT, before_multiplying);
    let before_next_tile =
        ("product.cuh", "        __syncthreads();\n    }\n#pragma unroll", "    }\n#pragma unroll");
    assert_races(&PRODUCT, before_next_tile);
}

#[test]
fn an_index_off_by_one_is_caught() {
    assert_noticed(
        &SOLVE,
        ("gptq/solve.cuh", "me.first(i + 1); j < block.length", "me.first(i + 2); j < block.length"),
    );
    assert_noticed(&SOLVE, ("gptq/solve.cuh", "i < block.length; i += TEAM", "i <= block.length; i += TEAM"));
    assert_noticed(&DESCEND, ("gptq/descent.cuh", "group <= last_group", "group < last_group"));
    assert_noticed(&CLIP, ("awq/products.cuh", "t < min(start", "t + 1 < min(start"));
    let of_first_problem = ("rows/team.cuh", "return row / rows;", "return 0 * rows;");
    for case in [&SOLVE, &DESCEND, &CLIP] {
        assert_noticed(case, of_first_problem);
    }
    assert_noticed(&PRODUCT, ("gemm.cu", "b + z * b_step", "b"));
    assert_noticed(&SCORE, ("awq/score.cuh", "gram.values[i * (stride + 1)]", "gram.values[i * stride + 1]"));
    let reads = faults(&PRODUCT, ("product.cuh", "row < size && depth < end", "row <= size && depth <= end"));
    let Some(reads) = reads else { return };
    assert!(reads.contains(&Kind::OutOfBounds), "{reads:?}");
}

#[test]
fn a_shared_variable_that_is_not_initialised_is_caught() {
    for (case, change) in [
        (
            &SOLVE,
            ("gptq/solve.cuh", "        row.pull[i] = block.product", "        row.terms[0] = block.product"),
        ),
        (&DESCEND, ("gptq/descent.cuh", "        row.curvature[j] = sum;\n", "")),
        (&CLIP, ("awq/clip.cuh", "        row.weights[i] = weights[first + i];\n", "")),
    ] {
        let Some(kinds) = faults(case, change) else { return };
        assert!(kinds.contains(&Kind::Uninitialised), "{change:?}: {kinds:?}");
    }
}

#[test]
fn arguments_in_the_wrong_order_are_caught() {
    let Some(nvcc) = nvcc() else { return };
    // Weights and products; size and group; steps; strides; rows and columns.
    for (case, swapped) in
        [(&CLIP, [0, 1]), (&CLIP, [4, 5]), (&PRODUCT, [1, 4]), (&PRODUCT, [2, 5]), (&PRODUCT, [6, 7])]
    {
        let ptx = compile(&nvcc, case.source, None);
        let expected = run(case, &ptx, Order::Forward, None).unwrap();
        let found = run(case, &ptx, Order::Forward, Some(swapped));
        assert!(found.is_err() || found.is_ok_and(|bytes| bytes != expected), "{} {swapped:?}", case.kernel);
    }
}
