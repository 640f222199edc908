//! Steps down a loss, with what is best on held-out rows kept.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::report::{Curve, Point};
use crate::error::{Error, Kind, Result};
use crate::pipeline::layerwise::Watch;

/// How often steps may be taken back before it is given up.
const ROLL_BACKS: usize = 5;

/// What is tuned.
pub(super) trait Objective {
    /// Gradients of the loss.
    type Gradients;
    /// What is kept of a state.
    type Kept;

    /// The loss over rows that are held out.
    fn held_out(&mut self) -> Result<f64>;

    /// The loss over the rows of a step and its gradients; not a number if any of them is not.
    fn gradients(&mut self, step: usize) -> Result<(f64, Self::Gradients)>;

    /// Takes a step, of a share of the longest.
    fn step(&mut self, gradients: &Self::Gradients, share: f32) -> Result<()>;

    /// What it is now.
    fn keep(&self) -> Self::Kept;

    /// Goes back to what it was.
    fn restore(&mut self, kept: &Self::Kept) -> Result<()>;
}

/// An objective whose state can be written down.
pub(super) trait Stored: Objective {
    /// Bytes of its state and what is kept.
    fn bytes(&self, kept: &Self::Kept) -> u64;

    /// Writes its state and what is kept.
    fn write(&self, kept: &Self::Kept, out: &mut dyn Write) -> io::Result<()>;

    /// Takes up a state, and returns what was kept.
    fn read(&mut self, input: &mut dyn Read) -> Result<Self::Kept>;
}

/// Where the state of a descent is kept, so that a later run goes on from there.
pub(in crate::pipeline) trait Store {
    /// The step after which the last state was kept, and what was noted; none if there is no state.
    fn note(&self) -> Option<(usize, Value)>;

    /// Reads that state.
    fn load(&self, read: &mut dyn FnMut(&mut dyn Read) -> Result<()>) -> Result<()>;

    /// Keeps the state after a step, of so many bytes, and a note. The last one goes.
    fn save(
        &mut self,
        step: usize,
        note: Value,
        bytes: u64,
        write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()>;
}

/// What a descent has come to, besides the state of what is tuned.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Reached {
    curve: Curve,
    best: f64,
    /// Of steps since the last look.
    losses: Vec<f64>,
    factor: f32,
}

/// How many steps, and how long they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Schedule {
    /// Steps.
    pub(super) steps: usize,
    /// Steps between two looks at the rows that are held out.
    pub(super) look: usize,
    /// The share of the longest step that each step goes.
    pub(super) decay: Decay,
}

/// How steps get shorter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Decay {
    /// In equal parts, from the first to nothing.
    Linear,
    /// Along a cosine, after a twentieth of the steps in which they get longer.
    Cosine,
}

impl Schedule {
    fn share(&self, step: usize) -> f32 {
        let left = 1.0 - step as f32 / self.steps as f32;
        match self.decay {
            Decay::Linear => left,
            Decay::Cosine => {
                let warm = ((step + 1) as f32 / (self.steps as f32 / 20.0)).min(1.0);
                warm * (0.5 - 0.5 * (std::f32::consts::PI * left).cos())
            }
        }
    }
}

/// Takes all steps; what comes back has the lowest loss on the rows that are held out, be it the start. A step after which
/// the loss is not a number is taken back: from what was best so far, steps half as long go on.
///
/// # Errors
/// `Interrupted`, or what `objective` returns.
pub(super) fn descend<O: Objective>(
    name: String,
    objective: &mut O,
    schedule: Schedule,
    watch: Watch<'_>,
) -> Result<(O::Kept, Curve)> {
    let started = Instant::now();
    let mut descent = Descent::begin(name, objective, schedule, watch)?;
    while descent.step < schedule.steps {
        descent.step(objective)?;
    }
    descent.reached.curve.seconds = started.elapsed().as_secs_f64();
    Ok((descent.kept, descent.reached.curve))
}

