//! Instructions from their text.

use crate::instruction::*;
use crate::operand::{Names, Operand};
use crate::rounding::Rounding;
use crate::tokens::Token;
use crate::types::Type;

/// Lists of slots that vectors of a kernel name.
pub(crate) type Lists = Vec<Vec<u32>>;

/// One instruction, from its words (guard, opcode, operands).
///
/// # Errors
/// What in it is not understood.
pub(crate) fn decode(
    tokens: &[Token<'_>],
    names: &mut Names,
    lists: &mut Lists,
) -> Result<Instruction, String> {
    let (guard, tokens) = guard(tokens, names)?;
    let (opcode, operands) = tokens.split_first().ok_or("an empty instruction")?;
    let words: Vec<&str> = opcode.text.split('.').collect();
    let operands = split(operands).into_iter().map(|o| names.operand(o)).collect::<Result<Vec<_>, _>>()?;
    let decoder = Decoder { words: &words, operands: &operands, names, lists };
    let decoded = decoder.decode().ok_or_else(|| opcode.text.to_owned())?;
    Ok(Instruction { guard, ..decoded })
}

fn guard<'t, 'a>(tokens: &'t [Token<'a>], names: &mut Names) -> Result<(u32, &'t [Token<'a>]), String> {
    if tokens.first().is_none_or(|t| t.text != "@") {
        return Ok((NONE, tokens));
    }
    let length = if tokens.get(1).is_some_and(|t| t.text == "!") { 2 } else { 1 };
    let guard = match names.operand(tokens.get(1..1 + length).ok_or("an empty guard")?)? {
        Operand::Slot(slot) => slot << 1,
        Operand::Not(slot) => slot << 1 | 1,
        _ => return Err("guard".into()),
    };
    Ok((guard, &tokens[1 + length..]))
}

/// Operands: what commas outside of brackets separate.
fn split<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let mut depth = 0;
    let separators = tokens.split(|t| {
        match t.text {
            "[" | "{" | "(" => depth += 1,
            "]" | "}" | ")" => depth -= 1,
            _ => {}
        }
        t.text == "," && depth == 0
    });
    separators.filter(|operand| !operand.is_empty()).collect()
}

struct Decoder<'a> {
    words: &'a [&'a str],
    operands: &'a [Operand],
    names: &'a mut Names,
    lists: &'a mut Lists,
}

