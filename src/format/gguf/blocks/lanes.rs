//! Vectors of `f32` with one block per lane.
//!
//! A search that llama.cpp runs over one block after the other runs here over as many blocks as there are lanes. Every
//! lane does the operations of the scalar code in the order of the scalar code, so that its result has the same
//! bits; branches become masks. Nothing is contracted (`a * b + c` is two roundings) or reassociated.

use std::ops::{Add, Div, Mul, Sub};

/// The most lanes that any instruction set has.
pub(super) const MAX_LANES: usize = 16;

/// 1.5 * 2^23: a float of this size has no bits left for fractions, so adding it rounds to the nearest integer.
const MAGIC: f32 = 12_582_912.0;

/// Arithmetic on vectors of floats, with the integers and masks that go with them.
pub(super) trait Floats:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// As many `i32`.
    type Int: Copy;
    /// As many truth values.
    type Mask: Copy;

    /// `v` in all lanes.
    fn splat(v: f32) -> Self;
    /// Square roots.
    fn sqrt(self) -> Self;
    /// Absolute values: the sign bit cleared.
    fn abs(self) -> Self;
    /// The sign bit flipped.
    fn neg(self) -> Self;
    /// `self > other ? self : other`, so `other` where one is not a number.
    fn max(self, other: Self) -> Self;
    /// `self < other ? self : other`, so `other` where one is not a number.
    fn min(self, other: Self) -> Self;

    /// `self > other`.
    fn gt(self, other: Self) -> Self::Mask;
    /// `self >= other`.
    fn ge(self, other: Self) -> Self::Mask;
    /// `self < other`.
    fn lt(self, other: Self) -> Self::Mask;
    /// `self != other`, true where one is not a number.
    fn ne(self, other: Self) -> Self::Mask;
    /// Both.
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// One or both.
    fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Whether some lane is true.
    fn any(mask: Self::Mask) -> bool;
    /// `mask ? yes : no`.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;

    /// `v` in all lanes.
    fn int(v: i32) -> Self::Int;
    /// Bits of the floats.
    fn bits(self) -> Self::Int;
    /// Bitwise and.
    fn int_and(a: Self::Int, b: Self::Int) -> Self::Int;
    /// Wrapping difference.
    fn int_sub(a: Self::Int, b: Self::Int) -> Self::Int;
    /// The smaller.
    fn int_min(a: Self::Int, b: Self::Int) -> Self::Int;
    /// The larger.
    fn int_max(a: Self::Int, b: Self::Int) -> Self::Int;
    /// The integers as floats.
    fn from_int(v: Self::Int) -> Self;
    /// The floats with their fractions dropped, `i32::MIN` for what does not fit, as x86 converts.
    fn trunc(self) -> Self::Int;

    /// Rounds to nearest, ties to even; the integers of `nearest_int` in llama.cpp, also where the argument is beyond
    /// +-4194303 and the result meaningless.
    #[inline(always)]
    fn nearest(self) -> Self::Int {
        let v = (self + Self::splat(MAGIC)).bits();
        Self::int_sub(Self::int_and(v, Self::int(0x007f_ffff)), Self::int(0x0040_0000))
    }

    /// [`Floats::nearest`], limited to `lo..=hi`.
    #[inline(always)]
    fn nearest_within(self, lo: i32, hi: i32) -> Self::Int {
        Self::int_max(Self::int(lo), Self::int_min(Self::int(hi), self.nearest()))
    }

    /// [`Floats::nearest_within`] as floats, for arguments known to be numbers within +-4194303.
    #[inline(always)]
    fn round_within(self, lo: i32, hi: i32) -> Self {
        let v = self + Self::splat(MAGIC);
        v.max(Self::splat(MAGIC + lo as f32)).min(Self::splat(MAGIC + hi as f32)) - Self::splat(MAGIC)
    }

    /// Rounds to nearest, ties away from zero, as `roundf`, for what fits an `i32`.
    #[inline(always)]
    fn round_away(self) -> Self::Int {
        // The largest float below one half: one half itself would carry 0.49999997 over to 1.
        let half = Self::splat(0.5f32.next_down());
        let negative = self.lt(Self::splat(0.0));
        (self + Self::select(negative, half.neg(), half)).trunc()
    }
}

