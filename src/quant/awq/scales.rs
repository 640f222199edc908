//! Factors of channels.

use std::ops::Range;

use rayon::prelude::*;

use crate::format::gguf::blocks::{Simd, Work};
use crate::matmul::{View, multiply};
use crate::quant::codes::Grid;
use crate::quant::gram::Gram;
use crate::quant::lanes::{LANES, Lanes};
use crate::quant::scale_search::{Scale, stored};

/// Factors are kept within this and its reciprocal, so that what is divided by them stays within float16.
const LIMIT: f32 = 128.0;

/// Exponents of the inputs that are tried.
const ACTIVATION: [f32; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
/// Exponents of the weights.
const WEIGHT: [f32; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

/// Ranges that are tried with each candidate, as shares of the one that just covers the group.
const SHARES: [f32; 6] = [1.0, 0.94, 0.88, 0.82, 0.76, 0.7];

/// A matrix, or some of its rows, that the channels go into.
#[derive(Clone, Copy, Debug)]
pub struct Consumer<'a> {
    /// What goes into it.
    pub gram: &'a Gram,
    /// `[rows, channels]` row-major.
    pub weights: &'a [f32],
}

/// Factors of channels to be tried on a consumer.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    /// What they are tried on.
    pub consumer: Consumer<'a>,
    /// Of each candidate, one for each column of the weights.
    pub factors: &'a [Vec<f32>],
    /// The grid that weights are rounded to.
    pub grid: Grid,
}

impl Trial<'_> {
    /// The error of the outputs that each group makes by itself with each candidate, `[groups, candidates]`.
    ///
    /// # Panics
    /// If the matrix has another number of columns than there are factors.
    pub fn losses(&self, simd: Simd) -> Vec<f64> {
        let size = self.consumer.gram.size();
        let packed = Packed::new(&self.consumer, size);
        let blocks = self.blocks();
        let candidates = self.factors.len();
        (0..blocks.len() * candidates)
            .into_par_iter()
            .map(|at| {
                let (group, factors) = (at / candidates, &self.factors[at % candidates]);
                let columns = columns_of(group, self.grid, size);
                packed.loss(columns.clone(), &factors[columns], &blocks[group], self.grid, simd)
            })
            .collect()
    }

    /// The parts of the Gram matrix that belong to the groups.
    pub(crate) fn blocks(&self) -> Vec<Vec<f32>> {
        let size = self.consumer.gram.size();
        let groups = (0..self.grid.groups(size)).into_par_iter();
        groups.map(|group| self.consumer.gram.block(columns_of(group, self.grid, size))).collect()
    }
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// The factor of each channel of the source, before it is stored.
    pub factors: Vec<f32>,
    /// The exponent of the inputs, on average over all groups.
    pub activation_exponent: f64,
    /// The exponent of the weights, on average over all groups.
    pub weight_exponent: f64,
}

