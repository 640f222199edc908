//! Levels of one block in the order of its weights, and how they are packed into bytes.

use super::lanes::Lanes;
use super::types::QK_K;

/// Levels of the nearest multiples of `scale`, where levels are `lo..=hi` and come back shifted to start at zero:
/// `nearest((x + min) / scale)`.
#[inline(always)]
pub(super) fn divide<V: Lanes>(x: &[f32], scale: f32, min: f32, lo: i32, hi: i32, out: &mut [u8]) {
    let (scale, min) = (V::splat(scale), V::splat(min));
    for i in (0..x.len()).step_by(V::N) {
        let l = ((V::load(&x[i..]) + min) / scale).nearest_within(lo, hi);
        V::store_u8(V::int_sub(l, V::int(lo)), &mut out[i..]);
    }
}

/// Levels that a search found: `nearest(factor * (x - offset))`, limited to `lo..=hi` and shifted to start at zero. A
/// factor that is not a number stands for a block whose levels are all zero after the shift.
#[inline(always)]
pub(super) fn multiply<V: Lanes>(x: &[f32], factor: f32, offset: f32, lo: i32, hi: i32, out: &mut [u8]) {
    if factor.is_nan() {
        out.fill(0);
        return;
    }
    let (factor, offset) = (V::splat(factor), V::splat(offset));
    for i in (0..x.len()).step_by(V::N) {
        let l = (factor * (V::load(&x[i..]) - offset)).nearest_within(lo, hi);
        V::store_u8(V::int_sub(l, V::int(lo)), &mut out[i..]);
    }
}

/// Packs the two low bits of each level, four levels of a half block to a byte: byte `i` of a half holds its levels `i`,
/// `i + 32`, `i + 64` and `i + 96`, from the low bits up. `out` has 64 bytes.
#[inline(always)]
pub(super) fn pack_2_bits(levels: &[u8; QK_K], out: &mut [u8]) {
    for (half, out) in levels.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for i in 0..32 {
            out[i] =
                (half[i] & 3) | (half[i + 32] & 3) << 2 | (half[i + 64] & 3) << 4 | (half[i + 96] & 3) << 6;
        }
    }
}

/// Level `i` of what [`pack_2_bits`] packed.
#[inline(always)]
pub(super) fn unpack_2_bits(packed: &[u8], i: usize) -> u8 {
    (packed[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3
}

/// Packs the four low bits of each level, two levels to a byte: of 64 levels, byte `i` holds level `i` and, in its upper
/// half, level `i + 32`. `out` has 128 bytes.
#[inline(always)]
pub(super) fn pack_4_bits(levels: &[u8; QK_K], out: &mut [u8]) {
    for (levels, out) in levels.as_chunks::<64>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for i in 0..32 {
            out[i] = (levels[i] & 15) | levels[i + 32] << 4;
        }
    }
}

/// Level `i` of what [`pack_4_bits`] packed.
#[inline(always)]
pub(super) fn unpack_4_bits(packed: &[u8], i: usize) -> u8 {
    (packed[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4)) & 15
}

/// Packs bit `bit` of each level: bit `k` of byte `i` is that of level `i + 32 * k`. `out` has 32 bytes.
#[inline(always)]
pub(super) fn pack_bit(levels: &[u8; QK_K], bit: u32, out: &mut [u8]) {
    let out: &mut [u8; 32] = out.try_into().expect("one bit for each of 256 levels");
    // Written out, so that all shifts are by constants and nothing is added up in memory.
    for i in 0..32 {
        let of = |k: usize| ((levels[32 * k + i] >> bit) & 1) << k;
        out[i] = of(0) | of(1) | of(2) | of(3) | of(4) | of(5) | of(6) | of(7);
    }
}

/// The bit of level `i` of what [`pack_bit`] packed.
#[inline(always)]
pub(super) fn unpack_bit(packed: &[u8], i: usize) -> u8 {
    (packed[i % 32] >> (i / 32)) & 1
}

/// Packs a block of 32 levels of 4 bits: byte `i` holds level `i` and, in its upper half, level `i + 16`.
#[inline(always)]
pub(super) fn pack_block(levels: &[u8; 32], out: &mut [u8]) {
    let out: &mut [u8; 16] = out.try_into().expect("half a byte for each of 32 levels");
    for i in 0..16 {
        out[i] = (levels[i] & 15) | levels[i + 16] << 4;
    }
}
