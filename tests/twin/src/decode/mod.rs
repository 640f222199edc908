//! Instructions from their text.

mod access;
mod compute;
mod threads;

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
}
