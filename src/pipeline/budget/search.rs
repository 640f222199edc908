//! The stages after plain quantization.

use std::time::Instant;

use super::stage::{Attempt, BudgetReport, Stage};
use super::{Done, Ended, Limit, Made, Work, remove, whole_type};
use crate::error::{Kind, Result};
use crate::pipeline::checkpoint::Checkpoint;
use crate::pipeline::evaluate::{Judge, in_pool};
use crate::pipeline::model::OpenModel;
use crate::pipeline::profile::{Front, Item, Precision, Sensitivities, options_of};
use crate::pipeline::quiet::Quiet;
use crate::pipeline::recipe::Finished;
use crate::pipeline::tune;

/// How much of the limit is aimed at: losses of units do not quite add up.
const MARGIN: f64 = 0.97;

/// Most results that a stage makes: each corrects what the one before has shown of how losses add up.
pub(super) const MORE_BITS: usize = 3;
pub(super) const ISLANDS: usize = 2;

/// Most of what 16 bits in all units would take more that 16 bits in some may take.
pub(super) const ISLAND_SHARE: f64 = 0.25;

/// On the way to a result that keeps to the limit.
pub(super) struct Search<'a> {
    work: Work<'a>,
    limit: Limit,
    judge: Judge<'a>,
    /// What the original took to go through the text.
    judge_seconds: f64,
    attempts: Vec<Attempt>,
    /// The attempt that is kept, and its report.
    best: Option<(usize, Finished)>,
    found: Option<Sensitivities>,
    /// Whether the next attempt has the format's best precision in every unit.
    at_highest: bool,
}

/// Where the search is: what units have, whether layers are tuned, and how much of the limit each expected nat takes.
struct State {
    options: Vec<usize>,
    tuned: bool,
    used_per_nat: f64,
}

