//! The scale and zero point of a group, by a search weighted with how much each column matters.

use half::f16;

use super::codes::Grid;
use super::lanes::Lanes;

/// Scales that are tried for each end of the grid, as shares of the one that just covers the group.
const CANDIDATES: usize = 28;
/// The largest share.
const WIDEST: f32 = 1.08;
/// Rounds of codes for the scale and the best scale for the codes.
const REFINEMENTS: usize = 3;

/// A group's scale, its reciprocal and the range of code minus zero point, of `LANES` rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// As it will be stored: a float16.
    pub(super) scale: Lanes,
    inverse: Lanes,
    /// Minus the zero point.
    pub(super) low: Lanes,
    high: Lanes,
}

impl Scale {
    /// `scale` must be a float16 other than 0.
    #[inline(always)]
    pub(super) fn new(scale: Lanes, zero: Lanes, grid: Grid) -> Scale {
        let high = Lanes::splat(f32::from(grid.max_code())) - zero;
        Scale { scale, inverse: Lanes::splat(1.0) / scale, low: -zero, high }
    }

    /// The code of each weight, less the zero point.
    #[inline(always)]
    pub(super) fn code(&self, weight: Lanes) -> Lanes {
        self.code_of_ratio(weight * self.inverse)
    }

    /// The same for weights divided by the scale.
    #[inline(always)]
    pub(super) fn code_of_ratio(&self, ratio: Lanes) -> Lanes {
        ratio.round_within(self.low, self.high)
    }
}

/// The nearest float16 that can be a scale: neither 0 nor infinite.
pub(super) fn stored(scale: f32) -> f32 {
    let rounded = f16::from_f32(scale);
    let magnitude = f16::from_bits(rounded.to_bits() & 0x7fff).max(f16::from_bits(1)).min(f16::MAX);
    magnitude.to_f32().copysign(scale)
}

/// Finds the scale (and zero point) that make `sum(importance * (weight - scale * code)^2)` small over a group, for each row.
///
/// Every end of the grid is taken for the weight of largest magnitude in turn, so that the scale of a symmetric grid may be
/// negative: the grid has one code more on one side, which then lies where the largest weight is. The zero point of an asymmetric
/// grid is at least `lowest_zero`. Each candidate is judged by
/// the error that it has with the scale that is best for its codes, as llama.cpp judges its own (`make_qx_quants`,
/// ggml-quants.c); the winner is then refined by taking the best scale and its codes in turn.
#[inline(always)]
pub(super) fn search(weights: &[Lanes], importance: &[f32], grid: Grid, lowest_zero: u8) -> Scale {
    let mut best = Best { merit: Lanes::splat(-1.0), scale: Lanes::splat(1.0), zero: Lanes::ZERO };
    if grid.symmetric {
        let zero = Lanes::splat(f32::from(grid.middle()));
        best.zero = zero;
        let largest = weights.iter().fold(Lanes::ZERO, |m, w| w.where_greater(w.abs(), m.abs(), m));
        let ends = [-f32::from(grid.middle()), f32::from(grid.max_code() - grid.middle())];
        for end in ends {
            best.try_shrunk(weights, importance, grid, largest / Lanes::splat(end), zero);
        }
    } else {
        let high = weights.iter().fold(Lanes::ZERO, |m, w| w.max(m));
        let low = weights.iter().fold(Lanes::ZERO, |m, w| w.min(m));
        let whole = (high - low) / Lanes::splat(f32::from(grid.max_code()));
        let top = Lanes::splat(f32::from(grid.max_code()));
        let ratio = Lanes::ZERO.where_greater(Lanes::splat(f32::MIN_POSITIVE), whole, -low / whole);
        let lowest = Lanes::splat(f32::from(lowest_zero));
        let middle = ratio.round_within(lowest, top);
        // Of a group of zeros no candidate is better than another; its zero point is one that may be stored.
        best.zero = middle;
        for shift in [0.0, -1.0, 1.0] {
            let zero = (middle + Lanes::splat(shift)).max(lowest).min(top);
            best.try_shrunk(weights, importance, grid, whole, zero);
        }
    }
    let mut scale = Scale::new(best.scale.map(stored), best.zero, grid);
    for _ in 0..REFINEMENTS {
        let (numerator, denominator) = fit(weights, importance, &scale);
        let refined = (numerator / denominator).where_greater(denominator, Lanes::ZERO, scale.scale);
        scale = Scale::new(refined.map(stored), best.zero, grid);
    }
    scale
}

/// The best candidate so far, of each row.
struct Best {
    merit: Lanes,
    scale: Lanes,
    zero: Lanes,
}

