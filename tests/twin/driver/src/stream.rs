//! Streams and events. All work is done when a call returns, so they have nothing to do but to exist.

use std::ffi::{c_int, c_uint, c_void};
use std::time::Instant;

use crate::codes::{Code, SUCCESS};
use crate::context::with_device;

/// What an event's handle points to: when it was recorded.
struct Event(std::sync::Mutex<Option<Instant>>);

/// A stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _flags: c_uint) -> Code {
    with_device(|_| {
        // SAFETY: the caller gives a place for a handle; each is an allocation of its own, so that no two are the same.
        unsafe { *stream = Box::into_raw(Box::new(0u64)).cast() };
        SUCCESS
    })
}

/// Ends a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> Code {
    // SAFETY: the handle was made by cuStreamCreate and is destroyed once.
    drop(unsafe { Box::from_raw(stream.cast::<u64>()) });
    SUCCESS
}

/// Waits for a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(_stream: *mut c_void) -> Code {
    with_device(|_| SUCCESS)
}

/// Whether a stream has done its work: always.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(_stream: *mut c_void) -> Code {
    with_device(|_| SUCCESS)
}

/// Lets a stream wait for an event.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(_stream: *mut c_void, _event: *mut c_void, _flags: c_uint) -> Code {
    with_device(|_| SUCCESS)
}

/// Whether a stream is recorded for a graph: never.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(_stream: *mut c_void, status: *mut c_int) -> Code {
    // SAFETY: the caller gives a place for a number.
    unsafe { *status = 0 };
    SUCCESS
}

/// An event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut c_void, _flags: c_uint) -> Code {
    with_device(|_| {
        // SAFETY: the caller gives a place for a handle.
        unsafe { *event = Box::into_raw(Box::new(Event(Default::default()))).cast() };
        SUCCESS
    })
}

/// Ends an event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> Code {
    // SAFETY: the handle was made by cuEventCreate and is destroyed once.
    drop(unsafe { Box::from_raw(event.cast::<Event>()) });
    SUCCESS
}

fn time_of(event: *mut c_void) -> &'static std::sync::Mutex<Option<Instant>> {
    // SAFETY: the handle is that of an event that is not destroyed, by the rules of the driver API.
    &unsafe { &*event.cast::<Event>() }.0
}

/// Notes the time.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: *mut c_void, _stream: *mut c_void) -> Code {
    with_device(|_| {
        if let Ok(mut time) = time_of(event).lock() {
            *time = Some(Instant::now());
        }
        SUCCESS
    })
}

/// Waits for an event.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(_event: *mut c_void) -> Code {
    with_device(|_| SUCCESS)
}

/// Whether an event has happened: always.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(_event: *mut c_void) -> Code {
    with_device(|_| SUCCESS)
}

/// Milliseconds between two events, of the twin's own time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(
    milliseconds: *mut f32,
    start: *mut c_void,
    end: *mut c_void,
) -> Code {
    let time = |event| time_of(event).lock().ok().and_then(|time| *time);
    let (Some(start), Some(end)) = (time(start), time(end)) else { return crate::codes::INVALID_VALUE };
    // SAFETY: the caller gives a place for a number.
    unsafe { *milliseconds = (end - start).as_secs_f32() * 1e3 };
    SUCCESS
}
