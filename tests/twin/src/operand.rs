//! Operands of instructions: names to slots.

use std::collections::HashMap;

use crate::instruction::SPECIALS;
use crate::tokens::Token;

/// What a register holds before it is written.
const UNWRITTEN: u64 = 0xdead_beef_dead_beef;

/// An operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Slot(u32),
    /// `!p`.
    Not(u32),
    /// `d|p`.
    Pair(u32, u32),
    Vector(Vec<u32>),
    /// Slot of the base, and an offset.
    Address(u32, i32),
    Label(u32),
}

/// Names and slots of one kernel.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// What each slot holds when a thread begins.
    pub(crate) initial: Vec<u64>,
    scopes: Vec<HashMap<String, u32>>,
    constants: HashMap<u64, u32>,
    /// Addresses of variables and parameters in their spaces.
    pub(crate) addresses: HashMap<String, u64>,
    pub(crate) labels: HashMap<String, u32>,
    /// Written by nobody's wish: `_`.
    sink: u32,
}

impl Names {
    pub(crate) fn new() -> Names {
        let mut names = Names { initial: vec![0; SPECIALS.len()], ..Names::default() };
        names.initial[SPECIALS.len() - 1] = 32;
        let specials = SPECIALS.iter().enumerate().map(|(i, name)| (name.to_string(), i as u32));
        names.scopes.push(specials.collect());
        names.sink = names.fresh(UNWRITTEN);
        names
    }

    fn fresh(&mut self, initial: u64) -> u32 {
        self.initial.push(initial);
        self.initial.len() as u32 - 1
    }

    pub(crate) fn open_scope(&mut self) {
        self.scopes.push(HashMap::new());
    }

    pub(crate) fn close_scope(&mut self) {
        self.scopes.pop();
    }

    /// Takes in the names of a `.reg` directive, without the type.
    pub(crate) fn declare(&mut self, tokens: &[Token<'_>]) -> Result<(), String> {
        for name in tokens.split(|t| t.text == ",") {
            let texts: Vec<&str> = name.iter().map(|t| t.text).collect();
            let names = match texts[..] {
                [name] => vec![name.to_owned()],
                [name, "<", count, ">"] => {
                    let count: u32 = count.parse().map_err(|_| format!("{count} registers"))?;
                    (0..count).map(|i| format!("{name}{i}")).collect()
                }
                _ => return Err(format!("registers {}", texts.join(" "))),
            };
            for name in names {
                let slot = self.fresh(UNWRITTEN);
                self.scopes.last_mut().ok_or("no scope")?.insert(name, slot);
            }
        }
        Ok(())
    }

    /// The slot of a constant.
    pub(crate) fn constant(&mut self, value: u64) -> u32 {
        if let Some(slot) = self.constants.get(&value) {
            return *slot;
        }
        let slot = self.fresh(value);
        self.constants.insert(value, slot);
        slot
    }

    fn register(&self, name: &str) -> Option<u32> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name)).copied()
    }

    /// The slot of a register, a number or a variable's address.
    fn slot(&mut self, tokens: &[Token<'_>]) -> Result<u32, String> {
        let unknown = || {
            let texts: Vec<&str> = tokens.iter().map(|t| t.text).collect();
            format!("operand {}", texts.join(" "))
        };
        let value = match tokens {
            [Token { text: "_", .. }] => return Ok(self.sink),
            [Token { text: name, .. }] => {
                if let Some(slot) = self.register(name) {
                    return Ok(slot);
                }
                self.addresses.get(*name).copied().or_else(|| number(name)).ok_or_else(unknown)?
            }
            [Token { text: "-", .. }, Token { text, .. }] => number(text).ok_or_else(unknown)?.wrapping_neg(),
            _ => return Err(unknown()),
        };
        Ok(self.constant(value))
    }

    /// An operand of an instruction.
    pub(crate) fn operand(&mut self, tokens: &[Token<'_>]) -> Result<Operand, String> {
        let texts: Vec<&str> = tokens.iter().map(|t| t.text).collect();
        Ok(match texts[..] {
            ["[", .., "]"] => {
                let inner = &tokens[1..tokens.len() - 1];
                let at = inner.iter().position(|t| matches!(t.text, "+" | "-")).unwrap_or(inner.len());
                let offset: String = inner[at..].iter().map(|t| t.text).filter(|t| *t != "+").collect();
                let offset = if offset.is_empty() { Ok(0) } else { offset.parse() };
                let offset = offset.map_err(|_| format!("address {}", texts.join(" ")))?;
                Operand::Address(self.slot(&inner[..at])?, offset)
            }
            ["{", .., "}"] => {
                let inner = &tokens[1..tokens.len() - 1];
                let slots = inner.split(|t| t.text == ",").map(|element| self.slot(element));
                Operand::Vector(slots.collect::<Result<_, _>>()?)
            }
            ["!", _] => Operand::Not(self.slot(&tokens[1..])?),
            [_, "|", _] => Operand::Pair(self.slot(&tokens[..1])?, self.slot(&tokens[2..])?),
            [label] if self.labels.contains_key(label) => Operand::Label(self.labels[label]),
            _ => Operand::Slot(self.slot(tokens)?),
        })
    }
}

/// The bits of a number: decimal, hexadecimal, octal or binary, or a float in hexadecimal (`0f` and `0d`).
pub(crate) fn number(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.strip_suffix('u').filter(|_| !lower.starts_with("0f") && !lower.starts_with("0d"));
    let digits = digits.unwrap_or(&lower);
    if let Some(hex) = digits.strip_prefix("0f") {
        return u32::from_str_radix(hex, 16).ok().map(u64::from);
    }
    if let Some(hex) = digits.strip_prefix("0d").or(digits.strip_prefix("0x")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    if let Some(binary) = digits.strip_prefix("0b") {
        return u64::from_str_radix(binary, 2).ok();
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::tokens;

    #[test]
    fn operands_of_every_kind() {
        let mut names = Names::new();
        names.declare(&tokens("%r<3>, p")).unwrap();
        names.labels.insert("$L".into(), 7);
        names.addresses.insert("table".into(), 64);
        let mut parse = |text: &str| names.operand(&tokens(text)).unwrap();
        let Operand::Slot(r1) = parse("%r1") else { panic!() };
        assert_eq!(parse("[%r1+-4]"), Operand::Address(r1, -4));
        assert_eq!(parse("[%r1+8]"), Operand::Address(r1, 8));
        assert_eq!(parse("$L"), Operand::Label(7));
        assert_eq!(parse("{%r1, %r1}"), Operand::Vector(vec![r1, r1]));
        let Operand::Pair(a, p) = parse("%r1|p") else { panic!() };
        assert_eq!((a, parse("!p")), (r1, Operand::Not(p)));
        let Operand::Address(table, 4) = parse("[table+4]") else { panic!() };
        assert_eq!(names.initial[table as usize], 64);
        assert!(names.operand(&tokens("%unknown")).is_err());
    }

    #[test]
    fn numbers_of_every_kind() {
        assert_eq!(number("0f3F800000"), Some(0x3f80_0000));
        assert_eq!(number("0d3FF0000000000000"), Some(1f64.to_bits()));
        assert_eq!(number("0x7FU"), Some(127));
        assert_eq!(number("12"), Some(12));
        assert_eq!(number("%r1"), None);
    }
}
