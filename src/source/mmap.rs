//! The one place where model files are mapped into memory.

use std::ffi::{CStr, CString, c_char};
use std::fs::File;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use memmap2::{Advice, Mmap};

use crate::error::{Error, Kind, Result};

/// The smallest size of a page; where pages are larger, the kernel refuses the question, and the answer is "not known".
const PAGE: usize = 4096;

/// A read-only map of a whole file.
#[derive(Debug)]
pub struct Map {
    // Dropped first: nobody is told of a map that is gone.
    _entry: Option<Entry>,
    map: Option<Mmap>,
}

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
            return Ok(Map { _entry: None, map: None });
        }
        // SAFETY: the map is read-only and private to this process. Another process that truncates the file while
        // we read it causes SIGBUS, as in every program that maps its input; see `lost`.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(format!("cannot map {}", name()), e))?;
        Ok(Map { _entry: Entry::new(&map, path), map: Some(map) })
    }

    /// Asks the kernel to read the range ahead. A hint: failure does not matter.
    ///
    /// Where both ends are in memory already, the rest is taken to be, too: asking would make the kernel look up every
    /// page, which costs as much as encoding a tenth of the weights.
    pub fn will_need(&self, range: Range<usize>) {
        let Some(map) = &self.map else { return };
        let Some(last) = range.len().checked_sub(1) else { return };
        if !(is_resident(map, range.start) && is_resident(map, range.start + last)) {
            let _ = map.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }
}

/// The maps that there are, for whoever must know at any moment, without memory or locks, which file an address is of.
static MAPS: [Slot; SLOTS] = [const { Slot::free() }; SLOTS];

/// More files than a model has; a map beyond them is merely not known here.
const SLOTS: usize = 4096;

struct Slot {
    /// Null if the slot is free. Owned by whoever has put it there.
    path: AtomicPtr<c_char>,
    start: AtomicUsize,
    /// 0 while the slot is being filled or emptied.
    length: AtomicUsize,
}

impl Slot {
    const fn free() -> Slot {
        Slot {
            path: AtomicPtr::new(std::ptr::null_mut()),
            start: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
        }
    }
}

/// A map's place among those that are known.
#[derive(Debug)]
struct Entry(usize);

impl Entry {
    fn new(map: &Mmap, path: &Path) -> Option<Entry> {
        let path = CString::new(path.as_os_str().as_bytes()).ok()?.into_raw();
        let free = |slot: &Slot| {
            slot.path
                .compare_exchange(std::ptr::null_mut(), path, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        let Some(index) = MAPS.iter().position(free) else {
            // SAFETY: the pointer was just made by `into_raw`, and nobody else has it.
            drop(unsafe { CString::from_raw(path) });
            return None;
        };
        MAPS[index].start.store(map.as_ptr() as usize, Ordering::Relaxed);
        MAPS[index].length.store(map.len(), Ordering::Release);
        Some(Entry(index))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let slot = &MAPS[self.0];
        slot.length.store(0, Ordering::Release);
        let path = slot.path.swap(std::ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: the pointer was made by `into_raw`. A handler looks at it only after a fault within this map, which nobody
        // can reach any more.
        drop(unsafe { CString::from_raw(path) });
    }
}

/// A place in a mapped file that can no longer be read.
#[derive(Debug)]
pub struct Lost<'a> {
    /// The file, as it was opened.
    pub path: &'a [u8],
    /// The byte in it.
    pub offset: usize,
    /// Whether the file is shorter now than it was; else its disk has failed.
    pub is_shorter: bool,
}

/// What lies at an address that could not be read, if it is one of a map. May be called in a signal handler, by the thread that
/// met the fault.
pub fn lost(address: usize) -> Option<Lost<'static>> {
    for slot in &MAPS {
        let length = slot.length.load(Ordering::Acquire);
        let offset = address.wrapping_sub(slot.start.load(Ordering::Relaxed));
        // A fault is told of as that of the page, whose end may lie beyond that of the file.
        if length == 0 || offset >= length.next_multiple_of(PAGE) {
            continue;
        }
        let path = slot.path.load(Ordering::Acquire);
        if path.is_null() {
            continue;
        }
        let mut found = std::mem::MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: the path is a C string that lives as long as the map, which the faulting thread is reading; `found` has room for
        // what the call writes.
        let (path, failed) =
            unsafe { (CStr::from_ptr(path).to_bytes(), libc::stat(path, found.as_mut_ptr()) != 0) };
        // SAFETY: zeros are a valid value, and so is what the call has written.
        let size = unsafe { found.assume_init() }.st_size;
        let is_shorter = !failed && usize::try_from(size).is_ok_and(|size| size < length);
        return Some(Lost { path, offset, is_shorter });
    }
    None
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
        self.map.as_deref().unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_that_of_the_file_that_is_mapped_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, [7; 10_000]).unwrap();
        let map = Map::open(&path).unwrap();
        let address = map.as_ptr() as usize;
        let found = lost(address + 5000).unwrap();
        assert_eq!((found.path, found.offset), (path.as_os_str().as_bytes(), 5000));
        assert!(!found.is_shorter);
        std::fs::write(&path, [7; 4096]).unwrap();
        assert!(lost(address + 5000).unwrap().is_shorter);
        assert!(lost(address + 3 * PAGE).is_none());
        drop(map);
        assert!(lost(address + 5000).is_none());
    }
}
