//! The logarithm of a softmax's denominator, taken piece by piece, so that a token's logits never lie in memory together.

/// What has been seen of one token's logits.
///
/// Exponentials are taken in float32 relative to the largest logit so far and added up in float64, in the order of the
/// vocabulary.
#[derive(Clone, Copy, Debug)]
pub struct LogSumExp {
    max: f32,
    top: u32,
    sum: f64,
}

impl LogSumExp {
    /// Of no logits yet.
    pub const EMPTY: LogSumExp = LogSumExp { max: f32::NEG_INFINITY, top: 0, sum: 0.0 };

    /// Adds the logits of the tokens from `first` on.
    pub fn add(&mut self, first: u32, logits: &[f32]) {
        self.rescale(first, logits);
        self.sum += logits.iter().map(|l| f64::from((l - self.max).exp())).sum::<f64>();
    }

    /// The same, and adds to `weighted` each exponential times the difference of its logit to that of `other`. The
    /// exponentials in `weighted` are always relative to the same logit as those of [`Self::sum`].
    pub(super) fn add_weighted(&mut self, first: u32, logits: &[f32], other: &[f32], weighted: &mut f64) {
        *weighted *= self.rescale(first, logits);
        let (mut sum, mut differences) = (0.0, 0.0);
        for (a, b) in logits.iter().zip(other) {
            let weight = f64::from((a - self.max).exp());
            sum += weight;
            differences += weight * (f64::from(*a) - f64::from(*b));
        }
        self.sum += sum;
        *weighted += differences;
    }

    /// Makes the largest of `logits` the reference of the exponentials, if it is larger; returns the factor of sums so far.
    fn rescale(&mut self, first: u32, logits: &[f32]) -> f64 {
        let before = self.max;
        for (i, &logit) in logits.iter().enumerate() {
            if logit > self.max {
                (self.max, self.top) = (logit, first + i as u32);
            }
        }
        let factor = if self.max > before { f64::from(before - self.max).exp() } else { 1.0 };
        self.sum *= factor;
        factor
    }

    /// The token with the largest logit, the first of several.
    pub fn top(&self) -> u32 {
        self.top
    }

    /// Sum of the exponentials, relative to that of the largest logit.
    pub(super) fn sum(&self) -> f64 {
        self.sum
    }

    /// `ln(sum(exp(logits)))`. Not finite if a logit was not.
    pub fn value(&self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_give_the_sum_of_the_whole() {
        let logits: Vec<f32> = (0..100).map(|i| ((i * 37) % 100) as f32 * 0.3 - 10.0).collect();
        let expected = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        for piece in [1, 7, 100] {
            let mut found = LogSumExp::EMPTY;
            for (i, logits) in logits.chunks(piece).enumerate() {
                found.add((i * piece) as u32, logits);
            }
            assert!((found.value() - expected).abs() < 1e-6, "{piece}: {}", found.value());
            assert_eq!(found.top(), 27);
        }
    }

    #[test]
    fn large_logits_do_not_overflow_and_bad_ones_show() {
        let mut found = LogSumExp::EMPTY;
        found.add(0, &[3e38, 1.0]);
        found.add(2, &[3e38]);
        assert!((found.value() - 3e38f32 as f64).abs() <= 1.0);
        assert_eq!(found.top(), 0);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut found = LogSumExp::EMPTY;
            found.add(0, &[1.0, bad]);
            assert!(!found.value().is_finite(), "{bad}");
        }
    }
}