impl Decoder<'_> {
    fn has(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    /// Whether all words from the second on are among these, or types.
    fn only(&self, words: &[&str]) -> bool {
        self.words[1..].iter().all(|w| words.contains(w) || Type::from_name(w).is_some())
    }

    /// The types among the words.
    fn types(&self) -> Vec<Type> {
        self.words.iter().filter_map(|w| Type::from_name(w)).collect()
    }

    /// The last type among the words.
    fn ty(&self) -> Option<Type> {
        self.types().last().copied()
    }

    fn rounding(&self) -> Rounding {
        for word in self.words {
            match *word {
                "rz" | "rzi" => return Rounding::Zero,
                "rm" | "rmi" => return Rounding::Down,
                "rp" | "rpi" => return Rounding::Up,
                _ => {}
            }
        }
        Rounding::Nearest
    }

    fn slot(&self, i: usize) -> Option<u32> {
        match self.operands.get(i)? {
            Operand::Slot(slot) => Some(*slot),
            _ => None,
        }
    }

    /// An instruction with a destination and this many sources, all slots.
    fn plain(&self, op: Op, sources: usize) -> Option<Instruction> {
        if self.operands.len() != sources + 1 {
            return None;
        }
        let d = self.slot(0)?;
        let mut slots = [0; 4];
        for (i, slot) in slots.iter_mut().enumerate().take(sources) {
            *slot = self.slot(i + 1)?;
        }
        let [a, b, c, e] = slots;
        Some(Instruction { op, guard: NONE, d, a, b, c, e })
    }

    fn bare(&self, op: Op) -> Option<Instruction> {
        Some(Instruction { op, guard: NONE, d: 0, a: 0, b: 0, c: 0, e: 0 })
    }

    fn list(&mut self, slots: &[u32]) -> u32 {
        self.lists.push(slots.to_vec());
        self.lists.len() as u32 - 1
    }

    fn decode(mut self) -> Option<Instruction> {
        match self.words[0] {
            "mov" => self.mov(),
            "add" | "sub" | "mul" | "div" | "fma" | "mad" | "min" | "max" | "neg" | "abs" => {
                self.arithmetic()
            }
            "sqrt" | "rcp" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "copysign" => self.special(),
            "rem" | "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "popc" | "clz" | "brev"
            | "bfe" | "bfi" | "bfind" | "prmt" | "lop3" | "shf" | "sad" | "dp4a" => self.integer(),
            "setp" => self.setp(),
            "set" => self.set(),
            "selp" => self.plain(Op::Select, 3),
            "testp" => self.testp(),
            "cvt" => self.convert(),
            "cvta" => self.address(),
            "ld" | "ldu" => self.load(),
            "st" => self.store(),
            "atom" | "red" => self.atomic(),
            "bra" => match self.operands {
                [Operand::Label(target)] => Some(Instruction { a: *target, ..self.bare(Op::Branch)? }),
                _ => None,
            },
            "ret" | "exit" => self.bare(Op::Exit),
            "trap" => self.bare(Op::Trap),
            "bar" | "barrier" => self.barrier(),
            "shfl" => self.shuffle(),
            "vote" => self.vote(),
            "match" => self.matching(),
            "redux" => self.redux(),
            "membar" | "fence" | "prefetch" | "prefetchu" | "nanosleep" => self.bare(Op::Nothing),
            _ => None,
        }
    }

    fn mov(&mut self) -> Option<Instruction> {
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
    fn arithmetic(&mut self) -> Option<Instruction> {
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

    fn special(&mut self) -> Option<Instruction> {
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

    fn integer(&mut self) -> Option<Instruction> {
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

    fn setp(&mut self) -> Option<Instruction> {
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

    fn set(&mut self) -> Option<Instruction> {
        let [to, ty] = self.types()[..] else { return None };
        self.plain(Op::Set { compare: self.compare()?, ty, float: to == Type::F32 }, 2)
    }

    fn testp(&mut self) -> Option<Instruction> {
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

    fn convert(&mut self) -> Option<Instruction> {
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

    fn space(&self) -> Option<Space> {
        for word in self.words {
            match *word {
                "global" | "const" => return Some(Space::Global),
                "shared" | "shared::cta" => return Some(Space::Shared),
                "local" => return Some(Space::Local),
                "param" => return Some(Space::Param),
                _ if word.starts_with("param::") || word.starts_with("shared::") => return None,
                _ => {}
            }
        }
        Some(Space::Generic)
    }

    fn address(&mut self) -> Option<Instruction> {
        let space = self.space()?;
        if matches!(space, Space::Generic | Space::Param) {
            return None;
        }
        self.plain(if self.has("to") { Op::FromGeneric(space) } else { Op::ToGeneric(space) }, 1)
    }

    /// Whether the qualifiers of a load or a store are ones that change nothing here: caching and the order of accesses.
    fn is_plain_access(&self) -> bool {
        self.words[1..].iter().all(|word| {
            Type::from_name(word).is_some()
                || word.starts_with("L1::")
                || word.starts_with("L2::")
                || [
                    "global",
                    "const",
                    "shared",
                    "shared::cta",
                    "local",
                    "param",
                    "v2",
                    "v4",
                    "nc",
                    "ca",
                    "cg",
                    "cs",
                    "lu",
                    "cv",
                    "wb",
                    "wt",
                    "volatile",
                    "relaxed",
                    "weak",
                    "acquire",
                    "release",
                    "acq_rel",
                    "cta",
                    "gpu",
                    "sys",
                ]
                .contains(word)
        })
    }

    fn load(&mut self) -> Option<Instruction> {
        let ([to, Operand::Address(a, offset)], true) = (self.operands, self.is_plain_access()) else {
            return None;
        };
        let (space, ty) = (self.space()?, self.ty()?);
        let (d, count) = self.elements(to)?;
        let op = Op::Load { space, ty, count };
        Some(Instruction { d, a: *a, e: *offset as u32, ..self.bare(op)? })
    }

    fn store(&mut self) -> Option<Instruction> {
        let ([Operand::Address(a, offset), from], true) = (self.operands, self.is_plain_access()) else {
            return None;
        };
        let (space, ty) = (self.space()?, self.ty()?);
        let (b, count) = self.elements(from)?;
        let op = Op::Store { space, ty, count };
        Some(Instruction { a: *a, b, e: *offset as u32, ..self.bare(op)? })
    }

    /// What is loaded or stored: one slot, or a list.
    fn elements(&mut self, operand: &Operand) -> Option<(u32, u8)> {
        match operand {
            Operand::Slot(slot) => Some((*slot, 1)),
            Operand::Vector(slots) => Some((self.list(slots), slots.len() as u8)),
            _ => None,
        }
    }

    fn atomic(&mut self) -> Option<Instruction> {
        let (space, ty) = (self.space()?, self.ty()?);
        let atomic = self.words.iter().find_map(|word| {
            Some(match *word {
                "add" => AtomicOp::Add,
                "min" => AtomicOp::Min,
                "max" => AtomicOp::Max,
                "and" => AtomicOp::And,
                "or" => AtomicOp::Or,
                "xor" => AtomicOp::Xor,
                "exch" => AtomicOp::Exchange,
                "cas" => AtomicOp::CompareExchange,
                "inc" => AtomicOp::Increment,
                "dec" => AtomicOp::Decrement,
                _ => return None,
            })
        })?;
        // `red` has no destination.
        let (d, rest) = match (self.words[0], self.operands) {
            ("red", rest) => (self.names.operand(&[Token { text: "_", line: 0 }]).ok()?, rest),
            (_, [d, rest @ ..]) => (d.clone(), rest),
            _ => return None,
        };
        let (Operand::Slot(d), Operand::Address(a, offset)) = (d, rest.first()?) else { return None };
        let source = |i: usize| match rest.get(i) {
            Some(Operand::Slot(slot)) => Some(*slot),
            None => Some(0),
            _ => None,
        };
        let (b, c) = (source(1)?, source(2)?);
        if (atomic == AtomicOp::CompareExchange) != (rest.len() == 3) || matches!(space, Space::Param) {
            return None;
        }
        let op = Op::Atomic { atomic, space, ty };
        Some(Instruction { op, guard: NONE, d, a: *a, b, c, e: *offset as u32 })
    }

    /// Barrier 0 of all threads; named ones are not known.
    fn barrier(&mut self) -> Option<Instruction> {
        if self.has("warp") {
            return match self.operands {
                [Operand::Slot(mask)] => Some(Instruction { e: *mask, ..self.bare(Op::WarpBarrier)? }),
                _ => None,
            };
        }
        let zero = self.names.constant(0);
        if self.has("red") {
            let vote = match () {
                () if self.has("popc") => Vote::Count,
                () if self.has("and") => Vote::All,
                () if self.has("or") => Vote::Any,
                () => return None,
            };
            return match self.operands {
                [Operand::Slot(d), Operand::Slot(name), Operand::Slot(a)] if *name == zero => {
                    Some(Instruction { d: *d, a: *a, ..self.bare(Op::BarrierReduce(vote))? })
                }
                _ => None,
            };
        }
        match self.operands {
            [Operand::Slot(name)] if self.has("sync") && *name == zero => self.bare(Op::Barrier),
            _ => None,
        }
    }

    fn shuffle(&mut self) -> Option<Instruction> {
        let shuffle = match *self.words.get(2)? {
            "up" => Shuffle::Up,
            "down" => Shuffle::Down,
            "bfly" => Shuffle::Butterfly,
            "idx" => Shuffle::Index,
            _ => return None,
        };
        let [to, Operand::Slot(a), Operand::Slot(b), Operand::Slot(c), Operand::Slot(mask)] = self.operands
        else {
            return None;
        };
        // The predicate goes where the sink is if nobody asks for it.
        let sink = match self.names.operand(&[Token { text: "_", line: 0 }]) {
            Ok(Operand::Slot(sink)) => sink,
            _ => return None,
        };
        let (d, p) = match to {
            Operand::Slot(d) => (*d, sink),
            Operand::Pair(d, p) => (*d, *p),
            _ => return None,
        };
        let d = self.list(&[d, p]);
        Some(Instruction { op: Op::Shuffle(shuffle), guard: NONE, d, a: *a, b: *b, c: *c, e: *mask })
    }

    fn vote(&mut self) -> Option<Instruction> {
        let vote = match *self.words.get(2)? {
            "all" => Vote::All,
            "any" => Vote::Any,
            "uni" => Vote::Uniform,
            "ballot" => Vote::Ballot,
            _ => return None,
        };
        let (Some(d), Some(mask), 3) = (self.slot(0), self.slot(2), self.operands.len()) else { return None };
        Some(Instruction { d, a: self.slot(1)?, e: mask, ..self.bare(Op::Vote(vote))? })
    }

    fn matching(&mut self) -> Option<Instruction> {
        let op = Op::Match { all: self.has("all"), ty: self.ty()? };
        let (d, p) = match self.operands.first()? {
            Operand::Slot(d) => (*d, NONE),
            Operand::Pair(d, p) => (*d, *p),
            _ => return None,
        };
        Some(Instruction { d, a: self.slot(1)?, c: p, e: self.slot(2)?, ..self.bare(op)? })
    }

    fn redux(&mut self) -> Option<Instruction> {
        let op = match *self.words.get(2)? {
            "add" => IntOp::Add,
            "min" => IntOp::Min,
            "max" => IntOp::Max,
            "and" => IntOp::And,
            "or" => IntOp::Or,
            "xor" => IntOp::Xor,
            _ => return None,
        };
        let op = Op::Reduce(op, self.ty()?);
        Some(Instruction { d: self.slot(0)?, a: self.slot(1)?, e: self.slot(2)?, ..self.bare(op)? })
    }
}
