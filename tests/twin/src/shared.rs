//! Shared memory of one block, with who used each byte.

use crate::fault::{Kind, Trap, trap};
use crate::memory::POISON;
use crate::races::{self, Cell, Use, User};

/// Shared memory, used by one block after the other.
#[derive(Debug)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    cells: Vec<Cell>,
    /// The first phase of the current block: what was written before belongs to others.
    since: u32,
}

impl Shared {
    pub(crate) fn new(bytes: usize) -> Shared {
        Shared { bytes: vec![POISON; bytes], cells: vec![Cell::default(); bytes], since: 0 }
    }

    /// Begins a block whose first phase is `phase`.
    pub(crate) fn begin(&mut self, phase: u32) {
        self.bytes.fill(POISON);
        self.since = phase;
    }

    #[inline]
    fn range(&self, address: u64, size: usize) -> Result<std::ops::Range<usize>, Trap> {
        let at = address as usize;
        if address > self.bytes.len() as u64 || at + size > self.bytes.len() {
            return trap(
                Kind::OutOfBounds,
                format!("{size} bytes at {at} of {} bytes of shared memory", self.bytes.len()),
            );
        }
        Ok(at..at + size)
    }

    /// `size` bytes, at most 8.
    #[inline]
    pub(crate) fn load(&mut self, address: u64, size: usize, user: User) -> Result<u64, Trap> {
        let range = self.range(address, size)?;
        let cells = &mut self.cells[range.clone()];
        if !cells.iter().all(|c| c.is_written_since(self.since)) {
            return trap(Kind::Uninitialised, "shared memory that nobody has written is read");
        }
        races::note(cells, user, Use::Read)?;
        let mut value = [0; 8];
        value[..size].copy_from_slice(&self.bytes[range]);
        Ok(u64::from_le_bytes(value))
    }

    /// Stores `size` bytes, at most 8.
    #[inline]
    pub(crate) fn store(&mut self, address: u64, size: usize, value: u64, user: User) -> Result<(), Trap> {
        let range = self.range(address, size)?;
        races::note(&mut self.cells[range.clone()], user, Use::Write)?;
        self.bytes[range].copy_from_slice(&value.to_le_bytes()[..size]);
        Ok(())
    }

    /// Replaces a value and returns the old one.
    pub(crate) fn update(
        &mut self,
        address: u64,
        size: usize,
        user: User,
        next: impl Fn(u64) -> u64,
    ) -> Result<u64, Trap> {
        let range = self.range(address, size)?;
        let cells = &mut self.cells[range.clone()];
        if !cells.iter().all(|c| c.is_written_since(self.since)) {
            return trap(Kind::Uninitialised, "shared memory that nobody has written is updated");
        }
        races::note(cells, user, Use::Atomic)?;
        let mut value = [0; 8];
        value[..size].copy_from_slice(&self.bytes[range.clone()]);
        let old = u64::from_le_bytes(value);
        self.bytes[range].copy_from_slice(&next(old).to_le_bytes()[..size]);
        Ok(old)
    }
}
