//! The ends that no error is returned from: memory that cannot be had, and a mapped file that can no longer be read. The program
//! says so and leaves at once with the right exit code. What it leaves is what SIGKILL would leave: no output, and a checkpoint
//! that the next run goes on from.
//!
//! There may be no memory, and a signal may have come at any moment. So nothing here allocates or takes a lock: text is put into a
//! buffer of fixed size, and only `write` and `_exit` are called.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Kind;
use crate::pipeline::memory;
use crate::source::mmap::{self, Lost};

/// Whether failures are told as JSON on standard output.
static JSON: AtomicBool = AtomicBool::new(false);

/// Has failures told as JSON, and listens for files that can no longer be read.
pub(super) fn prepare(json: bool) {
    JSON.store(json, Ordering::Relaxed);
    // SAFETY: the action is filled in as sigaction(2) wants it, and the handler calls nothing but what signal-safety(7) allows.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

/// A page of a mapped file could not be read: the file was made shorter meanwhile, or its disk failed.
extern "C" fn on_bus(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid structure; a fault, which has a positive code, comes with an address.
    let address = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr() as usize) };
    match address.and_then(mmap::lost) {
        Some(Lost { path, offset, is_shorter: true }) => leave(
            Kind::Invalid,
            format_args!("{} became shorter while it was read: byte {offset} is gone", Plain(path)),
            "Run the same command again when the file is whole; it must not change during a run.",
        ),
        Some(Lost { path, offset, is_shorter: false }) => leave(
            Kind::Other,
            format_args!("{} cannot be read at byte {offset}: its disk reports an error", Plain(path)),
            "Run the same command again when the disk is in order.",
        ),
        // Not ours: what would have happened without a handler happens when the instruction is tried again.
        // SAFETY: the call is safe in a handler and touches no memory of ours.
        None => unsafe {
            libc::signal(signal, libc::SIG_DFL);
            if address.is_none() {
                libc::raise(signal);
            }
        },
    }
}

/// The system's allocator, except that the program ends with the exit code of missing resources where it would otherwise be
/// aborted: what asks for memory in Rust has no way to go on without.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: all is left to the system's allocator; only the null that means failure is never returned.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`.
        given(unsafe { System.realloc(old, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn given(memory: *mut u8, size: usize) -> *mut u8 {
    if memory.is_null() {
        out_of_memory(size);
    }
    memory
}

#[cold]
fn out_of_memory(size: usize) -> ! {
    const HINT: &str = "Give it more memory, or take fewer or shorter windows of text, --low-memory, --offload or fewer --threads; \
                        the same command goes on from the last finished layer.";
    match memory::asked() {
        Some(limit) => leave(
            Kind::Resources,
            format_args!("out of memory: {size} bytes more than --memory-limit, {limit} bytes, allows"),
            HINT,
        ),
        None => leave(
            Kind::Resources,
            format_args!("out of memory: the system does not give {size} bytes more"),
            HINT,
        ),
    }
}

/// Tells what happened in the way that was asked for, and ends the program.
fn leave(kind: Kind, message: fmt::Arguments<'_>, hint: &str) -> ! {
    let mut line = Line { bytes: [0; Line::SIZE], length: 0 };
    // What is too long is cut off.
    let json = JSON.load(Ordering::Relaxed);
    let _ = match json {
        true => writeln!(
            line,
            "{{\"status\": \"error\", \"error_code\": {}, \"error_type\": \"{}\", \"message\": \"{message}\", \"suggestion\": \"{hint}\"}}",
            kind as u8,
            kind.name()
        ),
        false => writeln!(line, "Error: {message}\n  {hint}"),
    };
    let mut rest = &line.bytes[..line.length];
    while !rest.is_empty() {
        // SAFETY: the pointer and the length are those of a slice.
        let n = unsafe { libc::write(if json { 1 } else { 2 }, rest.as_ptr().cast(), rest.len()) };
        match usize::try_from(n) {
            Ok(1..) => rest = &rest[n.unsigned_abs()..],
            _ => break,
        }
    }
    // SAFETY: the call does not return and runs nothing of ours.
    unsafe { libc::_exit(kind as i32) }
}

/// Text in a buffer of fixed size.
struct Line {
    bytes: [u8; Line::SIZE],
    length: usize,
}

impl Line {
    const SIZE: usize = 6000;
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let n = text.len().min(Line::SIZE - self.length);
        self.bytes[self.length..self.length + n].copy_from_slice(&text.as_bytes()[..n]);
        self.length += n;
        if n == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Bytes as text, without what would break out of a line or of JSON.
struct Plain<'a>(&'a [u8]);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                f.write_char(if c.is_control() || matches!(c, '"' | '\\') { '_' } else { c })?;
            }
            if !chunk.invalid().is_empty() {
                f.write_char('_')?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_off_rather_than_too_long() {
        let mut line = Line { bytes: [0; Line::SIZE], length: 0 };
        assert!(write!(line, "{}", "x".repeat(Line::SIZE - 1)).is_ok());
        assert!(line.write_str("yz").is_err());
        assert_eq!((line.length, line.bytes[Line::SIZE - 1]), (Line::SIZE, b'y'));
    }

    #[test]
    fn names_stay_within_json() {
        assert_eq!(Plain(b"a\"b\\c\nd\xffe \xc3\xa4").to_string(), "a_b_c_d_e ä");
    }
}
