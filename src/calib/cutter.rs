//! Samples in, rows out.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;

use super::dataset::chat::ChatTemplate;
use super::dataset::{Dataset, Sample};
use super::random::Reservoir;
use super::rows::{DEFAULT_SEQ_LEN, Limits, Want};
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::source::tokenizer::encoder::Encoder;

/// A text longer than this is tokenised in pieces, cut after a line's end, to bound time and memory.
const PIECE: usize = 4 << 20;

/// The rows taken so far.
pub(super) enum Taken {
    First { size: usize, rows: Vec<Vec<u32>> },
    Drawn { reservoir: Reservoir<Vec<u32>> },
}

impl Taken {
    pub(super) fn new(size: usize, seed: Option<u64>) -> Taken {
        match seed {
            None => Taken::First { size, rows: Vec::new() },
            Some(seed) => Taken::Drawn { reservoir: Reservoir::new(size, seed) },
        }
    }

    /// Takes the next row, or not; whether more are of use.
    fn offer(&mut self, row: Vec<u32>) -> ControlFlow<()> {
        match self {
            Taken::First { size, rows } => {
                rows.push(row);
                match rows.len() < *size {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            }
            Taken::Drawn { reservoir } => {
                reservoir.offer(row);
                ControlFlow::Continue(())
            }
        }
    }

    fn seen(&self) -> usize {
        match self {
            Taken::First { rows, .. } => rows.len(),
            Taken::Drawn { reservoir } => usize::try_from(reservoir.seen()).unwrap_or(usize::MAX),
        }
    }

    fn into_rows(self) -> Vec<Vec<u32>> {
        match self {
            Taken::First { rows, .. } => rows,
            Taken::Drawn { reservoir } => reservoir.into_items(),
        }
    }
}

/// Samples in, rows out.
pub(super) struct Cutter<'a> {
    encoder: &'a Encoder,
    limits: Limits,
    seq_len: usize,
    /// The token that each row begins with, if the model wants it.
    bos: Option<u32>,
    /// Between texts, where there is no BOS to part them.
    separator: Vec<u32>,
    template: Option<ChatTemplate>,
    /// Tokens that are in no row yet.
    pending: Vec<u32>,
    taken: Taken,
    known: HashSet<u64>,
    samples: usize,
    empty: usize,
    duplicates: usize,
    tokens: usize,
}

