//! All layers at once, against the predictions of the original model.

use std::io::{self, Read, Write};

use candle_core::{Device, Tensor, Var};
use half::f16;
use rayon::prelude::*;

use super::code_share;
use super::descent::{Objective, Stored};
use super::examples::Examples;
use super::student::{Gradients, StoredNorms, Student};
use crate::arch::decoder::{Activations, Decoder, Head, Hidden, Layer, Norm};
use crate::error::{Error, Kind, Result};
use crate::eval::divergence::Divergence;
use crate::pipeline::layerwise::Watch;
use crate::progress::{Progress, Unit};
use crate::quant::QuantizedLinear;
use crate::quant::learned::{LearnedNorm, Rates, Rule};

/// Logits that are in memory at a time, of each model.
pub(super) const LOGITS: usize = 1 << 24;

/// The share of the loss whose layers are tuned if they are chosen.
const CHOSEN: f64 = 0.9;

/// How far the longest step goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    /// Rows of a step.
    pub(super) rows: usize,
    /// Of codes, before [`code_share`], and of scales.
    pub(super) rates: Rates,
    /// Of norms, as a share of each weight.
    pub(super) norms: f32,
}

/// A quantized model whose codes, scales and norms are learned.
pub(super) struct Model<'a> {
    decoder: &'a Decoder<'a>,
    windows: Vec<Vec<u32>>,
    examples: Examples,
    students: Vec<Student>,
    norm: FinalNorm,
    head: Head,
    /// What the original model gives to its head, row by row: `[tokens, hidden]`.
    targets: Vec<Tensor>,
    pace: Pace,
    progress: &'a dyn Progress,
}

/// The norm after the last layer.
struct FinalNorm {
    norm: Norm,
    learned: LearnedNorm,
}

/// What is kept of a model.
#[derive(Clone, Debug)]
pub(in crate::pipeline) struct Kept {
    /// The matrices of each layer.
    pub(in crate::pipeline) matrices: Vec<Vec<QuantizedLinear>>,
    /// The norms of each layer as they are stored, by their names in GGUF without layer and ending.
    pub(in crate::pipeline) norms: Vec<StoredNorms>,
    /// That after the last layer.
    pub(in crate::pipeline) output_norm: Vec<f32>,
}

/// The gradients of the whole model.
pub(super) struct All {
    loss: f64,
    layers: Vec<Gradients>,
    norm: Vec<f32>,
}

