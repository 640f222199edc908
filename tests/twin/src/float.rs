//! Instructions on floats.
//!
//! What PTX defines exactly (rounded operations) is exact here. The approximations (`rsqrt`, `ex2`, `lg2`, `sin`, `cos`,
//! `tanh`, `div.approx`, `div.full`) are the exact value rounded, which is within the error that PTX allows but is not what
//! any GPU gives bit for bit.

use crate::instruction::{Compare, FloatOp, Join, Test};
use crate::rounding::{self, BF16, F16, NAN, Rounding, Small, canonical, flush};
use crate::types::Type;

/// The bits of an f32 result.
pub(crate) fn float(
    op: FloatOp,
    rounding: Rounding,
    (flushes, saturates): (bool, bool),
    [a, b, c]: [u32; 3],
) -> u32 {
    let read = |bits: u32| {
        let v = f32::from_bits(bits);
        if flushes { flush(v) } else { v }
    };
    let [x, y, z] = [a, b, c].map(read);
    let exact = |f: fn(f64) -> f64| f(x.into()) as f32;
    let v = match op {
        FloatOp::Add => rounding::add(x, y, rounding),
        FloatOp::Sub => rounding::add(x, -y, rounding),
        FloatOp::Mul => rounding::mul(x, y, rounding),
        FloatOp::Div => rounding::div(x, y, rounding),
        FloatOp::Fma => rounding::fma(x, y, z, rounding),
        FloatOp::Min { nan } => extreme(x, y, nan, x < y || x == y && x.is_sign_negative()),
        FloatOp::Max { nan } => extreme(x, y, nan, x > y || x == y && x.is_sign_positive()),
        // These two act on the sign alone, NaN or not.
        FloatOp::Neg => return (if flushes { x.to_bits() } else { a }) ^ 1 << 31,
        FloatOp::Abs => return (if flushes { x.to_bits() } else { a }) & !(1 << 31),
        FloatOp::CopySign => return b & 0x7fff_ffff | a & 1 << 31,
        FloatOp::Sqrt => rounding::sqrt(x, rounding),
        FloatOp::Reciprocal => rounding::div(1.0, x, rounding),
        FloatOp::ReciprocalSqrt => exact(|v| 1.0 / v.sqrt()),
        FloatOp::Exp2 => exact(f64::exp2),
        FloatOp::Log2 => exact(f64::log2),
        FloatOp::Sin => exact(f64::sin),
        FloatOp::Cos => exact(f64::cos),
        FloatOp::Tanh => exact(f64::tanh),
    };
    let v = if flushes { flush(v) } else { v };
    if saturates {
        return if v > 0.0 { v.min(1.0).to_bits() } else { 0 };
    }
    canonical(v)
}

/// One of two values; of a NaN and a number the number, unless NaN is asked for.
fn extreme(x: f32, y: f32, nan: bool, first: bool) -> f32 {
    match (x.is_nan(), y.is_nan()) {
        (false, false) => {
            if first {
                x
            } else {
                y
            }
        }
        _ if nan => f32::NAN,
        (true, _) => y,
        (_, true) => x,
    }
}

/// The bits of an f64 result, rounded to nearest.
pub(crate) fn double(op: FloatOp, [a, b, c]: [u64; 3]) -> Option<u64> {
    let [x, y, z] = [a, b, c].map(f64::from_bits);
    let v = match op {
        FloatOp::Add => x + y,
        FloatOp::Sub => x - y,
        FloatOp::Mul => x * y,
        FloatOp::Div => x / y,
        FloatOp::Fma => x.mul_add(y, z),
        FloatOp::Min { nan: false } => x.min(y),
        FloatOp::Max { nan: false } => x.max(y),
        FloatOp::Neg => return Some(a ^ 1 << 63),
        FloatOp::Abs => return Some(a & !(1 << 63)),
        FloatOp::CopySign => y.copysign(x),
        FloatOp::Sqrt => x.sqrt(),
        FloatOp::Reciprocal => 1.0 / x,
        FloatOp::ReciprocalSqrt => 1.0 / x.sqrt(),
        _ => return None,
    };
    Some(if v.is_nan() { 0x7fff_ffff_ffff_ffff } else { v.to_bits() })
}

