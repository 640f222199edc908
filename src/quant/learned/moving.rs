//! How numbers follow their gradients.

use rayon::prelude::*;

/// How positions and scales follow their gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// By the gradient's sign alone: sign gradient descent.
    Sign,
    /// By the mean of gradients over the root of the mean of their squares: Adam (Kingma and Ba, arXiv 1412.6980).
    Adam,
}

/// How far one step goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of positions, in codes.
    pub positions: f32,
    /// Of scales, as a share of each.
    pub scales: f32,
}

impl Rates {
    /// A share of both.
    pub fn times(self, share: f32) -> Rates {
        Rates { positions: self.positions * share, scales: self.scales * share }
    }
}

/// Decay of the mean of gradients and of their squares.
const BETAS: [f32; 2] = [0.9, 0.95];
const EPSILON: f32 = 1e-20;

/// Numbers that gradients move.
#[derive(Clone, Debug)]
pub(super) struct Moving {
    pub(super) values: Vec<f32>,
    /// Mean gradients and mean squares; empty for [`Rule::Sign`].
    pub(super) means: [Vec<f32>; 2],
}

impl Moving {
    pub(super) fn new(values: Vec<f32>, rule: Rule) -> Moving {
        let count = if rule == Rule::Adam { values.len() } else { 0 };
        Moving { means: [vec![0.0; count], vec![0.0; count]], values }
    }

    /// Begins again from where the values are.
    pub(super) fn forget(&mut self) {
        self.means.iter_mut().for_each(|means| means.fill(0.0));
    }

    /// Rows of this width.
    pub(super) fn rows(&mut self, width: usize) -> impl IndexedParallelIterator<Item = Row<'_>> {
        let [means, squares] = &mut self.means;
        let mut means = means.chunks_exact_mut(width);
        let mut squares = squares.chunks_exact_mut(width);
        let rows: Vec<Row<'_>> = self
            .values
            .chunks_exact_mut(width)
            .map(|values| Row {
                values,
                means: means.next().zip(squares.next()).map(|(means, squares)| [means, squares]),
            })
            .collect();
        rows.into_par_iter()
    }
}

/// The numbers of one row.
pub(super) struct Row<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) means: Option<[&'a mut [f32]; 2]>,
}

/// The direction of a step, of size near 1, from a gradient.
pub(super) struct Direction {
    corrections: [f32; 2],
}

impl Direction {
    /// Of the step of this number, from 1.
    pub(super) fn new(step: u32) -> Direction {
        Direction { corrections: BETAS.map(|beta| 1.0 / (1.0 - beta.powi(step as i32))) }
    }

    #[inline(always)]
    pub(super) fn adam(&self, gradient: f32, mean: &mut f32, square: &mut f32) -> f32 {
        *mean += (1.0 - BETAS[0]) * (gradient - *mean);
        *square += (1.0 - BETAS[1]) * (gradient * gradient - *square);
        *mean * self.corrections[0] / ((*square * self.corrections[1]).sqrt() + EPSILON)
    }
}

#[inline(always)]
pub(super) fn sign(x: f32) -> f32 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        0.0
    }
}
