//! How much memory quantizing layer by layer takes, and which of its plans fits.

use std::collections::BTreeMap;

use super::Matrix;
use super::matrices::step_of;
use crate::arch::Model;
use crate::arch::decoder::{Compute, Input, Step};
use crate::backend::Backend;
use crate::error::Result;
use crate::pipeline::memory::{self, Budget};
use crate::pipeline::tune;
use crate::progress::Progress;
use crate::quant::gptq;

/// What is kept in memory and what is not; the bytes of the result do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frugality {
    /// Whether the inputs of down are computed twice instead of being kept.
    pub(super) low_memory: bool,
    /// Whether hidden states are on the disk.
    pub(super) offload: bool,
}

/// What decides how much memory is needed.
pub(super) struct Need<'a> {
    pub(super) model: &'a Model,
    pub(super) matrices: &'a [Vec<Matrix>],
    pub(super) windows: &'a [Vec<u32>],
    pub(super) threads: usize,
    pub(super) backend: &'a dyn Backend,
    /// How the quantized matrices are tuned, if they are: hidden states are never on the disk then.
    pub(super) tune: Option<&'a tune::Settings>,
}

impl Need<'_> {
    /// The first plan from `asked` on, each more frugal than the one before, that fits.
    ///
    /// # Errors
    /// `Resources`, saying how much is missing, if none does.
    pub(super) fn choose(
        &self,
        asked: Frugality,
        budget: Budget,
        progress: &dyn Progress,
    ) -> Result<Frugality> {
        let Some(allowed) = budget.bytes() else { return Ok(asked) };
        let least = Frugality { low_memory: true, offload: self.tune.is_none() };
        let plans = [asked, Frugality { low_memory: true, ..asked }, least];
        let Some(chosen) = plans.into_iter().find(|plan| budget.allows(self.bytes(*plan))) else {
            let hint = match self.tune {
                None => "Give it more memory, or take fewer --threads or a shorter --seq-len.",
                Some(_) => {
                    "Give it more memory, take fewer --calibration-samples or a shorter --seq-len, or leave --tune out."
                }
            };
            return budget.require(self.bytes(least), hint).map(|()| least);
        };
        if chosen != asked {
            progress.info(&format!(
                "Memory: {} bytes would be needed and {allowed} are allowed; going on as with {}",
                self.bytes(asked),
                if chosen.offload { "--offload" } else { "--low-memory" }
            ));
        }
        Ok(chosen)
    }

    /// An upper bound of what the job allocates, in bytes.
    fn bytes(&self, plan: Frugality) -> u64 {
        let states = memory::states(self.model, self.windows);
        let in_memory = match (plan.offload, plan.low_memory) {
            (true, _) => 0,
            (false, true) => states,
            (false, false) => states + self.held(),
        };
        let (mut in_layers, mut in_whole) = (self.solving(), 0);
        let mut kept = in_memory + memory::computing(self.model, Compute::F32, self.windows);
        if let Some(tune) = self.tune {
            let (model, matrices, windows) = (self.model, self.matrices, self.windows);
            let tuning = tune::Need { settings: tune, model, matrices, windows };
            kept += tuning.states() + tuning.deferred();
            in_layers = in_layers.max(tuning.layer());
            in_whole = tuning.whole();
        }
        memory::program(self.model, self.threads) + (kept + in_layers).max(in_whole)
    }

    /// What is kept of all tokens between two steps of a layer: the inputs of the projection after attention, or of down.
    fn held(&self) -> u64 {
        let h = &self.model.hyper;
        let tokens: usize = self.windows.iter().map(Vec::len).sum();
        let down = memory::inner(self.model) * h.experts_used.max(1);
        4 * (tokens * down.max(h.heads * h.head_dim)) as u64
    }

    /// The experts of a layer that are solved together with another: the factors of their Hessians, and their weights before and
    /// after with their codes.
    fn more_experts(&self, matrices: &[Matrix]) -> u64 {
        let of_experts = [Input::Expert as fn(usize) -> Input, Input::ExpertDown].map(|input| {
            let first = || matrices.iter().filter(|m| m.input == input(0));
            let Some([rows, size]) = first().next().map(|m| m.shape) else { return 0 };
            let weights: usize = first().map(Matrix::weights).sum();
            let more = self.backend.problems_at_once(rows).min(self.model.hyper.experts).saturating_sub(1);
            (more * (4 * size * size + 9 * weights)) as u64
        });
        of_experts.into_iter().max().unwrap_or(0)
    }

    /// The matrices at which a layer stops, with what their inputs have summed up to, and the results of a layer.
    fn solving(&self) -> u64 {
        let square = |size: usize| 4 * (size * size) as u64;
        let layers = self.matrices.iter().map(|matrices| {
            let stops = Step::ALL.map(|step| {
                let inputs: BTreeMap<Input, usize> = matrices
                    .iter()
                    .filter(|m| step_of(m.input) == Some(step))
                    .map(|m| (m.input, m.shape[1]))
                    .collect();
                inputs.into_values().map(square).sum::<u64>()
            });
            let sums = stops.into_iter().max().unwrap_or(0);
            let widest = matrices.iter().map(|m| m.shape[1]).max().unwrap_or(0);
            let largest = matrices.iter().map(Matrix::weights).max().unwrap_or(0);
            let weights: usize = matrices.iter().map(Matrix::weights).sum();
            // The Hessian in two orders and its factor; weights before and after with their codes; the rows that each thread is at,
            // with scales, zero points, errors and products; the layer's codes, packed and as they go into the checkpoint.
            let rows = (self.threads * gptq::ROWS * widest * 40) as u64;
            sums + 3 * square(widest)
                + (14 * largest) as u64
                + rows
                + (2 * weights) as u64
                + self.more_experts(matrices)
        });
        layers.max().unwrap_or(0)
    }
}