/// Results of f16 or bf16 instructions, one or two side by side.
pub(crate) fn small(
    op: FloatOp,
    (brain, pair, saturate): (bool, bool, bool),
    operands: [u64; 3],
) -> Option<u64> {
    let format = if brain { BF16 } else { F16 };
    let lanes = if pair { 2 } else { 1 };
    (0..lanes).try_fold(0, |out, lane| {
        let lane_bits = operands.map(|v| (v >> (16 * lane)) as u16);
        Some(out | u64::from(one_small(op, format, saturate, lane_bits)?) << (16 * lane))
    })
}

fn one_small(op: FloatOp, format: Small, saturate: bool, [a, b, c]: [u16; 3]) -> Option<u16> {
    let one = format.encode(1.0, Rounding::Nearest);
    let zero = 1 << 15;
    let [x, y] = [a, b].map(|bits| format.decode(bits));
    let bits = match op {
        // With -0 as what is added, a product keeps its sign.
        FloatOp::Add => format.fma(a, one, b),
        FloatOp::Sub => format.fma(a, one, b ^ zero),
        FloatOp::Mul => format.fma(a, b, zero),
        FloatOp::Fma => format.fma(a, b, c),
        FloatOp::Neg => return Some(a ^ zero),
        FloatOp::Abs => return Some(a & !zero),
        FloatOp::Min { nan } | FloatOp::Max { nan } => {
            if x.is_nan() || y.is_nan() {
                if nan || x.is_nan() && y.is_nan() {
                    0x7fff
                } else if x.is_nan() {
                    b
                } else {
                    a
                }
            } else {
                let smaller = x < y || x == y && a & zero != 0;
                if smaller == matches!(op, FloatOp::Min { .. }) { a } else { b }
            }
        }
        FloatOp::Exp2 => format.encode(x.exp2(), Rounding::Nearest),
        FloatOp::Tanh => format.encode(x.tanh(), Rounding::Nearest),
        _ => return None,
    };
    if saturate {
        let v = format.decode(bits);
        return Some(if v > 1.0 {
            one
        } else if v > 0.0 {
            bits
        } else {
            0
        });
    }
    Some(bits)
}

/// The value of a float of any type.
pub(crate) fn value(ty: Type, bits: u64) -> f64 {
    match ty {
        Type::F16 => F16.decode(bits as u16),
        Type::Bf16 => BF16.decode(bits as u16),
        Type::F32 => f32::from_bits(bits as u32).into(),
        _ => f64::from_bits(bits),
    }
}

/// The result of a comparison.
#[inline(always)]
pub(crate) fn compare(compare: Compare, ty: Type, a: u64, b: u64, flushes: bool) -> bool {
    match ty {
        Type::F32 if !flushes => ordered(compare, f32::from_bits(a as u32), f32::from_bits(b as u32)),
        Type::F32 => ordered(compare, flush(f32::from_bits(a as u32)), flush(f32::from_bits(b as u32))),
        _ if ty.is_float() => ordered(compare, value(ty, a), value(ty, b)),
        _ if ty.is_signed() => ordered(compare, ty.extend(a) as i64, ty.extend(b) as i64),
        _ => ordered(compare, ty.extend(a), ty.extend(b)),
    }
}

#[inline(always)]
#[allow(
    clippy::neg_cmp_op_on_partial_ord,
    clippy::double_comparisons,
    reason = "true or false where one is NaN"
)]
fn ordered<T: PartialOrd>(compare: Compare, a: T, b: T) -> bool {
    match compare {
        Compare::Equal => a == b,
        Compare::NotEqual => a < b || a > b,
        Compare::Less => a < b,
        Compare::LessEqual => a <= b,
        Compare::Greater => a > b,
        Compare::GreaterEqual => a >= b,
        Compare::EqualUnordered => !(a < b || a > b),
        Compare::NotEqualUnordered => a != b,
        Compare::LessUnordered => !(a >= b),
        Compare::LessEqualUnordered => !(a > b),
        Compare::GreaterUnordered => !(a <= b),
        Compare::GreaterEqualUnordered => !(a < b),
        Compare::Numbers => a.partial_cmp(&b).is_some(),
        Compare::Nan => a.partial_cmp(&b).is_none(),
    }
}

