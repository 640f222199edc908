//! The exponential function for whole rows at a time.
//!
//! Written so that it compiles to vector instructions: no branches, no calls. The result has the same bits whatever the
//! width of the vectors, since nothing is contracted or reassociated.

/// `e^x` within 1.5 units in the last place, for `x` from -87.3 to 88.3; the smallest normal number below that, infinity
/// above. NaN stays NaN.
///
/// Cody and Waite's reduction to `|r| <= ln(2) / 2`, then the series to the seventh power.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to the nearest integer, which is then in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    /// The logarithm of 2 in two parts; the first has few enough bits for exact products with small integers.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let series = 1.0 / 5040.0;
    let series = series * r + 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * (r * r) + r + 1.0;
    // The exponent's bits; for NaN they do not matter.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    series * power
}

/// `tanh(x)`, from the exponential; its error is that of rounding 1.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exponent_is_hit_and_the_error_is_small() {
        let mut worst = 0f64;
        for i in -873_000..883_000 {
            let x = i as f32 * 1e-4;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / expected - 1.0).abs());
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 2e-7, "{x}");
        }
        // 1.5 units in the last place.
        assert!(worst < 1.8e-7, "{worst:e}");
    }

    #[test]
    fn the_ends_are_those_of_floats() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(1e4), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38 && exp(-1e30) >= 0.0);
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        assert_eq!((tanh(1e9), tanh(-1e9)), (1.0, -1.0));
    }
}
