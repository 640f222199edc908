//! Sixteen rows of a weight matrix side by side.
//!
//! Rows are quantized independently of each other, so that a method which goes through the columns one after the other
//! works on many rows at once. The arithmetic is plain Rust, which the compiler turns into vectors of whatever instruction
//! set [`Simd::compile`](crate::format::gguf::blocks::Simd) names; nothing is contracted or reassociated, so that the bits
//! are the same for all of them.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// Rows in a [`Lanes`].
pub(super) const LANES: usize = 16;

/// One value of each of [`LANES`] rows.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Lanes(pub(super) [f32; LANES]);

/// 1.5 * 2^23: a float of this size has no bits left for fractions, so adding it rounds to the nearest integer.
const MAGIC: f32 = 12_582_912.0;

impl Lanes {
    pub(super) const ZERO: Lanes = Lanes::splat(0.0);

    /// `v` in all rows.
    pub(super) const fn splat(v: f32) -> Lanes {
        Lanes([v; LANES])
    }

    /// The first [`LANES`] values of a slice.
    #[inline(always)]
    pub(super) fn load(values: &[f32]) -> Lanes {
        let mut out = Lanes::ZERO;
        out.0.copy_from_slice(&values[..LANES]);
        out
    }

    /// Writes the first [`LANES`] values of a slice.
    #[inline(always)]
    pub(super) fn store(self, values: &mut [f32]) {
        values[..LANES].copy_from_slice(&self.0);
    }

    #[inline(always)]
    pub(super) fn map(self, f: impl Fn(f32) -> f32) -> Lanes {
        let mut out = self;
        for i in 0..LANES {
            out.0[i] = f(self.0[i]);
        }
        out
    }

    #[inline(always)]
    pub(super) fn zip(self, other: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
        let mut out = self;
        for i in 0..LANES {
            out.0[i] = f(self.0[i], other.0[i]);
        }
        out
    }

    /// The larger of each pair, `other` where one is not a number.
    #[inline(always)]
    pub(super) fn max(self, other: Lanes) -> Lanes {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    /// The smaller of each pair, `other` where one is not a number.
    #[inline(always)]
    pub(super) fn min(self, other: Lanes) -> Lanes {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    pub(super) fn abs(self) -> Lanes {
        self.map(f32::abs)
    }

    /// Whole numbers nearest to values limited to `low..=high`, ties to even. The limits are whole and within +-2^22.
    #[inline(always)]
    pub(super) fn round_within(self, low: Lanes, high: Lanes) -> Lanes {
        (self.max(low).min(high) + Lanes::splat(MAGIC)) - Lanes::splat(MAGIC)
    }

    /// `self` where `a > b`, else `other`.
    #[inline(always)]
    pub(super) fn where_greater(self, a: Lanes, b: Lanes, other: Lanes) -> Lanes {
        let mut out = other;
        for i in 0..LANES {
            out.0[i] = if a.0[i] > b.0[i] { self.0[i] } else { other.0[i] };
        }
        out
    }

    /// Whether some row has a value other than 0.
    #[inline(always)]
    pub(super) fn any(self) -> bool {
        let mut bits = 0;
        for i in 0..LANES {
            bits |= self.0[i].to_bits();
        }
        bits & 0x7fff_ffff != 0
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $op:tt),*) => {$(
        impl $trait for Lanes {
            type Output = Lanes;
            #[inline(always)]
            fn $method(self, other: Lanes) -> Lanes {
                self.zip(other, |a, b| a $op b)
            }
        }
    )*};
}
operators!(Add add +, Sub sub -, Mul mul *, Div div /);

impl Neg for Lanes {
    type Output = Lanes;
    #[inline(always)]
    fn neg(self) -> Lanes {
        self.map(|v| -v)
    }
}

/// Adds `factor * row[i]` to each value of `out`.
#[inline(always)]
pub(super) fn add_multiples(out: &mut [Lanes], factor: Lanes, row: &[f32]) {
    for (out, value) in out.iter_mut().zip(row) {
        one_by_one();
        *out = *out + factor * Lanes::splat(*value);
    }
}

/// Sets each `out[j]` to the sum over `i` of `factors[i] * row(i)[j]`, the products added to zero one after the other.
#[inline(always)]
pub(super) fn sum_multiples<'a>(out: &mut [Lanes], factors: &[Lanes], row: impl Fn(usize) -> &'a [f32]) {
    // So many sums stay in registers.
    const SUMS: usize = 4;
    let (tiles, rest) = out.as_chunks_mut::<SUMS>();
    let done = tiles.len() * SUMS;
    for (t, tile) in tiles.iter_mut().enumerate() {
        let mut sums = [Lanes::ZERO; SUMS];
        for (i, factor) in factors.iter().enumerate() {
            one_by_one();
            let values = &row(i)[t * SUMS..][..SUMS];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = *sum + *factor * Lanes::splat(*value);
            }
        }
        *tile = sums;
    }
    for (j, out) in rest.iter_mut().enumerate() {
        *out = Lanes::ZERO;
        for (i, factor) in factors.iter().enumerate() {
            one_by_one();
            *out = *out + *factor * Lanes::splat(row(i)[done + j]);
        }
    }
}

/// Keeps the compiler from putting the same row of 16 columns into a vector, which would have to be collected from and
/// scattered over 16 places and takes 25 times as long as the 16 rows of one column. Makes no instruction.
#[inline(always)]
fn one_by_one() {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: there is no code, and nothing that it could change.
    unsafe {
        std::arch::asm!("", options(nomem, nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even_within_limits() {
        let round = |v: f32| Lanes::splat(v).round_within(Lanes::splat(-8.0), Lanes::splat(7.0)).0[3];
        let found = [-9.4, -2.5, -0.5, 0.49999997, 1.5, 6.51, 1e30, f32::NEG_INFINITY].map(round);
        assert_eq!(found, [-8.0, -2.0, 0.0, 0.0, 2.0, 7.0, 7.0, -8.0]);
    }

    #[test]
    fn zeros_of_either_sign_count_as_none() {
        assert!(!Lanes::splat(-0.0).any());
        let mut one = Lanes::ZERO;
        one.0[15] = 1e-30;
        assert!(one.any());
    }

    fn value(i: usize) -> f32 {
        ((i * 7919 + i * i * 31) % 1009) as f32 / 500.0 - 1.0
    }

    fn lanes(n: usize, seed: usize) -> Vec<Lanes> {
        (0..n).map(|i| Lanes(std::array::from_fn(|lane| value(seed + i * LANES + lane)))).collect()
    }

    #[test]
    fn products_are_added_in_order() {
        for n in [0, 1, 3, 4, 5, 11, 128] {
            let row: Vec<f32> = (0..n).map(value).collect();
            let (before, factor) = (lanes(n, 5), lanes(1, 3)[0]);
            let mut out = before.clone();
            add_multiples(&mut out, factor, &row);
            for j in 0..n {
                assert_eq!(out[j].0, std::array::from_fn(|l| before[j].0[l] + factor.0[l] * row[j]));
            }
            let factors = lanes(9, 77);
            let rows: Vec<Vec<f32>> = (0..9).map(|i| (0..n).map(|j| value(i * 131 + j)).collect()).collect();
            sum_multiples(&mut out, &factors, |i| &rows[i]);
            for j in 0..n {
                let expected = |l: usize| (0..9).fold(0.0, |sum, i| sum + factors[i].0[l] * rows[i][j]);
                assert_eq!(out[j].0, std::array::from_fn(expected), "{n}");
            }
        }
    }
}