/// A comparison's result together with a predicate.
#[inline(always)]
pub(crate) fn join(join: Join, result: bool, predicate: u64) -> bool {
    let p = |negate: bool| (predicate & 1 != 0) != negate;
    match join {
        Join::None => result,
        Join::And { negate } => result && p(negate),
        Join::Or { negate } => result || p(negate),
        Join::Xor { negate } => result != p(negate),
    }
}

/// The result of `testp`.
pub(crate) fn test(test: Test, ty: Type, bits: u64) -> bool {
    use std::num::FpCategory::*;
    let category = if ty == Type::F32 {
        f32::from_bits(bits as u32).classify()
    } else {
        f64::from_bits(bits).classify()
    };
    match test {
        Test::Finite => !matches!(category, Infinite | Nan),
        Test::Infinite => category == Infinite,
        Test::Number => category != Nan,
        Test::NotANumber => category == Nan,
        Test::Normal => category == Normal,
        Test::Subnormal => category == Subnormal,
    }
}

/// `cvt` between any two types. `integer` rounds to an integral value that stays a float.
pub(crate) fn convert(
    to: Type,
    from: Type,
    rounding: Rounding,
    (integer, flushes, saturate): (bool, bool, bool),
    bits: u64,
) -> u64 {
    if !from.is_float() && !to.is_float() {
        return between_integers(to, from, saturate, bits);
    }
    if from.is_float() {
        let mut v = value(from, bits);
        if flushes && from == Type::F32 {
            v = flush(v as f32).into();
        }
        if !to.is_float() {
            return to_integer(to, from, round_to_integral(v, rounding), v.is_nan());
        }
        if integer {
            v = round_to_integral(v, rounding);
        }
        if saturate {
            v = if v > 0.0 { v.min(1.0) } else { 0.0 };
        }
        return from_exact(to, v, rounding, flushes);
    }
    let v = from.extend(bits);
    match to {
        // 64-bit integers have more digits than f64.
        Type::F32 if rounding == Rounding::Nearest && from.is_signed() => (v as i64 as f32).to_bits().into(),
        Type::F32 if rounding == Rounding::Nearest => (v as f32).to_bits().into(),
        _ if from.is_signed() => from_exact(to, v as i64 as f64, rounding, flushes),
        _ => from_exact(to, v as f64, rounding, flushes),
    }
}

fn from_exact(to: Type, v: f64, rounding: Rounding, flushes: bool) -> u64 {
    match to {
        Type::F16 => F16.encode(v, rounding).into(),
        Type::Bf16 => BF16.encode(v, rounding).into(),
        Type::F32 => {
            let narrow = rounding::narrow(v, rounding);
            let narrow = if flushes { flush(narrow) } else { narrow };
            if narrow.is_nan() { NAN.into() } else { narrow.to_bits().into() }
        }
        _ => v.to_bits(),
    }
}

fn round_to_integral(v: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => v.round_ties_even(),
        Rounding::Zero => v.trunc(),
        Rounding::Down => v.floor(),
        Rounding::Up => v.ceil(),
    }
}

/// Limits to the range of the integer. NaN becomes zero, or for 64 bits of f32 and f64 the lowest or highest value.
fn to_integer(to: Type, from: Type, v: f64, nan: bool) -> u64 {
    if nan {
        return match (to, from) {
            (Type::S64, _) => 1 << 63,
            (Type::U64, _) => 1 << 63,
            (Type::S32 | Type::U32, Type::F64) => 1 << 31,
            _ => 0,
        };
    }
    match to {
        Type::S8 => v.clamp(-128.0, 127.0) as i64 as u64,
        Type::S16 => v.clamp(-32768.0, 32767.0) as i64 as u64,
        Type::S32 => v as i32 as u64,
        Type::S64 => v as i64 as u64,
        Type::U8 => u64::from(v as u8),
        Type::U16 => u64::from(v as u16),
        Type::U32 => u64::from(v as u32),
        _ => v as u64,
    }
}

