//! Allocations and copies.

use std::alloc::Layout;
use std::collections::HashMap;
use std::ffi::{c_uint, c_void};
use std::sync::{Mutex, PoisonError};

use gpu_twin::MemoryError;

use crate::codes::{Code, INVALID_VALUE, OUT_OF_MEMORY, SUCCESS};
use crate::context::with_device;

fn code(result: Result<(), MemoryError>) -> Code {
    match result {
        Ok(()) => SUCCESS,
        Err(MemoryError::Full) => OUT_OF_MEMORY,
        Err(MemoryError::Address) => INVALID_VALUE,
    }
}

/// Allocates device memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Code {
    with_device(|device| {
        if bytes == 0 {
            return INVALID_VALUE;
        }
        code(device.memory.allocate(bytes as u64).map(|found| {
            // SAFETY: the caller gives a place for an address.
            unsafe { *address = found }
        }))
    })
}

/// Allocates device memory, in the order of a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, _stream: *mut c_void) -> Code {
    // SAFETY: as for the caller.
    unsafe { cuMemAlloc_v2(address, bytes) }
}

/// Frees device memory.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Code {
    with_device(|device| code(device.memory.free(address)))
}

/// Frees device memory, in the order of a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: u64, _stream: *mut c_void) -> Code {
    cuMemFree_v2(address)
}

/// Free bytes and all bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    with_device(|device| {
        let (all, left) = device.memory.total_and_free();
        // SAFETY: the caller gives places for two numbers.
        unsafe { (*free, *total) = (left as usize, all as usize) };
        SUCCESS
    })
}

/// Copies from the host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const u8, bytes: usize) -> Code {
    with_device(|device| {
        // SAFETY: the caller gives `bytes` bytes.
        let from = unsafe { std::slice::from_raw_parts(from, bytes) };
        code(device.memory.write(to, from))
    })
}

/// Copies from the host, in the order of a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const u8,
    bytes: usize,
    _stream: *mut c_void,
) -> Code {
    // SAFETY: as for the caller.
    unsafe { cuMemcpyHtoD_v2(to, from, bytes) }
}

/// Copies to the host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut u8, from: u64, bytes: usize) -> Code {
    with_device(|device| {
        let mut found = vec![0; bytes];
        code(device.memory.read(from, &mut found).map(|()| {
            // SAFETY: the caller gives room for `bytes` bytes, which may not have been written yet.
            unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), to, bytes) }
        }))
    })
}

/// Copies to the host, in the order of a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut u8,
    from: u64,
    bytes: usize,
    _stream: *mut c_void,
) -> Code {
    // SAFETY: as for the caller.
    unsafe { cuMemcpyDtoH_v2(to, from, bytes) }
}

/// Copies within the device.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _stream: *mut c_void) -> Code {
    with_device(|device| {
        let mut found = vec![0; bytes];
        code(device.memory.read(from, &mut found).and_then(|()| device.memory.write(to, &found)))
    })
}

/// Fills with a byte.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, _stream: *mut c_void) -> Code {
    with_device(|device| code(device.memory.fill(to..to + bytes as u64, 1, value.into())))
}

/// Bytes of what `cuMemHostAlloc` gave out, by address.
static PINNED: Mutex<Option<HashMap<usize, usize>>> = Mutex::new(None);

fn page_aligned(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, 4096).ok().filter(|_| bytes > 0)
}

/// Allocates memory of the host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, _flags: c_uint) -> Code {
    let Some(layout) = page_aligned(bytes) else { return INVALID_VALUE };
    // SAFETY: the layout is not empty.
    let found = unsafe { std::alloc::alloc(layout) };
    if found.is_null() {
        return OUT_OF_MEMORY;
    }
    let mut pinned = PINNED.lock().unwrap_or_else(PoisonError::into_inner);
    pinned.get_or_insert_default().insert(found as usize, bytes);
    // SAFETY: the caller gives a place for an address.
    unsafe { *address = found.cast() };
    SUCCESS
}

/// Frees memory of the host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(address: *mut c_void) -> Code {
    let mut pinned = PINNED.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = pinned.get_or_insert_default().remove(&(address as usize));
    let Some(layout) = bytes.and_then(page_aligned) else { return INVALID_VALUE };
    // SAFETY: it was allocated with this layout and is freed once.
    unsafe { std::alloc::dealloc(address.cast(), layout) };
    SUCCESS
}
