//! Matrix products of bfloat16 with sums in float32, by the processor's AVX512-BF16.
//!
//! `vdpbf16ps` multiplies 16 pairs of numbers and adds both products of each pair to a sum in float32: twice the rate of
//! float32. Every sum is taken along the inner dimension in one order, so the result does not depend on how the work is
//! spread over threads.

use std::fmt;

use rayon::prelude::*;

use crate::format::gguf::blocks::Simd;

/// Columns of a panel: two registers of sums for each row of a tile.
const COLUMNS: usize = 32;
/// Rows of a tile: its sums fill 28 of the 32 registers.
const ROWS: usize = 14;
/// Rows that a thread takes at a time, whole tiles.
const BLOCK: usize = 4 * ROWS;
/// Pairs of the inner dimension that are multiplied in one go: a panel's part (64 kB) stays in the second-level cache while
/// the tiles of a block pass.
const DEPTH: usize = 512;

/// A matrix of weights, `[out, in]`, rounded to bfloat16 and laid out for the product: panels of 32 outputs, in which the
/// pair `(2i, 2i + 1)` of inputs is one word and the words of all outputs lie side by side. What is missing at the edges
/// is zero.
pub(super) struct Packed {
    words: Vec<u32>,
    out: usize,
    inner: usize,
    pairs: usize,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} x {})", self.out, self.inner)
    }
}

/// Whether this processor can multiply bfloat16.
pub(super) fn is_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

impl Packed {
    /// Packs `[out, inner]` weights.
    pub(super) fn new(weights: &[f32], inner: usize) -> Packed {
        let (out, pairs) = (weights.len() / inner, inner.div_ceil(2));
        let mut words = vec![0; out.div_ceil(COLUMNS) * COLUMNS * pairs];
        words.par_chunks_mut(COLUMNS * pairs).zip(weights.par_chunks(COLUMNS * inner)).for_each(
            |(panel, weights)| {
                let mut row = vec![0; pairs];
                for (column, weights) in weights.chunks_exact(inner).enumerate() {
                    round(weights, &mut row);
                    for (words, word) in panel.chunks_exact_mut(COLUMNS).zip(&row) {
                        words[column] = *word;
                    }
                }
            },
        );
        Packed { words, out, inner, pairs }
    }

    /// Number of outputs.
    pub(super) fn out(&self) -> usize {
        self.out
    }

    /// Number of inputs.
    pub(super) fn inner(&self) -> usize {
        self.inner
    }

    /// `x * weights^T`: `x` holds rows of inputs, the result rows of outputs.
    ///
    /// # Panics
    /// If the processor cannot multiply bfloat16; [`is_available`] tells.
    pub(super) fn multiply(&self, x: &[f32]) -> Vec<f32> {
        let inner = self.inner;
        assert!(is_available(), "this processor has no AVX512-BF16");
        assert!(x.len().is_multiple_of(inner), "sizes do not match");
        let mut out = vec![0.0; x.len() / inner * self.out];
        out.par_chunks_mut(BLOCK * self.out).zip(x.par_chunks(BLOCK * inner)).for_each(|(out, x)| {
            let rows = x.len() / inner;
            let mut words = vec![0; rows.next_multiple_of(ROWS) * self.pairs];
            for (words, x) in words.chunks_exact_mut(self.pairs).zip(x.chunks_exact(inner)) {
                round(x, words);
            }
            self.block(&words, out);
        });
        out
    }

    /// The product for the rows of one block, whose pairs are `x`; there may be rows of zeros at the end.
    fn block(&self, x: &[u32], out: &mut [f32]) {
        let pairs = self.pairs;
        for start in (0..pairs).step_by(DEPTH) {
            let depth = DEPTH.min(pairs - start);
            for (p, panel) in self.words.chunks_exact(COLUMNS * pairs).enumerate() {
                let panel = &panel[COLUMNS * start..COLUMNS * (start + depth)];
                let columns = p * COLUMNS..self.out.min((p + 1) * COLUMNS);
                for (tile, out) in x.chunks_exact(ROWS * pairs).zip(out.chunks_mut(ROWS * self.out)) {
                    let mut sums = [[0.0; COLUMNS]; ROWS];
                    multiply_tile(&tile[start..], pairs, panel, &mut sums);
                    for (out, sums) in out.chunks_exact_mut(self.out).zip(&sums) {
                        let each = out[columns.clone()].iter_mut().zip(sums);
                        // Fresh memory is only written: reading it first would cost a second page fault.
                        match start {
                            0 => each.for_each(|(out, sum)| *out = *sum),
                            _ => each.for_each(|(out, sum)| *out += sum),
                        }
                    }
                }
            }
        }
    }
}

/// The bits of a value rounded to bfloat16, to nearest with ties to even; NaN stays NaN.
#[inline(always)]
fn round_one(v: f32) -> u32 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // The sum would carry NaN into other numbers.
    if bits & 0x7fff_ffff > 0x7f80_0000 { (bits >> 16) | 64 } else { rounded }
}

