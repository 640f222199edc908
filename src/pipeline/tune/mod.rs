//! Quantized matrices tuned by gradients: codes and scales learned against what the original model makes.

mod block;
mod descent;
mod examples;
mod need;
pub mod report;
mod student;
mod whole;

use std::time::Duration;

use regex::Regex;

use crate::arch::Model;
use crate::arch::decoder::{Decoder, Hidden, Layer};
use crate::error::{Error, Kind, Result};
use crate::pipeline::checkpoint::Identity;
use crate::pipeline::layerwise::{Matrix, Watch};
use crate::progress::Unit;
use crate::quant::QuantizedLinear;
use crate::quant::learned::{Rates, Rule};
use crate::source::dense::Dense;
use block::Lesson;
pub(in crate::pipeline) use descent::Store;
use descent::{Decay, Schedule, descend, descend_stored};
use examples::Examples;
pub(super) use examples::{HELD_OUT, VARIANTS};
pub(super) use need::Need;
use report::Curve;
pub(super) use student::Quantized;
use student::Student;
use whole::Pace;

/// Rows of a step.
pub(super) const ROWS: usize = 8;

/// Usual steps for each layer.
pub const BLOCK_STEPS: usize = 200;

/// Usual steps for the whole model.
pub const WHOLE_STEPS: usize = 280;

/// Steps between two looks at the held-out rows: of a layer, and of the whole model.
const BLOCK_LOOK: usize = 10;
pub(super) const WHOLE_LOOK: usize = 7;

/// How far scales go, as a share of themselves, while codes go one: in the tuning of a layer.
const BLOCK_SCALES: f32 = 0.1;

/// How far codes go at most in a step of the whole model, up to [`WEIGHTS_PER_TOKEN`].
const WHOLE_RATE: f32 = 0.02;

/// Up to so many weights for each token that is learned from, codes go as far as the rate says, and less far with more
/// ([`code_share`]).
const WEIGHTS_PER_TOKEN: f64 = 256.0;

/// How far scales and norms go, as a share of themselves, while codes go one: in the tuning of the whole model. Most of what is
/// gained comes of them, and it holds on other rows; of codes alone, rows are learned by heart.
const WHOLE_SCALES: f32 = 0.3;
const WHOLE_NORMS: f32 = 0.15;

/// How long a descent through the whole model goes on before its state is kept again.
const STATE_EVERY: Duration = Duration::from_secs(60);

/// What is tuned, and how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Steps for each layer; 0 leaves layers as they are.
    pub block_steps: usize,
    /// Steps for the whole model after that; 0 leaves it as it is.
    pub whole_steps: usize,
    /// How far codes go at most in a step; none for the usual.
    pub rate: Option<f32>,
    /// What is tuned.
    pub layers: Layers,
}

/// Which matrices are tuned.
#[derive(Clone, Debug)]
pub enum Layers {
    /// All that are quantized.
    All,
    /// Those of the layers that the model has lost most by. Of use for the whole model only.
    Auto,
    /// Those whose name matches.
    Matching(Regex),
}

impl Settings {
    /// Tunes the layers that the model has lost most by, against its predictions.
    pub(super) fn worst() -> Settings {
        Settings { block_steps: 0, whole_steps: WHOLE_STEPS, rate: None, layers: Layers::Auto }
    }

    /// What of them decides the result.
    pub(super) fn identify(&self, identity: Identity) -> Identity {
        let layers = match &self.layers {
            Layers::All => "all",
            Layers::Auto => "auto",
            Layers::Matching(pattern) => pattern.as_str(),
        };
        identity
            .with("tune block steps", self.block_steps)
            .with("tune global steps", self.whole_steps)
            .with("tune-rate", self.rate)
            .with("tune-layers", layers)
    }

    /// Refuses a model that cannot be tuned.
    ///
    /// # Errors
    /// `Unsupported` for a mixture of experts: gradients do not flow through its routing.
    pub(super) fn check_model(&self, model: &Model) -> Result<()> {
        if !can_tune(model) {
            return Err(Error::new(Kind::Unsupported, "--tune is not possible for a mixture of experts")
                .hint("Leave --tune out."));
        }
        Ok(())
    }

