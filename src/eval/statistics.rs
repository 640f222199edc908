//! Means with their standard errors, and percentiles.

use serde::Serialize;

/// A mean and the standard error of it, as if the values were independent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Its standard error; 0 for a single value.
    pub stderr: f64,
}

impl Mean {
    /// Of `values`, added up in their order: the deviation is the sample's, as in `llama-perplexity`.
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Mean {
        let n = values.clone().count() as f64;
        if n == 0.0 {
            return Mean { mean: f64::NAN, stderr: f64::NAN };
        }
        let mean = values.clone().sum::<f64>() / n;
        let squares = values.map(|v| (v - mean).powi(2)).sum::<f64>();
        let stderr = if n > 1.0 { (squares / (n - 1.0) / n).sqrt() } else { 0.0 };
        Mean { mean, stderr }
    }

    /// The exponential of the mean, and its standard error to first order.
    pub fn exp(self) -> Mean {
        let mean = self.mean.exp();
        Mean { mean, stderr: mean * self.stderr }
    }
}

/// The value below which `percent` of `sorted` lie, interpolated between two values.
///
/// # Panics
/// If there are no values.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let place = percent / 100.0 * (sorted.len() - 1) as f64;
    let below = place.floor();
    let above = sorted[(place.ceil() as usize).min(sorted.len() - 1)];
    let below_value = sorted[below as usize];
    below_value + (above - below_value) * (place - below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_have_the_error_of_a_sample() {
        let found = Mean::of([1.0, 2.0, 3.0, 4.0].into_iter());
        assert_eq!(found.mean, 2.5);
        assert!((found.stderr - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
        assert_eq!(Mean::of([7.0].into_iter()), Mean { mean: 7.0, stderr: 0.0 });
        assert_eq!(Mean { mean: 0.0, stderr: 0.5 }.exp(), Mean { mean: 1.0, stderr: 0.5 });
        assert!(Mean::of(std::iter::empty()).mean.is_nan());
    }

    #[test]
    fn percentiles_lie_between_the_values() {
        let sorted = [0.0, 10.0, 20.0, 40.0];
        let found = [0.0, 50.0, 75.0, 100.0].map(|p| percentile(&sorted, p));
        assert_eq!(found, [0.0, 15.0, 25.0, 40.0]);
        assert_eq!(percentile(&[3.0], 99.0), 3.0);
    }
}
