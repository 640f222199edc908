//! Several vectors side by side.
//!
//! A search whose every step waits for the one before leaves most of the processor idle; over two or more vectors at a
//! time it has other steps to do meanwhile.

use std::ops::{Add, Div, Mul, Sub};

use super::lanes::Floats;

/// `K` vectors that are worked on together.
#[derive(Clone, Copy)]
pub(super) struct Wide<V, const K: usize>(pub(super) [V; K]);

impl<V: Floats, const K: usize> Wide<V, K> {
    /// Puts the `i`-th vectors of `K` blocks side by side.
    #[inline(always)]
    pub(super) fn join<const L: usize>(blocks: &[[V; L]; K]) -> [Self; L] {
        let mut out = [Self::splat(0.0); L];
        for i in 0..L {
            for k in 0..K {
                out[i].0[k] = blocks[k][i];
            }
        }
        out
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $op:tt),*) => {$(
        impl<V: Floats, const K: usize> $trait for Wide<V, K> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                let mut out = self;
                for k in 0..K {
                    out.0[k] = self.0[k] $op other.0[k];
                }
                out
            }
        }
    )*};
}
operators!(Add add +, Sub sub -, Mul mul *, Div div /);

/// Methods that do the same for each of the vectors.
macro_rules! each {
    ($(fn $name:ident($($arg:ident: $argty:ty),*) -> $out:ty = |$k:ident| $e:expr;)*) => {$(
        #[inline(always)]
        fn $name($($arg: $argty),*) -> $out {
            let mut out = [{ let $k = 0; $e }; K];
            for $k in 1..K {
                out[$k] = $e;
            }
            out.into()
        }
    )*};
}

impl<V, const K: usize> From<[V; K]> for Wide<V, K> {
    #[inline(always)]
    fn from(v: [V; K]) -> Self {
        Wide(v)
    }
}

impl<V: Floats, const K: usize> Floats for Wide<V, K> {
    type Int = [V::Int; K];
    type Mask = [V::Mask; K];

    each! {
        fn sqrt(self: Self) -> Self = |k| self.0[k].sqrt();
        fn abs(self: Self) -> Self = |k| self.0[k].abs();
        fn neg(self: Self) -> Self = |k| self.0[k].neg();
        fn max(self: Self, other: Self) -> Self = |k| self.0[k].max(other.0[k]);
        fn min(self: Self, other: Self) -> Self = |k| self.0[k].min(other.0[k]);
        fn gt(self: Self, other: Self) -> Self::Mask = |k| self.0[k].gt(other.0[k]);
        fn ge(self: Self, other: Self) -> Self::Mask = |k| self.0[k].ge(other.0[k]);
        fn lt(self: Self, other: Self) -> Self::Mask = |k| self.0[k].lt(other.0[k]);
        fn ne(self: Self, other: Self) -> Self::Mask = |k| self.0[k].ne(other.0[k]);
        fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask = |k| V::and(a[k], b[k]);
        fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask = |k| V::or(a[k], b[k]);
        fn select(mask: Self::Mask, yes: Self, no: Self) -> Self = |k| V::select(mask[k], yes.0[k], no.0[k]);
        fn bits(self: Self) -> Self::Int = |k| self.0[k].bits();
        fn int_and(a: Self::Int, b: Self::Int) -> Self::Int = |k| V::int_and(a[k], b[k]);
        fn int_sub(a: Self::Int, b: Self::Int) -> Self::Int = |k| V::int_sub(a[k], b[k]);
        fn int_min(a: Self::Int, b: Self::Int) -> Self::Int = |k| V::int_min(a[k], b[k]);
        fn int_max(a: Self::Int, b: Self::Int) -> Self::Int = |k| V::int_max(a[k], b[k]);
        fn from_int(v: Self::Int) -> Self = |k| V::from_int(v[k]);
        fn trunc(self: Self) -> Self::Int = |k| self.0[k].trunc();
    }

    #[inline(always)]
    fn splat(v: f32) -> Self {
        Wide([V::splat(v); K])
    }

    #[inline(always)]
    fn int(v: i32) -> Self::Int {
        [V::int(v); K]
    }

    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        let mut any = false;
        for mask in mask {
            any |= V::any(mask);
        }
        any
    }
}
