//! What the types with a codebook have in common: a code stands for a vector of a grid, signs are kept apart.

/// The values of a grid of eight: IQ2's magnitudes.
pub(super) const IQ2_VALUES: [f32; 4] = [8.0, 25.0, 43.0, 0.0];

/// The signs of eight weights in seven bits: the eighth makes the number of minus signs even (`ksigns_iq2xs`).
#[inline(always)]
pub(super) fn even_signs(code: u32) -> u32 {
    let code = code & 127;
    code | (code.count_ones() & 1) << 7
}

/// Eight weights: `scale` times a grid's values, with signs from the low bit up.
#[inline(always)]
pub(super) fn put_eight(grid: u16, scale: f32, signs: u32, out: &mut [f32]) {
    for (j, y) in out[..8].iter_mut().enumerate() {
        let value = scale * IQ2_VALUES[usize::from(grid >> (2 * j) & 3)];
        *y = if signs >> j & 1 != 0 { -value } else { value };
    }
}

/// Four weights of one of eight `values`, with signs from the low bit up.
#[inline(always)]
pub(super) fn put_four(grid: u16, values: &[f32; 8], scale: f32, signs: u32, out: &mut [f32]) {
    for (j, y) in out[..4].iter_mut().enumerate() {
        let value = scale * values[usize::from(grid >> (3 * j) & 7)];
        *y = if signs >> j & 1 != 0 { -value } else { value };
    }
}
