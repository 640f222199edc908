//! What one input may cost: a second of processor time, and 64 MB of memory beyond its own size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering::Relaxed};
use std::time::Duration;

/// Bytes that may be allocated at a time beyond the input's size.
const MEMORY: usize = 64 << 20;

/// Time of all processors.
const TIME: Duration = Duration::from_secs(1);

/// Counts what is allocated. Files that are mapped are not.
pub struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static MOST: AtomicIsize = AtomicIsize::new(0);
static ALLOWED: AtomicIsize = AtomicIsize::new(isize::MAX);
/// Whether to stop where too much is allocated, so that a debugger shows who did.
static STOPS: AtomicBool = AtomicBool::new(false);

fn count(bytes: isize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    MOST.fetch_max(live, Relaxed);
    if live > ALLOWED.load(Relaxed) && STOPS.load(Relaxed) {
        std::process::abort();
    }
}

// SAFETY: everything is done by the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Runs `target` on `input` and says what it cost. `FUZZ_STOP=1` aborts in the middle of the allocation that is too much.
///
/// # Panics
/// If it took more time or memory than one input may.
pub fn within(input: &[u8], target: impl FnOnce(&[u8])) -> (Duration, usize) {
    STOPS.store(std::env::var_os("FUZZ_STOP").is_some(), Relaxed);
    let (before, start) = (LIVE.load(Relaxed), processor_time());
    MOST.store(before, Relaxed);
    ALLOWED.store(before + (MEMORY + input.len()) as isize, Relaxed);
    target(input);
    ALLOWED.store(isize::MAX, Relaxed);
    let time = processor_time() - start;
    let memory = (MOST.load(Relaxed) - before).max(0) as usize;
    assert!(memory <= MEMORY + input.len(), "{memory} bytes were allocated for an input of {}", input.len());
    assert!(time <= TIME, "it took {time:?}");
    (time, memory)
}

/// Time that all threads of this process have had. Unlike a clock it does not depend on what else the machine does.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(done, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