/// Rounds two values a word. An odd value at the end is paired with zero.
fn round(values: &[f32], words: &mut [u32]) {
    let (pairs, rest) = values.as_chunks::<2>();
    let (words, last) = words.split_at_mut(pairs.len());
    Simd::best().compile(|| {
        for (word, [a, b]) in words.iter_mut().zip(pairs) {
            *word = round_one(*a) | round_one(*b) << 16;
        }
    });
    if let ([v], [word]) = (rest, last) {
        *word = round_one(*v);
    }
}

/// Rounds values to bfloat16 and keeps them as float32.
pub(super) fn round_in_place(values: &mut [f32]) {
    let simd = Simd::best();
    values.par_chunks_mut(1 << 14).for_each(|values| {
        simd.compile(|| values.iter_mut().for_each(|v| *v = f32::from_bits(round_one(*v) << 16)));
    });
}

/// Products of a tile's rows, which are `stride` words apart, with the columns of a part of a panel.
#[cfg(target_arch = "x86_64")]
fn multiply_tile(x: &[u32], stride: usize, panel: &[u32], sums: &mut [[f32; COLUMNS]; ROWS]) {
    let depth = panel.len() / COLUMNS;
    assert!(x.len() >= (ROWS - 1) * stride + depth && depth <= stride && panel.len() == depth * COLUMNS);
    // SAFETY: `multiply` has made sure that the processor has the instructions. The assertion above is what
    // the function asks of its slices.
    unsafe { multiply_tile_avx512(x, stride, panel, sums) }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_tile(_: &[u32], _: usize, _: &[u32], _: &mut [[f32; COLUMNS]; ROWS]) {
    unreachable!("`multiply` refuses processors without AVX512-BF16")
}

/// # Safety
/// `panel` holds a number of rows of `COLUMNS` words, and `x` as many words in each of `ROWS` rows that are `stride` words
/// apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply_tile_avx512(x: &[u32], stride: usize, panel: &[u32], sums: &mut [[f32; COLUMNS]; ROWS]) {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };
    // SAFETY: both are 64 bytes without a type of their own.
    let pairs = |v: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(v) };
    let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
    let (x, panel) = (x.as_ptr(), panel);
    for (i, words) in panel.chunks_exact(COLUMNS).enumerate() {
        let words = words.as_ptr();
        // SAFETY: `words` points to 32 words, two registers.
        let b = unsafe {
            [pairs(_mm512_loadu_si512(words.cast())), pairs(_mm512_loadu_si512(words.add(16).cast()))]
        };
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller promises that row `r` has a word `i`.
            let a = pairs(_mm512_set1_epi32(unsafe { *x.add(r * stride + i) }.cast_signed()));
            acc[0] = _mm512_dpbf16_ps(acc[0], a, b[0]);
            acc[1] = _mm512_dpbf16_ps(acc[1], a, b[1]);
        }
    }
    for (sums, acc) in sums.iter_mut().zip(&acc) {
        // SAFETY: a row of sums is two registers long.
        unsafe {
            _mm512_storeu_ps(sums.as_mut_ptr(), acc[0]);
            _mm512_storeu_ps(sums.as_mut_ptr().add(16), acc[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn values(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / 8_388_608.0 - 1.0) * 3.0
            })
            .collect()
    }

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let mut all = values(1001, 1);
        all.extend([0.0, -0.0, f32::INFINITY, f32::NAN, f32::MAX, 1.003_906_3, 1.011_718_8]);
        let mut words = vec![0; all.len().div_ceil(2)];
        round(&all, &mut words);
        let mut kept = all.clone();
        round_in_place(&mut kept);
        let found = words.iter().flat_map(|w| [*w as u16, (*w >> 16) as u16]);
        for ((v, found), kept) in all.iter().zip(found).zip(kept) {
            assert_eq!(kept.to_bits(), u32::from(found) << 16, "{v}");
            let expected = bf16::from_f32(*v);
            assert!(bf16::from_bits(found).is_nan() == v.is_nan(), "{v}");
            assert!(v.is_nan() || found == expected.to_bits(), "{v}");
        }
    }

    #[test]
    fn products_are_right_for_all_edges() {
        if !is_available() {
            // `linear` tests what such a processor computes instead.
            return;
        }
        for (m, n, k) in [(1, 1, 1), (14, 32, 2), (57, 65, 7), (3, 100, 2051), (113, 31, 64)] {
            let (x, w) = (values(m * k, 2), values(n * k, 3));
            let found = Packed::new(&w, k).multiply(&x);
            let rounded = |v: f32| f64::from(bf16::from_f32(v).to_f32());
            for (i, row) in found.chunks_exact(n).enumerate() {
                for (j, found) in row.iter().enumerate() {
                    let terms = (0..k).map(|p| rounded(x[i * k + p]) * rounded(w[j * k + p]));
                    let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                    // Half a unit in the last place for each of the additions.
                    let bound = size * k as f64 * f64::from(f32::EPSILON);
                    assert!((f64::from(*found) - sum).abs() <= bound, "{m} {n} {k}: {found} {sum}");
                }
            }
        }
    }
}
