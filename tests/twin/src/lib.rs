//! Runs the PTX that nvcc makes on the processor, for tests of CUDA kernels on machines without a GPU.
//!
//! ```
//! use gpu_twin::{Launch, Memory, Module, Options, Order, launch};
//!
//! let memory = Memory::new(1 << 20);
//! let module = Module::load(
//!     ".version 9.0
//!      .target sm_80
//!      .address_size 64
//!      .visible .entry twice(.param .u64 twice_param_0) {
//!          .reg .b64 %rd<4>;
//!          .reg .b32 %r<4>;
//!          ld.param.u64 %rd1, [twice_param_0];
//!          mov.u32 %r1, %tid.x;
//!          mul.wide.u32 %rd2, %r1, 4;
//!          add.s64 %rd3, %rd1, %rd2;
//!          ld.global.u32 %r2, [%rd3];
//!          add.u32 %r3, %r2, %r2;
//!          st.global.u32 [%rd3], %r3;
//!          ret;
//!      }",
//!     &memory,
//! )?;
//! let numbers = memory.allocate(8).unwrap();
//! memory.write(numbers, &[1, 0, 0, 0, 21, 0, 0, 0]).unwrap();
//! let kernel = module.kernel("twice").unwrap();
//! let parameters = numbers.to_le_bytes().to_vec();
//! let two_threads = Launch { kernel, grid: [1, 1, 1], block: [2, 1, 1], dynamic_shared: 0, parameters };
//! launch(&memory, &two_threads, Options { order: Order::Forward, workers: 1 })?;
//! let mut bytes = [0; 8];
//! memory.read(numbers, &mut bytes).unwrap();
//! assert_eq!(bytes, [2, 0, 0, 0, 42, 0, 0, 0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! It is no GPU: it says nothing of speed, of registers or of what only real hardware does. What it finds, with the line of
//! the PTX:
//! - accesses outside of every allocation, or to memory that was freed ([`Kind::OutOfBounds`]), and misaligned ones;
//! - races: bytes that two threads of a block use with no barrier in between, where one of them writes ([`Kind::Race`]);
//!   a `__syncwarp` of a whole warp orders the threads of the warp. For global memory a write after another thread's read
//!   is found only in an order of threads in which it comes before;
//! - reads of shared memory that nobody has written; fresh global, local and shared memory holds 0xff everywhere;
//! - barriers that not all threads come to ([`Kind::Divergence`]), and lanes that wait for others that do not come;
//! - what depends on the order of threads or blocks: run it in several ([`Order`]) and compare;
//! - instructions that it does not know: it stops there ([`Kind::Unknown`]).
//!
//! Not known are, among others: calls of functions, tensor cores (`mma`), asynchronous copies (`cp.async`), clusters,
//! textures, named barriers, carries (`add.cc`) and `activemask`. Races between blocks are not looked for.
//!
//! The way of a kernel: [`Module::load`] takes the text apart into words and decodes each instruction once, to numbers of
//! slots; [`launch()`] gives blocks to the threads of the host; a block runs one of its threads after the other up to the
//! next barrier.

mod access;
mod block;
mod decode;
mod fault;
mod float;
mod instruction;
mod integer;
mod launch;
mod memory;
mod module;
mod operand;
mod order;
mod races;
mod rounding;
mod shared;
mod tokens;
mod types;
mod warp;

pub use fault::{Fault, Kind, Place};
pub use launch::{Launch, Options, Statistics, launch};
pub use memory::{Memory, MemoryError};
pub use module::{Kernel, Module, ParseError};
pub use order::Order;
