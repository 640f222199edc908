//! The encoder of Q4_K.

use std::path::Path;

use gpu_twin::{Fault, Kind, Launch, Memory, Module, Options, Order, launch};

use super::{Change, ORDERS, floats, nvcc};

/// Rows and columns of the weights: more than one thread block, and a last one that is not full.
const ROWS: usize = 7;
const COLUMNS: usize = 1280;
const BLOCKS: usize = ROWS * COLUMNS / 256;
const BYTES: usize = 144;

/// Q4_K alone, which compiles quickly.
const SOURCE: &str = r#"
#include "kquant/blocks_of_256.cuh"
extern "C" __global__ void __launch_bounds__(THREADS) kernel(
    const float* x, const float* importance, const float* means, unsigned columns, unsigned blocks, uint8_t* out
) {
    encode_blocks_of_256<Q4_K<true>>({x, importance, means, columns, blocks}, out);
}
"#;

fn compile(nvcc: &Path, change: Option<Change<'_>>) -> String {
    super::compile(nvcc, SOURCE, change)
}

/// Order of the kernel's parameters as they are passed.
const RIGHT: [usize; 6] = [0, 1, 2, 3, 4, 5];

/// What the kernel writes.
fn run(ptx: &str, order: Order, parameters: [usize; 6]) -> Result<Vec<u8>, Fault> {
    let memory = Memory::new(1 << 24);
    let module = Module::load(ptx, &memory).unwrap();
    let upload = |bytes: &[u8]| {
        let address = memory.allocate(bytes.len() as u64).unwrap();
        memory.write(address, bytes).unwrap();
        address
    };
    let x = upload(&floats(ROWS * COLUMNS, |i| (i * 0.37).sin() * (1.0 + (i * 0.001).cos())));
    let importance = upload(&floats(COLUMNS, |i| 1.0 + (i * 0.11).sin()));
    let out = memory.allocate((BLOCKS * BYTES) as u64).unwrap();
    let all = [(x, 8), (importance, 8), (0, 8), (COLUMNS as u64, 4), (BLOCKS as u64, 4), (out, 8)];
    let mut bytes = Vec::new();
    for (place, from) in parameters.into_iter().enumerate() {
        bytes.extend(&all[from].0.to_le_bytes()[..all[place].1]);
    }
    let kernel = module.kernel("kernel").unwrap();
    let grid = [(BLOCKS * 8).div_ceil(128) as u32, 1, 1];
    let what = Launch { kernel, grid, block: [128, 1, 1], dynamic_shared: 0, parameters: bytes };
    launch(&memory, &what, Options { order, workers: 2 })?;
    let mut bytes = vec![0; BLOCKS * BYTES];
    memory.read(out, &mut bytes).unwrap();
    Ok(bytes)
}

/// What the kernel as it is writes.
fn expected(nvcc: &Path) -> Vec<u8> {
    run(&compile(nvcc, None), Order::Forward, RIGHT).unwrap()
}

/// The faults of a changed kernel in each order.
fn faults(file: &str, old: &str, new: &str) -> Option<Vec<Kind>> {
    let ptx = compile(&nvcc()?, Some((file, old, new)));
    Some(ORDERS.iter().filter_map(|order| run(&ptx, *order, RIGHT).err()).map(|fault| fault.kind).collect())
}

const FILE: &str = "blocks_of_256.cuh";

#[test]
fn the_kernel_as_it_is_has_no_fault_and_one_result() {
    let Some(nvcc) = nvcc() else { return };
    let ptx = compile(&nvcc, None);
    let results = ORDERS.map(|order| run(&ptx, order, RIGHT).unwrap());
    assert!(results.iter().all(|bytes| *bytes == results[0]));
    assert!(results[0].iter().any(|byte| !matches!(byte, 0 | 0xff)));
}

#[test]
fn a_removed_barrier_is_caught() {
    // Before the scales are quantized, and before the levels are packed.
    for (old, new) in [
        (
            "    __syncthreads();\n    unsigned first = part.block * SUBS;",
            "    unsigned first = part.block * SUBS;",
        ),
        (
            "        __syncthreads();\n        if (part.active) {\n            const uint8_t* levels = e.levels + part.block * 256;\n            if (BITS == 5)",
            "        if (part.active) {\n            const uint8_t* levels = e.levels + part.block * 256;\n            if (BITS == 5)",
        ),
    ] {
        let Some(kinds) = faults(FILE, old, new) else { return };
        assert_eq!(kinds.len(), ORDERS.len());
        assert!(kinds.iter().all(|k| matches!(k, Kind::Race | Kind::Uninitialised)), "{kinds:?}");
    }
    let Some(kinds) = faults(
        "tile.cuh",
        "    __syncthreads();\n    constexpr unsigned PER_TILE",
        "    constexpr unsigned PER_TILE",
    ) else {
        return;
    };
    assert!(
        kinds.iter().all(|k| matches!(k, Kind::Race | Kind::Uninitialised)) && !kinds.is_empty(),
        "{kinds:?}"
    );
}

#[test]
fn an_index_off_by_one_is_caught() {
    // Reads beyond the last weight, and writes one block more than there are.
    let reads = faults(
        "tile.cuh",
        "if (start + 4 * static_cast<size_t>(i) < all)",
        "if (start + 4 * static_cast<size_t>(i) <= all)",
    );
    let Some(reads) = reads else { return };
    assert!(reads.contains(&Kind::OutOfBounds), "{reads:?}");
    let writes = faults(
        "tile.cuh",
        "i < (weights.blocks - first) * BYTES / 2;",
        "i < (weights.blocks - first + 1) * BYTES / 2;",
    )
    .unwrap();
    assert!(writes.iter().any(|k| matches!(k, Kind::OutOfBounds | Kind::Uninitialised)), "{writes:?}");
}

#[test]
fn a_wrong_index_within_bounds_gives_other_bytes() {
    let Some(nvcc) = nvcc() else { return };
    let ptx = compile(
        &nvcc,
        Some((
            FILE,
            "levels + byte / HALF * 2 * HALF + byte % HALF",
            "levels + byte / HALF * 2 * HALF + (byte + 1) % HALF",
        )),
    );
    assert!(run(&ptx, Order::Forward, RIGHT).unwrap() != expected(&nvcc));
}

#[test]
fn a_shared_variable_that_is_not_initialised_is_caught() {
    let Some(kinds) = faults(FILE, "            e.mins[t] = found.min;\n", "") else { return };
    assert_eq!(kinds, [Kind::Uninitialised; 3]);
}

#[test]
fn arguments_in_the_wrong_order_are_caught() {
    let Some(nvcc) = nvcc() else { return };
    let ptx = compile(&nvcc, None);
    // Columns and blocks; weights and importance; weights and output.
    for [a, b] in [[3, 4], [0, 1], [0, 5]] {
        let mut order = RIGHT;
        order.swap(a, b);
        let result = run(&ptx, Order::Forward, order);
        assert!(
            result.is_err() || result.is_ok_and(|bytes| bytes != expected(&nvcc)),
            "parameters {a} and {b}"
        );
    }
}