impl<'a> Model<'a> {
    /// Of students of all layers; `decoder` knows embeddings, head and the last norm, `original` the original model.
    pub(super) fn new(
        decoder: &'a Decoder<'a>,
        original: &Decoder<'_>,
        windows: &[Vec<u32>],
        students: Vec<Student>,
        offset: f32,
        pace: Pace,
        watch: Watch<'a>,
    ) -> Result<Model<'a>> {
        let mut examples = Examples::split(windows, decoder);
        let windows = [windows, &examples.vary(windows, decoder)].concat();
        let mut hidden = Hidden::embed(original, &windows)?;
        watch.progress.begin("Computing the original model", original.layers() as u64, Unit::Layers);
        for layer in 0..original.layers() {
            hidden.advance(&original.layer(layer)?, &mut (), watch.cancel)?;
            watch.progress.advance(1);
        }
        watch.progress.end();
        let targets =
            (0..windows.len()).map(|row| original.norm(&hidden.window(row)?)).collect::<Result<_>>()?;
        let norm = decoder.output_norm()?;
        let learned = LearnedNorm::new(norm.weight()?.to_vec1()?, offset, Rule::Adam);
        Ok(Model {
            decoder,
            windows,
            examples,
            students,
            norm: FinalNorm { norm, learned },
            head: decoder.head_rows(0..decoder.vocab())?,
            targets,
            pace,
            progress: watch.progress,
        })
    }

    /// Learns only the layers that the model has lost most by from now on: those that bring nine tenths of what all bring when
    /// each alone computes as the original again.
    pub(super) fn choose(&mut self, original: &Decoder<'_>, watch: Watch<'_>) -> Result<()> {
        let rows = self.examples.held_out().to_vec();
        let before = self.loss(&rows, None)?;
        let mut gains = Vec::with_capacity(self.students.len());
        for layer in 0..self.students.len() {
            watch.cancel.check()?;
            let without = self.loss(&rows, Some((layer, &original.layer(layer)?)))?;
            gains.push((layer, (before - without).max(0.0)));
        }
        let total: f64 = gains.iter().map(|(_, gain)| gain).sum();
        gains.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut sum = 0.0;
        for (layer, gain) in gains {
            let share = 100.0 * gain / total;
            if sum < CHOSEN * total {
                watch.progress.info(&format!("Layer {layer} is tuned: it has {share:.1} % of the loss"));
            } else {
                watch
                    .progress
                    .detail(&format!("layer {layer} is not tuned: it has {share:.1} % of the loss"));
                self.students[layer].freeze()?;
            }
            sum += gain;
        }
        Ok(())
    }

    /// How far codes and scales go at most.
    pub(super) fn rates(&self) -> Rates {
        let weights = self.students.iter().map(Student::weights).sum();
        let Rates { positions, scales } = self.pace.rates;
        Rates { positions: positions * code_share(weights, self.examples.own_tokens()), scales }
    }

    /// What goes into each layer, and what comes out of the last; one layer may compute as another.
    fn forward(&mut self, piece: &[usize], other: Option<(usize, &Layer)>) -> Result<Vec<Tensor>> {
        let rows: Vec<&[u32]> = piece.iter().map(|row| self.windows[*row].as_slice()).collect();
        let mut states = vec![self.decoder.embed(&rows)?];
        let context = self.examples.context(piece);
        for (i, student) in self.students.iter_mut().enumerate() {
            let x = &states[i];
            let next = match other.filter(|(layer, _)| *layer == i) {
                Some((_, layer)) => layer.forward(x, context, &mut ())?,
                None => student.forward(x, context)?,
            };
            states.push(next);
        }
        Ok(states)
    }

    /// The sum of the divergences of all tokens, and its gradient with respect to what goes into the head.
    fn divergence(&self, normed: &Tensor, piece: &[usize], gradients: bool) -> Result<(f64, Option<Tensor>)> {
        let targets: Vec<&Tensor> = piece.iter().map(|row| &self.targets[*row]).collect();
        let targets = Tensor::cat(&targets, 0)?;
        let tokens = normed.dim(0)?;
        let vocab = self.decoder.vocab();
        let at_once = (LOGITS / vocab).max(1);
        let (mut sum, mut parts) = (0.0, Vec::new());
        for start in (0..tokens).step_by(at_once) {
            let count = at_once.min(tokens - start);
            let logits = |states: &Tensor| self.head.forward(&states.narrow(0, start, count)?);
            let (reference, model) = (logits(&targets)?, logits(normed)?);
            let [a, b] = [&reference, &model].map(|t| Ok::<_, Error>(t.flatten_all()?.to_vec1::<f32>()?));
            let (a, b) = (a?, b?);
            let mut gradient = vec![0.0; a.len()];
            let rows = a.par_chunks_exact(vocab).zip(b.par_chunks_exact(vocab));
            let found: Vec<f64> = rows
                .zip(gradient.par_chunks_exact_mut(vocab))
                .map(|((a, b), gradient)| Divergence::with_gradient(a, b, gradient))
                .collect();
            sum += found.iter().sum::<f64>();
            if gradients {
                let gradient = Tensor::from_vec(gradient, (count, vocab), &Device::Cpu)?;
                parts.push(self.head.backward(&model, &gradient)?);
            }
        }
        Ok((sum, if gradients { Some(Tensor::cat(&parts, 0)?) } else { None }))
    }

    /// Mean divergence of some rows' tokens.
    fn loss(&mut self, rows: &[usize], other: Option<(usize, &Layer)>) -> Result<f64> {
        let mut sum = 0.0;
        for piece in self.examples.pieces(rows) {
            let states = self.forward(&piece, other)?;
            let hidden = states[states.len() - 1].flatten_to(1)?;
            let normed = self.norm.norm.forward(&Activations::Memory(hidden))?.tensor()?;
            sum += self.divergence(&normed, &piece, false)?.0;
        }
        Ok(sum / self.examples.tokens(rows) as f64)
    }

    /// The gradients of the same. Activations of one layer are in memory at a time: each is computed again on the way back.
    fn all_gradients(&mut self, rows: &[usize]) -> Result<All> {
        let tokens = self.examples.tokens(rows) as f64;
        let layers = self.students.len();
        let mut all =
            All { loss: 0.0, layers: (0..layers).map(|_| Gradients::default()).collect(), norm: Vec::new() };
        for piece in self.examples.pieces(rows) {
            let mut states = self.forward(&piece, None)?;
            let last = states.pop().ok_or_else(|| Error::new(Kind::Other, "a model has layers"))?;
            let hidden = Var::from_tensor(&last.flatten_to(1)?)?;
            let weight = Var::from_tensor(&self.norm.norm.weight()?)?;
            self.norm.norm.replace(weight.as_tensor())?;
            let normed =
                self.norm.norm.forward(&Activations::Memory(hidden.as_tensor().clone()))?.tensor()?;
            self.norm.norm.replace(&weight.as_detached_tensor())?;
            let (sum, gradient) = self.divergence(&normed.detach(), &piece, true)?;
            all.loss += sum / tokens;
            let gradient =
                (gradient.ok_or_else(|| Error::new(Kind::Other, "a gradient was asked for"))? / tokens)?;
            let mut found = (normed * gradient)?.sum_all()?.backward()?;
            let mut take = |var: &Var| {
                found.remove(var.as_tensor()).ok_or_else(|| Error::new(Kind::Other, "a norm has a gradient"))
            };
            let of_norm = take(&weight)?.to_vec1::<f32>()?;
            all.norm.resize(of_norm.len(), 0.0);
            all.norm.iter_mut().zip(of_norm).for_each(|(sum, g)| *sum += g);
            let mut upstream = take(&hidden)?.reshape(last.shape())?;
            let first = self.students.iter().position(Student::learns).unwrap_or(layers);
            let each = self.students.iter_mut().zip(&mut all.layers).zip(states);
            for ((student, sum), x) in each.skip(first).rev() {
                let mut found = student
                    .gradients(&x, self.examples.context(&piece), |out| Ok((out * &upstream)?.sum_all()?))?;
                if let Some(input) = found.input.take() {
                    upstream = input;
                }
                sum.add(found)?;
            }
        }
        Ok(all)
    }
}