/// Chooses the factor of each channel from the family `x^a / w^b`, with `x` the root mean square of the channel's inputs and `w`
/// that of its weights, `a` and `b` from 0 to 1; both 0 are no factors, `b` of 0 is the paper's search, and of `1 - a` AutoAWQ's.
///
/// Were the range of a group as wide as its weights are on average, `a = b = 1/2` would be best: the error is then the product of
/// `sum (s w)^2` and `sum (x / s)^2` over the group's channels. How far ranges depend on single weights decides what is best
/// indeed, so candidates are tried: weights are multiplied, quantized in their groups with searched ranges, divided again,
/// and their error is measured with the part of the Gram matrix that belongs to the group. What the errors of different
/// groups have to do with each other is left out: roundings are independent of each other, so it adds up to nothing. A factor
/// common to a group changes nothing. So groups choose independently, each the best of all candidates; those that share
/// channels of the source (`channels` names the one of each input) choose together.
///
/// `losses` is [`Trial::losses`], wherever it runs. `stored` turns factors into those that result when the source is divided and rounded to float16; what is tried has
/// gone through it.
///
/// # Errors
/// What `losses` returns.
///
/// # Panics
/// If the matrices have another number of columns than there are channels.
pub fn choose<E>(
    consumers: &[Consumer<'_>],
    channels: &[usize],
    stored: &dyn Fn(&[f32]) -> Vec<f32>,
    grid: Grid,
    losses: &dyn Fn(&Trial<'_>) -> Result<Vec<f64>, E>,
) -> Result<Scales, E> {
    let spectrum = Spectrum::new(consumers, channels, grid);
    let candidates: Vec<Candidate> = ACTIVATION
        .iter()
        .flat_map(|a| WEIGHT.iter().map(move |b| (*a, *b)))
        .map(|(a, b)| Candidate::new([a, b], spectrum.factors(a, b), stored))
        .collect();
    let of_columns = |candidate: &Candidate| channels.iter().map(|c| candidate.stored[*c]).collect();
    let factors: Vec<Vec<f32>> = candidates.iter().map(of_columns).collect();
    let groups = grid.groups(channels.len());
    let mut sums = vec![0.0; groups * candidates.len()];
    for consumer in consumers {
        assert_eq!(consumer.gram.size(), channels.len(), "a channel for each input");
        let losses = losses(&Trial { consumer: *consumer, factors: &factors, grid })?;
        sums.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += loss);
    }
    let mut best = vec![0; spectrum.parts];
    for (part, best) in best.iter_mut().enumerate() {
        let of = |candidate: usize| -> f64 {
            let groups = (0..groups).filter(|group| spectrum.part_of_group[*group] == part);
            groups.map(|group| sums[group * candidates.len() + candidate]).sum()
        };
        let mut least = of(0);
        for candidate in 1..candidates.len() {
            let loss = of(candidate);
            if loss < least {
                (*best, least) = (candidate, loss);
            }
        }
    }
    let factors = (0..spectrum.part_of_channel.len())
        .map(|channel| candidates[best[spectrum.part_of_channel[channel]]].factors[channel])
        .collect();
    let mean = |i: usize| {
        let all = spectrum.part_of_group.iter().map(|part| f64::from(candidates[best[*part]].exponents[i]));
        all.sum::<f64>() / groups as f64
    };
    Ok(Scales { factors, activation_exponent: mean(0), weight_exponent: mean(1) })
}

fn columns_of(group: usize, grid: Grid, size: usize) -> Range<usize> {
    let start = group * grid.group_size.min(size);
    start..(start + grid.group_size).min(size)
}

struct Candidate {
    exponents: [f32; 2],
    /// Of each channel of the source.
    factors: Vec<f32>,
    stored: Vec<f32>,
}

impl Candidate {
    fn new(exponents: [f32; 2], factors: Vec<f32>, stored: &dyn Fn(&[f32]) -> Vec<f32>) -> Candidate {
        Candidate { exponents, stored: stored(&factors), factors }
    }
}

/// How large inputs and weights of each channel of the source are, and which groups share channels.
struct Spectrum {
    /// Sums of squares.
    inputs: Vec<f64>,
    weights: Vec<f64>,
    parts: usize,
    part_of_group: Vec<usize>,
    part_of_channel: Vec<usize>,
}

impl Spectrum {
    fn new(consumers: &[Consumer<'_>], channels: &[usize], grid: Grid) -> Spectrum {
        let sources = channels.iter().max().map_or(0, |last| last + 1);
        let (mut inputs, mut weights) = (vec![0.0; sources], vec![0.0; sources]);
        for consumer in consumers {
            for (channel, square) in channels.iter().zip(consumer.gram.diagonal()) {
                inputs[*channel] += f64::from(square);
            }
            for row in consumer.weights.chunks_exact(channels.len()) {
                for (channel, weight) in channels.iter().zip(row) {
                    weights[*channel] += f64::from(*weight).powi(2);
                }
            }
        }
        // Groups that share a channel become one part: the number of its first group.
        let group_size = grid.group_size.min(channels.len()).max(1);
        let mut part_of_group: Vec<usize> = (0..grid.groups(channels.len())).collect();
        let mut first = vec![None; sources];
        for (input, channel) in channels.iter().enumerate() {
            let group = input / group_size;
            let (new, old) = (part_of_group[group], part_of_group[*first[*channel].get_or_insert(group)]);
            let (from, to) = (new.max(old), new.min(old));
            part_of_group.iter_mut().filter(|part| **part == from).for_each(|part| *part = to);
        }
        let mut parts: Vec<usize> = part_of_group.clone();
        parts.sort_unstable();
        parts.dedup();
        for part in &mut part_of_group {
            *part = parts.binary_search(part).expect("every part is listed");
        }
        let part_of_channel =
            first.iter().map(|group| group.map_or(0, |group| part_of_group[group])).collect();
        Spectrum { inputs, weights, parts: parts.len(), part_of_group, part_of_channel }
    }

    /// The factors `x^a / w^b`, centred on 1 in each part. A channel without inputs counts as the one with the smallest, one
    /// without weights has no factor.
    fn factors(&self, a: f32, b: f32) -> Vec<f32> {
        let mut factors = vec![1.0; self.inputs.len()];
        for part in 0..self.parts {
            let channels = (0..factors.len()).filter(|c| self.part_of_channel[*c] == part);
            let channels: Vec<usize> = channels.filter(|c| self.weights[*c] > 0.0).collect();
            let positive = |c: &&usize| self.inputs[**c] > 0.0;
            let smallest =
                channels.iter().filter(positive).map(|c| self.inputs[*c]).fold(f64::INFINITY, f64::min);
            if !smallest.is_finite() {
                continue;
            }
            let logarithm = |c: usize| {
                let input = self.inputs[c].max(smallest).ln();
                0.5 * (f64::from(a) * input - f64::from(b) * self.weights[c].ln())
            };
            let (low, high) = channels
                .iter()
                .map(|c| logarithm(*c))
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), l| (low.min(l), high.max(l)));
            for c in channels {
                let factor = (logarithm(c) - 0.5 * (low + high)).exp() as f32;
                factors[c] = factor.clamp(LIMIT.recip(), LIMIT);
            }
        }
        factors
    }
}