impl Best {
    /// Tries shares of a scale.
    #[inline(always)]
    fn try_shrunk(&mut self, weights: &[Lanes], importance: &[f32], grid: Grid, whole: Lanes, zero: Lanes) {
        // With few codes the best scale lies far below the one that covers the group.
        let narrowest = match grid.bits {
            2 => 0.3,
            3 => 0.45,
            4 => 0.55,
            _ => 0.8,
        };
        // A group of zeros has no scale; any does.
        let whole = whole.where_greater(whole.abs(), Lanes::splat(f32::MIN_POSITIVE), Lanes::splat(1.0));
        for i in 0..CANDIDATES {
            let share = WIDEST - (WIDEST - narrowest) * i as f32 / (CANDIDATES - 1) as f32;
            let candidate = Scale::new(whole * Lanes::splat(share), zero, grid);
            let (numerator, denominator) = fit(weights, importance, &candidate);
            // By so much the best scale for these codes lowers the error.
            let merit = numerator * numerator / denominator;
            let scale = numerator / denominator;
            self.scale = scale.where_greater(merit, self.merit, self.scale);
            self.zero = zero.where_greater(merit, self.merit, self.zero);
            self.merit = merit.where_greater(merit, self.merit, self.merit);
        }
    }
}

/// Numerator and denominator of the scale that is best for the codes that `scale` gives.
#[inline(always)]
fn fit(weights: &[Lanes], importance: &[f32], scale: &Scale) -> (Lanes, Lanes) {
    let (mut numerator, mut denominator) = (Lanes::ZERO, Lanes::ZERO);
    for (weight, importance) in weights.iter().zip(importance) {
        let code = scale.code(*weight);
        let weighted = Lanes::splat(*importance) * code;
        numerator = numerator + weighted * *weight;
        denominator = denominator + weighted * code;
    }
    (numerator, denominator)
}

#[cfg(test)]
mod tests {
    use super::super::lanes::LANES;
    use super::*;

    fn grid(bits: u32, symmetric: bool) -> Grid {
        Grid { bits, group_size: 32, symmetric }
    }

    fn weights(f: impl Fn(usize, usize) -> f32) -> Vec<Lanes> {
        (0..32).map(|j| Lanes(std::array::from_fn(|row| f(j, row)))).collect()
    }

    fn error(weights: &[Lanes], importance: &[f32], scale: &Scale) -> [f32; LANES] {
        let squares = weights.iter().zip(importance).map(|(w, h)| {
            let d = *w - scale.scale * scale.code(*w);
            d * d * Lanes::splat(*h)
        });
        squares.fold(Lanes::ZERO, |a, b| a + b).0
    }

    #[test]
    fn weights_on_a_grid_are_kept() {
        for (bits, symmetric) in
            [(2, true), (3, true), (4, true), (8, true), (2, false), (4, false), (8, false)]
        {
            let grid = grid(bits, symmetric);
            let zero = if symmetric { f32::from(grid.middle()) } else { 1.0 };
            let top = usize::from(grid.max_code());
            // All codes occur where the group is long enough for that.
            let w = weights(|j, row| {
                (((j * (top + 1) / 32 + top * (j % 2)) % (top + 1)) as f32 - zero) * 0.25 * (row as f32 - 7.5)
            });
            let found = search(&w, &[1.0; 32], grid, 0);
            for (row, error) in error(&w, &[1.0; 32], &found).into_iter().enumerate() {
                let energy: f32 = w.iter().map(|w| w.0[row] * w.0[row]).sum();
                assert!(error <= 1e-5 * energy, "{bits} bits, symmetric {symmetric}, row {row}: {error}");
            }
        }
    }

    #[test]
    fn the_search_beats_the_plain_scale() {
        let w =
            weights(|j, row| ((j * 37 + row * 11) % 64) as f32 / 32.0 - 1.0 + if j == 5 { 1.5 } else { 0.0 });
        let importance: Vec<f32> = (0..32).map(|j| if j % 3 == 0 { 10.0 } else { 1.0 }).collect();
        for bits in [2, 3, 4] {
            let grid = grid(bits, true);
            let found = error(&w, &importance, &search(&w, &importance, grid, 0));
            let largest = w.iter().fold(Lanes::ZERO, |m, w| w.abs().max(m));
            let middle = Lanes::splat(f32::from(grid.middle()));
            let plain = Scale::new((largest / middle).map(stored), middle, grid);
            for (found, plain) in found.iter().zip(error(&w, &importance, &plain)) {
                assert!(*found <= plain, "{bits} bits: {found} instead of {plain}");
            }
        }
    }

    #[test]
    fn scales_are_float16_and_never_zero() {
        for (from, to) in [
            (0.0, 5.9604645e-8),
            (-0.0, -5.9604645e-8),
            (1e9, 65504.0),
            (-1e9, -65504.0),
            (1e-30, 5.9604645e-8),
            (0.1, 0.099975586),
        ] {
            assert_eq!(stored(from), to, "{from}");
        }
        for symmetric in [true, false] {
            let w = vec![Lanes::ZERO; 32];
            let found = search(&w, &[1.0; 32], grid(4, symmetric), 0);
            assert!(found.scale.0.iter().all(|s| s.is_normal()), "{:?}", found.scale);
            assert_eq!(found.code(Lanes::ZERO), Lanes::ZERO);
            // Columns that do not matter at all.
            let w = weights(|j, _| j as f32);
            assert!(search(&w, &[0.0; 32], grid(4, symmetric), 0).scale.0.iter().all(|s| s.is_finite()));
        }
    }
}