/// The loss is the mean divergence of the tokens' predictions, in nats.
impl Objective for Model<'_> {
    type Gradients = All;
    type Kept = Kept;

    fn held_out(&mut self) -> Result<f64> {
        let rows = self.examples.held_out().to_vec();
        self.loss(&rows, None)
    }

    fn gradients(&mut self, step: usize) -> Result<(f64, All)> {
        let rows = self.examples.batch(step, self.pace.rows);
        let all = self.all_gradients(&rows)?;
        self.progress.advance(1);
        let mut is_finite = all.norm.iter().all(|g| g.is_finite());
        for layer in &all.layers {
            is_finite &= layer.is_finite()?;
        }
        Ok((if is_finite { all.loss } else { f64::NAN }, all))
    }

    fn step(&mut self, gradients: &All, share: f32) -> Result<()> {
        let (rates, norms) = (self.rates().times(share), self.pace.norms * share);
        for (student, gradients) in self.students.iter_mut().zip(&gradients.layers) {
            student.step(gradients, rates, norms)?;
        }
        self.norm.learned.step(&gradients.norm, norms);
        self.norm.place()
    }

    fn keep(&self) -> Kept {
        Kept {
            matrices: self.students.iter().map(Student::quantized).collect(),
            norms: self.students.iter().map(Student::stored_norms).collect(),
            output_norm: self.norm.learned.stored(),
        }
    }

    fn restore(&mut self, kept: &Kept) -> Result<()> {
        let layers = self.students.iter_mut().zip(&kept.matrices).zip(&kept.norms);
        for ((student, matrices), norms) in layers {
            student.restore(matrices, norms)?;
        }
        self.norm.learned.reset(&kept.output_norm);
        self.norm.place()
    }
}

