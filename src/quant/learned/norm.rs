//! A norm whose weights are learned.

use half::f16;

use super::moving::{Direction, Moving, Rule, sign};

/// The weights of a norm, each learned as a multiple of where it started.
#[derive(Clone, Debug)]
pub struct LearnedNorm {
    /// With the family's offset.
    start: Vec<f32>,
    /// What is not stored: 1 where the model computes `x * (1 + w)`.
    offset: f32,
    rule: Rule,
    steps: u32,
    factors: Moving,
}

impl LearnedNorm {
    /// Starts from the weights that the model computes with, of which `offset` is not stored.
    pub fn new(start: Vec<f32>, offset: f32, rule: Rule) -> LearnedNorm {
        let factors = Moving::new(vec![1.0; start.len()], rule);
        LearnedNorm { start, offset, rule, steps: 0, factors }
    }

    /// The weights as they are stored, in float16. Those that never moved keep all of their bits.
    pub fn stored(&self) -> Vec<f32> {
        let each = self.start.iter().zip(&self.factors.values);
        each.map(|(start, factor)| {
            let weight = start * factor - self.offset;
            if *factor == 1.0 { weight } else { f16::from_f32(weight).to_f32() }
        })
        .collect()
    }

    /// The weights that the model computes with.
    pub fn weights(&self) -> Vec<f32> {
        self.stored().into_iter().map(|weight| weight + self.offset).collect()
    }

    /// The numbers that steps change, in a fixed order; the number of steps belongs to them.
    pub fn state(&self) -> [&[f32]; 3] {
        let [a, b] = &self.factors.means;
        [&self.factors.values, a, b]
    }

    /// The same, to be changed.
    pub fn state_mut(&mut self) -> [&mut [f32]; 3] {
        let [a, b] = &mut self.factors.means;
        [&mut self.factors.values, a, b]
    }

    /// Steps that were taken since the start or [`LearnedNorm::reset`].
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// The same, to be changed.
    pub fn steps_mut(&mut self) -> &mut u32 {
        &mut self.steps
    }

    /// Goes back to what [`LearnedNorm::stored`] has given, within the rounding of a float32.
    ///
    /// # Panics
    /// If it is of another size.
    pub fn reset(&mut self, stored: &[f32]) {
        assert_eq!(stored.len(), self.start.len(), "weights of the norm");
        for ((factor, start), stored) in self.factors.values.iter_mut().zip(&self.start).zip(stored) {
            *factor = if *start == 0.0 { 1.0 } else { (stored + self.offset) / start };
        }
        self.factors.forget();
        self.steps = 0;
    }

    /// Moves the weights one step against `gradient`; `rate` is a share of each.
    ///
    /// # Panics
    /// If the gradient is not one of this norm.
    pub fn step(&mut self, gradient: &[f32], rate: f32) {
        assert_eq!(gradient.len(), self.start.len(), "a gradient for each weight");
        self.steps += 1;
        let direction = Direction::new(self.steps);
        let Moving { values, means: [means, squares] } = &mut self.factors;
        for (i, (factor, gradient)) in values.iter_mut().zip(gradient).enumerate() {
            let gradient = gradient * self.start[i];
            *factor -= rate
                * match self.rule {
                    Rule::Sign => sign(gradient),
                    Rule::Adam => direction.adam(gradient, &mut means[i], &mut squares[i]),
                };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_are_float16_once_they_move_and_keep_their_bits_until_then() {
        let start = vec![1.000_1, -0.3, 0.0, 2.0];
        for offset in [0.0, 1.0] {
            let mut norm = LearnedNorm::new(start.clone(), offset, Rule::Adam);
            assert_eq!(norm.weights(), start.iter().map(|w| w - offset + offset).collect::<Vec<_>>());
            norm.step(&[1.0, 1.0, 1.0, 0.0], 0.01);
            let stored = norm.stored();
            assert!(stored[..2].iter().all(|w| f16::from_f32(*w).to_f32() == *w), "{stored:?}");
            assert_eq!((stored[2] + offset, stored[3] + offset), (0.0, 2.0));
            assert!((norm.weights()[0] - 0.990_1).abs() < 1e-3 && (norm.weights()[1] + 0.303).abs() < 1e-3);
            let kept = norm.stored();
            norm.step(&[1.0; 4], 0.1);
            norm.reset(&kept);
            assert_eq!(norm.stored(), kept);
        }
    }
}
