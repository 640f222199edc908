//! Which threads of a block used which bytes since the last barrier.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::fault::{Kind, Trap, trap};

/// How bytes are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
    Atomic,
}

/// Who uses them, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    /// Number of the thread in its block.
    pub(crate) thread: u16,
    /// Barriers of the block so far, counted on through all blocks.
    pub(crate) phase: u32,
    /// Barriers of the thread's warp so far.
    pub(crate) warp_phase: u32,
}

/// Several threads, of one warp or of several.
const MANY: u16 = u16::MAX;

/// The last uses of one byte.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cell {
    write_phase: u32,
    write_warp_phase: u32,
    read_phase: u32,
    read_warp_phase: u32,
    writer: u16,
    reader: u16,
    /// Warp of the readers, or `MANY`.
    read_warp: u16,
    atomic: bool,
}

fn warp(thread: u16) -> u16 {
    thread / 32
}

impl Cell {
    /// Notes a use.
    ///
    /// # Errors
    /// The thread whose use this one is not ordered after, if one of the two is a write.
    #[inline]
    fn note(&mut self, user: User, how: Use) -> Result<(), u16> {
        let User { thread, phase, warp_phase } = user;
        let both_atomic = self.atomic && how == Use::Atomic;
        if self.write_phase == phase && self.writer != thread && !both_atomic {
            let ordered = warp(self.writer) == warp(thread) && self.write_warp_phase < warp_phase;
            if !ordered {
                return Err(self.writer);
            }
        }
        if how == Use::Read {
            if self.read_phase != phase || self.read_warp == warp(thread) && self.read_warp_phase < warp_phase
            {
                (self.reader, self.read_warp) = (thread, warp(thread));
            } else {
                if self.read_warp != warp(thread) {
                    self.read_warp = MANY;
                }
                if self.reader != thread {
                    self.reader = MANY;
                }
            }
            (self.read_phase, self.read_warp_phase) = (phase, warp_phase);
            return Ok(());
        }
        if self.read_phase == phase && self.reader != thread {
            let ordered = self.read_warp == warp(thread) && self.read_warp_phase < warp_phase;
            if !ordered {
                return Err(self.reader);
            }
        }
        (self.write_phase, self.write_warp_phase) = (phase, warp_phase);
        self.writer = thread;
        self.atomic = how == Use::Atomic;
        Ok(())
    }

    /// Whether anybody has written it in the phases from `first` on.
    #[inline]
    pub(crate) fn is_written_since(&self, first: u32) -> bool {
        self.write_phase >= first
    }
}

/// Notes the use of consecutive bytes.
#[inline]
pub(crate) fn note(cells: &mut [Cell], user: User, how: Use) -> Result<(), Trap> {
    for cell in cells {
        if let Err(other) = cell.note(user, how) {
            return race(user.thread, other, how);
        }
    }
    Ok(())
}

#[cold]
fn race<T>(thread: u16, other: u16, how: Use) -> Result<T, Trap> {
    let verb = if how == Use::Read { "reads" } else { "writes" };
    let other = if other == MANY { "several threads read".into() } else { format!("thread {other} used") };
    trap(Kind::Race, format!("thread {thread} {verb} what {other} since the last barrier"))
}

/// What the threads of a block wrote to global memory since the last barrier. Reads are not kept: a read that a write comes
/// after is found when threads run in the opposite order.
#[derive(Debug, Default)]
pub(crate) struct GlobalWrites {
    cells: HashMap<u64, Cell, BuildHasherDefault<Mix>>,
    /// One bit for each of 4096 groups of addresses that something was written to.
    seen: Vec<u64>,
}

impl GlobalWrites {
    /// Forgets everything: a barrier orders all that was before it.
    pub(crate) fn clear(&mut self) {
        if !self.cells.is_empty() {
            self.cells.clear();
            self.seen.fill(0);
        }
    }

    /// Notes the use of `bytes` bytes.
    #[inline]
    pub(crate) fn note(&mut self, address: u64, bytes: usize, user: User, how: Use) -> Result<(), Trap> {
        let group = (address >> 6) as usize & 4095;
        let bit = 1 << (group % 64);
        if how == Use::Read {
            if self.cells.is_empty() || self.seen[group / 64] & bit == 0 {
                return Ok(());
            }
        } else {
            self.seen.resize(64, 0);
            self.seen[group / 64] |= bit;
        }
        for address in address..address + bytes as u64 {
            if how == Use::Read {
                if let Some(cell) = self.cells.get_mut(&address) {
                    note(std::slice::from_mut(cell), user, how)?;
                }
            } else {
                note(std::slice::from_mut(self.cells.entry(address).or_default()), user, how)?;
            }
        }
        Ok(())
    }
}

/// A quick hash of addresses.
#[derive(Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, v: u64) {
        let mixed = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(list: &[(u16, u32, u32, Use)]) -> Result<(), u16> {
        let mut cell = Cell::default();
        list.iter().try_for_each(|&(thread, phase, warp_phase, how)| {
            cell.note(User { thread, phase, warp_phase }, how)
        })
    }

    #[test]
    fn a_write_and_another_threads_use_need_a_barrier() {
        use Use::*;
        assert_eq!(uses(&[(0, 1, 0, Write), (1, 1, 0, Read)]), Err(0));
        assert_eq!(uses(&[(0, 1, 0, Read), (1, 1, 0, Write)]), Err(0));
        assert_eq!(uses(&[(0, 1, 0, Write), (1, 1, 0, Write)]), Err(0));
        assert_eq!(uses(&[(0, 1, 0, Write), (1, 2, 0, Read)]), Ok(()));
        assert_eq!(uses(&[(0, 1, 0, Write), (0, 1, 0, Read), (0, 1, 0, Write)]), Ok(()));
        assert_eq!(uses(&[(0, 1, 0, Read), (1, 1, 0, Read), (40, 1, 0, Read)]), Ok(()));
        assert_eq!(uses(&[(0, 1, 0, Read), (1, 1, 0, Read), (1, 1, 0, Write)]), Err(MANY));
    }

    #[test]
    fn a_barrier_of_the_warp_orders_the_warp_alone() {
        use Use::*;
        assert_eq!(uses(&[(0, 1, 0, Write), (1, 1, 1, Read)]), Ok(()));
        assert_eq!(uses(&[(0, 1, 0, Write), (32, 1, 1, Read)]), Err(0));
        assert_eq!(uses(&[(0, 1, 0, Read), (1, 1, 0, Read), (2, 1, 1, Write)]), Ok(()));
        assert_eq!(uses(&[(0, 1, 0, Read), (33, 1, 0, Read), (2, 1, 1, Write)]), Err(MANY));
    }

    #[test]
    fn atomics_go_together_and_with_nothing_else() {
        use Use::*;
        assert_eq!(uses(&[(0, 1, 0, Atomic), (1, 1, 0, Atomic)]), Ok(()));
        assert_eq!(uses(&[(0, 1, 0, Atomic), (1, 1, 0, Read)]), Err(0));
        assert_eq!(uses(&[(0, 1, 0, Write), (1, 1, 0, Atomic)]), Err(0));
    }
}