impl Stored for Model<'_> {
    fn bytes(&self, kept: &Kept) -> u64 {
        let numbers: usize = self.states().iter().map(|state| size_of_val(*state)).sum();
        let steps = 4 * (self.students.iter().map(Student::parts).sum::<usize>() + 1);
        let linears = kept.matrices.iter().flatten();
        let codes: usize = linears.map(|linear| linear.codes().len() + 2 * linear.scales().len()).sum();
        let norms: usize = kept.norms.iter().flatten().map(|(_, norm)| size_of_val(norm.as_slice())).sum();
        (numbers + steps + codes + norms + size_of_val(kept.output_norm.as_slice())) as u64
    }

    fn write(&self, kept: &Kept, out: &mut dyn Write) -> io::Result<()> {
        for student in &self.students {
            student.steps().into_iter().try_for_each(|steps| out.write_all(&steps.to_le_bytes()))?;
        }
        out.write_all(&self.norm.learned.steps().to_le_bytes())?;
        self.states().into_iter().try_for_each(|state| write_floats(state, out))?;
        for linear in kept.matrices.iter().flatten() {
            out.write_all(linear.codes())?;
            linear.scales().iter().try_for_each(|scale| out.write_all(&scale.to_le_bytes()))?;
        }
        for (_, norm) in kept.norms.iter().flatten() {
            write_floats(norm, out)?;
        }
        write_floats(&kept.output_norm, out)
    }

    fn read(&mut self, input: &mut dyn Read) -> Result<Kept> {
        for student in &mut self.students {
            for steps in student.steps_mut() {
                *steps = read_number(input)?;
            }
        }
        *self.norm.learned.steps_mut() = read_number(input)?;
        for student in &mut self.students {
            student.states_mut().into_iter().try_for_each(|state| read_floats(state, input))?;
            student.refresh()?;
        }
        self.norm.learned.state_mut().into_iter().try_for_each(|state| read_floats(state, input))?;
        self.norm.place()?;
        let mut kept = self.keep();
        for linear in kept.matrices.iter_mut().flatten() {
            let mut codes = vec![0; linear.codes().len()];
            input.read_exact(&mut codes).map_err(unreadable)?;
            let mut scales = vec![0; 2 * linear.scales().len()];
            input.read_exact(&mut scales).map_err(unreadable)?;
            let scales = scales.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
            let (shape, zeros) = ([linear.out_features(), linear.in_features()], linear.zeros().to_vec());
            *linear =
                QuantizedLinear::new(shape, linear.grid(), codes, scales, zeros, None).map_err(|e| {
                    Error::new(Kind::Checkpoint, "the checkpoint's state of tuning is damaged").because(e)
                })?;
        }
        for (_, norm) in kept.norms.iter_mut().flatten() {
            read_floats(norm, input)?;
        }
        read_floats(&mut kept.output_norm, input)?;
        Ok(kept)
    }
}

impl Model<'_> {
    fn states(&self) -> Vec<&[f32]> {
        let layers = self.students.iter().flat_map(Student::states);
        layers.chain(self.norm.learned.state()).collect()
    }
}

fn write_floats(values: &[f32], out: &mut dyn Write) -> io::Result<()> {
    let mut bytes = Vec::new();
    for values in values.chunks(1 << 16) {
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn read_floats(values: &mut [f32], input: &mut dyn Read) -> Result<()> {
    input.read_exact(bytemuck::cast_slice_mut(values)).map_err(unreadable)?;
    values.iter_mut().for_each(|v| *v = f32::from_bits(u32::from_le(v.to_bits())));
    Ok(())
}

fn read_number(input: &mut dyn Read) -> Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes).map_err(unreadable)?;
    Ok(u32::from_le_bytes(bytes))
}

fn unreadable(e: io::Error) -> Error {
    Error::new(Kind::Checkpoint, "the checkpoint's state of tuning cannot be read").because(e)
}

impl FinalNorm {
    fn place(&mut self) -> Result<()> {
        let weights = self.learned.weights();
        let count = weights.len();
        self.norm.replace(&Tensor::from_vec(weights, count, &Device::Cpu)?)
    }
}
