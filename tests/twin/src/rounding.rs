//! Roundings other than that of the processor, and the 16-bit floats.
//!
//! A directed rounding of an f32 operation starts from the operation in f64 together with the sign of what f64 lost, so
//! that the result is that of the exact value.

/// How a result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// To nearest, ties to even: `.rn`.
    Nearest,
    /// Towards zero: `.rz`.
    Zero,
    /// Down: `.rm`.
    Down,
    /// Up: `.rp`.
    Up,
}

/// The one NaN that f32 instructions give.
pub(crate) const NAN: u32 = 0x7fff_ffff;

/// The bits of a result: every NaN is the same.
#[inline(always)]
pub(crate) fn canonical(v: f32) -> u32 {
    if v.is_nan() { NAN } else { v.to_bits() }
}

/// Zero with its sign in place of a subnormal number: `.ftz`.
pub(crate) fn flush(v: f32) -> f32 {
    if v.is_subnormal() { 0f32.copysign(v) } else { v }
}

/// Sum in f64 and what it lost; both together are exact (Knuth's TwoSum).
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// Rounds `value + lost` to f32 in a direction, where `lost` is far smaller than the last digit of `value`.
fn round(value: f64, lost: f64, rounding: Rounding) -> f32 {
    let nearest = value as f32;
    if !value.is_finite() {
        return nearest;
    }
    let difference = f64::from(nearest) - value;
    let above = difference > 0.0 || difference == 0.0 && lost < 0.0;
    let below = difference < 0.0 || difference == 0.0 && lost > 0.0;
    let (up, down) = match rounding {
        Rounding::Nearest => (false, false),
        Rounding::Zero => (below && value < 0.0, above && value > 0.0),
        Rounding::Down => (false, above),
        Rounding::Up => (below, false),
    };
    if up {
        nearest.next_up()
    } else if down {
        nearest.next_down()
    } else {
        nearest
    }
}

/// `a + b`.
pub(crate) fn add(a: f32, b: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::Nearest || !a.is_finite() || !b.is_finite() {
        return a + b;
    }
    let (sum, lost) = two_sum(a.into(), b.into());
    if sum == 0.0 && lost == 0.0 && a != 0.0 {
        // An exact zero is negative only when rounding down.
        return if rounding == Rounding::Down { -0.0 } else { 0.0 };
    }
    round(sum, lost, rounding)
}

/// `a * b`; the product of two f32 is exact in f64.
pub(crate) fn mul(a: f32, b: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::Nearest { a * b } else { round(f64::from(a) * f64::from(b), 0.0, rounding) }
}

/// `a * b + c` with one rounding.
pub(crate) fn fma(a: f32, b: f32, c: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::Nearest {
        return a.mul_add(b, c);
    }
    let product = f64::from(a) * f64::from(b);
    let (sum, lost) = two_sum(product, c.into());
    if !sum.is_finite() {
        return sum as f32;
    }
    round(sum, lost, rounding)
}

/// `a / b`.
pub(crate) fn div(a: f32, b: f32, rounding: Rounding) -> f32 {
    let (a64, b64) = (f64::from(a), f64::from(b));
    let quotient = a64 / b64;
    if rounding == Rounding::Nearest || !quotient.is_finite() {
        return a / b;
    }
    let remainder = (-quotient).mul_add(b64, a64);
    round(quotient, if b64 < 0.0 { -remainder } else { remainder }, rounding)
}

/// Square root.
pub(crate) fn sqrt(a: f32, rounding: Rounding) -> f32 {
    let root = f64::from(a).sqrt();
    if rounding == Rounding::Nearest || !root.is_finite() {
        return a.sqrt();
    }
    round(root, (-root).mul_add(root, a.into()), rounding)
}

/// A 64-bit float as f32.
pub(crate) fn narrow(v: f64, rounding: Rounding) -> f32 {
    if rounding == Rounding::Nearest { v as f32 } else { round(v, 0.0, rounding) }
}

/// A float of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Small {
    mantissa: u32,
    exponent: u32,
}

/// Half precision.
pub(crate) const F16: Small = Small { mantissa: 10, exponent: 5 };
/// The upper half of an f32.
pub(crate) const BF16: Small = Small { mantissa: 7, exponent: 8 };

impl Small {
    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The value of some bits; exact.
    pub(crate) fn decode(self, bits: u16) -> f64 {
        let bits = u32::from(bits);
        let mantissa = bits & ((1 << self.mantissa) - 1);
        let exponent = (bits >> self.mantissa) & ((1 << self.exponent) - 1);
        let scale = |e: i32| f64::from(mantissa) * 2f64.powi(e - self.mantissa as i32);
        let magnitude = if exponent == (1 << self.exponent) - 1 {
            if mantissa == 0 { f64::INFINITY } else { f64::NAN }
        } else if exponent == 0 {
            scale(1 - self.bias())
        } else {
            let e = exponent as i32 - self.bias();
            2f64.powi(e) + scale(e)
        };
        if bits >> 15 != 0 { -magnitude } else { magnitude }
    }

