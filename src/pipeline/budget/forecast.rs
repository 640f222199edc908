//! What the stages would cost, before anything is done.

use std::collections::BTreeMap;
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use super::search::{ISLAND_SHARE, ISLANDS, MORE_BITS};
use super::{Config, Stage};
use crate::arch::decoder::Input;
use crate::error::Result;
use crate::matmul::{View, multiply};
use crate::pipeline::checkpoint::Settings;
use crate::pipeline::evaluate::in_pool;
use crate::pipeline::layerwise::{Matrix, matrices};
use crate::pipeline::model::OpenModel;
use crate::pipeline::profile::{Method, UnitProfile, options_of, sizes};
use crate::pipeline::quiet::Quiet;
use crate::pipeline::recipe::Recipe;
use crate::pipeline::tune;
use crate::progress::Progress;

/// Passes over the Hessian that a weight takes in GPTQ: the solver and its sweeps.
const SOLVER_PASSES: f64 = 4.0;

/// What one stage would cost.
#[derive(Clone, Debug, Serialize)]
pub struct StageForecast {
    /// The stage.
    pub stage: Stage,
    /// Bytes of a result of it: at least and at most.
    pub file_size: [u64; 2],
    /// Multiplications and additions, if the stage is entered and takes as many results as it may.
    pub operations: f64,
    /// Seconds that they take at the speed of this machine's matrix products. The real time is longer: there is more to do
    /// than products.
    pub seconds: f64,
}

/// What all stages would cost. Only the first is always entered.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    /// Multiplications and additions per second, measured on a product of matrices.
    pub operations_per_second: f64,
    /// Precisions of units that are measured by themselves, if it comes to that.
    pub trials: usize,
    /// The stages in order.
    pub stages: Vec<StageForecast>,
}

/// How many tokens go through the model.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    /// To calibrate with.
    pub calibration: usize,
    /// Of each of its rows.
    pub row: usize,
    /// To find sensitivities on.
    pub held_out: usize,
    /// To measure results on.
    pub judged: usize,
}

/// Predicts the cost of all stages.
///
/// # Errors
/// What the model does not allow.
pub fn forecast(config: &Config<'_>, tokens: Tokens, progress: &dyn Progress) -> Result<Forecast> {
    let quiet = Quiet(progress);
    let opened = OpenModel::unquantized(config.source.clone(), &config.ignore_config, &quiet)?;
    let matrices = matrices::find(&opened.model, &*opened.weights)?;
    let method = config.recipe.method(&config.group_sizes);
    let place = config.recipe.placed(config.recipe.output().0.to_owned(), Settings::default());
    let job = place.prepare(&config.source, &quiet)?;
    let work = Operations { matrices: &matrices, head: head(&opened), method: &method };
    let units = sizes(&matrices, &method, config.recipe.skip());
    let trials: usize = units.iter().map(|unit| unit.options.len() - 1).sum();
    let bytes = |of: &dyn Fn(&UnitProfile) -> usize| {
        units.iter().map(|unit| unit.options[of(unit)].bytes).sum::<u64>()
    };
    let [least, most, whole] =
        [bytes(&|_| 0), bytes(&|u| u.options.len() - 2), bytes(&|u| u.options.len() - 1)];
    let chosen = options_of(&units, &job.precisions());
    let own: u64 = units.iter().zip(chosen).map(|(unit, option)| unit.options[option].bytes).sum();
    // What is in the file beside the units.
    let others = job.bytes().saturating_sub(own);
    let weights: u64 = units.iter().map(|unit| unit.weights).sum();
    let plain = match (config.target, &config.recipe) {
        (None, _) => job.bytes(),
        (Some(target), Recipe::Gguf(_)) => (target / 8.0 * job.parameters() as f64) as u64,
        (Some(target), _) => others + (target / 8.0 * weights as f64) as u64,
    };
    let judged = if config.limit.is_some() { tokens.judged as f64 } else { 0.0 };
    let result = work.quantize(tokens.calibration as f64) + judged * (work.model() + 2.0 * work.head);
    let profile = work.profile(tokens, trials);
    let (before, after) = if config.target.is_some() { (profile, 0.0) } else { (0.0, profile) };
    let operations_per_second = in_pool(config.threads, || Ok(speed()))?;
    let stage = |stage, file_size, operations: f64| StageForecast {
        stage,
        file_size,
        operations,
        seconds: operations / operations_per_second,
    };
    let island =
        |from: u64| from + (ISLAND_SHARE * whole.saturating_sub(from.saturating_sub(others)) as f64) as u64;
    let mut stages = vec![stage(Stage::Plain, [plain; 2], before + result + judged * work.model())];
    let has_more = units.iter().any(|unit| unit.options.len() > 2);
    if has_more {
        let sizes = [plain.min(others + least), plain.max(others + most)];
        stages.push(stage(Stage::MoreBits, sizes, after + MORE_BITS as f64 * result));
    }
    let enough = tokens.calibration >= tune::HELD_OUT * tokens.row;
    if enough && config.recipe.tuned(&opened.model).is_some() {
        let most = if has_more { plain.max(others + most) } else { plain };
        let first = if has_more { 0.0 } else { after };
        stages.push(stage(Stage::Tuning, [plain, most], first + result + work.tune(tokens)));
    }
    let (first, largest) = if has_more { (0.0, plain.max(others + most)) } else { (after, plain) };
    stages.push(stage(Stage::Island, [plain, island(largest)], first + ISLANDS as f64 * result));
    Ok(Forecast { operations_per_second, trials, stages })
}