impl<'a> Search<'a> {
    pub(super) fn new(mut work: Work<'a>, limit: Limit, found: Option<Sensitivities>) -> Result<Search<'a>> {
        let started = Instant::now();
        let judge = work.judge()?;
        let judge_seconds = started.elapsed().as_secs_f64();
        Ok(Search {
            work,
            limit,
            judge,
            judge_seconds,
            attempts: Vec::new(),
            best: None,
            found,
            at_highest: false,
        })
    }

    /// Goes on from plain quantization, whose precisions are `precisions`.
    pub(super) fn run(
        mut self,
        mut plain: Made,
        precisions: &[(String, Precision, u64)],
        profile_seconds: f64,
        predicted: Option<f64>,
    ) -> Result<Ended> {
        let checkpoint = plain.checkpoint.take();
        let searched = self.stages(plain, precisions, profile_seconds, predicted);
        match (searched, checkpoint) {
            (Ok(()), checkpoint) => Ok(self.end(checkpoint)),
            (Err(e), Some(checkpoint)) => Err(checkpoint.end_early(e, self.work.progress)),
            (Err(e), None) => Err(e),
        }
    }

    fn stages(
        &mut self,
        plain: Made,
        precisions: &[(String, Precision, u64)],
        profile_seconds: f64,
        predicted: Option<f64>,
    ) -> Result<()> {
        if self.attempt(Stage::Plain, plain, profile_seconds, predicted)? {
            return Ok(());
        }
        let started = Instant::now();
        let found = match self.found.take() {
            Some(found) => found,
            None => self.work.sensitivities()?,
        };
        let seconds = started.elapsed().as_secs_f64();
        let options = options_of(&found.units, precisions);
        let mut state =
            State { used_per_nat: self.used_per_nat(found.loss(&options)), options, tuned: false };
        let _ = self.more_bits(&found, &mut state, seconds)?
            || self.tuning(&found, &mut state)?
            || self.island(&found, &mut state)?;
        Ok(())
    }

    /// More bits for the units that lose most. Whether the limit is kept then.
    fn more_bits(&mut self, found: &Sensitivities, state: &mut State, seconds: f64) -> Result<bool> {
        let front = found.front(false);
        let mut seconds = seconds;
        for _ in 0..MORE_BITS {
            let wanted = front.below(MARGIN / state.used_per_nat);
            let Some(allocation) = wanted.or_else(|| front.lowest()) else { break };
            if allocation.options == state.options {
                break;
            }
            self.at_highest = front.lowest().is_some_and(|lowest| lowest.options == allocation.options);
            state.options = allocation.options;
            if self.try_options(Stage::MoreBits, found, state, std::mem::take(&mut seconds))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Gradients for the layers that the model has lost most by. Whether the limit is kept then; if tuning has lowered the loss,
    /// what follows is tuned too.
    fn tuning(&mut self, found: &Sensitivities, state: &mut State) -> Result<bool> {
        let Some(tuned) = self.work.config.recipe.tuned(&self.work.opened.model) else { return Ok(false) };
        if self.work.data()?.rows.rows.len() < tune::HELD_OUT {
            return Ok(false);
        }
        match self.work.check_memory(&tuned) {
            Err(e) if e.kind() == Kind::Resources => {
                self.work.progress.info(&format!("Tuning is left out: {e}"));
                return Ok(false);
            }
            checked => checked?,
        }
        let before = state.used_per_nat;
        state.tuned = true;
        let met = self.try_options(Stage::Tuning, found, state, 0.0)?;
        if state.used_per_nat >= before {
            *state =
                State { options: std::mem::take(&mut state.options), tuned: false, used_per_nat: before };
        }
        Ok(met)
    }

    /// 16 bits for the units that still lose most.
    fn island(&mut self, found: &Sensitivities, state: &mut State) -> Result<bool> {
        let base = state.options.clone();
        let units: Vec<Vec<Item>> = found
            .units
            .iter()
            .zip(&base)
            .map(|(unit, option)| {
                let own = &unit.options[*option];
                let items = [own, unit.options.last().unwrap_or(own)];
                items.map(|option| Item { bytes: option.bytes, loss: option.loss() }).to_vec()
            })
            .collect();
        let front = Front::new(&units);
        let sum = |place: usize| units.iter().map(|items| items[place].bytes).sum::<u64>();
        let most = sum(0) + (ISLAND_SHARE * (sum(1) - sum(0)) as f64) as u64;
        for _ in 0..ISLANDS {
            let wanted = front.below(MARGIN / state.used_per_nat).filter(|found| found.bytes <= most);
            let Some(allocation) = wanted.or_else(|| front.within(most)) else { break };
            let chosen = allocation.options.iter().zip(&base).zip(&found.units);
            let options: Vec<usize> = chosen
                .map(|((whole, own), unit)| if *whole == 1 { unit.options.len() - 1 } else { *own })
                .collect();
            if options == state.options {
                break;
            }
            state.options = options;
            if self.try_options(Stage::Island, found, state, 0.0)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes a result with these options, and measures it.
    fn try_options(
        &mut self,
        stage: Stage,
        found: &Sensitivities,
        state: &mut State,
        profile_seconds: f64,
    ) -> Result<bool> {
        let predicted = found.loss(&state.options);
        let expected =
            self.attempts.first().map(|plain| plain.loss.kl_divergence / self.limit.used(&plain.loss));
        let expected = expected.map(|kld_per_used| predicted * state.used_per_nat * kld_per_used);
        self.work.progress.info(&format!("Over the limit. Next: {}", stage.title()));
        let choice = found.choice(&state.options);
        let recipe = self.work.config.recipe.with(&choice, whole_type(self.work.opened));
        let tuned = state.tuned.then(|| recipe.tuned(&self.work.opened.model)).flatten();
        let recipe = tuned.unwrap_or(recipe);
        // Only plain quantization keeps a checkpoint, so that this makes a result and finds none.
        let Ok(made) = self.work.make(&recipe, false)? else { return Ok(false) };
        let met = self.attempt(stage, made, profile_seconds, expected)?;
        state.used_per_nat = self.used_per_nat(predicted);
        Ok(met)
    }

    /// How much of the limit each expected nat has taken in the last attempt.
    fn used_per_nat(&self, predicted: f64) -> f64 {
        let used = self.attempts.last().map_or(0.0, |attempt| self.limit.used(&attempt.loss));
        let ratio = used / predicted;
        if ratio.is_finite() && ratio > 0.0 { ratio } else { self.limit.per_nat() }
    }

    /// Measures a result, and keeps the better one. Whether it keeps to the limit.
    fn attempt(
        &mut self,
        stage: Stage,
        made: Made,
        profile_seconds: f64,
        predicted: Option<f64>,
    ) -> Result<bool> {
        let Made { report, path, seconds, .. } = made;
        let (config, progress, cancel) = (self.work.config, self.work.progress, self.work.cancel);
        let started = Instant::now();
        let opened =
            OpenModel::open(&path.to_string_lossy(), &config.ignore_config, cancel, &Quiet(progress))?;
        let judge = &self.judge;
        let loss = in_pool(config.threads, || judge.measure(&opened, progress, cancel))?;
        drop(opened);
        let met = self.limit.is_met(&loss);
        let before = self.attempts.last();
        let attempt = Attempt {
            stage,
            met,
            at_highest: std::mem::take(&mut self.at_highest),
            predicted_kl_divergence: predicted,
            file_size: report.file_size(),
            bits_per_weight: report.bits_per_weight(),
            bytes_added: before.map_or(0, |b| report.file_size() as i64 - b.file_size as i64),
            kl_divergence_gained: before.map_or(0.0, |b| b.loss.kl_divergence - loss.kl_divergence),
            profile_seconds,
            quantize_seconds: seconds,
            measure_seconds: started.elapsed().as_secs_f64() + std::mem::take(&mut self.judge_seconds),
            loss,
        };
        progress.info(&attempt.describe(self.limit));
        let used = self.limit.used(&attempt.loss);
        let best = self.best.as_ref().map(|(place, _)| self.limit.used(&self.attempts[*place].loss));
        if best.is_none_or(|best| used < best) {
            self.work.take(&path)?;
            self.best = Some((self.attempts.len(), report));
        } else {
            remove(&path)?;
        }
        self.attempts.push(attempt);
        Ok(met)
    }

    fn end(self, checkpoint: Option<Checkpoint>) -> Ended {
        let Search { attempts, best, limit, .. } = self;
        let (kept, report) = best.expect("the first attempt is the best of one");
        let budget = BudgetReport { limit, met: attempts[kept].met, kept, attempts };
        Ended::Made(Box::new(Done { report, budget: Some(budget) }), checkpoint)
    }
}