/// A register of floats: what [`Floats`] can do, and ways in and out of memory.
pub(super) trait Lanes: Floats {
    /// Number of lanes.
    const N: usize;

    /// The first `N` values of a slice.
    fn load(src: &[f32]) -> Self;
    /// Writes the lanes to the first `N` places of a slice.
    fn store(self, dst: &mut [f32]);
    /// Writes the low byte of each lane to the first `N` places of a slice.
    fn store_u8(v: Self::Int, dst: &mut [u8]);
    /// The largest lane; all are numbers. Of zeros it may be any.
    fn largest(self) -> f32;
    /// The smallest lane; all are numbers. Of zeros it may be any.
    fn smallest(self) -> f32;
    /// Entries of a table, chosen by the five low bits of each lane's float.
    fn lookup(self, table: &[f32; 32]) -> Self;
    /// Reads `dst.len()` consecutive floats for each lane `s`, from `src[starts[s]..]` on: `dst[i]` gets the `i`-th
    /// float of every lane. `dst.len()` is a multiple of `N`.
    fn transpose(src: &[f32], starts: &[usize; MAX_LANES], dst: &mut [Self]);
}

/// Four floats of plain Rust.
#[derive(Clone, Copy)]
#[repr(align(16))]
pub(super) struct F32x4([f32; 4]);

/// Four integers, or four truth values (0 or -1).
#[derive(Clone, Copy)]
#[repr(align(16))]
pub(super) struct I32x4([i32; 4]);

macro_rules! lanewise {
    ($out:ident, $i:ident => $e:expr) => {{
        let mut out = [Default::default(); 4];
        let mut $i = 0;
        while $i < 4 {
            out[$i] = $e;
            $i += 1;
        }
        $out(out)
    }};
}

macro_rules! operators {
    ($($trait:ident $method:ident $op:tt),*) => {$(
        impl $trait for F32x4 {
            type Output = F32x4;
            #[inline(always)]
            fn $method(self, other: F32x4) -> F32x4 {
                lanewise!(F32x4, i => self.0[i] $op other.0[i])
            }
        }
    )*};
}
operators!(Add add +, Sub sub -, Mul mul *, Div div /);

impl Floats for F32x4 {
    type Int = I32x4;
    type Mask = I32x4;

    #[inline(always)]
    fn splat(v: f32) -> F32x4 {
        F32x4([v; 4])
    }

    #[inline(always)]
    fn sqrt(self) -> F32x4 {
        lanewise!(F32x4, i => self.0[i].sqrt())
    }

    #[inline(always)]
    fn abs(self) -> F32x4 {
        lanewise!(F32x4, i => self.0[i].abs())
    }

    #[inline(always)]
    fn neg(self) -> F32x4 {
        lanewise!(F32x4, i => -self.0[i])
    }

