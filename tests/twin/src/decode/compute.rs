//! Instructions that compute: moves, arithmetic, comparisons, conversions.

use super::Decoder;
use crate::instruction::*;
use crate::operand::Operand;
use crate::rounding::Rounding;
use crate::types::Type;

impl Decoder<'_> {
    pub(super) fn mov(&mut self) -> Option<Instruction> {
        let bits = self.ty()?.bits();
        match self.operands {
            [Operand::Slot(_), Operand::Slot(_)] => self.plain(Op::Move, 1),
            [Operand::Slot(d), Operand::Vector(parts)] => {
                let a = self.list(parts);
                let op = Op::Pack(bits / parts.len() as u32);
                Some(Instruction { d: *d, a, ..self.bare(op)? })
            }
            [Operand::Vector(parts), Operand::Slot(a)] => {
                let d = self.list(parts);
                let op = Op::Unpack(bits / parts.len() as u32);
                Some(Instruction { d, a: *a, ..self.bare(op)? })
            }
            _ => None,
        }
    }

    /// Instructions that there are for integers and for floats.
    pub(super) fn arithmetic(&mut self) -> Option<Instruction> {
        let ty = self.ty()?;
        let name = self.words[0];
        let sources = match name {
            "neg" | "abs" => 1,
            "fma" | "mad" => 3,
            _ => 2,
        };
        if !ty.is_float() {
            return self.integer();
        }
        let nan = self.has("NaN");
        let op = match name {
            "add" => FloatOp::Add,
            "sub" => FloatOp::Sub,
            "mul" => FloatOp::Mul,
            "div" => FloatOp::Div,
            "fma" | "mad" => FloatOp::Fma,
            "min" => FloatOp::Min { nan },
            "max" => FloatOp::Max { nan },
            "neg" => FloatOp::Neg,
            _ => FloatOp::Abs,
        };
        if !self.only(&["rn", "rz", "rm", "rp", "ftz", "sat", "NaN", "approx", "full"]) {
            return None;
        }
        self.float(op, ty, sources)
    }

    fn float(&self, op: FloatOp, ty: Type, sources: usize) -> Option<Instruction> {
        let (rounding, flush, saturate) = (self.rounding(), self.has("ftz"), self.has("sat"));
        let op = match ty {
            Type::F32 => match (op, rounding, flush || saturate) {
                (FloatOp::Add, Rounding::Nearest, false) => Op::AddF32,
                (FloatOp::Sub, Rounding::Nearest, false) => Op::SubF32,
                (FloatOp::Mul, Rounding::Nearest, false) => Op::MulF32,
                (FloatOp::Div, Rounding::Nearest, false) => Op::DivF32,
                (FloatOp::Fma, Rounding::Nearest, false) => Op::FmaF32,
                _ => Op::Float { op, rounding, flush, saturate },
            },
            Type::F64 if rounding == Rounding::Nearest && !saturate => Op::Double(op),
            Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 if rounding == Rounding::Nearest => {
                let brain = matches!(ty, Type::Bf16 | Type::Bf16x2);
                Op::Small { op, brain, pair: matches!(ty, Type::F16x2 | Type::Bf16x2), saturate }
            }
            _ => return None,
        };
        self.plain(op, sources)
    }

    pub(super) fn special(&mut self) -> Option<Instruction> {
        let op = match self.words[0] {
            "sqrt" => FloatOp::Sqrt,
            "rcp" => FloatOp::Reciprocal,
            "rsqrt" => FloatOp::ReciprocalSqrt,
            "ex2" => FloatOp::Exp2,
            "lg2" => FloatOp::Log2,
            "sin" => FloatOp::Sin,
            "cos" => FloatOp::Cos,
            "tanh" => FloatOp::Tanh,
            _ => FloatOp::CopySign,
        };
        if !self.only(&["rn", "rz", "rm", "rp", "ftz", "approx"]) {
            return None;
        }
        self.float(op, self.ty()?, if op == FloatOp::CopySign { 2 } else { 1 })
    }

    pub(super) fn integer(&mut self) -> Option<Instruction> {
        let ty = self.ty()?;
        let (wide, high) = (self.has("wide"), self.has("hi"));
        let (op, sources) = match self.words[0] {
            "add" => (IntOp::Add, 2),
            "sub" => (IntOp::Sub, 2),
            "mul" if wide => (IntOp::MulWide, 2),
            "mul" if high => (IntOp::MulHigh, 2),
            "mul" => (IntOp::Mul, 2),
            "mad" if wide => (IntOp::MadWide, 3),
            "mad" if high => (IntOp::MadHigh, 3),
            "mad" => (IntOp::Mad, 3),
            "div" => (IntOp::Div, 2),
            "rem" => (IntOp::Rem, 2),
            "min" => (IntOp::Min, 2),
            "max" => (IntOp::Max, 2),
            "neg" => (IntOp::Neg, 1),
            "abs" => (IntOp::Abs, 1),
            "and" => (IntOp::And, 2),
            "or" => (IntOp::Or, 2),
            "xor" => (IntOp::Xor, 2),
            "not" if ty == Type::Pred => (IntOp::PredNot, 1),
            "not" => (IntOp::Not, 1),
            "cnot" => (IntOp::LogicalNot, 1),
            "shl" => (IntOp::Shl, 2),
            "shr" => (IntOp::Shr, 2),
            "popc" => (IntOp::Popc, 1),
            "clz" => (IntOp::Clz, 1),
            "brev" => (IntOp::Reverse, 1),
            "bfe" => (IntOp::Extract, 3),
            "bfi" => (IntOp::Insert, 4),
            "bfind" => (IntOp::FindLeading { shift: self.has("shiftamt") }, 1),
            "prmt" => (IntOp::Permute, 3),
            "lop3" => (IntOp::Lookup, 4),
            "shf" if self.has("l") => (IntOp::FunnelLeft { wrap: self.has("wrap") }, 3),
            "shf" => (IntOp::FunnelRight { wrap: self.has("wrap") }, 3),
            "sad" => (IntOp::Sad, 3),
            "dp4a" => {
                let [a, b] = self.types()[..] else { return None };
                (IntOp::Dot4 { a_signed: a.is_signed(), b_signed: b.is_signed() }, 3)
            }
            _ => return None,
        };
        let known = ["lo", "hi", "wide", "shiftamt", "l", "r", "wrap", "clamp"];
        if self.only(&known) { self.plain(Op::Int(op, ty), sources) } else { None }
    }

    fn compare(&self) -> Option<Compare> {
        Some(match *self.words.get(1)? {
            "eq" => Compare::Equal,
            "ne" => Compare::NotEqual,
            "lt" | "lo" => Compare::Less,
            "le" | "ls" => Compare::LessEqual,
            "gt" | "hi" => Compare::Greater,
            "ge" | "hs" => Compare::GreaterEqual,
            "equ" => Compare::EqualUnordered,
            "neu" => Compare::NotEqualUnordered,
            "ltu" => Compare::LessUnordered,
            "leu" => Compare::LessEqualUnordered,
            "gtu" => Compare::GreaterUnordered,
            "geu" => Compare::GreaterEqualUnordered,
            "num" => Compare::Numbers,
            "nan" => Compare::Nan,
            _ => return None,
        })
    }

    pub(super) fn setp(&mut self) -> Option<Instruction> {
        let (compare, ty) = (self.compare()?, self.ty()?);
        let (d, e) = match self.operands.first()? {
            Operand::Slot(d) => (*d, NONE),
            Operand::Pair(d, e) => (*d, *e),
            _ => return None,
        };
        let (c, negate) = match self.operands.get(3) {
            None => (0, false),
            Some(Operand::Slot(c)) => (*c, false),
            Some(Operand::Not(c)) => (*c, true),
            _ => return None,
        };
        let join = match (self.operands.len(), *self.words.get(2)?) {
            (3, _) => Join::None,
            (4, "and") => Join::And { negate },
            (4, "or") => Join::Or { negate },
            (4, "xor") => Join::Xor { negate },
            _ => return None,
        };
        let op = Op::Compare { compare, ty, join, flush: self.has("ftz") };
        Some(Instruction { op, guard: NONE, d, a: self.slot(1)?, b: self.slot(2)?, c, e })
    }

    pub(super) fn set(&mut self) -> Option<Instruction> {
        let [to, ty] = self.types()[..] else { return None };
        self.plain(Op::Set { compare: self.compare()?, ty, float: to == Type::F32 }, 2)
    }

    pub(super) fn testp(&mut self) -> Option<Instruction> {
        let test = match self.words[1] {
            "finite" => Test::Finite,
            "infinite" => Test::Infinite,
            "number" => Test::Number,
            "notanumber" => Test::NotANumber,
            "normal" => Test::Normal,
            "subnormal" => Test::Subnormal,
            _ => return None,
        };
        self.plain(Op::Test(test, self.ty()?), 1)
    }

    pub(super) fn convert(&mut self) -> Option<Instruction> {
        let [to, from] = self.types()[..] else { return None };
        let known = ["rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "ftz", "sat"];
        if !self.only(&known) {
            return None;
        }
        if matches!(to, Type::F16x2 | Type::Bf16x2) {
            let op = Op::ConvertPair { brain: to == Type::Bf16x2, rounding: self.rounding() };
            return if from == Type::F32 { self.plain(op, 2) } else { None };
        }
        let integer = ["rni", "rzi", "rmi", "rpi"].iter().any(|w| self.has(w));
        let (flush, saturate) = (self.has("ftz"), self.has("sat"));
        self.plain(Op::Convert { to, from, rounding: self.rounding(), integer, flush, saturate }, 1)
    }
}