/// The same, taken up from `store` if a state is there, and kept in it from time to time.
///
/// # Errors
/// As [`descend`]; `Checkpoint` if the state is damaged, `Resources` if it cannot be kept.
pub(super) fn descend_stored<O: Stored>(
    name: String,
    objective: &mut O,
    schedule: Schedule,
    store: &mut dyn Store,
    every: Duration,
    watch: Watch<'_>,
) -> Result<(O::Kept, Curve)> {
    let mut started = Instant::now();
    let mut descent = match store.note() {
        Some((step, note)) => {
            let reached = serde_json::from_value(note).map_err(|e| {
                Error::new(Kind::Checkpoint, "the checkpoint does not say how far tuning has come").because(e)
            })?;
            let mut kept = None;
            store.load(&mut |input| {
                kept = Some(objective.read(input)?);
                Ok(())
            })?;
            let kept =
                kept.ok_or_else(|| Error::new(Kind::Checkpoint, "the checkpoint has no state of tuning"))?;
            Descent { schedule, step, kept, reached, watch }
        }
        None => Descent::begin(name, objective, schedule, watch)?,
    };
    let mut saved = Instant::now();
    while descent.step < schedule.steps {
        descent.step(objective)?;
        if saved.elapsed() >= every && descent.step < schedule.steps {
            descent.reached.curve.seconds += started.elapsed().as_secs_f64();
            started = Instant::now();
            let note = serde_json::to_value(&descent.reached).expect("a curve is plain data");
            let kept = &descent.kept;
            let bytes = objective.bytes(kept);
            store.save(descent.step, note, bytes, &mut |out| objective.write(kept, out))?;
            saved = Instant::now();
        }
    }
    descent.reached.curve.seconds += started.elapsed().as_secs_f64();
    Ok((descent.kept, descent.reached.curve))
}

/// A descent on its way.
struct Descent<'a, K> {
    schedule: Schedule,
    /// Steps that were taken.
    step: usize,
    kept: K,
    reached: Reached,
    watch: Watch<'a>,
}

