//! A launch of one kernel on the twin, as it is and with a bug.

use gpu_twin::{Fault, Kind, Launch, Memory, Module, Options, Order, launch};

use super::{Change, ORDERS, compile, floats, nvcc};

/// A launch of one kernel.
pub(super) struct Case {
    pub(super) source: &'static str,
    pub(super) kernel: &'static str,
    pub(super) grid: [u32; 3],
    pub(super) block: u32,
    pub(super) dynamic_shared: usize,
    /// What the kernel is given, in its order.
    pub(super) arguments: fn(&mut Given<'_>) -> Vec<Vec<u8>>,
}

/// What was uploaded, and which of it is the result.
pub(super) struct Given<'a> {
    pub(super) memory: &'a Memory,
    pub(super) results: Vec<(u64, usize)>,
}

impl Given<'_> {
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let address = self.memory.allocate(bytes.len() as u64).unwrap();
        self.memory.write(address, bytes).unwrap();
        address
    }

    pub(super) fn floats(&mut self, n: usize, of: impl Fn(f32) -> f32) -> u64 {
        self.bytes(&floats(n, of))
    }

    /// The same, and it is compared afterwards.
    pub(super) fn result(&mut self, n: usize, of: impl Fn(f32) -> f32) -> u64 {
        let address = self.floats(n, of);
        self.results.push((address, 4 * n));
        address
    }
}

pub(super) fn pointers(addresses: &[u64], numbers: &[usize]) -> Vec<u8> {
    let numbers = numbers.iter().flat_map(|n| (*n as u32).to_le_bytes());
    addresses.iter().flat_map(|a| a.to_le_bytes()).chain(numbers).collect()
}

pub(super) fn number(n: usize) -> Vec<u8> {
    (n as u32).to_le_bytes().to_vec()
}

/// What the kernel writes; `swapped` are arguments in each other's place.
pub(super) fn run(
    case: &Case,
    ptx: &str,
    order: Order,
    swapped: Option<[usize; 2]>,
) -> Result<Vec<u8>, Fault> {
    let memory = Memory::new(1 << 24);
    let module = Module::load(ptx, &memory).unwrap();
    let mut given = Given { memory: &memory, results: Vec::new() };
    let mut arguments = (case.arguments)(&mut given);
    if let Some([a, b]) = swapped {
        arguments.swap(a, b);
    }
    let kernel = module.kernel(case.kernel).unwrap();
    let mut parameters = Vec::new();
    assert_eq!(arguments.len(), kernel.parameters.len());
    for (argument, (offset, bytes)) in arguments.iter().zip(&kernel.parameters) {
        assert_eq!(argument.len(), *bytes);
        parameters.resize(*offset, 0);
        parameters.extend(argument);
    }
    let what = Launch {
        kernel,
        grid: case.grid,
        block: [case.block, 1, 1],
        dynamic_shared: case.dynamic_shared as u32,
        parameters,
    };
    let results = given.results.clone();
    launch(&memory, &what, Options { order, workers: 2 })?;
    let mut all = Vec::new();
    for (address, bytes) in results {
        let mut result = vec![0; bytes];
        memory.read(address, &mut result).unwrap();
        all.extend(result);
    }
    Ok(all)
}

/// The faults of a changed kernel in each order.
pub(super) fn faults(case: &Case, change: Change<'_>) -> Option<Vec<Kind>> {
    let ptx = compile(&nvcc()?, case.source, Some(change));
    Some(ORDERS.iter().filter_map(|order| run(case, &ptx, *order, None).err()).map(|f| f.kind).collect())
}

#[track_caller]
pub(super) fn assert_races(case: &Case, change: Change<'_>) {
    let Some(kinds) = faults(case, change) else { return };
    let caught = |kind: &Kind| matches!(kind, Kind::Race | Kind::Uninitialised);
    assert!(!kinds.is_empty() && kinds.iter().all(caught), "{change:?}: {kinds:?}");
}

/// That a changed kernel stops or writes something else.
#[track_caller]
pub(super) fn assert_noticed(case: &Case, change: Change<'_>) {
    let Some(nvcc) = nvcc() else { return };
    let expected = run(case, &compile(&nvcc, case.source, None), Order::Forward, None).unwrap();
    let found = run(case, &compile(&nvcc, case.source, Some(change)), Order::Forward, None);
    assert!(found.is_err() || found.is_ok_and(|bytes| bytes != expected), "{change:?}");
}