    /// The bits of a value. Every NaN becomes 0x7fff.
    pub(crate) fn encode(self, value: f64, rounding: Rounding) -> u16 {
        if value.is_nan() {
            return 0x7fff;
        }
        let negative = value.is_sign_negative();
        let sign = u16::from(negative) << 15;
        let infinity = ((1u32 << self.exponent) - 1) << self.mantissa;
        let magnitude = value.abs();
        if magnitude.is_infinite() {
            return sign | infinity as u16;
        }
        let least = 1 - self.bias();
        let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(least);
        let scaled = magnitude * 2f64.powi(self.mantissa as i32 - exponent);
        let up = matches!((rounding, negative), (Rounding::Up, false) | (Rounding::Down, true));
        let rounded = match rounding {
            Rounding::Nearest => scaled.round_ties_even(),
            _ if up => scaled.ceil(),
            _ => scaled.floor(),
        };
        // A mantissa that is rounded up to the next power of two carries into the exponent.
        let bits = (((exponent - least) as u32) << self.mantissa) + rounded as u32;
        let bits = if bits < infinity || up || rounding == Rounding::Nearest {
            bits.min(infinity)
        } else {
            infinity - 1
        };
        sign | bits as u16
    }

    /// `a * b + c` with one rounding to nearest.
    pub(crate) fn fma(self, a: u16, b: u16, c: u16) -> u16 {
        let (sum, lost) = two_sum(self.decode(a) * self.decode(b), self.decode(c));
        // With an odd last digit in place of what was lost, the second rounding sees on which side of a tie the sum is.
        let odd = sum.is_finite() && lost != 0.0 && sum.to_bits() & 1 == 0;
        let sum = match odd {
            true if lost > 0.0 => sum.next_up(),
            true => sum.next_down(),
            false => sum,
        };
        self.encode(sum, Rounding::Nearest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_comes_back() {
        for small in [F16, BF16] {
            for bits in 0..=u16::MAX {
                let value = small.decode(bits);
                if !value.is_nan() {
                    assert_eq!(small.encode(value, Rounding::Nearest), bits);
                    assert_eq!(small.encode(value, Rounding::Zero), bits);
                }
            }
        }
    }

    #[test]
    fn halves_round_to_nearest_even() {
        assert_eq!(F16.encode(1.0, Rounding::Nearest), 0x3c00);
        assert_eq!(F16.encode(1.0 + 1.0 / 2048.0, Rounding::Nearest), 0x3c00);
        assert_eq!(F16.encode(1.0 + 3.0 / 2048.0, Rounding::Nearest), 0x3c02);
        assert_eq!(F16.encode(65520.0, Rounding::Nearest), 0x7c00);
        assert_eq!(F16.encode(65520.0, Rounding::Zero), 0x7bff);
        assert_eq!(F16.encode(-65520.0, Rounding::Up), 0xfbff);
        assert_eq!(F16.encode(2f64.powi(-25), Rounding::Nearest), 0);
        assert_eq!(F16.encode(2f64.powi(-25), Rounding::Up), 1);
        assert_eq!(BF16.encode(f64::from(f32::from_bits(0x3f80_8000)), Rounding::Nearest), 0x3f80);
        assert_eq!(BF16.encode(f64::from(f32::from_bits(0x3f81_8000)), Rounding::Nearest), 0x3f82);
    }

    #[test]
    fn directed_roundings_enclose_the_exact_value() {
        let third = 1.0f32 / 3.0;
        assert_eq!(div(1.0, 3.0, Rounding::Nearest), third);
        assert_eq!(div(1.0, 3.0, Rounding::Down), third.next_down());
        assert_eq!(div(1.0, 3.0, Rounding::Zero), third.next_down());
        assert_eq!(div(1.0, 3.0, Rounding::Up), third);
        assert_eq!(div(-1.0, 3.0, Rounding::Zero), -third.next_down());
        assert_eq!(add(1.0, 1e-30, Rounding::Up), 1f32.next_up());
        assert_eq!(add(1.0, 1e-30, Rounding::Zero), 1.0);
        assert_eq!(add(1.0, -1e-30, Rounding::Zero), 1f32.next_down());
        assert_eq!(add(1.0, -1.0, Rounding::Down).to_bits(), (-0.0f32).to_bits());
        assert_eq!(mul(1f32.next_up(), 1f32.next_up(), Rounding::Zero), 1f32.next_up().next_up());
        assert_eq!(sqrt(2.0, Rounding::Up), 2f32.sqrt().next_up());
        assert_eq!(sqrt(2.0, Rounding::Down), 2f32.sqrt());
    }

    #[test]
    fn a_sum_of_halves_is_rounded_once() {
        // 1 + 2^-11 + 2^-24 is above a tie that f32 would make of it.
        let (a, b, c) = (
            F16.encode(2f64.powi(-12), Rounding::Nearest),
            F16.encode(2f64.powi(-12), Rounding::Nearest),
            0x3c01,
        );
        let exact = 2f64.powi(-24) + F16.decode(c);
        assert_eq!(F16.fma(a, b, c), F16.encode(exact, Rounding::Nearest));
    }
}