/// A consumer's rows side by side.
struct Packed {
    width: usize,
    /// `[channels, width]`, zeros beyond the rows.
    weights: Vec<f32>,
}

impl Packed {
    fn new(consumer: &Consumer<'_>, size: usize) -> Packed {
        assert!(consumer.weights.len().is_multiple_of(size), "rows of {size} channels");
        let width = (consumer.weights.len() / size).next_multiple_of(LANES);
        let mut weights = vec![0.0; size * width];
        for (row, values) in consumer.weights.chunks_exact(size).enumerate() {
            for (column, weight) in weights.chunks_exact_mut(width).zip(values) {
                column[row] = *weight;
            }
        }
        Packed { width, weights }
    }

    /// The error of the outputs that a group's part of the weights makes by itself when it is quantized with such factors.
    fn loss(&self, columns: Range<usize>, factors: &[f32], block: &[f32], grid: Grid, simd: Simd) -> f64 {
        let (length, width) = (columns.len(), self.width);
        let importance: Vec<f32> =
            (0..length).map(|i| block[i * (length + 1)] / (factors[i] * factors[i])).collect();
        let weights = &self.weights[columns.start * width..columns.end * width];
        let mut errors = vec![0.0; length * width];
        simd.compile(Round { weights, width, factors, importance: &importance, grid, errors: &mut errors });
        let mut products = vec![0.0; length * width];
        let all = 0..length;
        let errors_view = View::block(&errors, width, all.clone(), 0..width);
        multiply(&mut products, width, 0.0, 1.0, View::block(block, length, all.clone(), all), errors_view);
        let mut sums = vec![0.0; width];
        simd.compile(AddProducts { a: &errors, b: &products, sums: &mut sums });
        sums.iter().map(|v| f64::from(*v)).sum()
    }
}

/// The errors of weights, `[channels, width]`, that are multiplied by factors and rounded as one group.
struct Round<'a> {
    weights: &'a [f32],
    width: usize,
    factors: &'a [f32],
    importance: &'a [f32],
    grid: Grid,
    errors: &'a mut [f32],
}

