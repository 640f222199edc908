//! How far a model's prediction of one token is from a reference's: `KL(reference || model)`, in nats.
//!
//! With logits `a` of the reference and `b` of the model and `p = softmax(a)`, it is
//! `sum(p * (a - b)) - logsumexp(a) + logsumexp(b)`, whose sums can be taken piece by piece.

use super::log_sum_exp::LogSumExp;

/// What has been seen of the two models' logits.
#[derive(Clone, Copy, Debug)]
pub struct Divergence {
    reference: LogSumExp,
    model: LogSumExp,
    /// `sum(exp(a) * (a - b))`, relative to the largest `exp(a)`.
    weighted: f64,
}

impl Divergence {
    /// Of no logits yet.
    pub const EMPTY: Divergence =
        Divergence { reference: LogSumExp::EMPTY, model: LogSumExp::EMPTY, weighted: 0.0 };

    /// Adds both models' logits of the tokens from `first` on.
    ///
    /// # Panics
    /// If there are more of one than of the other.
    pub fn add(&mut self, first: u32, reference: &[f32], model: &[f32]) {
        assert_eq!(reference.len(), model.len());
        self.reference.add_weighted(first, reference, model, &mut self.weighted);
        self.model.add(first, model);
    }

    /// The reference's logits.
    pub fn reference(&self) -> &LogSumExp {
        &self.reference
    }

    /// The model's logits.
    pub fn model(&self) -> &LogSumExp {
        &self.model
    }

    /// `KL(reference || model)` in nats. Exactly 0 for equal logits; rounding may bring it below 0 for nearly equal ones.
    pub fn value(&self) -> f64 {
        self.weighted / self.reference.sum() - (self.reference.value() - self.model.value())
    }

    /// `KL(reference || model)` of one token's logits, whose gradient with respect to those of the model, `softmax(model) -
    /// softmax(reference)`, goes to `gradient`.
    ///
    /// # Panics
    /// If the three are not of one length.
    pub fn with_gradient(reference: &[f32], model: &[f32], gradient: &mut [f32]) -> f64 {
        assert_eq!(gradient.len(), model.len());
        let mut found = Divergence::EMPTY;
        found.add(0, reference, model);
        let [a, b] = [&found.reference, &found.model].map(|sum| sum.value() as f32);
        for ((out, reference), model) in gradient.iter_mut().zip(reference).zip(model) {
            *out = (model - b).exp() - (reference - a).exp();
        }
        found.value()
    }

    /// Whether both models find the same token most likely.
    pub fn same_top(&self) -> bool {
        self.reference.top() == self.model.top()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(reference: &[f32], model: &[f32], piece: usize) -> Divergence {
        let mut found = Divergence::EMPTY;
        for (i, (a, b)) in reference.chunks(piece).zip(model.chunks(piece)).enumerate() {
            found.add((i * piece) as u32, a, b);
        }
        found
    }

    #[test]
    fn it_is_the_sum_of_its_definition_however_it_is_cut() {
        let a: Vec<f32> = (0..64).map(|i| ((i * 29) % 64) as f32 * 0.25 - 3.0).collect();
        let b: Vec<f32> = a.iter().enumerate().map(|(i, a)| a * 0.9 + (i % 5) as f32 * 0.3).collect();
        let softmax = |logits: &[f32]| {
            let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            logits.iter().map(|l| f64::from(*l).exp() / sum).collect::<Vec<_>>()
        };
        let expected: f64 = softmax(&a).iter().zip(softmax(&b)).map(|(p, q)| p * (p / q).ln()).sum();
        for piece in [1, 10, 64] {
            let found = of(&a, &b, piece);
            assert!((found.value() - expected).abs() < 1e-6, "{piece}: {} is not {expected}", found.value());
        }
    }

    #[test]
    fn equal_predictions_do_not_diverge() {
        let a: Vec<f32> = (0..50).map(|i| (i as f32 * 0.77).sin() * 9.0).collect();
        assert_eq!(of(&a, &a, 7).value(), 0.0);
        assert!(of(&a, &a, 7).same_top());
        let shifted: Vec<f32> = a.iter().map(|a| a + 2.0).collect();
        assert!(of(&a, &shifted, 7).value().abs() < 1e-6, "a shift of all logits changes nothing");
        assert!(!of(&[0.0, 1.0], &[1.0, 0.0], 2).same_top());
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let reference: Vec<f32> = (0..50).map(|i| ((i * 29) % 50) as f32 * 0.1).collect();
        let model: Vec<f32> = (0..50).map(|i| ((i * 17) % 50) as f32 * 0.1).collect();
        let mut gradient = vec![0.0; 50];
        let value = Divergence::with_gradient(&reference, &model, &mut gradient);
        for i in [0, 13, 49] {
            let moved = |by: f32| {
                let mut model = model.clone();
                model[i] += by;
                Divergence::with_gradient(&reference, &model, &mut [0.0; 50])
            };
            let difference = (moved(0.01) - moved(-0.01)) / 0.02;
            // The third derivative is below 1, the float32 sums are exact to 1e-6.
            assert!((difference - f64::from(gradient[i])).abs() < 1e-4, "{difference} {}", gradient[i]);
        }
        assert!(value > 0.1);
        assert!(gradient.iter().sum::<f32>().abs() < 1e-5, "both are probabilities");
    }
}
