//! Instructions by which threads wait for each other and exchange values.

use super::Decoder;
use crate::instruction::*;
use crate::operand::Operand;
use crate::tokens::Token;

impl Decoder<'_> {
    /// Barrier 0 of all threads; named ones are not known.
    pub(super) fn barrier(&mut self) -> Option<Instruction> {
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

    pub(super) fn shuffle(&mut self) -> Option<Instruction> {
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

    pub(super) fn vote(&mut self) -> Option<Instruction> {
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

    pub(super) fn matching(&mut self) -> Option<Instruction> {
        let op = Op::Match { all: self.has("all"), ty: self.ty()? };
        let (d, p) = match self.operands.first()? {
            Operand::Slot(d) => (*d, NONE),
            Operand::Pair(d, p) => (*d, *p),
            _ => return None,
        };
        Some(Instruction { d, a: self.slot(1)?, c: p, e: self.slot(2)?, ..self.bare(op)? })
    }

    pub(super) fn redux(&mut self) -> Option<Instruction> {
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
