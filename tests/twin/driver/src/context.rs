//! Contexts: one primary context for each device.

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use gpu_twin::{Memory, Order};

use crate::codes::{Code, INVALID_CONTEXT, INVALID_DEVICE, INVALID_VALUE, SUCCESS};

/// A device with its only context; the context's handle is its address.
pub(crate) struct Device {
    pub(crate) ordinal: c_int,
    pub(crate) memory: Memory,
    /// The error of a kernel, which everything after it fails with.
    pub(crate) fault: AtomicI32,
}

/// What the environment asks for.
pub(crate) struct Settings {
    pub(crate) order: Order,
    pub(crate) workers: usize,
    pub(crate) log: Option<std::path::PathBuf>,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// All devices.
pub(crate) fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let bytes = number("GPU_TWIN_MEMORY").unwrap_or(4 << 30);
        let count = number("GPU_TWIN_DEVICES").unwrap_or(1) as c_int;
        let device = |ordinal| Device { ordinal, memory: Memory::new(bytes), fault: AtomicI32::new(SUCCESS) };
        (0..count).map(device).collect()
    })
}

pub(crate) fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| Settings {
        order: match std::env::var("GPU_TWIN_ORDER").as_deref() {
            Ok("reverse") => Order::Reverse,
            Ok(seed) => seed.parse().map_or(Order::Forward, Order::Seeded),
            Err(_) => Order::Forward,
        },
        workers: number("GPU_TWIN_WORKERS").map_or_else(
            || std::thread::available_parallelism().map_or(1, usize::from),
            |workers| workers as usize,
        ),
        log: std::env::var_os("GPU_TWIN_LOG").map(Into::into),
    })
}

thread_local! {
    static CURRENT: Cell<Option<&'static Device>> = const { Cell::new(None) };
}

/// Runs a call on the device of the current context.
pub(crate) fn with_device(call: impl FnOnce(&'static Device) -> Code) -> Code {
    let Some(device) = CURRENT.get() else { return INVALID_CONTEXT };
    match device.fault.load(Relaxed) {
        SUCCESS => call(device),
        fault => fault,
    }
}

fn handle(device: Option<&'static Device>) -> *mut c_void {
    device.map_or(std::ptr::null_mut(), |d| std::ptr::from_ref(d).cast_mut().cast())
}

fn of_handle(context: *mut c_void) -> Option<&'static Device> {
    devices().iter().find(|d| handle(Some(d)) == context)
}

/// Starts the driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> Code {
    if flags == 0 { SUCCESS } else { INVALID_VALUE }
}

/// The context of a device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> Code {
    let Some(device) = devices().get(device as usize) else { return INVALID_DEVICE };
    // SAFETY: the caller gives a place for a handle.
    unsafe { *context = handle(Some(device)) };
    SUCCESS
}

/// Gives the context back; it stays.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Code {
    SUCCESS
}

/// Makes a context that of the calling thread.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> Code {
    let device = of_handle(context);
    if device.is_none() && !context.is_null() {
        return INVALID_CONTEXT;
    }
    CURRENT.set(device);
    SUCCESS
}

/// The context of the calling thread, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> Code {
    // SAFETY: the caller gives a place for a handle.
    unsafe { *context = handle(CURRENT.get()) };
    SUCCESS
}

/// The device of the calling thread's context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(device: *mut c_int) -> Code {
    with_device(|current| {
        // SAFETY: the caller gives a place for a number.
        unsafe { *device = current.ordinal };
        SUCCESS
    })
}

/// Waits for all work.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Code {
    with_device(|_| SUCCESS)
}

/// How the host waits; it never has to.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetFlags(_flags: c_uint) -> Code {
    with_device(|_| SUCCESS)
}
