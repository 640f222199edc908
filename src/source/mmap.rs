//! The one place where model files are mapped into memory.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::{Advice, Mmap};

use crate::error::{Error, Kind, Result};

/// The smallest size of a page; where pages are larger, the kernel refuses the question, and the answer is "not known".
const PAGE: usize = 4096;

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
    ///
    /// Where both ends are in memory already, the rest is taken to be, too: asking would make the kernel look up every
    /// page, which costs as much as encoding a tenth of the weights.
    pub fn will_need(&self, range: Range<usize>) {
        let Some(map) = &self.0 else { return };
        let Some(last) = range.len().checked_sub(1) else { return };
        if !(is_resident(map, range.start) && is_resident(map, range.start + last)) {
            let _ = map.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }
}

/// Whether the page that holds byte `at` is in memory. Not known counts as not.
fn is_resident(map: &Mmap, at: usize) -> bool {
    let page = &map[at] as *const u8 as usize & !(PAGE - 1);
    let mut state = 0u8;
    // SAFETY: the byte lies in the map, so its page does; the kernel writes one byte for the one page asked for.
    let done = unsafe { libc::mincore(page as *mut libc::c_void, 1, &raw mut state) };
    done == 0 && state & 1 == 1
}

impl std::ops::Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}