impl<'a, K> Descent<'a, K> {
    /// Before the first step. Without a loss that is a number there is nothing to be done.
    fn begin<O: Objective<Kept = K>>(
        name: String,
        objective: &mut O,
        schedule: Schedule,
        watch: Watch<'a>,
    ) -> Result<Descent<'a, K>> {
        let best = objective.held_out()?;
        let mut curve = Curve { name, ..Curve::default() };
        let mut step = 0;
        if best.is_finite() {
            curve.points.push(Point { step, train: None, held_out: best });
        } else {
            watch.progress.warn(&format!("{}: its loss is {best}; it is not tuned", curve.name));
            step = schedule.steps;
        }
        let reached = Reached { curve, best, losses: Vec::new(), factor: 1.0 };
        Ok(Descent { schedule, step, kept: objective.keep(), reached, watch })
    }

    fn step<O: Objective<Kept = K>>(&mut self, objective: &mut O) -> Result<()> {
        self.watch.cancel.check()?;
        let (loss, gradients) = objective.gradients(self.step)?;
        let share = self.reached.factor * self.schedule.share(self.step);
        self.step += 1;
        if !loss.is_finite() {
            return self.roll_back(objective);
        }
        self.reached.losses.push(loss);
        objective.step(&gradients, share)?;
        if self.step.is_multiple_of(self.schedule.look) || self.step == self.schedule.steps {
            return self.look(objective);
        }
        Ok(())
    }

    /// Looks at the rows that are held out.
    fn look<O: Objective<Kept = K>>(&mut self, objective: &mut O) -> Result<()> {
        let held_out = objective.held_out()?;
        if !held_out.is_finite() {
            return self.roll_back(objective);
        }
        let Reached { curve, best, losses, .. } = &mut self.reached;
        let train = (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64);
        losses.clear();
        curve.points.push(Point { step: self.step, train, held_out });
        self.watch.progress.detail(&format!(
            "{}, step {}: loss {:.4e}, on held-out rows {held_out:.4e}",
            curve.name,
            self.step,
            train.unwrap_or(f64::NAN)
        ));
        if held_out < *best {
            (*best, curve.kept) = (held_out, self.step);
            self.kept = objective.keep();
        }
        Ok(())
    }

    fn roll_back<O: Objective<Kept = K>>(&mut self, objective: &mut O) -> Result<()> {
        let Reached { curve, losses, factor, .. } = &mut self.reached;
        curve.rolled_back += 1;
        *factor *= 0.5;
        losses.clear();
        objective.restore(&self.kept)?;
        let (name, kept, progress) = (&curve.name, curve.kept, self.watch.progress);
        progress.warn(&format!(
            "{name}: the loss at step {} is not a number; tuning goes back to step {kept} and on with half the rate",
            self.step
        ));
        if curve.rolled_back == ROLL_BACKS {
            progress.warn(&format!("{name}: tuning ends early, with the result of step {kept}"));
            self.step = self.schedule.steps;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;
    use crate::progress::Silent;

    /// The square of a number, which is not a number beyond a limit.
    struct Square {
        at: f32,
        limit: f32,
        rate: f32,
    }

    impl Objective for Square {
        type Gradients = f32;
        type Kept = f32;

        fn held_out(&mut self) -> Result<f64> {
            Ok(if self.at.abs() > self.limit { f64::NAN } else { f64::from(self.at).powi(2) })
        }

        fn gradients(&mut self, _: usize) -> Result<(f64, f32)> {
            Ok((self.held_out()?, 2.0 * self.at))
        }

        fn step(&mut self, gradients: &f32, share: f32) -> Result<()> {
            self.at -= self.rate * share * gradients;
            Ok(())
        }

        fn keep(&self) -> f32 {
            self.at
        }

        fn restore(&mut self, kept: &f32) -> Result<()> {
            self.at = *kept;
            Ok(())
        }
    }

    impl Stored for Square {
        fn bytes(&self, _: &f32) -> u64 {
            8
        }

        fn write(&self, kept: &f32, out: &mut dyn Write) -> io::Result<()> {
            out.write_all(&[self.at.to_le_bytes(), kept.to_le_bytes()].concat())
        }

        fn read(&mut self, input: &mut dyn Read) -> Result<f32> {
            let mut bytes = [0; 8];
            input.read_exact(&mut bytes).map_err(|e| Error::io("short", e))?;
            let [at, kept] = [0, 4].map(|i| f32::from_le_bytes(bytes[i..i + 4].try_into().unwrap()));
            self.at = at;
            Ok(kept)
        }
    }

    /// Keeps states, and is interrupted after some.
    struct Memory {
        state: Option<(usize, Value, Vec<u8>)>,
        left: usize,
    }

    impl Store for Memory {
        fn note(&self) -> Option<(usize, Value)> {
            self.state.as_ref().map(|(step, note, _)| (*step, note.clone()))
        }

        fn load(&self, read: &mut dyn FnMut(&mut dyn Read) -> Result<()>) -> Result<()> {
            read(&mut self.state.as_ref().unwrap().2.as_slice())
        }

        fn save(
            &mut self,
            step: usize,
            note: Value,
            bytes: u64,
            write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
        ) -> Result<()> {
            let mut state = Vec::new();
            write(&mut state).unwrap();
            assert_eq!(state.len() as u64, bytes);
            self.state = Some((step, note, state));
            self.left -= 1;
            if self.left == 0 { Err(Error::new(Kind::Interrupted, "enough")) } else { Ok(()) }
        }
    }

    #[test]
    fn a_descent_that_is_interrupted_goes_on_to_the_same_end() {
        let cancel = Cancel::new();
        let watch = Watch { progress: &Silent, cancel: &cancel };
        let schedule = Schedule { steps: 23, look: 5, decay: Decay::Cosine };
        let run = |store: &mut Memory| {
            let mut square = Square { at: 1.0, limit: 2.0, rate: 0.1 };
            let every = Duration::ZERO;
            descend_stored("x".into(), &mut square, schedule, store, every, watch)
        };
        let (kept, curve) = run(&mut Memory { state: None, left: usize::MAX }).unwrap();
        for left in [1, 7, 22] {
            let mut store = Memory { state: None, left };
            assert_eq!(run(&mut store).unwrap_err().kind(), Kind::Interrupted);
            store.left = usize::MAX;
            let (again, curve_again) = run(&mut store).unwrap();
            assert_eq!((again, &curve_again.points), (kept, &curve.points), "{left}");
        }
    }

    fn descend_from(at: f32, limit: f32, rate: f32, steps: usize) -> (f32, Curve) {
        let cancel = Cancel::new();
        let watch = Watch { progress: &Silent, cancel: &cancel };
        let schedule = Schedule { steps, look: 5, decay: Decay::Linear };
        descend("x".into(), &mut Square { at, limit, rate }, schedule, watch).unwrap()
    }

    #[test]
    fn the_best_is_kept() {
        let (kept, curve) = descend_from(1.0, 1e9, 0.1, 20);
        assert!(kept < 0.2, "{kept}");
        assert_eq!((curve.kept, curve.rolled_back), (20, 0));
        assert_eq!(curve.points.iter().map(|p| p.step).collect::<Vec<_>>(), [0, 5, 10, 15, 20]);
        // Steps that overshoot further and further: the start is best.
        let (kept, curve) = descend_from(1.0, 1e9, 10.0, 5);
        assert_eq!((kept, curve.kept), (1.0, 0));
    }

    #[test]
    fn what_is_not_a_number_is_taken_back() {
        let (kept, curve) = descend_from(1.0, 2.0, 2.0, 40);
        assert!(curve.rolled_back > 0 && curve.rolled_back < ROLL_BACKS, "{}", curve.rolled_back);
        assert!(kept.abs() < 0.5, "{kept}");
        let (kept, curve) = descend_from(1.0, 2.0, 1e9, 40);
        assert_eq!((kept, curve.rolled_back), (1.0, ROLL_BACKS));
        let (kept, curve) = descend_from(3.0, 2.0, 0.1, 40);
        assert_eq!((kept, curve.points.len()), (3.0, 0));
    }
}
