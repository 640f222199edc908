//! Q4_0 and Q5_0: 32 weights in 18 or 22 bytes.
//!
//! | Q4_0  | Q5_0  | content |
//! |-------|-------|---------|
//! | 0..2  | 0..2  | scale, half precision |
//! |       | 2..6  | bit 4 of level `i` is bit `i` of this little-endian word |
//! | 2..18 | 6..22 | byte `i`: the low four bits of level `i`, and of level `i + 16` in the upper half |
//!
//! A weight is `scale * (level - 8)`, in Q5_0 `scale * (level - 16)`.

use super::half_types::{f32_to_f16, read_f16};
use super::lanes::{Lanes, MAX_LANES};
use super::levels::{multiply, pack_block};
use super::rows::{Rows, scale_importance};
use super::search_qx::search_symmetric;
use super::simd::{Kernel, Simd};

/// Encodes blocks of `BITS` (4 or 5) bits a weight. Without importance the extreme value sets the scale
/// (`quantize_row_q4_0_ref`), with it the scale is searched for (`quantize_row_q4_0_impl`).
pub(super) fn encode<const BITS: u32>(rows: Rows<'_>, dst: &mut [u8], simd: Simd) {
    if rows.importance.is_some() {
        simd.run(Searching::<BITS> { rows, dst });
    } else {
        simd.run(Plain::<BITS> { src: rows.src, dst });
    }
}

/// Bytes of a block of `bits` bits a weight, without the `scales` of two bytes each that it begins with.
pub(super) const fn level_bytes(bits: u32) -> usize {
    if bits == 5 { 20 } else { 16 }
}

/// Blocks whose scales are found together.
const GROUP: usize = 16;

struct Plain<'a, const BITS: u32> {
    src: &'a [f32],
    dst: &'a mut [u8],
}

impl<const BITS: u32> Kernel for Plain<'_, BITS> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let half = (1 << (BITS - 1)) as f32;
        let bytes = 2 + level_bytes(BITS);
        // Scales of many blocks at once are found in vector registers; one at a time they take as long as the levels.
        let groups = self.src.as_chunks::<32>().0.chunks(GROUP).zip(self.dst.chunks_mut(GROUP * bytes));
        for (group, out) in groups {
            let mut scales = [0.0; GROUP];
            for (x, scale) in group.iter().zip(&mut scales) {
                *scale = first_extreme::<V>(x) / -half;
            }
            let (mut factors, mut halves) = ([0.0; GROUP], [0; GROUP]);
            for b in 0..GROUP {
                factors[b] = if scales[b] != 0.0 { 1.0 / scales[b] } else { 0.0 };
                halves[b] = f32_to_f16(scales[b]);
            }
            for (b, (x, out)) in group.iter().zip(out.chunks_exact_mut(bytes)).enumerate() {
                let factor = V::splat(factors[b]);
                let mut levels = [0; 32];
                for i in (0..32).step_by(V::N) {
                    let l = (V::load(&x[i..]) * factor + V::splat(half + 0.5)).trunc();
                    V::store_u8(V::int_min(V::int((1 << BITS) - 1), l), &mut levels[i..]);
                }
                out[..2].copy_from_slice(&halves[b].to_le_bytes());
                pack_levels::<BITS>(&levels, &mut out[2..]);
            }
        }
    }
}

/// The value of largest magnitude, the first one where several have it.
#[inline(always)]
fn first_extreme<V: Lanes>(x: &[f32; 32]) -> f32 {
    let (smallest, largest) = extremes::<V>(x);
    if largest != -smallest {
        return if largest > -smallest { largest } else { smallest };
    }
    x.iter().copied().find(|v| v.abs() == largest && largest != 0.0).unwrap_or(0.0)
}

