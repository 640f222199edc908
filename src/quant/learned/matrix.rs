//! A quantized matrix whose codes and scales are learned.

use half::f16;
use rayon::prelude::*;

use super::moving::{Direction, Moving, Rates, Row, Rule, sign};
use crate::quant::codes::{Grid, QuantizedLinear};
use crate::quant::scale_search::stored;

/// How far from a code's edges a position is kept at least where its code is to stay.
const MARGIN: f32 = 0.01;

/// How far a position starts from the middle of its code, as a share of the way to where the original weight lies within it.
/// GPTQ gives many weights a code that is not their nearest; at the edge of that code, thousands of them would go back to the
/// nearest within the first steps, without what they were changed for.
const START: f32 = 0.5;

/// How far beyond the ends of the grid a position may be.
const BEYOND: f32 = 0.49;

/// The position nearest to `position` that has this code.
fn within(position: f32, code: f32) -> f32 {
    if position.is_finite() { position.clamp(code - 0.5 + MARGIN, code + 0.5 - MARGIN) } else { code }
}

/// A quantized matrix whose codes and scales are learned.
#[derive(Clone, Debug)]
pub struct Learned {
    shape: [usize; 2],
    grid: Grid,
    groups: usize,
    rule: Rule,
    steps: u32,
    /// `[out, in]`, zero points included.
    positions: Moving,
    /// `[out, groups]`, each as a multiple of where it started.
    factors: Moving,
    /// `[out, groups]`.
    scales: Vec<f32>,
    zeros: Vec<u8>,
}