    /// Refuses too few calibration rows, before the work.
    ///
    /// # Errors
    /// `Usage` if there are less than one of which can be held out.
    pub(super) fn check_rows(&self, rows: usize) -> Result<()> {
        if rows < examples::HELD_OUT {
            let message = format!(
                "--tune needs at least {} calibration rows, one of which is held out; there are {rows}",
                examples::HELD_OUT
            );
            return Err(Error::new(Kind::Usage, message)
                .hint("Pass more calibration data, or shorter rows with --seq-len."));
        }
        Ok(())
    }

    fn includes(&self, matrix: &Matrix) -> bool {
        match &self.layers {
            Layers::All | Layers::Auto => true,
            Layers::Matching(pattern) => pattern.is_match(&matrix.name),
        }
    }

    /// The matrices of a layer that are tuned, and all of them as they were quantized from `weights`.
    ///
    /// # Errors
    /// `Invalid` if a weight is not finite.
    pub(super) fn prepare<'a>(
        &self,
        matrices: &'a [Matrix],
        quantized: &'a [QuantizedLinear],
        weights: &dyn Dense,
    ) -> Result<(Vec<Matrix>, Vec<Quantized<'a>>)> {
        let chosen = matrices.iter().filter(|matrix| self.includes(matrix)).cloned().collect();
        let all = matrices.iter().zip(quantized).map(|(matrix, linear)| {
            let weights = self.includes(matrix).then(|| matrix.read(weights)).transpose()?;
            Ok(Quantized { matrix, linear, weights })
        });
        Ok((chosen, all.collect::<Result<_>>()?))
    }
}

/// How far codes go, as a share of the rate, where `weights` are learned from `tokens`. Of each weight a step's gradient says
/// something and is chance for the rest, the more so the more weights there are for each token: the ratio of the two falls with
/// the root of that number. What is learned adds up over the steps, chance too, to the root of their number; so steps are
/// shorter in the same ratio.
fn code_share(weights: usize, tokens: usize) -> f32 {
    (WEIGHTS_PER_TOKEN * tokens as f64 / weights.max(1) as f64).sqrt().min(1.0) as f32
}

/// Whether gradients flow through the model.
pub(super) fn can_tune(model: &Model) -> bool {
    model.hyper.experts == 0
}

/// Tunes layer after layer on the way through the model.
pub(in crate::pipeline) struct Blocks<'a> {
    settings: &'a Settings,
    examples: Examples,
    /// What the original layers have made so far.
    original: Hidden,
    schedule: Schedule,
    rates: Rates,
}

impl<'a> Blocks<'a> {
    /// Begins at the first layer, whose inputs are `hidden`.
    pub(super) fn new(
        settings: &'a Settings,
        decoder: &Decoder<'_>,
        windows: &[Vec<u32>],
        original: Hidden,
    ) -> Result<Blocks<'a>> {
        let rate = settings.rate.unwrap_or(1.0 / settings.block_steps as f32);
        let schedule = Schedule { steps: settings.block_steps, look: BLOCK_LOOK, decay: Decay::Linear };
        Ok(Blocks {
            settings,
            examples: Examples::split(windows, decoder),
            original,
            schedule,
            rates: Rates { positions: rate, scales: rate * BLOCK_SCALES },
        })
    }

    /// What is tuned.
    pub(super) fn settings(&self) -> &'a Settings {
        self.settings
    }

    /// What the original layers have made so far.
    pub(super) fn original(&self) -> &Hidden {
        &self.original
    }

    /// Tunes a layer. `inputs` are the hidden states before it, `layer` computes as the file will say with whatever in place
    /// of the quantized matrices, `original` is the original one. None if nothing in it is tuned.
    pub(super) fn tune(
        &mut self,
        index: usize,
        inputs: &Hidden,
        layer: Layer,
        original: &Layer,
        matrices: Vec<Quantized<'_>>,
        watch: Watch<'_>,
    ) -> Result<Option<(Vec<QuantizedLinear>, Curve)>> {
        self.original.advance(original, &mut (), watch.cancel)?;
        let student = Student::new(layer, matrices, Rule::Sign)?;
        if !student.learns() {
            return Ok(None);
        }
        let mut lesson = Lesson {
            student,
            examples: &self.examples,
            inputs,
            targets: &self.original,
            rows: ROWS,
            rates: self.rates,
        };
        let (tuned, curve) = descend(format!("layer {index}"), &mut lesson, self.schedule, watch)?;
        watch.progress.detail(&format!(
            "layer {index}: loss on held-out rows {:.4e}, was {:.4e}; {:.1} s",
            curve.best().unwrap_or_default(),
            curve.start().unwrap_or_default(),
            curve.seconds
        ));
        Ok(Some((tuned, curve)))
    }
}