impl Work for Round<'_> {
    #[inline(always)]
    fn run(self) {
        let Round { weights, width, factors, importance, grid, errors } = self;
        let mut scaled = vec![Lanes::ZERO; factors.len()];
        for lane in (0..width).step_by(LANES) {
            for (i, (scaled, factor)) in scaled.iter_mut().zip(factors).enumerate() {
                *scaled = Lanes::load(&weights[i * width + lane..]) * Lanes::splat(*factor);
            }
            let scale = range(&scaled, importance, grid);
            for (i, (scaled, factor)) in scaled.iter().zip(factors).enumerate() {
                let error = (*scaled - scale.scale * scale.code(*scaled)) / Lanes::splat(*factor);
                error.store(&mut errors[i * width + lane..]);
            }
        }
    }
}

/// The best of a few ranges of a group, each channel looked at by itself.
#[inline(always)]
fn range(weights: &[Lanes], importance: &[f32], grid: Grid) -> Scale {
    let (mut low, mut high) = (Lanes::ZERO, Lanes::ZERO);
    for weight in weights {
        (low, high) = (weight.min(low), weight.max(high));
    }
    let top = Lanes::splat(f32::from(grid.max_code()));
    let (whole, least) = ((high - low) / top, Lanes::splat(f32::MIN_POSITIVE));
    // A group of zeros has no scale; any does.
    let whole = whole.where_greater(whole, least, Lanes::splat(1.0));
    let zero = (-low / whole).round_within(Lanes::ZERO, top);
    let (mut best, mut smallest) = (whole.map(stored), Lanes::splat(f32::INFINITY));
    for share in SHARES {
        let scale = Scale::new((whole * Lanes::splat(share)).map(stored), zero, grid);
        let mut error = Lanes::ZERO;
        for (weight, importance) in weights.iter().zip(importance) {
            let difference = *weight - scale.scale * scale.code(*weight);
            error = error + difference * difference * Lanes::splat(*importance);
        }
        best = scale.scale.where_greater(smallest, error, best);
        smallest = error.where_greater(smallest, error, smallest);
    }
    Scale::new(best, zero, grid)
}

/// Adds the products of `[channels, width]` values up over the channels.
struct AddProducts<'a> {
    a: &'a [f32],
    b: &'a [f32],
    sums: &'a mut [f32],
}

