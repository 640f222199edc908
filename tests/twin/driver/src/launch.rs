//! Launches.

use std::ffi::{c_uint, c_void};
use std::io::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use gpu_twin::{Kind, Launch, Options};

use crate::codes::{Code, ILLEGAL_ADDRESS, INVALID_VALUE, LAUNCH_FAILED, MISALIGNED_ADDRESS, SUCCESS};
use crate::context::{settings, with_device};
use crate::module::Function;

/// Shared memory that a block has without asking, and with it.
const SHARED: u32 = 48 << 10;
const MOST_SHARED: u32 = 227 << 10;

/// Runs a kernel to its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    dynamic_shared: c_uint,
    _stream: *mut c_void,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Code {
    // SAFETY: the handle is that of a function.
    let function = unsafe { &*function.cast::<Function>() };
    let kernel = &*function.kernel;
    let all = kernel.shared_bytes as u32 + dynamic_shared;
    let allowed =
        all <= SHARED || dynamic_shared <= function.dynamic_shared.load(Relaxed) && all <= MOST_SHARED;
    if !extra.is_null() || !allowed || parameters.is_null() && !kernel.parameters.is_empty() {
        return INVALID_VALUE;
    }
    let mut laid_out = Vec::new();
    for (i, &(offset, bytes)) in kernel.parameters.iter().enumerate() {
        laid_out.resize(offset, 0);
        // SAFETY: the caller gives a pointer to each parameter of the kernel, which has as many bytes as the kernel says.
        let from = unsafe { std::slice::from_raw_parts((*parameters.add(i)).cast::<u8>(), bytes) };
        laid_out.extend_from_slice(from);
    }
    let launch = Launch {
        kernel,
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        dynamic_shared,
        parameters: laid_out,
    };
    with_device(|device| {
        let settings = settings();
        let started = Instant::now();
        let options = Options { order: settings.order, workers: settings.workers };
        match gpu_twin::launch(&device.memory, &launch, options) {
            Ok(statistics) => {
                if let Some(path) = &settings.log {
                    let line = format!(
                        "{} grid {:?} block {:?}: {} instructions of {} threads in {:.3} s\n",
                        kernel.name,
                        launch.grid,
                        launch.block,
                        statistics.instructions,
                        statistics.threads,
                        started.elapsed().as_secs_f64()
                    );
                    let file = std::fs::File::options().create(true).append(true).open(path);
                    if let Err(e) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
                        eprintln!("gpu-twin: cannot write the log: {e}");
                    }
                }
                SUCCESS
            }
            Err(fault) => {
                eprintln!("gpu-twin: {fault}");
                let code = match fault.kind {
                    // Nothing has run.
                    Kind::Launch if fault.place.is_none() => return INVALID_VALUE,
                    Kind::OutOfBounds => ILLEGAL_ADDRESS,
                    Kind::Misaligned => MISALIGNED_ADDRESS,
                    _ => LAUNCH_FAILED,
                };
                device.fault.store(code, Relaxed);
                code
            }
        }
    })
}
