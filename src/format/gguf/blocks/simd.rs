//! Choice of the instruction set, and the one place where code compiled for it is entered.

use std::marker::PhantomData;
use std::sync::OnceLock;

use super::lanes::{F32x4, Lanes};

/// Instruction sets that encoders come in.
///
/// The bytes they write are the same; only the speed differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    /// 16 lanes: AVX-512 F, BW, DQ and VL.
    Avx512,
    /// 8 lanes: AVX2.
    Avx2,
    /// 4 lanes of plain Rust, for every machine.
    Portable,
}

impl Simd {
    /// The fastest set that this machine has; detected once.
    pub fn best() -> Simd {
        static BEST: OnceLock<Simd> = OnceLock::new();
        *BEST.get_or_init(|| Simd::available()[0])
    }

    /// The sets that this machine has, fastest first. [`Simd::Portable`] is always the last of them.
    pub fn available() -> Vec<Simd> {
        [Simd::Avx512, Simd::Avx2, Simd::Portable].into_iter().filter(|simd| simd.is_available()).collect()
    }

    /// The set of this name: `avx512`, `avx2` or `portable`.
    pub fn from_name(name: &str) -> Option<Simd> {
        [Simd::Avx512, Simd::Avx2, Simd::Portable].into_iter().find(|simd| simd.name() == name)
    }

    /// The name that [`Simd::from_name`] understands.
    pub fn name(self) -> &'static str {
        match self {
            Simd::Avx512 => "avx512",
            Simd::Avx2 => "avx2",
            Simd::Portable => "portable",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        match self {
            Simd::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Simd::Avx2 => is_x86_feature_detected!("avx2"),
            Simd::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Simd::Portable
    }

    /// Runs a kernel in the lanes of this instruction set, in a function compiled for it.
    ///
    /// # Panics
    ///
    /// If the machine lacks the instruction set.
    pub(super) fn run<K: Kernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 => self.compile(InLanes::<K, super::x86::F32x16>(kernel, PhantomData)),
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => self.compile(InLanes::<K, super::x86::F32x8>(kernel, PhantomData)),
            _ => self.compile(InLanes::<K, F32x4>(kernel, PhantomData)),
        }
    }

    /// Does work in a function compiled for this instruction set.
    ///
    /// # Panics
    ///
    /// If the machine lacks the instruction set.
    pub fn compile<W: Work>(self, work: W) {
        assert!(self.is_available(), "this machine has no {}", self.name());
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has the features, as the assertion above has found.
            Simd::Avx512 => unsafe { compile_avx512(work) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Simd::Avx2 => unsafe { compile_avx2(work) },
            _ => work.run(),
        }
    }
}

/// Work in plain Rust, which the compiler turns into the instructions of each set.
pub trait Work {
    /// Does the work. Implementations, and all that they call, are `#[inline(always)]`, so that they become part
    /// of the function that [`Simd::compile`] has chosen and are compiled for its instruction set.
    fn run(self);
}

impl<F: FnOnce()> Work for F {
    #[inline(always)]
    fn run(self) {
        self();
    }
}

/// A kernel and the lanes that it works in.
struct InLanes<K, V>(K, PhantomData<V>);

impl<K: Kernel, V: Lanes> Work for InLanes<K, V> {
    #[inline(always)]
    fn run(self) {
        self.0.run::<V>();
    }
}

/// Work on lanes, written once for all instruction sets.
pub(super) trait Kernel {
    /// Does the work. Implementations, and all that they call, are `#[inline(always)]`, so that they become part
    /// of the function that [`Simd::run`] has chosen and are compiled for its instruction set.
    fn run<V: Lanes>(self);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn compile_avx512<W: Work>(work: W) {
    work.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn compile_avx2<W: Work>(work: W) {
    work.run();
}
