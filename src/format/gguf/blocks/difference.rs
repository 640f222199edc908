//! How far decoded weights are from their source.

use super::lanes::Lanes;
use super::simd::{Kernel, Simd};

/// Sums are kept in this many partial sums, whatever the instruction set, and added up in order.
const PARTS: usize = 32;

/// Squared error and squared source weights, summed in float64: (sum of `(a - b)^2`, sum of `a^2`).
///
/// The result does not depend on the instruction set: every machine adds the same numbers in the same order.
///
/// # Panics
///
/// If the slices differ in length.
pub fn difference(source: &[f32], decoded: &[f32], simd: Simd) -> (f64, f64) {
    assert_eq!(source.len(), decoded.len(), "as many decoded weights as source weights");
    let mut sums = (0.0, 0.0);
    simd.run(Difference { source, decoded, sums: &mut sums });
    sums
}

struct Difference<'a> {
    source: &'a [f32],
    decoded: &'a [f32],
    sums: &'a mut (f64, f64),
}

impl Kernel for Difference<'_> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let mut error = [0f64; PARTS];
        let mut energy = [0f64; PARTS];
        let (a, a_rest) = self.source.as_chunks::<PARTS>();
        let (b, b_rest) = self.decoded.as_chunks::<PARTS>();
        for (a, b) in a.iter().zip(b) {
            for i in 0..PARTS {
                let difference = f64::from(a[i]) - f64::from(b[i]);
                error[i] += difference * difference;
                energy[i] += f64::from(a[i]) * f64::from(a[i]);
            }
        }
        for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
            let difference = f64::from(*a) - f64::from(*b);
            error[i] += difference * difference;
            energy[i] += f64::from(*a) * f64::from(*a);
        }
        *self.sums = (error.iter().sum(), energy.iter().sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_same_sums() {
        let a: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = a.iter().map(|x| x * 1.01 + 1e-3).collect();
        let expected = difference(&a, &b, Simd::Portable);
        assert!((expected.1 - 501.0).abs() < 2.0, "the energy of a sine is half its length");
        for simd in Simd::available() {
            assert_eq!(difference(&a, &b, simd), expected);
        }
    }
}
