//! Numbers for tests.

/// Numbers from -0.5 to 0.5, always the same for a seed.
pub(crate) fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / 16777216.0 - 0.5
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// Numbers from -1 to 1, always the same for a seed.
pub(crate) fn wide_noise(seed: u32, n: usize) -> Vec<f32> {
    noise(seed, n).into_iter().map(|v| 2.0 * v).collect()
}
