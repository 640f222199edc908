//! Instructions in the form that they are run in: numbers of slots in place of names.
//!
//! Every thread has an array of 64-bit slots: the special registers, the registers, and the constants of the kernel. An
//! instruction reads and writes slots alone, so no operand needs to be looked at twice. An instruction cuts what it reads
//! to its own width; what it writes may have any bits above that.

use crate::rounding::Rounding;
use crate::types::Type;

/// Special registers in the order of their slots.
pub(crate) const SPECIALS: [&str; 22] = [
    "%tid.x",
    "%tid.y",
    "%tid.z",
    "%ntid.x",
    "%ntid.y",
    "%ntid.z",
    "%ctaid.x",
    "%ctaid.y",
    "%ctaid.z",
    "%nctaid.x",
    "%nctaid.y",
    "%nctaid.z",
    "%laneid",
    "%warpid",
    "%nwarpid",
    "%lanemask_eq",
    "%lanemask_lt",
    "%lanemask_le",
    "%lanemask_gt",
    "%lanemask_ge",
    "%dynamic_smem_size",
    "WARP_SZ",
];

/// No guard, or no second destination.
pub(crate) const NONE: u32 = u32::MAX;

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instruction {
    pub(crate) op: Op,
    /// [`NONE`], or the slot of the predicate times two, plus one if it must be false.
    pub(crate) guard: u32,
    /// Destination: a slot, or the number of a list of slots.
    pub(crate) d: u32,
    /// Sources: slots; the target of a branch.
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) c: u32,
    /// A fourth source, a second destination, a table or an offset.
    pub(crate) e: u32,
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// `d = a`.
    Move,
    /// A vector of slots packed into one, `a` a list of elements of so many bits.
    Pack(u32),
    /// One slot unpacked, `d` a list of elements of so many bits.
    Unpack(u32),
    /// f32, rounded to nearest, nothing else: the instructions that most time goes to.
    AddF32,
    SubF32,
    MulF32,
    DivF32,
    FmaF32,
    /// Any other instruction on f32.
    Float {
        op: FloatOp,
        rounding: Rounding,
        flush: bool,
        saturate: bool,
    },
    /// f64.
    Double(FloatOp),
    /// f16 or bf16, one or two of them.
    Small {
        op: FloatOp,
        brain: bool,
        pair: bool,
        saturate: bool,
    },
    /// Integers and bits.
    Int(IntOp, Type),
    /// `setp`: `d` and, where it is not [`NONE`], `e` get the result and its opposite, each joined with `c`.
    Compare {
        compare: Compare,
        ty: Type,
        join: Join,
        flush: bool,
    },
    /// `set`: all ones or 1.0 in `d`.
    Set {
        compare: Compare,
        ty: Type,
        float: bool,
    },
    /// `d = c ? a : b`.
    Select,
    /// `testp`.
    Test(Test, Type),
    /// `cvt`.
    Convert {
        to: Type,
        from: Type,
        rounding: Rounding,
        integer: bool,
        flush: bool,
        saturate: bool,
    },
    /// `cvt` of two f32 to a pair: `a` becomes the upper half.
    ConvertPair {
        brain: bool,
        rounding: Rounding,
    },
    /// Address of a space to or from a generic one.
    ToGeneric(Space),
    FromGeneric(Space),
    /// `d = [a + e]`, or a list.
    Load {
        space: Space,
        ty: Type,
        count: u8,
    },
    /// `[a + e] = b`, or a list.
    Store {
        space: Space,
        ty: Type,
        count: u8,
    },
    /// `d = [a + e]`, which becomes what `atomic` makes of it and `b` (and `c`).
    Atomic {
        atomic: AtomicOp,
        space: Space,
        ty: Type,
    },
    /// To instruction `a`.
    Branch,
    Exit,
    /// `bar.sync 0`.
    Barrier,
    /// `bar.red` on predicate `a`.
    BarrierReduce(Vote),
    /// Of the threads in mask `c` (of `e` for shuffles).
    WarpBarrier,
    Shuffle(Shuffle),
    Vote(Vote),
    Match {
        all: bool,
        ty: Type,
    },
    Reduce(IntOp, Type),
    /// Fences: every access is visible at once here.
    Nothing,
    /// `trap`.
    Trap,
    /// What the interpreter does not know.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatOp {
    Add,
    Sub,
    Mul,
    Div,
    Fma,
    Min { nan: bool },
    Max { nan: bool },
    Neg,
    Abs,
    Sqrt,
    Reciprocal,
    ReciprocalSqrt,
    Exp2,
    Log2,
    Sin,
    Cos,
    Tanh,
    CopySign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntOp {
    Add,
    Sub,
    Mul,
    MulHigh,
    MulWide,
    Mad,
    MadHigh,
    MadWide,
    Div,
    Rem,
    Min,
    Max,
    Abs,
    Neg,
    And,
    Or,
    Xor,
    Not,
    PredNot,
    LogicalNot,
    Shl,
    Shr,
    Popc,
    Clz,
    Reverse,
    Extract,
    Insert,
    FindLeading { shift: bool },
    Permute,
    Lookup,
    FunnelLeft { wrap: bool },
    FunnelRight { wrap: bool },
    Sad,
    Dot4 { a_signed: bool, b_signed: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// The same, also true where one is NaN.
    EqualUnordered,
    NotEqualUnordered,
    LessUnordered,
    LessEqualUnordered,
    GreaterUnordered,
    GreaterEqualUnordered,
    /// Neither is NaN; one is.
    Numbers,
    Nan,
}

/// How a comparison goes together with a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    None,
    And { negate: bool },
    Or { negate: bool },
    Xor { negate: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Also constants.
    Global,
    Shared,
    Local,
    Param,
    Generic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareExchange,
    Increment,
    Decrement,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
    /// The number of true ones, of `bar.red` alone.
    Count,
}
