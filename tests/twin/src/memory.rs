//! Device memory: allocations at addresses that exist nowhere else, so that a host pointer given to a kernel, or a device
//! pointer used by the host, is found at once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::fault::{Kind, Trap, trap};

/// The first address. No processor's user space reaches so far.
const FIRST: u64 = 0x0d00_0000_0000_0000;
/// Alignment of allocations, and the least distance between them.
const ALIGN: u64 = 256;
/// What fresh memory holds: in every float format a NaN.
pub(crate) const POISON: u8 = 0xff;

/// The memory of one device.
#[derive(Debug)]
pub struct Memory {
    state: Mutex<State>,
    limit: u64,
}

#[derive(Debug)]
struct State {
    allocations: BTreeMap<u64, Arc<Allocation>>,
    next: u64,
    used: u64,
}

/// Bytes that one call allocated.
#[derive(Debug)]
pub(crate) struct Allocation {
    start: u64,
    bytes: u64,
    /// Little-endian words. Blocks run on several threads of the host; a race between them is a bug of the kernel but not
    /// of the interpreter.
    words: Box<[AtomicU32]>,
}

/// Why an operation of the host failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// Not as much memory is left.
    Full,
    /// Not an address of an allocation, or a range that leaves it.
    Address,
}

impl Memory {
    /// A device with room for `limit` bytes.
    pub fn new(limit: u64) -> Memory {
        let state = State { allocations: BTreeMap::new(), next: FIRST, used: 0 };
        Memory { state: Mutex::new(state), limit }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates `bytes` bytes, filled with 0xff. An address is never given out twice, so one that was freed stays wrong.
    pub fn allocate(&self, bytes: u64) -> Result<u64, MemoryError> {
        let mut state = self.state();
        if bytes == 0 || bytes > self.limit - state.used {
            return Err(MemoryError::Full);
        }
        let start = state.next;
        let poison = u32::from_le_bytes([POISON; 4]);
        let words = (0..bytes.div_ceil(4)).map(|_| AtomicU32::new(poison)).collect();
        state.allocations.insert(start, Arc::new(Allocation { start, bytes, words }));
        state.used += bytes;
        state.next += (bytes + ALIGN).next_multiple_of(ALIGN);
        Ok(start)
    }

    /// Frees the allocation that begins at `start`.
    pub fn free(&self, start: u64) -> Result<(), MemoryError> {
        let mut state = self.state();
        let freed = state.allocations.remove(&start).ok_or(MemoryError::Address)?;
        state.used -= freed.bytes;
        Ok(())
    }

    /// Bytes in all and bytes not allocated.
    pub fn total_and_free(&self) -> (u64, u64) {
        (self.limit, self.limit - self.state().used)
    }

    fn find(&self, address: u64, bytes: usize) -> Result<Arc<Allocation>, MemoryError> {
        let state = self.state();
        let (_, allocation) = state.allocations.range(..=address).next_back().ok_or(MemoryError::Address)?;
        if !allocation.holds(address, bytes) {
            return Err(MemoryError::Address);
        }
        Ok(allocation.clone())
    }

    /// Copies bytes to the device.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let allocation = self.find(address, bytes.len())?;
        let mut at = (address - allocation.start) as usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = (4 - at % 4).min(rest.len());
            let (now, later) = rest.split_at(room);
            if room == 4 {
                let word = u32::from_le_bytes([now[0], now[1], now[2], now[3]]);
                allocation.words[at / 4].store(word, Relaxed);
            } else {
                for (i, byte) in now.iter().enumerate() {
                    allocation.store_bytes(at + i, 1, u64::from(*byte));
                }
            }
            at += room;
            rest = later;
        }
        Ok(())
    }

    /// Copies bytes from the device.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let allocation = self.find(address, bytes.len())?;
        let mut at = (address - allocation.start) as usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = (4 - at % 4).min(rest.len());
            let (now, later) = rest.split_at_mut(room);
            let word = allocation.words[at / 4].load(Relaxed).to_le_bytes();
            now.copy_from_slice(&word[at % 4..][..room]);
            at += room;
            rest = later;
        }
        Ok(())
    }

    /// The allocations as they are now, for a launch.
    pub(crate) fn view(&self) -> View {
        View { allocations: self.state().allocations.values().cloned().collect(), last: 0 }
    }
}

impl Allocation {
    fn holds(&self, address: u64, bytes: usize) -> bool {
        address >= self.start && address - self.start + bytes as u64 <= self.bytes
    }

    /// Replaces `size` bytes within one word.
    fn store_bytes(&self, at: usize, size: usize, value: u64) {
        let shift = 8 * (at % 4) as u32;
        let mask = (((1u64 << (8 * size)) - 1) as u32) << shift;
        let bits = (value as u32) << shift & mask;
        // Neighbouring bytes may belong to a block that runs at the same time.
        let word = &self.words[at / 4];
        let _ = word.fetch_update(Relaxed, Relaxed, |old| Some(old & !mask | bits));
    }
}

/// What one block sees of the memory.
#[derive(Clone, Debug)]
pub(crate) struct View {
    allocations: Vec<Arc<Allocation>>,
    last: usize,
}

/// 64-bit atomics take two words; one at a time.
static WIDE: Mutex<()> = Mutex::new(());

impl View {
    /// The allocation that holds all of a range, and the range's offset in it.
    #[inline]
    fn find(&mut self, address: u64, bytes: usize) -> Result<(&Allocation, usize), Trap> {
        if !self.allocations.get(self.last).is_some_and(|a| a.holds(address, bytes)) {
            let after = self.allocations.partition_point(|a| a.start <= address);
            match after.checked_sub(1) {
                Some(i) if self.allocations[i].holds(address, bytes) => self.last = i,
                _ => return self.outside(address, bytes),
            }
        }
        let found = &self.allocations[self.last];
        Ok((found, (address - found.start) as usize))
    }

