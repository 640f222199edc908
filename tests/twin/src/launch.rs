//! A grid of blocks, shared out among the threads of the host.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::access::Spaces;
use crate::block::Block;
use crate::fault::{Fault, Kind};
use crate::memory::Memory;
use crate::module::Kernel;
use crate::order::Order;
use crate::races::GlobalWrites;
use crate::shared::Shared;

/// Threads that a block may have on any GPU.
const MAX_THREADS: u64 = 1024;

/// What to launch.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Threads of a block in each dimension.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// Parameters, laid out as [`Kernel::parameters`] says.
    pub parameters: Vec<u8>,
}

/// How to run it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The order of blocks and threads.
    pub order: Order,
    /// Threads of the host.
    pub workers: usize,
}

/// What a launch took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Instructions, counted once for each thread that ran them.
    pub instructions: u64,
    /// Threads.
    pub threads: u64,
}

impl Launch<'_> {
    pub(crate) fn threads(&self) -> usize {
        self.block.iter().product::<u32>() as usize
    }

    fn refuse(&self, message: String) -> Fault {
        Fault { kernel: self.kernel.name.clone(), kind: Kind::Launch, place: None, message }
    }

    fn check(&self) -> Result<u64, Fault> {
        let threads: u64 = self.block.iter().map(|n| u64::from(*n)).product();
        let most = self.kernel.max_threads.map_or(MAX_THREADS, |n| MAX_THREADS.min(n.into()));
        if threads == 0 || threads > most {
            return Err(self.refuse(format!("{threads} threads in a block, of 1 to {most}")));
        }
        let blocks: u64 = self.grid.iter().map(|n| u64::from(*n)).product();
        if blocks == 0 {
            return Err(self.refuse("a grid without blocks".into()));
        }
        let expected = self.kernel.parameters.last().map_or(0, |(offset, bytes)| offset + bytes);
        if self.parameters.len() != expected {
            return Err(self.refuse(format!("{} bytes of parameters, of {expected}", self.parameters.len())));
        }
        Ok(blocks)
    }
}

/// Runs a kernel to its end.
///
/// # Errors
/// The first mistake that was found: of the block that comes first in the order, if several were.
pub fn launch(memory: &Memory, launch: &Launch<'_>, options: Options) -> Result<Statistics, Fault> {
    let blocks = launch.check()?;
    let next = AtomicU64::new(0);
    let instructions = AtomicU64::new(0);
    let failed: Mutex<Option<(u64, Fault)>> = Mutex::new(None);
    let view = memory.view();
    let work = || {
        let kernel = launch.kernel;
        let spaces = Spaces {
            global: view.clone(),
            writes: GlobalWrites::default(),
            shared: Shared::new(kernel.shared_bytes + launch.dynamic_shared as usize),
            local: vec![0; kernel.local_bytes * launch.threads()],
            local_bytes: kernel.local_bytes,
            parameters: &launch.parameters,
        };
        let mut block = Block::new(launch, spaces, options.order);
        loop {
            let turn = next.fetch_add(1, Relaxed);
            if turn >= blocks {
                break;
            }
            if let Err(fault) = block.run(number(options.order, turn, blocks)) {
                let mut failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(earlier, _)| turn < *earlier) {
                    *failed = Some((turn, fault));
                }
                // Blocks that come after this one need not run.
                next.store(blocks, Relaxed);
                break;
            }
        }
        instructions.fetch_add(block.instructions, Relaxed);
    };
    let workers = options.workers.clamp(1, blocks.min(256) as usize);
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(work);
        }
        work();
    });
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some((_, fault)) => Err(fault),
        None => Ok(Statistics {
            instructions: instructions.into_inner(),
            threads: blocks * launch.threads() as u64,
        }),
    }
}

/// The block whose turn it is.
fn number(order: Order, turn: u64, blocks: u64) -> u64 {
    match order {
        Order::Forward => turn,
        Order::Reverse => blocks - 1 - turn,
        Order::Seeded(seed) => {
            // A step that has no divisor in common with the number of blocks visits each of them once.
            let mut step = (seed | 1) % blocks.max(2);
            while step == 0 || gcd(step, blocks) != 1 {
                step += 1;
            }
            ((u128::from(turn) * u128::from(step) + u128::from(seed)) % u128::from(blocks)) as u64
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_has_every_block_once() {
        for order in
            [Order::Forward, Order::Reverse, Order::Seeded(0), Order::Seeded(7), Order::Seeded(u64::MAX)]
        {
            for blocks in [1, 2, 3, 10, 97, 128] {
                let mut all: Vec<u64> = (0..blocks).map(|turn| number(order, turn, blocks)).collect();
                all.sort_unstable();
                assert_eq!(all, (0..blocks).collect::<Vec<_>>(), "{order:?}");
            }
        }
    }
}
