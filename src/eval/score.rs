//! From the last layer's hidden states to what each token cost, with a piece of the vocabulary in memory at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::divergence::Divergence;
use super::log_sum_exp::LogSumExp;
use super::windows::Windows;
use crate::arch::decoder::{Decoder, Head, Hidden};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::progress::{Progress, Unit};

/// Bytes of a piece of the head in memory, and of the logits computed with it; two of each with a reference.
pub const PIECE_BYTES: usize = 64 << 20;

/// What one token cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Negative logarithm of the token's probability, in nats.
    pub nll: f64,
    /// The comparison with the reference, if there is one.
    pub compared: Option<Compared>,
}

/// One token's prediction compared with that of a reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// The reference's negative logarithm of the token's probability, in nats.
    pub reference_nll: f64,
    /// `KL(reference || model)` of the predictions, in nats.
    pub kl_divergence: f64,
    /// Whether both find the same token most likely.
    pub same_top: bool,
}

/// A model and the output of its last layer.
#[derive(Clone, Copy, Debug)]
pub struct Computed<'a> {
    /// The model, whose norm and head are still to come.
    pub decoder: &'a Decoder<'a>,
    /// All windows after the last layer.
    pub hidden: &'a Hidden,
}

/// Scores of each window's scored positions. With a reference the predictions are compared over the tokens that both
/// heads have. The head is read once, in pieces; logits are computed for one piece and some tokens at a time.
///
/// # Errors
/// `Invalid` if logits are not finite, `Interrupted`.
pub fn score(
    model: Computed<'_>,
    reference: Option<Computed<'_>>,
    windows: &Windows,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Score>>> {
    score_by(model, reference, windows, PIECE_BYTES, cancel, progress)
}

fn score_by(
    model: Computed<'_>,
    reference: Option<Computed<'_>>,
    windows: &Windows,
    piece_bytes: usize,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Score>>> {
    let both = [Some(model), reference];
    let computed = || both.iter().flatten();
    let vocab = computed().map(|c| c.decoder.vocab()).min().unwrap_or_default();
    let width = computed().map(|c| c.decoder.hidden()).max().unwrap_or_default();
    let rows = (piece_bytes / size_of::<f32>() / width).clamp(1, vocab);
    let new = |targets: &Vec<u32>| targets.iter().map(|t| State::new(*t, reference.is_some())).collect();
    let mut states: Vec<Vec<State>> = windows.targets().iter().map(new).collect();
    let tokens = states.iter().map(Vec::len).sum::<usize>() as u64;
    progress.begin("Scoring", tokens, Unit::Tokens);
    let (mut done, mut shown) = (0, 0);
    let scored: Result<()> = (0..vocab).step_by(rows).try_for_each(|start| {
        let piece = start..(start + rows).min(vocab);
        let at_a_time = (piece_bytes / size_of::<f32>() / piece.len()).max(1);
        let logits_of_token = piece.len();
        score_piece(model, reference, windows, piece, at_a_time, &mut states, &mut |tokens| {
            done += tokens * logits_of_token;
            progress.advance((done / vocab - shown) as u64);
            shown = done / vocab;
            cancel.check()
        })
    });
    progress.end();
    scored?;
    let first = windows.scored().start;
    let scores = |(window, states): (usize, &Vec<State>)| -> Result<Vec<Score>> {
        let score = |(i, state): (usize, &State)| {
            state.score().ok_or_else(|| {
                Error::new(
                    Kind::Invalid,
                    format!("window {window}, position {}: the logits are not finite", first + i),
                )
                .hint("A weight is far too large, or the model cannot be computed in float32.")
            })
        };
        states.iter().enumerate().map(score).collect()
    };
    states.iter().enumerate().map(scores).collect()
}

/// Adds the logits of `piece` of the vocabulary, computed for so many tokens at a time, to the states of all windows.
/// `advance` hears how many tokens it was each time.
fn score_piece(
    model: Computed<'_>,
    reference: Option<Computed<'_>>,
    windows: &Windows,
    piece: Range<usize>,
    at_a_time: usize,
    states: &mut [Vec<State>],
    advance: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<()> {
    let head = model.decoder.head_rows(piece.clone())?;
    let reference = match reference {
        Some(reference) => Some((reference, reference.decoder.head_rows(piece.clone())?)),
        None => None,
    };
    let first = piece.start as u32;
    let rows = piece.len();
    let scored = windows.scored();
    for (i, states) in states.iter_mut().enumerate() {
        for (chunk, states) in states.chunks_mut(at_a_time).enumerate() {
            let from = scored.start + chunk * at_a_time;
            let logits = |computed: Computed<'_>, head: &Head| -> Result<Vec<f32>> {
                let hidden = computed.hidden.window(i)?.narrow(0, from, states.len())?;
                let logits = head.forward(&computed.decoder.norm(&hidden)?)?;
                Ok(logits.flatten_all()?.to_vec1()?)
            };
            let model = logits(model, &head)?;
            let reference = match &reference {
                Some((reference, head)) => Some(logits(*reference, head)?),
                None => None,
            };
            states.par_iter_mut().enumerate().for_each(|(token, state)| {
                let own = token * rows..(token + 1) * rows;
                state.add(first, &model[own.clone()], reference.as_ref().map(|logits| &logits[own]));
            });
            advance(states.len())?;
        }
    }
    Ok(())
}

/// What has been seen of one scored token.
#[derive(Debug)]
struct State {
    target: u32,
    /// The target's logits in the model and in the reference.
    target_logits: [f32; 2],
    seen: Seen,
}

#[derive(Debug)]
enum Seen {
    One(LogSumExp),
    Two(Divergence),
}

impl State {
    fn new(target: u32, compared: bool) -> State {
        let seen = if compared { Seen::Two(Divergence::EMPTY) } else { Seen::One(LogSumExp::EMPTY) };
        State { target, target_logits: [f32::NAN; 2], seen }
    }

    fn add(&mut self, first: u32, model: &[f32], reference: Option<&[f32]>) {
        let place = self.target.wrapping_sub(first) as usize;
        if place < model.len() {
            self.target_logits = [model[place], reference.map_or(f32::NAN, |logits| logits[place])];
        }
        match (&mut self.seen, reference) {
            (Seen::Two(seen), Some(reference)) => seen.add(first, reference, model),
            (Seen::One(seen), None) => seen.add(first, model),
            _ => unreachable!("a state is made for one model or for two"),
        }
    }

    /// None if a logit was not finite.
    fn score(&self) -> Option<Score> {
        let nll = |seen: &LogSumExp, side: usize| seen.value() - f64::from(self.target_logits[side]);
        let score = match &self.seen {
            Seen::One(seen) => Score { nll: nll(seen, 0), compared: None },
            Seen::Two(seen) => Score {
                nll: nll(seen.model(), 0),
                compared: Some(Compared {
                    reference_nll: nll(seen.reference(), 1),
                    kl_divergence: seen.value(),
                    same_top: seen.same_top(),
                }),
            },
        };
        let finite = |c: &Compared| c.reference_nll.is_finite() && c.kl_divergence.is_finite();
        (score.nll.is_finite() && score.compared.as_ref().is_none_or(finite)).then_some(score)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::arch::Model;
    use crate::eval::windows::Protocol;
    use crate::progress::Silent;
    use crate::source::config::Config;
    use crate::source::safetensors::Tensors;

    fn open(name: &str) -> (Model, Tensors) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name);
        (Model::read(Config::load(&dir).unwrap(), &[]).unwrap(), Tensors::open(&dir).unwrap())
    }

    fn log_softmax(logits: &[f32]) -> Vec<f64> {
        let sum = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        logits.iter().map(|l| f64::from(*l) - sum).collect()
    }

    /// Whole logits in float64, straight from the definitions.
    fn expected(logits: &[f32], reference: &[f32], target: u32) -> Score {
        let (q, p) = (log_softmax(logits), log_softmax(reference));
        let top = |l: &[f64]| (0..l.len()).max_by(|a, b| l[*a].total_cmp(&l[*b]));
        Score {
            nll: -q[target as usize],
            compared: Some(Compared {
                reference_nll: -p[target as usize],
                kl_divergence: p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum(),
                same_top: top(&p) == top(&q),
            }),
        }
    }

    #[test]
    fn scores_are_those_of_whole_logits_in_any_pieces() {
        // Two models of one vocabulary: their soft caps and widths differ.
        let (a, b) = (open("gemma3"), open("gemma2"));
        let tokens: Vec<u32> = (0..60).map(|i| i * 7 % 500).collect();
        let windows = Windows::cut(Protocol::LlamaCpp, &tokens, Some(2), 20, None).unwrap();
        let decoder = |(model, tensors)| Decoder::new(model, tensors).unwrap();
        let (a, b) = (decoder((&a.0, &a.1)), decoder((&b.0, &b.1)));
        let embed = |decoder: &Decoder<'_>| Hidden::embed(decoder, windows.inputs()).unwrap();
        let (ha, hb) = (embed(&a), embed(&b));
        let model = Computed { decoder: &a, hidden: &ha };
        let reference = Computed { decoder: &b, hidden: &hb };
        let run = |reference: Option<Computed<'_>>, bytes: usize| {
            score_by(model, reference, &windows, bytes, &Cancel::new(), &Silent).unwrap()
        };
        for bytes in [1, 10_000, PIECE_BYTES] {
            let (alone, compared) = (run(None, bytes), run(Some(reference), bytes));
            for i in 0..windows.len() {
                let logits = |c: Computed<'_>| {
                    c.decoder.head(&c.hidden.window(i).unwrap()).unwrap().to_vec2::<f32>().unwrap()
                };
                let (model, reference) = (logits(model), logits(reference));
                assert_eq!(compared[i].len(), windows.scored().len());
                for (j, position) in windows.scored().enumerate() {
                    let found = compared[i][j];
                    let right = expected(&model[position], &reference[position], windows.targets()[i][j]);
                    let near =
                        |a: f64, b: f64| assert!((a - b).abs() < 1e-5, "{bytes}: {found:?}, {right:?}");
                    near(found.nll, right.nll);
                    near(alone[i][j].nll, right.nll);
                    let (found, right) = (found.compared.unwrap(), right.compared.unwrap());
                    near(found.reference_nll, right.reference_nll);
                    near(found.kl_divergence, right.kl_divergence);
                    assert_eq!(found.same_top, right.same_top);
                }
                assert!(alone[i].iter().all(|s| s.compared.is_none()));
            }
        }
    }

    #[test]
    fn a_stopped_job_scores_nothing() {
        let (model, tensors) = open("llama");
        let windows = Windows::cut(Protocol::Full, &[1, 2, 3, 4], None, 3, None).unwrap();
        let decoder = Decoder::new(&model, &tensors).unwrap();
        let hidden = Hidden::embed(&decoder, windows.inputs()).unwrap();
        let cancel = Cancel::new();
        cancel.request();
        let stopped =
            score(Computed { decoder: &decoder, hidden: &hidden }, None, &windows, &cancel, &Silent);
        assert_eq!(stopped.unwrap_err().kind(), Kind::Interrupted);
    }
}
