//! How much a packed file may unpack to. Text packs to a tenth of its size, or a hundredth where it repeats itself; a file that
//! unpacks to more was made to fill memory or to take for ever.

use std::io::{self, Read};

/// Bytes that any file may unpack to.
const FREE: u64 = 1 << 20;

/// Bytes for each byte of the file.
const RATIO: u64 = 100;

/// What is said of a file that unpacks to more.
pub(super) const TOO_MUCH: &str = "it unpacks to more than 100 times its size, as no text does";

/// Bytes that may still come out of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance(u64);

impl Allowance {
    /// That of a file, or a part of one, of so many bytes.
    pub(super) fn of(packed: u64) -> Allowance {
        Allowance(packed.saturating_mul(RATIO).saturating_add(FREE))
    }

    /// Takes `bytes` off it; false if there are not as many left.
    pub(super) fn take(&mut self, bytes: u64) -> bool {
        let left = self.0.checked_sub(bytes);
        self.0 = left.unwrap_or(0);
        left.is_some()
    }
}

/// A reader of unpacked bytes that fails where there are too many.
pub(super) struct Bounded<R> {
    inner: R,
    left: Allowance,
}

impl<R> Bounded<R> {
    /// Of a file of `packed` bytes.
    pub(super) fn new(inner: R, packed: u64) -> Bounded<R> {
        Bounded { inner, left: Allowance::of(packed) }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        match self.left.take(n as u64) {
            true => Ok(n),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, TOO_MUCH)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_unpacks_to_too_much_fails() {
        let read = |bytes: u64, packed: u64| {
            let mut reader = Bounded::new(io::repeat(b'x').take(bytes), packed);
            io::copy(&mut reader, &mut io::sink()).map_err(|e| e.kind())
        };
        assert_eq!(read(FREE + 100 * 1000, 1000), Ok(FREE + 100 * 1000));
        assert_eq!(read(FREE + 100 * 1000 + 1, 1000), Err(io::ErrorKind::InvalidData));
        assert_eq!(read(10, u64::MAX), Ok(10));
    }
}
