//! What a device says of itself.

use std::ffi::{c_char, c_int};

use crate::codes::{Code, INVALID_DEVICE, INVALID_VALUE, SUCCESS};
use crate::context::devices;

/// What devices are called.
const NAME: &[u8] = b"GPU twin (no GPU)\0";

/// Attributes (`CUdevice_attribute`) and their values: those of an H100 where a kernel may depend on them.
const ATTRIBUTES: [(c_int, c_int); 17] = [
    (1, 1024), // threads of a block
    (2, 1024), // x, y and z of a block
    (3, 1024),
    (4, 64),
    (5, i32::MAX), // x, y and z of a grid
    (6, 65_535),
    (7, 65_535),
    (8, 48 << 10), // shared memory of a block
    (10, 32),      // threads of a warp
    (12, 65_536),  // registers of a block
    (16, 132),     // multiprocessors
    (39, 2048),    // threads of a multiprocessor
    (41, 1),       // unified addressing
    (75, 9),       // compute capability
    (76, 0),
    (97, 227 << 10), // shared memory of a block that asks for it
    (115, 1),        // memory pools
];

/// The newest CUDA that the driver takes, 1000 times the major version.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    // SAFETY: the caller gives a place for a number.
    unsafe { *version = 13_000 };
    SUCCESS
}

/// The number of devices.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    // SAFETY: the caller gives a place for a number.
    unsafe { *count = devices().len() as c_int };
    SUCCESS
}

/// The handle of a device: its number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Code {
    if devices().get(ordinal as usize).is_none() {
        return INVALID_DEVICE;
    }
    // SAFETY: the caller gives a place for a number.
    unsafe { *device = ordinal };
    SUCCESS
}

/// The name of a device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, _device: c_int) -> Code {
    if (length as usize) < NAME.len() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller gives `length` bytes, which the name fits.
    unsafe { std::ptr::copy_nonoverlapping(NAME.as_ptr().cast(), name, NAME.len()) };
    SUCCESS
}

/// An attribute; 0 for those that are not known.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) -> Code {
    let found = ATTRIBUTES.iter().find(|(a, _)| *a == attribute).map_or(0, |(_, v)| *v);
    // SAFETY: the caller gives a place for a number.
    unsafe { *value = found };
    SUCCESS
}

/// Bytes of a device's memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> Code {
    let Some(device) = devices().get(device as usize) else { return INVALID_DEVICE };
    // SAFETY: the caller gives a place for a number.
    unsafe { *bytes = device.memory.total_and_free().0 as usize };
    SUCCESS
}
