//! Instructions on integers and bits.

use crate::instruction::IntOp;
use crate::types::Type;

/// The result of an instruction, to be cut to its width by whoever reads it.
#[inline(always)]
pub(crate) fn int(op: IntOp, ty: Type, a: u64, b: u64, c: u64, e: u64) -> u64 {
    match op {
        IntOp::Add => a.wrapping_add(b),
        IntOp::Sub => a.wrapping_sub(b),
        IntOp::Mul => a.wrapping_mul(b),
        IntOp::Mad => a.wrapping_mul(b).wrapping_add(c),
        IntOp::MulWide => ty.extend(a).wrapping_mul(ty.extend(b)),
        IntOp::MadWide => ty.extend(a).wrapping_mul(ty.extend(b)).wrapping_add(c),
        IntOp::And => a & b,
        IntOp::Or => a | b,
        IntOp::Xor => a ^ b,
        IntOp::Not => !a,
        IntOp::PredNot => !a & 1,
        IntOp::Shl => shift_left(ty, a, b),
        IntOp::Shr => shift_right(ty, a, b),
        _ => rare(op, ty, a, b, c, e),
    }
}

#[inline(always)]
fn shift_left(ty: Type, a: u64, by: u64) -> u64 {
    let by = by as u32;
    if by >= ty.bits() { 0 } else { a << by }
}

#[inline(always)]
fn shift_right(ty: Type, a: u64, by: u64) -> u64 {
    let by = (by as u32).min(64);
    if ty.is_signed() {
        ((ty.extend(a) as i64) >> by.min(63)) as u64
    } else {
        ty.extend(a).checked_shr(by).unwrap_or(0)
    }
}

#[inline(never)]
fn rare(op: IntOp, ty: Type, a: u64, b: u64, c: u64, e: u64) -> u64 {
    let (x, y) = (ty.extend(a), ty.extend(b));
    let (sx, sy) = (x as i64, y as i64);
    let signed = ty.is_signed();
    match op {
        IntOp::MulHigh => high(ty, x, y),
        IntOp::MadHigh => high(ty, x, y).wrapping_add(c),
        // Division by zero gives all ones on a GPU.
        IntOp::Div if y == 0 => u64::MAX,
        IntOp::Div if signed => sx.wrapping_div(sy) as u64,
        IntOp::Div => x / y,
        IntOp::Rem if y == 0 => x,
        IntOp::Rem if signed => sx.wrapping_rem(sy) as u64,
        IntOp::Rem => x % y,
        IntOp::Min if signed => sx.min(sy) as u64,
        IntOp::Min => x.min(y),
        IntOp::Max if signed => sx.max(sy) as u64,
        IntOp::Max => x.max(y),
        IntOp::Abs => sx.unsigned_abs(),
        IntOp::Neg => sx.wrapping_neg() as u64,
        IntOp::LogicalNot => u64::from(x == 0),
        IntOp::Popc => x.count_ones().into(),
        IntOp::Clz => u64::from(x.leading_zeros() - (64 - ty.bits())),
        IntOp::Reverse => x.reverse_bits() >> (64 - ty.bits()),
        IntOp::Extract => extract(ty, a, b as u32 & 255, c as u32 & 255),
        IntOp::Insert => insert(ty, a, b, c as u32 & 255, e as u32 & 255),
        IntOp::FindLeading { shift } => find_leading(ty, sx, shift).into(),
        IntOp::Permute => permute(a, b, c),
        IntOp::Lookup => lookup(a, b, c, e),
        IntOp::FunnelLeft { wrap } => {
            let by = if wrap { c & 31 } else { c.min(32) };
            (((b & 0xffff_ffff) << 32 | a & 0xffff_ffff) << by) >> 32
        }
        IntOp::FunnelRight { wrap } => {
            let by = if wrap { c & 31 } else { c.min(32) };
            ((b & 0xffff_ffff) << 32 | a & 0xffff_ffff) >> by
        }
        IntOp::Sad if signed => (sx.abs_diff(sy)).wrapping_add(c),
        IntOp::Sad => x.abs_diff(y).wrapping_add(c),
        IntOp::Dot4 { a_signed, b_signed } => dot4((a, a_signed), (b, b_signed), c),
        _ => int(op, ty, a, b, c, e),
    }
}

fn high(ty: Type, x: u64, y: u64) -> u64 {
    let bits = ty.bits();
    if ty.is_signed() {
        ((i128::from(x as i64) * i128::from(y as i64)) >> bits) as u64
    } else {
        ((u128::from(x) * u128::from(y)) >> bits) as u64
    }
}

fn extract(ty: Type, a: u64, position: u32, length: u32) -> u64 {
    let bits = ty.bits();
    let value = u128::from(ty.extend(a) & (u64::MAX >> (64 - bits)));
    if length == 0 {
        return 0;
    }
    let field = if position >= 128 { 0 } else { value >> position };
    let field = if length >= 64 { field } else { field & ((1 << length) - 1) };
    if !ty.is_signed() {
        return field as u64;
    }
    // The sign is that of the last bit of the field, or of the value where the field goes beyond it.
    let last = (position + length - 1).min(bits - 1);
    let negative = value >> last & 1 != 0;
    let kept = (last + 1).saturating_sub(position).min(length);
    if negative && kept < 64 { field as u64 | u64::MAX << kept } else { field as u64 }
}

fn insert(ty: Type, field: u64, into: u64, position: u32, length: u32) -> u64 {
    if position >= ty.bits() || length == 0 {
        return into;
    }
    let length = length.min(ty.bits() - position);
    let mask = (u64::MAX >> (64 - length)) << position;
    into & !mask | field << position & mask
}

