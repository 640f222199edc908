//! A `libcuda.so` whose device is the GPU twin: an unchanged CUDA program runs on it, on a machine without a GPU.
//!
//! Built, it is `libcuda.so`; copied or linked as `libcuda.so.1` into a directory on `LD_LIBRARY_PATH` it is what programs
//! that use the driver API load. Everything is done at once, in the order of the calls, so streams and events have nothing
//! to wait for. A mistake of a kernel is printed to standard error and returned as the error that a driver would return;
//! from then on every call fails with it, as after a fault of a GPU.
//!
//! | variable            | meaning                                                                  | without it |
//! |---------------------|--------------------------------------------------------------------------|------------|
//! | `GPU_TWIN_ORDER`    | order of threads and blocks: `forward`, `reverse`, or a number for chance | `forward`  |
//! | `GPU_TWIN_WORKERS`  | threads of the host                                                      | all cores  |
//! | `GPU_TWIN_MEMORY`   | bytes of device memory                                                   | 4 GiB      |
//! | `GPU_TWIN_DEVICES`  | number of devices                                                        | 1          |
//! | `GPU_TWIN_LOG`      | a file that gets a line for each launch                                  | no log     |

#![allow(non_snake_case, reason = "the names are those of the driver API")]
// The conditions are those of the CUDA driver API: pointers to results and arguments are valid, handles are the driver's.
#![allow(clippy::missing_safety_doc, reason = "the CUDA driver API says what callers must hold to")]

mod codes;
mod context;
mod device;
mod launch;
mod memory;
mod module;
mod stream;
