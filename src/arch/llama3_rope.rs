//! Llama 3.1's scaling of rope as factors per frequency, which is how GGUF holds it: from the configuration and back.

use super::hyper::{Rope, RopeScaling};

/// What every published model has, and transformers' documentation assumes.
const LOW_FREQ_FACTOR: f64 = 1.0;
/// As above.
const HIGH_FREQ_FACTOR: f64 = 4.0;
/// How far the factors of a file may be from those computed here: older converters rounded in other places.
const TOLERANCE: f32 = 1e-5;

/// What each of the `head_dim / 2` frequencies is divided by; none if `rope` has no such scaling.
///
/// As `LlamaModel.generate_extra_tensors` of llama.cpp's converter computes them: in float32, since the frequencies are
/// PyTorch tensors, where a number divided by a tensor is the number times the tensor's reciprocal.
pub fn factors(rope: &Rope, head_dim: usize) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } = rope.scaling
    else {
        return None;
    };
    let (factor, low, high, context) =
        (factor as f32, low_freq_factor as f32, high_freq_factor as f32, original_context as f64);
    let (low_wavelength, high_wavelength) =
        ((context / low_freq_factor) as f32, (context / high_freq_factor) as f32);
    let factors = (0..head_dim / 2).map(|i| {
        let frequency = 1.0 / (rope.theta as f32).powf((2 * i) as f32 / head_dim as f32);
        let wavelength = frequency.recip() * std::f64::consts::TAU as f32;
        if wavelength < high_wavelength {
            1.0
        } else if wavelength > low_wavelength {
            factor
        } else {
            let smooth = (wavelength.recip() * context as f32 - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    });
    Some(factors.collect())
}

/// The scaling whose factors these are; none if they are not Llama 3.1's.
///
/// Factors do not tell the bands and the context apart (twice the context with twice the band limits gives the same), so
/// the bands are taken to be those of every published model, and the context a power of two.
pub fn recover(theta: f64, factors: &[f32]) -> Option<RopeScaling> {
    let factor = factors.iter().copied().fold(1.0, f32::max);
    (4..=20).map(|bits| 1usize << bits).find_map(|original_context| {
        let scaling = RopeScaling::Llama3 {
            factor: f64::from(factor),
            low_freq_factor: LOW_FREQ_FACTOR,
            high_freq_factor: HIGH_FREQ_FACTOR,
            original_context,
        };
        let rope = Rope { theta, partial: 1.0, scaling };
        let ours = self::factors(&rope, 2 * factors.len())?;
        let near = ours.iter().zip(factors).all(|(a, b)| (a / b - 1.0).abs() <= TOLERANCE);
        near.then_some(rope.scaling)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama31(factor: f64, original_context: usize) -> Rope {
        let scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: LOW_FREQ_FACTOR,
            high_freq_factor: HIGH_FREQ_FACTOR,
            original_context,
        };
        Rope { theta: 5e5, partial: 1.0, scaling }
    }

    #[test]
    fn factors_are_those_of_pytorch() {
        let factors = factors(&llama31(8.0, 8192), 128).unwrap();
        // Bits of what the converter's formula gives with PyTorch 2 for Llama 3.1, where they are neither 1 nor 8.
        let expected = [1067093717, 1069995594, 1073852189, 1076654894, 1080806094, 1084767238];
        let bits: Vec<u32> =
            factors.iter().filter(|f| **f != 1.0 && **f != 8.0).map(|f| f.to_bits()).collect();
        assert_eq!(bits, expected);
        assert_eq!((factors.len(), factors[28], factors[35]), (64, 1.0, 8.0));
    }

    #[test]
    fn scalings_are_recovered_from_their_factors() {
        for (factor, context, head_dim) in [(8.0, 8192, 128), (32.0, 8192, 64), (8.0, 64, 32)] {
            let rope = llama31(factor, context);
            let factors = factors(&rope, head_dim).unwrap();
            assert_eq!(recover(rope.theta, &factors), Some(rope.scaling));
            // A file of an older converter.
            let other: Vec<f32> = factors.iter().map(|f| f * (1.0 + 1e-7)).collect();
            assert!(recover(rope.theta, &other).is_some());
        }
        let halves = [1.0, 1.5, 2.0, 2.5];
        assert_eq!(recover(5e5, &halves), None);
        assert_eq!(recover(5e5, &[f32::NAN; 4]), None);
    }
}