/// Minimum and maximum; of zeros they may be any.
#[inline(always)]
pub(super) fn extremes<V: Lanes>(x: &[f32; 32]) -> (f32, f32) {
    let (mut smallest, mut largest) = (V::load(x), V::load(x));
    for i in (V::N..32).step_by(V::N) {
        smallest = V::load(&x[i..]).min(smallest);
        largest = V::load(&x[i..]).max(largest);
    }
    (smallest.smallest(), largest.largest())
}

struct Searching<'a, const BITS: u32> {
    rows: Rows<'a>,
    dst: &'a mut [u8],
}

impl<const BITS: u32> Kernel for Searching<'_, BITS> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Rows { src, n_per_row, importance } = self.rows;
        let half = 1 << (BITS - 1);
        let mut x = [V::splat(0.0); 32];
        let mut w = x;
        let means = self.rows.mean_squares(&mut x);
        let (mut sigma2, mut scales, mut factors) = ([0.0; MAX_LANES], [0.0; MAX_LANES], [0.0; MAX_LANES]);
        let group_bytes = V::N * (2 + level_bytes(BITS));
        for (g, out) in self.dst.chunks_mut(group_bytes).enumerate() {
            let group = self.rows.group(g * V::N, V::N, 32);
            V::transpose(src, &group.starts, &mut x);
            V::transpose(importance.unwrap_or_default(), &group.columns, &mut w);
            for s in 0..V::N {
                sigma2[s] = means[group.starts[s] / n_per_row];
            }
            scale_importance(&mut w, &x, V::load(&sigma2));
            let found = search_symmetric::<V, 32, true>(&x, &w, half);
            found.scale.store(&mut scales);
            found.factor.store(&mut factors);
            for (s, out) in out.chunks_exact_mut(2 + level_bytes(BITS)).enumerate() {
                let mut levels = [0; 32];
                let x = &src[group.starts[s]..][..32];
                multiply::<V>(x, factors[s], 0.0, -half, half - 1, &mut levels);
                out[..2].copy_from_slice(&f32_to_f16(scales[s]).to_le_bytes());
                pack_levels::<BITS>(&levels, &mut out[2..]);
            }
        }
    }
}

/// Packs 32 levels into [`level_bytes`] bytes.
#[inline(always)]
pub(super) fn pack_levels<const BITS: u32>(levels: &[u8; 32], out: &mut [u8]) {
    if BITS == 5 {
        for (levels, high) in levels.as_chunks::<8>().0.iter().zip(&mut out[..4]) {
            // The product moves the lowest bit of byte `i` to bit `56 + i`.
            let bits = u64::from_le_bytes(*levels) >> 4 & 0x0101_0101_0101_0101;
            *high = (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
        }
        pack_block(levels, &mut out[4..]);
    } else {
        pack_block(levels, out);
    }
}

/// The levels that [`pack_levels`] packed.
#[inline(always)]
pub(super) fn unpack_levels<const BITS: u32>(packed: &[u8]) -> [u8; 32] {
    let (high, low) = packed.split_at(level_bytes(BITS) - 16);
    let low: &[u8; 16] = low.try_into().expect("half a byte for each of 32 levels");
    let mut levels = [0; 32];
    // Two plain loops, which become a few instructions on whole registers.
    for i in 0..16 {
        levels[i] = low[i] & 15;
    }
    for i in 0..16 {
        levels[i + 16] = low[i] >> 4;
    }
    if BITS == 5 {
        let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
        for (i, level) in levels.iter_mut().enumerate() {
            *level |= ((high >> i & 1) << 4) as u8;
        }
    }
    levels
}

/// Decodes one block (`dequantize_row_q4_0`, `dequantize_row_q5_0`).
#[inline(always)]
pub(super) fn decode<const BITS: u32>(src: &[u8], dst: &mut [f32]) {
    let scale = read_f16(src);
    for (y, level) in dst.iter_mut().zip(unpack_levels::<BITS>(&src[2..])) {
        *y = (i32::from(level) - (1 << (BITS - 1))) as f32 * scale;
    }
}
