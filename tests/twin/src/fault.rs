//! What stops a launch.

use std::fmt;

/// The kind of mistake that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An access outside every allocation, or to one that was freed.
    OutOfBounds,
    /// An access whose address is no multiple of its size.
    Misaligned,
    /// Two threads of a block used the same bytes with no barrier between them, and at least one of them wrote.
    Race,
    /// A read of shared memory that nobody has written.
    Uninitialised,
    /// Threads of a block wait at different barriers.
    Divergence,
    /// Threads wait for others that cannot come.
    Deadlock,
    /// An instruction that the interpreter does not know.
    Unknown,
    /// A geometry or an argument that the kernel cannot be launched with.
    Launch,
    /// A thread that goes on and on.
    Endless,
}

/// Where it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the block.
    pub block: [u32; 3],
    /// Index of the thread in its block.
    pub thread: [u32; 3],
    /// Line of the PTX, from 1.
    pub line: usize,
    /// The instruction.
    pub text: String,
}

/// A mistake in a kernel or in its launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kernel.
    pub kernel: String,
    /// Which kind of mistake.
    pub kind: Kind,
    /// Where, if it was a thread's doing.
    pub place: Option<Place>,
    /// What happened.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.kernel)?;
        if let Some(Place { block, thread, line, text }) = &self.place {
            write!(f, "block {block:?} thread {thread:?}, PTX line {line} `{text}`: ")?;
        }
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Fault {}

/// A fault before it is known which thread of which kernel made it.
#[derive(Debug)]
pub(crate) struct Trap(pub(crate) Kind, pub(crate) String);

/// Stops with a trap.
pub(crate) fn trap<T>(kind: Kind, message: impl Into<String>) -> Result<T, Trap> {
    Err(Trap(kind, message.into()))
}