    #[inline(always)]
    fn max(self, other: F32x4) -> F32x4 {
        lanewise!(F32x4, i => if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] })
    }

    #[inline(always)]
    fn min(self, other: F32x4) -> F32x4 {
        lanewise!(F32x4, i => if self.0[i] < other.0[i] { self.0[i] } else { other.0[i] })
    }

    #[inline(always)]
    fn gt(self, other: F32x4) -> I32x4 {
        lanewise!(I32x4, i => -i32::from(self.0[i] > other.0[i]))
    }

    #[inline(always)]
    fn ge(self, other: F32x4) -> I32x4 {
        lanewise!(I32x4, i => -i32::from(self.0[i] >= other.0[i]))
    }

    #[inline(always)]
    fn lt(self, other: F32x4) -> I32x4 {
        lanewise!(I32x4, i => -i32::from(self.0[i] < other.0[i]))
    }

    #[inline(always)]
    fn ne(self, other: F32x4) -> I32x4 {
        lanewise!(I32x4, i => -i32::from(self.0[i] != other.0[i]))
    }

    #[inline(always)]
    fn and(a: I32x4, b: I32x4) -> I32x4 {
        Self::int_and(a, b)
    }

    #[inline(always)]
    fn or(a: I32x4, b: I32x4) -> I32x4 {
        lanewise!(I32x4, i => a.0[i] | b.0[i])
    }

    #[inline(always)]
    fn any(mask: I32x4) -> bool {
        mask.0[0] | mask.0[1] | mask.0[2] | mask.0[3] != 0
    }

    #[inline(always)]
    fn select(mask: I32x4, yes: F32x4, no: F32x4) -> F32x4 {
        lanewise!(F32x4, i => {
            let (m, yes, no) = (mask.0[i] as u32, yes.0[i].to_bits(), no.0[i].to_bits());
            f32::from_bits((yes & m) | (no & !m))
        })
    }

    #[inline(always)]
    fn int(v: i32) -> I32x4 {
        I32x4([v; 4])
    }

    #[inline(always)]
    fn bits(self) -> I32x4 {
        lanewise!(I32x4, i => self.0[i].to_bits() as i32)
    }

    #[inline(always)]
    fn int_and(a: I32x4, b: I32x4) -> I32x4 {
        lanewise!(I32x4, i => a.0[i] & b.0[i])
    }

    #[inline(always)]
    fn int_sub(a: I32x4, b: I32x4) -> I32x4 {
        lanewise!(I32x4, i => a.0[i].wrapping_sub(b.0[i]))
    }

    #[inline(always)]
    fn int_min(a: I32x4, b: I32x4) -> I32x4 {
        lanewise!(I32x4, i => if a.0[i] < b.0[i] { a.0[i] } else { b.0[i] })
    }

    #[inline(always)]
    fn int_max(a: I32x4, b: I32x4) -> I32x4 {
        lanewise!(I32x4, i => if a.0[i] > b.0[i] { a.0[i] } else { b.0[i] })
    }

    #[inline(always)]
    fn from_int(v: I32x4) -> F32x4 {
        lanewise!(F32x4, i => v.0[i] as f32)
    }

    #[inline(always)]
    fn trunc(self) -> I32x4 {
        const LIMIT: f32 = 2_147_483_648.0;
        lanewise!(I32x4, i => {
            let v = self.0[i];
            if (-LIMIT..LIMIT).contains(&v) { v as i32 } else { i32::MIN }
        })
    }
}

impl Lanes for F32x4 {
    const N: usize = 4;

    #[inline(always)]
    fn load(src: &[f32]) -> F32x4 {
        F32x4([src[0], src[1], src[2], src[3]])
    }

    #[inline(always)]
    fn store(self, dst: &mut [f32]) {
        dst[..4].copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn store_u8(v: I32x4, dst: &mut [u8]) {
        dst[..4].copy_from_slice(&[v.0[0] as u8, v.0[1] as u8, v.0[2] as u8, v.0[3] as u8]);
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        let [a, b, c, d] = self.0;
        a.max(b).max(c.max(d))
    }

    #[inline(always)]
    fn smallest(self) -> f32 {
        let [a, b, c, d] = self.0;
        a.min(b).min(c.min(d))
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; 32]) -> F32x4 {
        lanewise!(F32x4, i => table[(self.0[i].to_bits() & 31) as usize])
    }

    #[inline(always)]
    fn transpose(src: &[f32], starts: &[usize; MAX_LANES], dst: &mut [F32x4]) {
        let n = dst.len();
        for s in 0..4 {
            let lane = &src[starts[s]..starts[s] + n];
            for (out, &v) in dst.iter_mut().zip(lane) {
                out.0[s] = v;
            }
        }
    }
}