fn find_leading(ty: Type, x: i64, shift: bool) -> u32 {
    let unsigned = if ty.is_signed() && x < 0 { !x } else { x } as u64;
    let unsigned = unsigned & (u64::MAX >> (64 - ty.bits()));
    match unsigned.checked_ilog2() {
        None => u32::MAX,
        Some(position) if shift => ty.bits() - 1 - position,
        Some(position) => position,
    }
}

fn permute(a: u64, b: u64, selectors: u64) -> u64 {
    let bytes = (a & 0xffff_ffff | b << 32).to_le_bytes();
    (0..4).fold(0, |out, i| {
        let selector = selectors >> (4 * i);
        let byte = bytes[(selector & 7) as usize];
        let byte = if selector & 8 == 0 {
            byte
        } else if byte & 128 != 0 {
            255
        } else {
            0
        };
        out | u64::from(byte) << (8 * i)
    })
}

fn lookup(a: u64, b: u64, c: u64, table: u64) -> u64 {
    (0..8).filter(|row| table >> row & 1 != 0).fold(0, |out, row| {
        let term = |v: u64, bit: u32| if row >> bit & 1 != 0 { v } else { !v };
        out | term(a, 2) & term(b, 1) & term(c, 0)
    })
}

fn dot4((a, a_signed): (u64, bool), (b, b_signed): (u64, bool), c: u64) -> u64 {
    let byte = |v: u64, i: u32, signed: bool| {
        let byte = (v >> (8 * i)) as u8;
        if signed { i64::from(byte as i8) } else { byte.into() }
    };
    let sum: i64 = (0..4).map(|i| byte(a, i, a_signed) * byte(b, i, b_signed)).sum();
    (c as i64).wrapping_add(sum) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn i32s(op: IntOp, a: i32, b: i32, c: i32) -> i32 {
        int(op, Type::S32, a as u32 as u64, b as u32 as u64, c as u32 as u64, 0) as i32
    }

    fn u32s(op: IntOp, a: u32, b: u32, c: u32, e: u32) -> u32 {
        int(op, Type::U32, a.into(), b.into(), c.into(), e.into()) as u32
    }

    #[test]
    fn arithmetic_wraps_at_its_width() {
        assert_eq!(i32s(IntOp::Add, i32::MAX, 1, 0), i32::MIN);
        assert_eq!(i32s(IntOp::Div, -7, 2, 0), -3);
        assert_eq!(i32s(IntOp::Rem, -7, 2, 0), -1);
        assert_eq!(i32s(IntOp::MulHigh, -1, 1, 0), -1);
        assert_eq!(u32s(IntOp::MulHigh, u32::MAX, u32::MAX, 0, 0), u32::MAX - 1);
        assert_eq!(int(IntOp::MulWide, Type::S32, 0xffff_fffe, 3, 0, 0) as i64, -6);
        assert_eq!(int(IntOp::MulWide, Type::U32, 0xffff_fffe, 3, 0, 0), 0x2_ffff_fffa);
        assert_eq!(i32s(IntOp::Min, -1, 1, 0), -1);
        assert_eq!(u32s(IntOp::Min, u32::MAX, 1, 0, 0), 1);
    }

    #[test]
    fn shifts_stop_at_the_width() {
        assert_eq!(u32s(IntOp::Shl, 1, 32, 0, 0), 0);
        assert_eq!(u32s(IntOp::Shr, 1 << 31, 31, 0, 0), 1);
        assert_eq!(u32s(IntOp::Shr, 1 << 31, 40, 0, 0), 0);
        assert_eq!(i32s(IntOp::Shr, i32::MIN, 40, 0), -1);
        assert_eq!(u32s(IntOp::FunnelLeft { wrap: true }, 0x8000_0000, 1, 1, 0), 3);
        assert_eq!(u32s(IntOp::FunnelRight { wrap: false }, 0, 1, 32, 0), 1);
    }

    #[test]
    fn fields_of_bits() {
        assert_eq!(u32s(IntOp::Extract, 0xabcd, 4, 8, 0), 0xbc);
        assert_eq!(i32s(IntOp::Extract, 0xf0, 4, 4), -1);
        assert_eq!(i32s(IntOp::Extract, i32::MIN, 28, 16), -8);
        assert_eq!(u32s(IntOp::Insert, 0xf, 0xabcd, 4, 8), 0xa0fd);
        assert_eq!(u32s(IntOp::Popc, 0xf0f0, 0, 0, 0), 8);
        assert_eq!(u32s(IntOp::Clz, 1, 0, 0, 0), 31);
        assert_eq!(u32s(IntOp::Reverse, 1, 0, 0, 0), 1 << 31);
        assert_eq!(u32s(IntOp::FindLeading { shift: false }, 0x100, 0, 0, 0), 8);
        assert_eq!(u32s(IntOp::FindLeading { shift: false }, 0, 0, 0, 0), u32::MAX);
    }

    #[test]
    fn bytes_and_tables() {
        assert_eq!(u32s(IntOp::Permute, 0x0403_0201, 0x0807_0605, 0x7531, 0), 0x0806_0402);
        assert_eq!(u32s(IntOp::Permute, 0x80, 0, 0x8888, 0), 0xffff_ffff);
        // The exclusive or of three.
        assert_eq!(u32s(IntOp::Lookup, 0b1100, 0b1010, 0b1001, 0x96), 0b1100 ^ 0b1010 ^ 0b1001);
        let dot = IntOp::Dot4 { a_signed: true, b_signed: false };
        assert_eq!(i32s(dot, 0xff02_0101u32 as i32, 0x0302_01ff, 10), 10 + 255 + 1 + 4 - 3);
    }
}
