//! Instructions that reach memory.

use super::Decoder;
use crate::instruction::*;
use crate::operand::Operand;
use crate::tokens::Token;
use crate::types::Type;

impl Decoder<'_> {
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

    pub(super) fn address(&mut self) -> Option<Instruction> {
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

    pub(super) fn load(&mut self) -> Option<Instruction> {
        let ([to, Operand::Address(a, offset)], true) = (self.operands, self.is_plain_access()) else {
            return None;
        };
        let (space, ty) = (self.space()?, self.ty()?);
        let (d, count) = self.elements(to)?;
        let op = Op::Load { space, ty, count };
        Some(Instruction { d, a: *a, e: *offset as u32, ..self.bare(op)? })
    }

    pub(super) fn store(&mut self) -> Option<Instruction> {
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

    pub(super) fn atomic(&mut self) -> Option<Instruction> {
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
}
