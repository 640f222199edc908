//! Q4_1 and Q5_1: 32 weights in 20 or 24 bytes.
//!
//! | Q4_1  | Q5_1  | content |
//! |-------|-------|---------|
//! | 0..2  | 0..2  | scale, half precision |
//! | 2..4  | 2..4  | minimum, half precision |
//! | 4..20 | 4..24 | levels as in Q4_0 and Q5_0 |
//!
//! A weight is `scale * level + minimum`.

use super::half_types::{f32_to_f16, read_f16};
use super::lanes::{Lanes, MAX_LANES};
use super::levels::multiply;
use super::rows::{Rows, scale_importance};
use super::search_qkx::{AffineSearch, points, search_affine};
use super::simd::{Kernel, Simd};
use super::symmetric32::{extremes, level_bytes, pack_levels, unpack_levels};

/// Encodes blocks of `BITS` (4 or 5) bits a weight. Without importance the extremes set scale and minimum
/// (`quantize_row_q4_1_ref`), with it they are searched for (`quantize_row_q4_1_impl`).
pub(super) fn encode<const BITS: u32>(rows: Rows<'_>, dst: &mut [u8], simd: Simd) {
    if rows.importance.is_some() {
        simd.run(Searching::<BITS> { rows, dst });
    } else {
        simd.run(Plain::<BITS> { src: rows.src, dst });
    }
}

struct Plain<'a, const BITS: u32> {
    src: &'a [f32],
    dst: &'a mut [u8],
}

impl<const BITS: u32> Kernel for Plain<'_, BITS> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let top = (1 << BITS) - 1;
        let dst = self.dst.chunks_exact_mut(4 + level_bytes(BITS));
        for (x, out) in self.src.as_chunks::<32>().0.iter().zip(dst) {
            let (mut min, mut max) = extremes::<V>(x);
            if min == 0.0 {
                // The sign of a zero is that of the first one.
                min = x.iter().copied().find(|&v| v == 0.0).unwrap_or(min);
                max = if max == 0.0 { min } else { max };
            }
            let scale = (max - min) / top as f32;
            let factor = V::splat(if scale != 0.0 { 1.0 / scale } else { 0.0 });
            let mut levels = [0; 32];
            for i in (0..32).step_by(V::N) {
                let l = ((V::load(&x[i..]) - V::splat(min)) * factor + V::splat(0.5)).trunc();
                V::store_u8(V::int_min(V::int(top), l), &mut levels[i..]);
            }
            write::<BITS>(scale, min, &levels, out);
        }
    }
}

struct Searching<'a, const BITS: u32> {
    rows: Rows<'a>,
    dst: &'a mut [u8],
}

impl<const BITS: u32> Kernel for Searching<'_, BITS> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Rows { src, n_per_row, importance } = self.rows;
        let top = (1 << BITS) - 1;
        let mut x = [V::splat(0.0); 32];
        let mut w = x;
        let means = self.rows.mean_squares(&mut x);
        let mut sigma2 = [0.0; MAX_LANES];
        let [mut scales, mut mins, mut factors, mut offsets] = [[0.0; MAX_LANES]; 4];
        let group_bytes = V::N * (4 + level_bytes(BITS));
        for (g, out) in self.dst.chunks_mut(group_bytes).enumerate() {
            let group = self.rows.group(g * V::N, V::N, 32);
            V::transpose(src, &group.starts, &mut x);
            V::transpose(importance.unwrap_or_default(), &group.columns, &mut w);
            for s in 0..V::N {
                sigma2[s] = means[group.starts[s] / n_per_row];
            }
            scale_importance(&mut w, &x, V::load(&sigma2));
            let found = search_affine(&points(&[x], &[w]), AffineSearch::with_importance(top));
            found.scale.0[0].store(&mut scales);
            found.min.0[0].neg().store(&mut mins);
            found.factor.0[0].store(&mut factors);
            found.offset.0[0].store(&mut offsets);
            for (s, out) in out.chunks_exact_mut(4 + level_bytes(BITS)).enumerate() {
                let mut levels = [0; 32];
                let x = &src[group.starts[s]..][..32];
                multiply::<V>(x, factors[s], offsets[s], 0, top, &mut levels);
                write::<BITS>(scales[s], mins[s], &levels, out);
            }
        }
    }
}

#[inline(always)]
fn write<const BITS: u32>(scale: f32, min: f32, levels: &[u8; 32], out: &mut [u8]) {
    out[..2].copy_from_slice(&f32_to_f16(scale).to_le_bytes());
    out[2..4].copy_from_slice(&f32_to_f16(min).to_le_bytes());
    pack_levels::<BITS>(levels, &mut out[4..]);
}

/// Decodes one block (`dequantize_row_q4_1`, `dequantize_row_q5_1`).
#[inline(always)]
pub(super) fn decode<const BITS: u32>(src: &[u8], dst: &mut [f32]) {
    let (scale, min) = (read_f16(src), read_f16(&src[2..]));
    for (y, level) in dst.iter_mut().zip(unpack_levels::<BITS>(&src[4..])) {
        *y = f32::from(level) * scale + min;
    }
}