/// Counts multiplications and additions.
struct Operations<'a> {
    matrices: &'a [Vec<Matrix>],
    /// Of a token's logits.
    head: f64,
    method: &'a Method,
}

impl Operations<'_> {
    fn all(&self) -> impl Iterator<Item = &Matrix> {
        self.matrices.iter().flatten()
    }

    /// A token's way through all layers.
    fn model(&self) -> f64 {
        2.0 * self.all().map(|m| m.weights() as f64).sum::<f64>()
    }

    /// The Gram matrices of a token; those of inputs that several matrices share count once.
    fn grams(&self) -> f64 {
        let mut sum = 0.0;
        for layer in self.matrices {
            let inputs: BTreeMap<Input, usize> = layer.iter().map(|m| (m.input, m.shape[1])).collect();
            sum += inputs.values().map(|size| (*size as f64).powi(2)).sum::<f64>();
        }
        sum
    }

    /// Solving for the codes of all matrices.
    fn solve(&self) -> f64 {
        2.0 * SOLVER_PASSES * self.all().map(|m| m.weights() as f64 * m.shape[1] as f64).sum::<f64>()
    }

    fn quantize(&self, calibration: f64) -> f64 {
        match self.method {
            Method::Gguf { .. } => 0.0,
            _ => calibration * (self.model() + self.grams()) + self.solve(),
        }
    }

    /// Tuning of all layers: the original model on all rows; the choice of layers, each of which is left out in turn; the way
    /// forward, and back with each layer computed again; the head for both models, and back.
    fn tune(&self, tokens: Tokens) -> f64 {
        let original = (tokens.calibration * (1 + tune::VARIANTS)) as f64;
        let learned = (tune::WHOLE_STEPS * tune::ROWS * tokens.row) as f64;
        let looks = tune::WHOLE_STEPS / tune::WHOLE_LOOK + self.matrices.len();
        let judged = (looks * (tokens.calibration / tune::HELD_OUT)) as f64;
        original * self.model()
            + learned * (4.0 * self.model() + 3.0 * self.head)
            + judged * (self.model() + 2.0 * self.head)
    }

    /// Finding sensitivities: a trial costs half of the layers on average.
    fn profile(&self, tokens: Tokens, trials: usize) -> f64 {
        let statistics = tokens.calibration as f64 * (self.model() + self.grams());
        let units_per_matrix = trials as f64 / self.all().count().max(1) as f64;
        let solve = if matches!(self.method, Method::Gguf { .. }) { 0.0 } else { self.solve() };
        let errors = solve / SOLVER_PASSES;
        let forward = tokens.held_out as f64 * (self.model() / 2.0 + 2.0 * self.head);
        statistics + units_per_matrix * (solve + errors) + trials as f64 * forward
    }
}

fn head(opened: &OpenModel) -> f64 {
    let hyper = &opened.model.hyper;
    2.0 * (hyper.vocab * hyper.hidden) as f64
}

/// Multiplications and additions per second of all threads together.
fn speed() -> f64 {
    const SIZE: usize = 512;
    let pieces = 4 * rayon::current_num_threads();
    let values = vec![0.5f32; SIZE * SIZE];
    let view = || View::block(&values, SIZE, 0..SIZE, 0..SIZE);
    let started = Instant::now();
    (0..pieces).into_par_iter().for_each(|_| {
        let mut out = vec![0.0; SIZE * SIZE];
        multiply(&mut out, SIZE, 0.0, 1.0, view(), view());
        std::hint::black_box(&out);
    });
    2.0 * (pieces * SIZE.pow(3)) as f64 / started.elapsed().as_secs_f64().max(1e-9)
}