impl Learned {
    /// Starts from a quantized matrix: its codes and scales are those of `linear`. Within each code, positions start half way
    /// from its middle to where `weights` (`[out, in]`) lie, or to its edge if they lie beyond.
    ///
    /// # Panics
    /// If `weights` are not those of the matrix, or its groups are not those of neighbouring inputs.
    pub fn new(linear: &QuantizedLinear, weights: &[f32], rule: Rule) -> Learned {
        let shape = [linear.out_features(), linear.in_features()];
        assert_eq!(weights.len(), shape[0] * shape[1], "weights of the matrix");
        assert!(linear.g_idx().is_none(), "groups of neighbouring inputs");
        let (grid, groups) = (linear.grid(), linear.groups());
        let scales: Vec<f32> = linear.scales().iter().map(|s| s.to_f32()).collect();
        let zeros = linear.zeros().to_vec();
        let mut positions: Vec<f32> = linear.codes().iter().map(|c| f32::from(*c)).collect();
        let rows = positions.par_chunks_exact_mut(shape[1]).zip(weights.par_chunks_exact(shape[1]));
        rows.enumerate().for_each(|(row, (positions, weights))| {
            for (i, (position, weight)) in positions.iter_mut().zip(weights).enumerate() {
                let at = row * groups + i / grid.group_size;
                let nearest = within(weight / scales[at] + f32::from(zeros[at]), *position);
                *position += START * (nearest - *position);
            }
        });
        let factors = vec![1.0; scales.len()];
        Learned {
            shape,
            grid,
            groups,
            rule,
            steps: 0,
            positions: Moving::new(positions, rule),
            factors: Moving::new(factors, rule),
            scales,
            zeros,
        }
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The scale of a row's group as it would be stored.
    fn scale(&self, at: usize) -> f32 {
        stored(self.scales[at] * self.factors.values[at])
    }

    fn code(&self, position: f32) -> f32 {
        position.round_ties_even().clamp(0.0, f32::from(self.grid.max_code()))
    }

    /// The weights, `[out, in]`: those of [`Learned::quantized`], to the bit.
    pub fn weights(&self) -> Vec<f32> {
        let width = self.shape[1];
        let mut out = vec![0.0; self.positions.values.len()];
        let rows = out.par_chunks_exact_mut(width).zip(self.positions.values.par_chunks_exact(width));
        rows.enumerate().for_each(|(row, (out, positions))| {
            let size = self.grid.group_size;
            for (group, (out, positions)) in out.chunks_mut(size).zip(positions.chunks(size)).enumerate() {
                let at = row * self.groups + group;
                let (scale, zero) = (self.scale(at), f32::from(self.zeros[at]));
                for (out, position) in out.iter_mut().zip(positions) {
                    *out = scale * (self.code(*position) - zero);
                }
            }
        });
        out
    }

    /// The quantized matrix as it now is.
    pub fn quantized(&self) -> QuantizedLinear {
        let codes = self.positions.values.iter().map(|p| self.code(*p) as u8).collect();
        let scales = (0..self.scales.len()).map(|at| f16::from_f32(self.scale(at))).collect();
        QuantizedLinear::new(self.shape, self.grid, codes, scales, self.zeros.clone(), None)
            .expect("positions keep to the grid")
    }

    /// Goes back to what [`Learned::quantized`] has given: its codes and scales, every position within its code as near as it
    /// can be to where it is now.
    ///
    /// # Panics
    /// If it is of another shape.
    pub fn reset(&mut self, linear: &QuantizedLinear) {
        assert_eq!([linear.out_features(), linear.in_features()], self.shape, "shape of the matrix");
        for (position, code) in self.positions.values.iter_mut().zip(linear.codes()) {
            *position = within(*position, f32::from(*code));
        }
        for ((factor, start), scale) in self.factors.values.iter_mut().zip(&self.scales).zip(linear.scales())
        {
            *factor = scale.to_f32() / start;
        }
        [&mut self.positions, &mut self.factors].into_iter().for_each(Moving::forget);
        self.steps = 0;
    }

    /// The numbers that steps change, in a fixed order; the number of steps belongs to them.
    pub fn state(&self) -> [&[f32]; 6] {
        let [[a, b], [c, d]] = [&self.positions.means, &self.factors.means];
        [&self.positions.values, a, b, &self.factors.values, c, d]
    }

    /// The same, to be changed.
    pub fn state_mut(&mut self) -> [&mut [f32]; 6] {
        let ([a, b], [c, d]) = (&mut self.positions.means, &mut self.factors.means);
        [&mut self.positions.values, a, b, &mut self.factors.values, c, d]
    }

    /// Steps that were taken since the start or [`Learned::reset`].
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// The same, to be changed.
    pub fn steps_mut(&mut self) -> &mut u32 {
        &mut self.steps
    }

    /// Moves positions and scales one step against `gradient`, that of the loss with respect to the weights, `[out, in]`.
    ///
    /// # Panics
    /// If the gradient is not one of this matrix.
    pub fn step(&mut self, gradient: &[f32], rates: Rates) {
        assert_eq!(gradient.len(), self.positions.values.len(), "a gradient for each weight");
        self.steps += 1;
        let direction = Direction::new(self.steps);
        let (width, groups) = (self.shape[1], self.groups);
        let fixed = Fixed {
            direction,
            rule: self.rule,
            rates,
            size: self.grid.group_size,
            top: f32::from(self.grid.max_code()),
        };
        let starts = self.scales.par_chunks_exact(groups).zip(self.zeros.par_chunks_exact(groups));
        let rows = starts.zip(gradient.par_chunks_exact(width));
        let positions = self.positions.rows(width).zip(self.factors.rows(groups));
        positions.zip(rows).for_each(|((mut positions, mut factors), ((scales, zeros), gradient))| {
            fixed.step_row(&mut positions, &mut factors, scales, zeros, gradient);
        });
    }
}

/// What is the same for all rows of a step.
struct Fixed {
    direction: Direction,
    rule: Rule,
    rates: Rates,
    size: usize,
    top: f32,
}

impl Fixed {
    fn step_row(
        &self,
        positions: &mut Row<'_>,
        factors: &mut Row<'_>,
        scales: &[f32],
        zeros: &[u8],
        gradient: &[f32],
    ) {
        for (group, (start, zero)) in scales.iter().zip(zeros).enumerate() {
            let columns = group * self.size..((group + 1) * self.size).min(gradient.len());
            let (scale, zero) = (stored(start * factors.values[group]), f32::from(*zero));
            let mut pull = 0.0;
            for i in columns {
                let position = positions.values[i];
                pull += gradient[i] * (position.round_ties_even().clamp(0.0, self.top) - zero);
                let by = self.rates.positions * self.towards(positions, i, gradient[i] * scale);
                positions.values[i] = (position - by).clamp(-BEYOND, self.top + BEYOND);
            }
            factors.values[group] -= self.rates.scales * self.towards(factors, group, pull * start);
        }
    }

