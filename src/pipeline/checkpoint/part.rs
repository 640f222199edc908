//! The files of a checkpoint, hashed as they are written and read.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use super::identity;
use super::state::Record;
use crate::atomic::AtomicFile;

/// A file that is being written.
#[derive(Debug)]
pub struct PartFile {
    pub(super) name: String,
    pub(super) out: Hashed<AtomicFile>,
}

impl Write for PartFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.inner.file().write(bytes)?;
        self.out.took(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.inner.file().flush()
    }
}

/// Hashes what goes through.
#[derive(Debug)]
pub(super) struct Hashed<T> {
    pub(super) inner: T,
    hash: Sha256,
    bytes: u64,
    /// What went wrong while reading, for those who want to know it better than the reader tells.
    pub(super) failed: Option<io::Error>,
}

impl<T> Hashed<T> {
    pub(super) fn new(inner: T) -> Self {
        Hashed { inner, hash: Sha256::new(), bytes: 0, failed: None }
    }

    fn took(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    pub(super) fn finish(self) -> (Record, T) {
        (Record { bytes: self.bytes, sha256: identity::hex(&self.hash.finalize()) }, self.inner)
    }
}

impl<T: Read> Read for Hashed<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(bytes) {
            Ok(n) => {
                self.took(&bytes[..n]);
                Ok(n)
            }
            Err(e) => {
                if e.kind() != io::ErrorKind::Interrupted {
                    self.failed = Some(io::Error::new(e.kind(), e.to_string()));
                }
                Err(e)
            }
        }
    }
}
