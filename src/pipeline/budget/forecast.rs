//! What the stages would cost, before anything is done.

use std::collections::BTreeMap;
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use super::search::{ISLAND_SHARE, ISLANDS, MORE_BITS};
use super::{Config, Stage};
use crate::arch::decoder::Input;
use crate::error::Result;
use crate::pipeline::checkpoint::Settings;
use crate::pipeline::evaluate::in_pool;
use crate::pipeline::layerwise::{Matrix, matrices};
use crate::pipeline::model::OpenModel;
use crate::pipeline::profile::{Method, Precision, options};
use crate::pipeline::quiet::Quiet;
use crate::progress::Progress;
use crate::quant::gemm::{View, multiply};

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
    let plain_bytes = place.prepare(&config.source, &quiet)?.bytes();
    let work = Operations { matrices: &matrices, head: head(&opened), method: &method };
    let skip = config.recipe.skip();
    let units = options(&matrices, &method, skip);
    let trials: usize = units.iter().map(|unit| unit.len() - 1).sum();
    let size = |of: &dyn Fn(&[(Precision, u64)]) -> u64| units.iter().map(|unit| of(unit)).sum::<u64>();
    let most = size(&|unit| unit[unit.len().saturating_sub(2)].1);
    let whole = size(&|unit| unit.last().map_or(0, |(_, bytes)| *bytes));
    let quantized: u64 = plain_bytes.min(most);
    let others = plain_bytes.saturating_sub(quantized);
    let judged = tokens.judged as f64;
    let measure = judged * (work.model() + 2.0 * work.head);
    let result = work.quantize(tokens.calibration as f64) + measure;
    let profile = work.profile(tokens, trials);
    let operations_per_second = in_pool(config.threads, || Ok(speed()))?;
    let stage = |stage, file_size, operations: f64| StageForecast {
        stage,
        file_size,
        operations,
        seconds: operations / operations_per_second,
    };
    let least_bytes = size(&|unit| unit[0].1);
    let island = (ISLAND_SHARE * whole.saturating_sub(least_bytes) as f64) as u64;
    let mut stages = vec![stage(Stage::Plain, [plain_bytes; 2], result + judged * work.model())];
    let precisions = units.iter().map(Vec::len).max().unwrap_or(0);
    if precisions > 2 {
        let at_most = plain_bytes.max(others + most);
        stages.push(stage(
            Stage::MoreBits,
            [plain_bytes.min(others + least_bytes), at_most],
            profile + MORE_BITS as f64 * result,
        ));
    }
    let first = if precisions > 2 { 0.0 } else { profile };
    let largest = stages.last().map_or(plain_bytes, |stage| stage.file_size[1]);
    stages.push(stage(Stage::Island, [plain_bytes, largest + island], first + ISLANDS as f64 * result));
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