    #[inline(always)]
    fn towards(&self, row: &mut Row<'_>, i: usize, gradient: f32) -> f32 {
        match (self.rule, &mut row.means) {
            (Rule::Adam, Some([means, squares])) => {
                self.direction.adam(gradient, &mut means[i], &mut squares[i])
            }
            _ => sign(gradient),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::wide_noise;

    const GRID: Grid = Grid { bits: 3, group_size: 8, symmetric: true };

    /// Codes anywhere on the grid, and scales of either sign.
    fn linear(grid: Grid, shape: [usize; 2]) -> QuantizedLinear {
        let top = f32::from(grid.max_code());
        let codes =
            wide_noise(1, shape[0] * shape[1]).into_iter().map(|x| ((x + 1.0) / 2.0 * top).round() as u8);
        let groups = shape[0] * grid.groups(shape[1]);
        let scales = wide_noise(2, groups).iter().map(|x| f16::from_f32(x * 0.1 + 0.01)).collect();
        let zeros =
            (0..groups).map(|i| if grid.symmetric { grid.middle() } else { i as u8 % (grid.max_code() + 1) });
        QuantizedLinear::new(shape, grid, codes.collect(), scales, zeros.collect(), None).unwrap()
    }

    #[test]
    fn it_starts_from_the_codes_and_scales_that_were_there() {
        for symmetric in [true, false] {
            let linear = linear(Grid { symmetric, ..GRID }, [5, 20]);
            for weights in [wide_noise(3, 100), vec![1e9; 100], vec![f32::NAN; 100], linear.dequantize()] {
                let learned = Learned::new(&linear, &weights, Rule::Sign);
                assert_eq!(learned.quantized(), linear);
                assert_eq!(learned.weights(), linear.dequantize());
            }
        }
    }

    #[test]
    fn no_code_changes_before_its_position_has_come_a_quarter_of_a_code() {
        let linear = linear(GRID, [5, 20]);
        // Most of these weights lie beyond their codes.
        let mut learned = Learned::new(&linear, &wide_noise(3, 100), Rule::Sign);
        let (gradient, rates) = (wide_noise(4, 100), Rates { positions: 0.02, scales: 0.0 });
        (0..12).for_each(|_| learned.step(&gradient, rates));
        assert_eq!(learned.quantized(), linear);
        (0..26).for_each(|_| learned.step(&gradient, rates));
        let changed = learned.quantized().codes().iter().zip(linear.codes()).filter(|(a, b)| a != b).count();
        assert!(changed > 30, "{changed}");
    }

    /// Steps along the gradient of the squared distance to `target`.
    fn distance_after(learned: &mut Learned, target: &[f32], steps: usize, rates: Rates) -> f32 {
        let error = |learned: &Learned| -> Vec<f32> {
            learned.weights().iter().zip(target).map(|(w, t)| w - t).collect()
        };
        for step in 0..steps {
            let gradient = error(learned);
            learned.step(&gradient, rates.times(1.0 - step as f32 / steps as f32));
            assert_eq!(
                learned.weights(),
                learned.quantized().dequantize(),
                "what is computed is what is stored"
            );
        }
        error(learned).iter().map(|e| e * e).sum()
    }

    #[test]
    fn steps_bring_codes_and_scales_to_where_the_loss_is_low() {
        for (rule, symmetric) in [(Rule::Sign, true), (Rule::Adam, true), (Rule::Adam, false)] {
            let start = linear(Grid { symmetric, ..GRID }, [5, 20]);
            // Other codes, and scales a tenth larger.
            let scales = start.scales().iter().map(|s| f16::from_f32(s.to_f32() * 1.1)).collect();
            let codes = start.codes().iter().map(|c| (*c + 1).min(7)).collect();
            let other =
                QuantizedLinear::new([5, 20], start.grid(), codes, scales, start.zeros().to_vec(), None);
            let target = other.unwrap().dequantize();
            let mut learned = Learned::new(&start, &start.dequantize(), rule);
            let before: f32 = start.dequantize().iter().zip(&target).map(|(a, b)| (a - b) * (a - b)).sum();
            let after = distance_after(&mut learned, &target, 200, Rates { positions: 0.02, scales: 0.002 });
            // Codes and scales make up for each other in part, so that some groups end beside the lowest.
            assert!(after < 0.4 * before, "{rule:?} {symmetric}: {after} of {before}");
        }
    }

    #[test]
    fn no_position_is_lost_beyond_the_grid() {
        let linear = linear(GRID, [5, 20]);
        let mut learned = Learned::new(&linear, &linear.dequantize(), Rule::Sign);
        let rates = Rates { positions: 0.5, scales: 0.0 };
        let away: Vec<f32> = linear.dequantize().iter().map(|_| 1.0).collect();
        (0..100).for_each(|_| learned.step(&away, rates));
        let ends = learned.quantized();
        assert!(ends.codes().iter().all(|code| [0, 7].contains(code)), "at either end, by the scale's sign");
        let back: Vec<f32> = away.iter().map(|g| -g).collect();
        (0..2).for_each(|_| learned.step(&back, rates));
        assert!(learned.quantized().codes().iter().zip(ends.codes()).all(|(a, b)| a != b));
    }

    #[test]
    fn it_goes_back_to_what_was_kept() {
        for rule in [Rule::Sign, Rule::Adam] {
            let linear = linear(GRID, [5, 20]);
            let mut learned = Learned::new(&linear, &linear.dequantize(), rule);
            let rates = Rates { positions: 0.3, scales: 0.01 };
            learned.step(&wide_noise(5, 100), rates);
            let kept = learned.quantized();
            (0..9).for_each(|i| learned.step(&wide_noise(6 + i, 100), rates));
            assert_ne!(learned.quantized(), kept);
            learned.reset(&kept);
            assert_eq!(learned.quantized(), kept);
        }
    }
}
