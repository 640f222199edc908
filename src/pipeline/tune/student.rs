//! A layer whose matrices and norms are learned.

use candle_core::{Device, Tensor, Var};

use crate::arch::decoder::{Context, Layer};
use crate::error::{Error, Kind, Result};
use crate::pipeline::layerwise::Matrix;
use crate::quant::QuantizedLinear;
use crate::quant::learned::{Learned, LearnedNorm, Rates, Rule};

/// A layer that computes with what has been learned so far.
#[derive(Debug)]
pub(super) struct Student {
    layer: Layer,
    matrices: Vec<Part<Learned>>,
    norms: Vec<Part<LearnedNorm>>,
    tracked: bool,
}

#[derive(Debug)]
struct Part<L> {
    /// The name in GGUF, without layer and ending.
    stem: &'static str,
    expert: usize,
    learned: L,
    /// The weights that come of it.
    var: Var,
}

/// A matrix as it was quantized.
pub(in crate::pipeline) struct Quantized<'a> {
    pub(in crate::pipeline) matrix: &'a Matrix,
    pub(in crate::pipeline) linear: &'a QuantizedLinear,
    /// What it was quantized from, if it is to be tuned.
    pub(in crate::pipeline) weights: Option<Vec<f32>>,
}

/// Norms as they are stored, by their names in GGUF without layer and ending.
pub(in crate::pipeline) type StoredNorms = Vec<(&'static str, Vec<f32>)>;

/// Gradients of a loss.
#[derive(Debug, Default)]
pub(super) struct Gradients {
    pub(super) loss: f64,
    /// With respect to what went into the layer.
    pub(super) input: Option<Tensor>,
    matrices: Vec<Tensor>,
    norms: Vec<Tensor>,
}

impl Gradients {
    /// Adds those of other examples.
    pub(super) fn add(&mut self, other: Gradients) -> Result<()> {
        self.loss += other.loss;
        self.input = other.input;
        for (sum, other) in [(&mut self.matrices, other.matrices), (&mut self.norms, other.norms)] {
            if sum.is_empty() {
                *sum = other;
            } else {
                for (sum, other) in sum.iter_mut().zip(other) {
                    *sum = (&*sum + other)?;
                }
            }
        }
        Ok(())
    }

    /// Whether all of them are numbers.
    pub(super) fn is_finite(&self) -> Result<bool> {
        for tensor in self.matrices.iter().chain(&self.norms) {
            // A sum with anything that is not finite is not.
            if !tensor.sum_all()?.to_scalar::<f32>()?.is_finite() {
                return Ok(false);
            }
        }
        Ok(self.loss.is_finite())
    }
}

impl Student {
    /// From a layer and its quantized matrices with their original weights. Of those that are not learned there are none.
    ///
    /// # Errors
    /// `Unsupported` for a layer through which no gradients flow.
    pub(super) fn new(mut layer: Layer, matrices: Vec<Quantized<'_>>, rule: Rule) -> Result<Student> {
        if !layer.is_differentiable() {
            return Err(Error::new(Kind::Unsupported, "--tune is not possible for a mixture of experts")
                .hint("Leave --tune out."));
        }
        let mut parts = Vec::new();
        for Quantized { matrix, linear, weights } in matrices {
            let Some(weights) = weights else {
                layer.replace(matrix.stem, matrix.expert, &linear.dequantize())?;
                continue;
            };
            let learned = Learned::new(linear, &weights, rule);
            let var = variable(learned.weights(), &matrix.shape)?;
            parts.push(Part { stem: matrix.stem, expert: matrix.expert, learned, var });
        }
        let mut student = Student { layer, matrices: parts, norms: Vec::new(), tracked: false };
        student.place(false)?;
        Ok(student)
    }

    /// Learns nothing from now on.
    pub(super) fn freeze(&mut self) -> Result<()> {
        self.place(false)?;
        self.matrices.clear();
        self.norms.clear();
        Ok(())
    }

    /// Whether there is anything that it learns.
    pub(super) fn learns(&self) -> bool {
        !self.matrices.is_empty() || !self.norms.is_empty()
    }

    /// Learns the norms too, of which `offset` is not stored.
    pub(super) fn learn_norms(&mut self, offset: f32, rule: Rule) -> Result<()> {
        let norms = self.layer.norms().into_iter().map(|(stem, norm)| {
            let weight = norm.weight()?;
            let learned = LearnedNorm::new(weight.to_vec1()?, offset, rule);
            let var = variable(learned.weights(), weight.dims())?;
            Ok(Part { stem, expert: 0, learned, var })
        });
        self.norms = norms.collect::<Result<_>>()?;
        self.place(self.tracked)
    }

    /// Has the layer compute with the variables, or with their values alone.
    fn place(&mut self, tracked: bool) -> Result<()> {
        let tensor = |var: &Var| if tracked { var.as_tensor().clone() } else { var.as_detached_tensor() };
        for Part { stem, expert, var, .. } in &self.matrices {
            self.layer.replace_by(stem, *expert, &tensor(var))?;
        }
        for Part { stem, var, .. } in &self.norms {
            self.layer.replace_norm(stem, &tensor(var))?;
        }
        self.tracked = tracked;
        Ok(())
    }

    /// The hidden states after the layer.
    pub(super) fn forward(&mut self, x: &Tensor, context: &Context) -> Result<Tensor> {
        if self.tracked {
            self.place(false)?;
        }
        self.layer.forward(x, context, &mut ())
    }

    /// The gradients of `loss`, which is a number made of the hidden states after the layer.
    pub(super) fn gradients(
        &mut self,
        x: &Tensor,
        context: &Context,
        loss: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Gradients> {
        if !self.tracked {
            self.place(true)?;
        }
        let input = Var::from_tensor(x)?;
        let loss = loss(&self.layer.forward(input.as_tensor(), context, &mut ())?)?;
        let mut found = loss.backward()?;
        let mut take = |var: &Var| {
            found.remove(var.as_tensor()).ok_or_else(|| Error::new(Kind::Other, "a weight has no gradient"))
        };
        Ok(Gradients {
            loss: f64::from(loss.to_scalar::<f32>()?),
            matrices: self.matrices.iter().map(|part| take(&part.var)).collect::<Result<_>>()?,
            norms: self.norms.iter().map(|part| take(&part.var)).collect::<Result<_>>()?,
            input: Some(take(&input)?),
        })
    }

    /// Goes back to what [`Student::quantized`] and [`Student::stored_norms`] have given.
    pub(super) fn restore(
        &mut self,
        matrices: &[QuantizedLinear],
        norms: &[(&'static str, Vec<f32>)],
    ) -> Result<()> {
        self.matrices.iter_mut().zip(matrices).for_each(|(part, linear)| part.learned.reset(linear));
        self.norms.iter_mut().zip(norms).for_each(|(part, (_, stored))| part.learned.reset(stored));
        self.refresh()
    }

    /// How many matrices and norms it learns.
    pub(super) fn parts(&self) -> usize {
        self.matrices.len() + self.norms.len()
    }

    /// How many weights it learns.
    pub(super) fn weights(&self) -> usize {
        self.matrices.iter().map(|part| part.learned.shape().iter().product::<usize>()).sum()
    }

    /// The numbers that steps change.
    pub(super) fn states(&self) -> Vec<&[f32]> {
        let matrices = self.matrices.iter().flat_map(|part| part.learned.state());
        matrices.chain(self.norms.iter().flat_map(|part| part.learned.state())).collect()
    }

    /// The same, to be changed before [`Student::refresh`].
    pub(super) fn states_mut(&mut self) -> Vec<&mut [f32]> {
        let matrices = self.matrices.iter_mut().flat_map(|part| part.learned.state_mut());
        matrices.chain(self.norms.iter_mut().flat_map(|part| part.learned.state_mut())).collect()
    }

    /// How many steps each of its parts has taken.
    pub(super) fn steps(&self) -> Vec<u32> {
        let matrices = self.matrices.iter().map(|part| part.learned.steps());
        matrices.chain(self.norms.iter().map(|part| part.learned.steps())).collect()
    }

    /// The same, to be changed.
    pub(super) fn steps_mut(&mut self) -> Vec<&mut u32> {
        let matrices = self.matrices.iter_mut().map(|part| part.learned.steps_mut());
        matrices.chain(self.norms.iter_mut().map(|part| part.learned.steps_mut())).collect()
    }

    /// Computes with what its numbers now are.
    pub(super) fn refresh(&mut self) -> Result<()> {
        for part in &mut self.matrices {
            part.var = variable(part.learned.weights(), &part.learned.shape())?;
        }
        for part in &mut self.norms {
            let weights = part.learned.weights();
            let count = weights.len();
            part.var = variable(weights, &[count])?;
        }
        self.place(self.tracked)
    }

    /// Moves everything one step.
    pub(super) fn step(&mut self, gradients: &Gradients, rates: Rates, norms: f32) -> Result<()> {
        for (part, gradient) in self.matrices.iter_mut().zip(&gradients.matrices) {
            part.learned.step(&gradient.flatten_all()?.to_vec1::<f32>()?, rates);
        }
        for (part, gradient) in self.norms.iter_mut().zip(&gradients.norms) {
            part.learned.step(&gradient.to_vec1::<f32>()?, norms);
        }
        self.refresh()
    }

    /// The quantized matrices as they now are, in the order in which they were given.
    pub(super) fn quantized(&self) -> Vec<QuantizedLinear> {
        self.matrices.iter().map(|part| part.learned.quantized()).collect()
    }

    /// The norms as they would be stored, by their names in GGUF without layer and ending.
    pub(super) fn stored_norms(&self) -> StoredNorms {
        self.norms.iter().map(|part| (part.stem, part.learned.stored())).collect()
    }
}

fn variable(values: Vec<f32>, shape: &[usize]) -> Result<Var> {
    Ok(Var::from_vec(values, shape, &Device::Cpu)?)
}