impl Work for AddProducts<'_> {
    #[inline(always)]
    fn run(self) {
        let width = self.sums.len();
        for lane in (0..width).step_by(LANES) {
            let mut sum = Lanes::ZERO;
            for at in (lane..self.a.len()).step_by(width) {
                sum = sum + Lanes::load(&self.a[at..]) * Lanes::load(&self.b[at..]);
            }
            sum.store(&mut self.sums[lane..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;

    const GRID: Grid = Grid { bits: 4, group_size: 32, symmetric: false };

    /// Inputs of 64 channels, of which every eighth is large, and those of `dead` are zero.
    fn gram(dead: &[usize]) -> Gram {
        let mut x = noise(1, 200 * 64);
        for row in x.chunks_exact_mut(64) {
            row.iter_mut().step_by(8).for_each(|v| *v *= 40.0);
            dead.iter().for_each(|c| row[*c] = 0.0);
        }
        let mut gram = Gram::new(64);
        gram.add(&x);
        gram
    }

    fn chosen_stored(
        consumers: &[Consumer<'_>],
        channels: &[usize],
        stored: &dyn Fn(&[f32]) -> Vec<f32>,
    ) -> Scales {
        let losses = |trial: &Trial<'_>| Ok::<_, std::convert::Infallible>(trial.losses(Simd::best()));
        choose(consumers, channels, stored, GRID, &losses).unwrap()
    }

    fn chosen(consumers: &[Consumer<'_>], channels: &[usize]) -> Scales {
        chosen_stored(consumers, channels, &plain)
    }

    fn plain(factors: &[f32]) -> Vec<f32> {
        factors.to_vec()
    }

    fn loss(consumer: &Consumer<'_>, factors: &[f32]) -> f64 {
        let packed = Packed::new(consumer, 64);
        let groups = (0..2).map(|group| columns_of(group, GRID, 64));
        groups
            .map(|c| packed.loss(c.clone(), &factors[c.clone()], &consumer.gram.block(c), GRID, Simd::best()))
            .sum()
    }

    #[test]
    fn large_inputs_get_large_factors_and_the_error_falls() {
        let (gram, weights) = (gram(&[]), noise(2, 48 * 64));
        let consumer = Consumer { gram: &gram, weights: &weights };
        let channels: Vec<usize> = (0..64).collect();
        let scales = chosen(&[consumer], &channels);
        let group = &scales.factors[..32];
        assert!(group[0] > 2.0 * group[1] && group[8] > 2.0 * group[9], "{group:?}");
        assert!(scales.activation_exponent > 0.2, "{scales:?}");
        let (scaled, unscaled) = (loss(&consumer, &scales.factors), loss(&consumer, &[1.0; 64]));
        // A quarter less with these numbers: four of the 32 weights of a group are finer, the others coarser.
        assert!(scaled < 0.8 * unscaled, "{scaled} of {unscaled}, {scales:?}");
    }

    #[test]
    fn what_is_tried_is_what_will_be_stored() {
        let (gram, weights) = (gram(&[]), noise(2, 48 * 64));
        let consumer = Consumer { gram: &gram, weights: &weights };
        let channels: Vec<usize> = (0..64).collect();
        // A source that cannot be divided: no candidate is better than the first, which is no factors.
        let ignore = |factors: &[f32]| vec![1.0; factors.len()];
        let scales = chosen_stored(&[consumer], &channels, &ignore);
        assert_eq!((scales.activation_exponent, scales.weight_exponent), (0.0, 0.0));
        assert_eq!(scales.factors, [1.0; 64]);
    }

    #[test]
    fn groups_that_share_channels_choose_together() {
        let (gram, weights) = (gram(&[]), noise(2, 48 * 64));
        let consumer = Consumer { gram: &gram, weights: &weights };
        let channels: Vec<usize> = (0..64).map(|i| i % 32).collect();
        let spectrum = Spectrum::new(&[consumer], &channels, GRID);
        assert_eq!((spectrum.parts, &spectrum.part_of_group), (1, &vec![0, 0]));
        assert_eq!(chosen(&[consumer], &channels).factors.len(), 32);
        let apart = Spectrum::new(&[consumer], &(0..64).collect::<Vec<_>>(), GRID);
        assert_eq!((apart.parts, &apart.part_of_group), (2, &vec![0, 1]));
    }

    #[test]
    fn factors_are_finite_whatever_is_zero() {
        let channels: Vec<usize> = (0..64).collect();
        let all: Vec<usize> = (0..64).collect();
        for (dead, zeros) in [(&all[..], 0..0), (&[3, 4], 0..0), (&[], 5..64), (&[1], 0..64)] {
            let gram = gram(dead);
            let mut weights = noise(2, 48 * 64);
            weights.chunks_exact_mut(64).for_each(|row| row[zeros.clone()].fill(0.0));
            let consumers = [Consumer { gram: &gram, weights: &weights }];
            let scales = chosen(&consumers, &channels);
            let fits = |f: &f32| (LIMIT.recip()..=LIMIT).contains(f);
            assert!(scales.factors.iter().all(fits), "{:?}", scales.factors);
        }
        let none = chosen(&[], &channels);
        assert_eq!(none.factors, [1.0; 64]);
    }

    #[test]
    fn the_choice_does_not_depend_on_the_number_of_threads() {
        let (gram, weights) = (gram(&[7]), noise(2, 48 * 64));
        let channels: Vec<usize> = (0..64).collect();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let consumers = [Consumer { gram: &gram, weights: &weights }];
            pool.install(|| chosen(&consumers, &channels))
        };
        assert!(on(1) == on(2) && on(1) == on(7));
    }
}
