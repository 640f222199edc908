//! Modules and their functions.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use gpu_twin::{Kernel, Module};

use crate::codes::{Code, INVALID_PTX, INVALID_VALUE, NO_BINARY_FOR_GPU, NOT_FOUND, SUCCESS};
use crate::context::with_device;

/// What a module's handle points to.
struct Loaded {
    module: Module,
    functions: Mutex<HashMap<String, Box<Function>>>,
}

/// What a function's handle points to.
pub(crate) struct Function {
    pub(crate) kernel: Arc<Kernel>,
    /// Bytes of dynamic shared memory that it has asked to be allowed.
    pub(crate) dynamic_shared: AtomicU32,
}

/// Loads PTX.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_char) -> Code {
    // SAFETY: an image has at least four bytes: machine code begins with a mark of four, and PTX is a text that ends with 0.
    let begins_as_elf = unsafe { *image.cast::<u8>() } == 0x7f;
    // SAFETY: as above.
    let begins_as_fat_binary = unsafe { *image.cast::<u8>() } == 0x50;
    if begins_as_elf || begins_as_fat_binary {
        eprintln!("gpu-twin: only PTX can be loaded, not machine code");
        return NO_BINARY_FOR_GPU;
    }
    // SAFETY: PTX ends with 0.
    let Ok(text) = (unsafe { CStr::from_ptr(image) }).to_str() else { return INVALID_PTX };
    with_device(|device| match Module::load(text, &device.memory) {
        Ok(loaded) => {
            let loaded = Box::new(Loaded { module: loaded, functions: Mutex::default() });
            // SAFETY: the caller gives a place for a handle.
            unsafe { *module = Box::into_raw(loaded).cast() };
            SUCCESS
        }
        Err(e) => {
            eprintln!("gpu-twin: {e}");
            INVALID_PTX
        }
    })
}

/// Unloads a module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: *mut c_void) -> Code {
    // SAFETY: the handle is that of a module that was loaded and is unloaded once.
    let loaded = unsafe { Box::from_raw(module.cast::<Loaded>()) };
    with_device(|device| {
        loaded.module.globals().for_each(|address| _ = device.memory.free(address));
        SUCCESS
    })
}

/// A function by its name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> Code {
    // SAFETY: the handle is that of a loaded module, the name a text that ends with 0.
    let (loaded, name) = unsafe { (&*module.cast::<Loaded>(), CStr::from_ptr(name)) };
    let name = name.to_string_lossy();
    let Some(kernel) = loaded.module.kernel(&name) else { return NOT_FOUND };
    let mut functions = loaded.functions.lock().unwrap_or_else(PoisonError::into_inner);
    let found = functions
        .entry(name.into_owned())
        .or_insert_with(|| Box::new(Function { kernel: kernel.clone(), dynamic_shared: AtomicU32::new(0) }));
    // SAFETY: the caller gives a place for a handle, which is good as long as the module.
    unsafe { *function = std::ptr::from_ref(&**found).cast_mut().cast() };
    SUCCESS
}

/// Address and bytes of a variable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetGlobal_v2(
    address: *mut u64,
    bytes: *mut usize,
    module: *mut c_void,
    name: *const c_char,
) -> Code {
    // SAFETY: as in cuModuleGetFunction.
    let (loaded, name) = unsafe { (&*module.cast::<Loaded>(), CStr::from_ptr(name)) };
    let Some((found, size)) = loaded.module.global(&name.to_string_lossy()) else { return NOT_FOUND };
    // SAFETY: the caller gives places for both, or null.
    unsafe {
        if let Some(address) = address.as_mut() {
            *address = found;
        }
        if let Some(bytes) = bytes.as_mut() {
            *bytes = size as usize;
        }
    }
    SUCCESS
}

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: c_int = 8;

/// Allows a function more dynamic shared memory; nothing else can be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(function: *mut c_void, attribute: c_int, value: c_int) -> Code {
    // SAFETY: the handle is that of a function.
    let function = unsafe { &*function.cast::<Function>() };
    if attribute != MAX_DYNAMIC_SHARED || value < 0 {
        return INVALID_VALUE;
    }
    function.dynamic_shared.store(value as u32, Relaxed);
    SUCCESS
}

/// Threads a block may have, shared, constant and local bytes, and what was set; 0 for the rest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(
    value: *mut c_int,
    attribute: c_int,
    function: *mut c_void,
) -> Code {
    // SAFETY: the handle is that of a function.
    let function = unsafe { &*function.cast::<Function>() };
    let found = match attribute {
        0 => function.kernel.max_threads.unwrap_or(1024) as c_int,
        1 => function.kernel.shared_bytes as c_int,
        3 => function.kernel.local_bytes as c_int,
        MAX_DYNAMIC_SHARED => function.dynamic_shared.load(Relaxed) as c_int,
        _ => 0,
    };
    // SAFETY: the caller gives a place for a number.
    unsafe { *value = found };
    SUCCESS
}