impl<'a> Cutter<'a> {
    pub(super) fn new(
        encoder: &'a Encoder,
        limits: Limits,
        seq_len: usize,
        taken: Taken,
    ) -> Result<Cutter<'a>> {
        let bos = encoder.bos().filter(|_| encoder.add_bos());
        let separator = if bos.is_none() { encoder.encode("\n\n")? } else { Vec::new() };
        Ok(Cutter {
            encoder,
            limits,
            seq_len,
            bos,
            separator,
            template: None,
            pending: Vec::new(),
            taken,
            known: HashSet::new(),
            samples: 0,
            empty: 0,
            duplicates: 0,
            tokens: 0,
        })
    }

    pub(super) fn push(&mut self, sample: &Sample) -> Result<ControlFlow<()>> {
        self.samples += 1;
        let number = self.samples;
        let rendered;
        let (text, is_chat) = match sample {
            Sample::Text(text) => (text.as_ref(), false),
            Sample::Chat(messages) => {
                rendered = self.template()?.render(messages).map_err(|what| {
                    Error::new(Kind::Invalid, format!("sample {number}: {what}")).hint(
                        "Check the roles and their order, or name a column of plain text with --text-column.",
                    )
                })?;
                (rendered.as_str(), true)
            }
        };
        if text.trim().is_empty() {
            self.empty += 1;
            return Ok(ControlFlow::Continue(()));
        }
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        if !self.known.insert(hasher.finish()) {
            self.duplicates += 1;
        }
        if is_chat {
            let ids = self.encoder.encode_with_special(text)?;
            return self.extend(&ids);
        }
        match self.bos {
            Some(bos) => self.pending.push(bos),
            None if self.samples > self.empty + 1 => self.pending.extend_from_slice(&self.separator),
            None => {}
        }
        for piece in pieces(text, PIECE) {
            let ids = self.encoder.encode(piece)?;
            if self.extend(&ids)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// How many rows were full so far.
    pub(super) fn rows(&self) -> usize {
        self.taken.seen()
    }

    fn template(&mut self) -> Result<&ChatTemplate> {
        if self.template.is_none() {
            self.template = Some(ChatTemplate::of(self.encoder)?);
        }
        Ok(self.template.as_ref().expect("it was just made"))
    }

    /// Adds tokens and takes the rows that are full.
    fn extend(&mut self, ids: &[u32]) -> Result<ControlFlow<()>> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.limits.vocab) {
            let text = self.encoder.token_text(*id).unwrap_or_default();
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "the data has token {id} ({text:?}), but the model's vocabulary ends at {}",
                    self.limits.vocab
                ),
            )
            .hint("The tokenizer is not this model's; take both from one place."));
        }
        self.tokens += ids.len();
        self.pending.extend_from_slice(ids);
        let mut start = 0;
        let mut flow = ControlFlow::Continue(());
        while flow.is_continue() {
            let rest = &self.pending[start..];
            let bos = self.bos.filter(|bos| rest.first() != Some(bos));
            let own = self.seq_len - usize::from(bos.is_some());
            if rest.len() < own {
                break;
            }
            let row: Vec<u32> = bos.into_iter().chain(rest[..own].iter().copied()).collect();
            start += own;
            flow = self.taken.offer(row);
        }
        self.pending.drain(..start);
        Ok(flow)
    }

    pub(super) fn report(&self, data: &Dataset, want: Want, progress: &dyn Progress) {
        let (source, samples) = (data.source(), self.samples);
        if self.empty > 0 {
            progress.warn(&format!("{source}: {} of {samples} samples are empty and left out", self.empty));
        }
        if self.duplicates > 0 {
            progress.warn(&format!("{source}: {} of {samples} samples repeat another", self.duplicates));
        }
        if want.seq_len.is_none() && self.seq_len < DEFAULT_SEQ_LEN {
            progress.info(&format!("Rows have {} tokens, the model's context", self.seq_len));
        }
        progress.detail(&format!(
            "{source}: read {samples} samples, {} tokens; {} are left at the end, less than a row",
            self.tokens,
            self.pending.len()
        ));
    }

    pub(super) fn finish(self, source: &str) -> Result<Vec<Vec<u32>>> {
        let (tokens, seq_len) = (self.tokens, self.seq_len);
        let rows = self.taken.into_rows();
        if rows.is_empty() {
            let message = match self.samples == self.empty {
                true => format!("{source} has no text"),
                false => format!("{source} has {tokens} tokens, which is no row of {seq_len}"),
            };
            return Err(Error::new(Kind::Invalid, message)
                .hint("Pass more text to --calibration-data, or a shorter --seq-len."));
        }
        Ok(rows)
    }
}

/// `text` in pieces of `size` bytes and somewhat more, each cut after a line's end if there is one before twice that.
fn pieces(text: &str, size: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut bytes = rest.as_bytes().iter().skip(size).take(size);
        let end = bytes.position(|b| *b == b'\n').map(|at| size + at + 1);
        let (piece, after) = rest.split_at(end.unwrap_or_else(|| rest.ceil_char_boundary(2 * size)));
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_after_lines() {
        let text = "one\ntwo\n\nthree and four\nfive";
        assert_eq!(pieces(text, 100).collect::<Vec<_>>(), [text]);
        assert_eq!(pieces(text, 4).collect::<Vec<_>>(), ["one\ntwo\n", "\nthree a", "nd four\n", "five"]);
        assert_eq!(pieces("", 4).count(), 0);
        assert_eq!(pieces("äöü\näöü", 2).collect::<Vec<_>>(), ["äö", "ü\n", "äö", "ü"]);
        assert_eq!(pieces("€€€", 2).collect::<Vec<_>>(), ["€€", "€"]);
    }
}