    #[cold]
    fn outside<T>(&self, address: u64, bytes: usize) -> Result<T, Trap> {
        let near = self.allocations.iter().rfind(|a| a.start <= address);
        let message = match near {
            Some(a) => format!(
                "{bytes} bytes at {address:#x}, which is {} bytes into an allocation of {}",
                address - a.start,
                a.bytes
            ),
            None => format!("{bytes} bytes at {address:#x}, before every allocation"),
        };
        trap(Kind::OutOfBounds, message)
    }

    /// Checks a range and remembers its allocation.
    #[inline]
    pub(crate) fn check(&mut self, address: u64, bytes: usize) -> Result<(), Trap> {
        self.find(address, bytes).map(|_| ())
    }

    /// `size` bytes (1, 2, 4 or 8) at an address that is a multiple of it.
    #[inline]
    pub(crate) fn load(&mut self, address: u64, size: usize) -> Result<u64, Trap> {
        let (allocation, at) = self.find(address, size)?;
        let word = u64::from(allocation.words[at / 4].load(Relaxed));
        Ok(match size {
            4 => word,
            8 => word | u64::from(allocation.words[at / 4 + 1].load(Relaxed)) << 32,
            _ => word >> (8 * (at % 4)) & ((1 << (8 * size)) - 1),
        })
    }

    /// Stores `size` bytes (1, 2, 4 or 8) at an address that is a multiple of it.
    #[inline]
    pub(crate) fn store(&mut self, address: u64, size: usize, value: u64) -> Result<(), Trap> {
        let (allocation, at) = self.find(address, size)?;
        match size {
            4 => allocation.words[at / 4].store(value as u32, Relaxed),
            8 => {
                allocation.words[at / 4].store(value as u32, Relaxed);
                allocation.words[at / 4 + 1].store((value >> 32) as u32, Relaxed);
            }
            _ => allocation.store_bytes(at, size, value),
        }
        Ok(())
    }

    /// Replaces a value of 2, 4 or 8 bytes by `next` of it, as one step for all threads, and returns the old one.
    pub(crate) fn update(
        &mut self,
        address: u64,
        size: usize,
        next: impl Fn(u64) -> u64,
    ) -> Result<u64, Trap> {
        if size == 4 {
            let (allocation, at) = self.find(address, size)?;
            let word = &allocation.words[at / 4];
            let old = word.fetch_update(Relaxed, Relaxed, |v| Some(next(v.into()) as u32));
            return Ok(old.unwrap_or_else(|v| v).into());
        }
        let _one = WIDE.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.load(address, size)?;
        self.store(address, size, next(old))?;
        Ok(old)
    }
}

impl Memory {
    /// Fills a range with copies of one value of `size` bytes (1, 2 or 4).
    pub fn fill(&self, range: Range<u64>, size: usize, value: u32) -> Result<(), MemoryError> {
        let pattern = &value.to_le_bytes()[..size];
        let bytes: Vec<u8> =
            pattern.iter().copied().cycle().take((range.end - range.start) as usize).collect();
        self.write(range.start, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_at_any_alignment() {
        let memory = Memory::new(1 << 20);
        let start = memory.allocate(23).unwrap();
        let bytes: Vec<u8> = (1..=20).collect();
        memory.write(start + 3, &bytes).unwrap();
        let mut all = [0; 23];
        memory.read(start, &mut all).unwrap();
        assert_eq!(all[..3], [POISON; 3]);
        assert_eq!(all[3..], bytes);
        assert_eq!(memory.write(start + 4, &bytes), Err(MemoryError::Address));
        memory.fill(start..start + 6, 2, 0x1234).unwrap();
        memory.read(start + 1, &mut all[..4]).unwrap();
        assert_eq!(all[..4], [0x12, 0x34, 0x12, 0x34]);
    }

    #[test]
    fn what_is_freed_is_gone_and_the_limit_holds() {
        let memory = Memory::new(100);
        let a = memory.allocate(60).unwrap();
        assert_eq!(memory.allocate(41), Err(MemoryError::Full));
        assert_eq!(memory.total_and_free(), (100, 40));
        memory.free(a).unwrap();
        assert_eq!(memory.free(a), Err(MemoryError::Address));
        assert_ne!(memory.allocate(60).unwrap(), a);
        assert_eq!(memory.read(a, &mut [0]), Err(MemoryError::Address));
    }

    #[test]
    fn a_kernel_sees_words_of_every_size() {
        let memory = Memory::new(100);
        let a = memory.allocate(16).unwrap();
        let mut view = memory.view();
        view.store(a, 8, 0x1122_3344_5566_7788).unwrap();
        view.store(a + 3, 1, 0xaa).unwrap();
        view.store(a + 6, 2, 0xbbcc).unwrap();
        assert_eq!(view.load(a, 8).unwrap(), 0xbbcc_3344_aa66_7788);
        assert_eq!(view.load(a + 5, 1).unwrap(), 0x33);
        assert_eq!(view.update(a, 4, |v| v + 1).unwrap(), 0xaa66_7788);
        assert_eq!(view.update(a + 8, 8, |_| 7).unwrap(), u64::MAX);
        assert_eq!(view.load(a + 8, 8).unwrap(), 7);
        assert_eq!(view.load(a + 16, 1).unwrap_err().0, Kind::OutOfBounds);
        assert_eq!(view.load(0x1000, 4).unwrap_err().0, Kind::OutOfBounds);
    }
}
