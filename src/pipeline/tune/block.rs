//! One decoder layer after the other, each against what the original one makes.

use candle_core::Tensor;

use super::descent::Objective;
use super::examples::Examples;
use super::student::{Gradients, Student};
use crate::arch::decoder::Hidden;
use crate::error::Result;
use crate::quant::QuantizedLinear;
use crate::quant::learned::Rates;

/// A layer, what goes into it and what should come out of it.
pub(super) struct Lesson<'a> {
    pub(super) student: Student,
    pub(super) examples: &'a Examples,
    pub(super) inputs: &'a Hidden,
    pub(super) targets: &'a Hidden,
    /// Rows of a step.
    pub(super) rows: usize,
    /// The longest step.
    pub(super) rates: Rates,
}

impl Lesson<'_> {
    fn pair(&self, piece: &[usize]) -> Result<[Tensor; 2]> {
        Ok([self.inputs.windows_of(piece)?, self.targets.windows_of(piece)?])
    }

    fn energy(&self, pieces: &[Vec<usize>]) -> Result<f64> {
        pieces.iter().map(|piece| square_sum(&self.targets.windows_of(piece)?)).sum()
    }
}

/// The loss is the squared error of the layer's outputs per their energy.
impl Objective for Lesson<'_> {
    type Gradients = Gradients;
    type Kept = Vec<QuantizedLinear>;

    fn held_out(&mut self) -> Result<f64> {
        let pieces = self.examples.pieces(self.examples.held_out());
        let mut error = 0.0;
        for piece in &pieces {
            let [x, target] = self.pair(piece)?;
            let out = self.student.forward(&x, self.examples.context(piece))?;
            error += square_sum(&(out - &target)?)?;
        }
        Ok(error / self.energy(&pieces)?)
    }

    fn gradients(&mut self, step: usize) -> Result<(f64, Gradients)> {
        let pieces = self.examples.pieces(&self.examples.batch(step, self.rows));
        let energy = self.energy(&pieces)?;
        let mut sum = Gradients::default();
        for piece in &pieces {
            let [x, target] = self.pair(piece)?;
            let context = self.examples.context(piece);
            let found = self
                .student
                .gradients(&x, context, |out| Ok(((out - target)?.sqr()?.sum_all()? / energy)?))?;
            sum.add(found)?;
        }
        let loss = if sum.is_finite()? { sum.loss } else { f64::NAN };
        Ok((loss, sum))
    }

    fn step(&mut self, gradients: &Gradients, share: f32) -> Result<()> {
        self.student.step(gradients, self.rates.times(share), 0.0)
    }

    fn keep(&self) -> Vec<QuantizedLinear> {
        self.student.quantized()
    }

    fn restore(&mut self, kept: &Vec<QuantizedLinear>) -> Result<()> {
        self.student.restore(kept, &[])
    }
}

fn square_sum(x: &Tensor) -> Result<f64> {
    Ok(f64::from(x.sqr()?.sum_all()?.to_scalar::<f32>()?))
}