fn between_integers(to: Type, from: Type, saturate: bool, bits: u64) -> u64 {
    let v = from.extend(bits);
    if !saturate {
        return to.extend(v);
    }
    let wide = if from.is_signed() { i128::from(v as i64) } else { v.into() };
    let bits = to.bits();
    let (lowest, highest) = if to.is_signed() {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    };
    wide.clamp(lowest, highest) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f(op: FloatOp, a: f32, b: f32) -> u32 {
        float(op, Rounding::Nearest, (false, false), [a.to_bits(), b.to_bits(), 0])
    }

    #[test]
    fn every_nan_is_the_same() {
        assert_eq!(f(FloatOp::Div, 0.0, 0.0), NAN);
        assert_eq!(f(FloatOp::Add, f32::from_bits(0xffc0_1234), 1.0), NAN);
        assert_eq!(f(FloatOp::Neg, f32::from_bits(0x7fc0_1234), 0.0), 0xffc0_1234);
    }

    #[test]
    fn extremes_of_zeros_and_of_nan() {
        let (min, max) = (FloatOp::Min { nan: false }, FloatOp::Max { nan: false });
        assert_eq!(f(min, 0.0, -0.0), (-0.0f32).to_bits());
        assert_eq!(f(max, -0.0, 0.0), 0);
        assert_eq!(f(min, f32::NAN, 2.0), 2f32.to_bits());
        assert_eq!(f(FloatOp::Min { nan: true }, f32::NAN, 2.0), NAN);
    }

    #[test]
    fn subnormal_numbers_are_flushed_where_asked() {
        let tiny = f32::from_bits(1);
        let sum = |flushes| float(FloatOp::Add, Rounding::Nearest, (flushes, false), [tiny.to_bits(), 0, 0]);
        assert_eq!((sum(false), sum(true)), (1, 0));
        let saturated = float(FloatOp::Add, Rounding::Nearest, (false, true), [3f32.to_bits(), 0, 0]);
        assert_eq!(saturated, 1f32.to_bits());
    }

    #[test]
    fn comparisons_with_nan() {
        let with_nan = |c| compare(c, Type::F32, f32::NAN.to_bits().into(), 0, false);
        for c in [Compare::Equal, Compare::NotEqual, Compare::Less, Compare::GreaterEqual, Compare::Numbers] {
            assert!(!with_nan(c), "{c:?}");
        }
        for c in [Compare::NotEqualUnordered, Compare::LessUnordered, Compare::EqualUnordered, Compare::Nan] {
            assert!(with_nan(c), "{c:?}");
        }
        assert!(compare(Compare::Less, Type::S32, 0xffff_ffff, 0, false));
        assert!(!compare(Compare::Less, Type::U32, 0xffff_ffff, 0, false));
    }

    #[test]
    fn conversions() {
        let cvt = |to, from, rounding, bits| convert(to, from, rounding, (false, false, false), bits);
        let bits = |v: f32| u64::from(v.to_bits());
        assert_eq!(cvt(Type::S32, Type::F32, Rounding::Zero, bits(-2.7)) as i32, -2);
        assert_eq!(cvt(Type::S32, Type::F32, Rounding::Nearest, bits(2.5)) as i32, 2);
        assert_eq!(cvt(Type::S32, Type::F32, Rounding::Zero, bits(3e9)) as i32, i32::MAX);
        assert_eq!(cvt(Type::S32, Type::F32, Rounding::Zero, bits(f32::NAN)) as i32, 0);
        assert_eq!(cvt(Type::U8, Type::F32, Rounding::Zero, bits(-1.0)), 0);
        assert_eq!(cvt(Type::F32, Type::U32, Rounding::Nearest, 16_777_217), bits(16_777_216.0));
        assert_eq!(cvt(Type::F32, Type::U32, Rounding::Up, 16_777_217), bits(16_777_218.0));
        assert_eq!(cvt(Type::F16, Type::F32, Rounding::Nearest, bits(1.0)), 0x3c00);
        assert_eq!(cvt(Type::F32, Type::F16, Rounding::Nearest, 0x3555), bits(0.333_251_95));
        assert_eq!(cvt(Type::F32, Type::Bf16, Rounding::Nearest, 0x3f80), bits(1.0));
        assert_eq!(cvt(Type::S64, Type::S32, Rounding::Nearest, 0xffff_ffff), u64::MAX);
        assert_eq!(cvt(Type::U32, Type::S8, Rounding::Nearest, 0xff) as u32, u32::MAX);
        assert_eq!(convert(Type::U8, Type::S32, Rounding::Nearest, (false, false, true), 300), 255);
    }
}