/// Tunes all layers at once.
pub(in crate::pipeline) struct Whole<'a> {
    settings: &'a Settings,
    model: &'a Model,
    decoder: &'a Decoder<'a>,
    original: &'a Decoder<'a>,
    students: Vec<Student>,
}

impl<'a> Whole<'a> {
    /// `decoder` computes as the file will say with whatever in place of the quantized matrices, `original` is the original
    /// model. Layers are to be added.
    pub(super) fn new(
        settings: &'a Settings,
        model: &'a Model,
        decoder: &'a Decoder<'a>,
        original: &'a Decoder<'a>,
    ) -> Whole<'a> {
        Whole { settings, model, decoder, original, students: Vec::new() }
    }

    /// Adds the next layer, with its quantized matrices and their original weights.
    pub(super) fn add(&mut self, matrices: Vec<Quantized<'_>>) -> Result<()> {
        let learns = matrices.iter().any(|quantized| quantized.weights.is_some());
        let layer = self.decoder.layer(self.students.len())?;
        let mut student = Student::new(layer, matrices, Rule::Adam)?;
        if learns {
            student.learn_norms(self.model.spec.norm_offset, Rule::Adam)?;
        }
        self.students.push(student);
        Ok(())
    }

    /// Tunes all layers, which were added.
    pub(super) fn tune(
        self,
        windows: &[Vec<u32>],
        store: Option<&mut dyn Store>,
        watch: Watch<'a>,
    ) -> Result<(whole::Kept, Curve)> {
        let Whole { settings, model, decoder, original, students } = self;
        let offset = model.spec.norm_offset;
        let rate = settings.rate.unwrap_or(WHOLE_RATE);
        let rates = Rates { positions: rate, scales: rate * WHOLE_SCALES };
        let pace = Pace { rows: ROWS, rates, norms: rate * WHOLE_NORMS };
        let mut whole = whole::Model::new(decoder, original, windows, students, offset, pace, watch)?;
        if matches!(settings.layers, Layers::Auto) {
            whole.choose(original, watch)?;
        }
        let most = whole.rates();
        watch.progress.detail(&format!(
            "in a step codes go {:.2e} at most, scales {:.2e} of themselves, norms {:.2e}",
            most.positions, most.scales, pace.norms
        ));
        let schedule = Schedule { steps: settings.whole_steps, look: WHOLE_LOOK, decay: Decay::Cosine };
        let taken = store.as_ref().and_then(|store| store.note()).map_or(0, |(step, _)| step);
        let left = settings.whole_steps.saturating_sub(taken) as u64;
        watch.progress.begin("Tuning the model", left, Unit::Steps);
        let tuned = match store {
            Some(store) => descend_stored("model".into(), &mut whole, schedule, store, STATE_EVERY, watch),
            None => descend("model".into(), &mut whole, schedule, watch),
        };
        watch.progress.end();
        if let Ok((_, curve)) = &tuned {
            watch.progress.info(&format!(
                "KL divergence on held-out rows: {:.6}, before tuning {:.6}; that of step {} is kept",
                curve.best().unwrap_or(f64::NAN),
                curve.start().unwrap_or(f64::NAN),
                curve.kept
            ));
        }
        tuned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_less_far_where_there_are_many_weights_for_each_token() {
        for (weights, tokens, share) in
            [(1000, 1000, 1.0), (256_000, 1000, 1.0), (1_024_000, 1000, 0.5), (25_600, 1, 0.1), (0, 0, 0.0)]
        {
            assert!((code_share(weights, tokens) - share).abs() < 1e-6, "{weights} weights, {tokens} tokens");
        }
    }
}
