//! The one place where model files are mapped into memory.

use std::fs::File;
use std::path::Path;

use memmap2::{Advice, Mmap};

use crate::error::{Error, Kind, Result};

/// A read-only map of a whole file.
#[derive(Debug)]
pub struct Map(Option<Mmap>);

impl Map {
    /// Maps `path`. An empty file gives an empty map.
    pub fn open(path: &Path) -> Result<Map> {
        let name = || path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io(format!("cannot open {}", name()), e))?;
        let meta = file.metadata().map_err(|e| Error::io(format!("cannot read {}", name()), e))?;
        if !meta.is_file() {
            return Err(Error::new(Kind::Invalid, format!("{} is not a regular file", name())));
        }
        if meta.len() == 0 {
            return Ok(Map(None));
        }
        // SAFETY: the map is read-only and private to this process. Another process that truncates the file while
        // we read it causes SIGBUS, as in every program that maps its input; the model must not change during a run.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(format!("cannot map {}", name()), e))?;
        Ok(Map(Some(map)))
    }

    /// Asks the kernel to read the range ahead. A hint: failure does not matter.
    pub fn will_need(&self, range: std::ops::Range<usize>) {
        if let Some(map) = &self.0 {
            let _ = map.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }
}

impl std::ops::Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}
