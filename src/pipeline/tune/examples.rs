//! Which calibration rows are learned from, and which tell when to stop.

use std::collections::BTreeMap;

use crate::arch::decoder::{Context, Decoder};
use crate::calib::random::SplitMix64;

/// Of so many rows, one is held out.
pub(in crate::pipeline) const HELD_OUT: usize = 8;

/// Tokens that go through a layer at a time.
pub(super) const PIECE_TOKENS: usize = 4096;

/// Where the order of rows starts, and which of their tokens are replaced; fixed, so that the same command makes the same bytes.
const SEED: u64 = 0x7465_6163_6865_7273;

/// Where rows are cut again, in quarters of their length.
const CUTS: [usize; 4] = [2, 0, 1, 3];

/// How often each row that is learned from is cut again.
pub(in crate::pipeline) const VARIANTS: usize = CUTS.len();

/// Tokens of ten that are replaced in rows that are cut again.
const REPLACED: usize = 3;

/// Calibration rows, divided in those that are learned from and those that are held out.
#[derive(Debug)]
pub(super) struct Examples {
    train: Vec<usize>,
    held_out: Vec<usize>,
    /// How many of `train` are rows as they were given.
    own: usize,
    lengths: Vec<usize>,
    contexts: BTreeMap<usize, Context>,
}

impl Examples {
    /// Holds out the last of every eight rows.
    pub(super) fn split(windows: &[Vec<u32>], decoder: &Decoder<'_>) -> Examples {
        let is_held_out = |row: &usize| (row + 1).is_multiple_of(HELD_OUT);
        let (held_out, train): (_, Vec<usize>) = (0..windows.len()).partition(is_held_out);
        let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
        let contexts = lengths.iter().map(|length| (*length, decoder.context(*length))).collect();
        Examples { own: train.len(), train, held_out, lengths, contexts }
    }

    /// Tokens of the rows that are learned from, as they were given.
    pub(super) fn own_tokens(&self) -> usize {
        self.tokens(&self.train[..self.own])
    }

    /// More rows to be learned from, made of those that are: cut elsewhere, and with some of their tokens replaced. What the original
    /// model predicts there is as right as anywhere, and it is of text that there is no other of; without it, codes learn the few
    /// rows by heart. They come after `windows`, all of which there are.
    pub(super) fn vary(&mut self, windows: &[Vec<u32>], decoder: &Decoder<'_>) -> Vec<Vec<u32>> {
        let rows = self.varied(windows);
        for row in &rows {
            self.train.push(self.lengths.len());
            self.lengths.push(row.len());
            self.contexts.entry(row.len()).or_insert_with(|| decoder.context(row.len()));
        }
        rows
    }

    /// The end of each row that is learned from and the beginning of the next, for each of the cuts, with tokens from anywhere in
    /// these rows in place of some. First tokens, which may be the mark of a beginning, stay first.
    fn varied(&self, windows: &[Vec<u32>]) -> Vec<Vec<u32>> {
        let mut random = SplitMix64::new(SEED);
        let mut below = |count: usize| random.below(count as u64) as usize;
        let mut varied = Vec::with_capacity(CUTS.len() * self.train.len());
        for quarters in CUTS {
            let pairs = self.train.iter().zip(self.train.iter().cycle().skip(1));
            for (a, b) in pairs {
                let (end, beginning) = (&windows[*a], &windows[*b]);
                let cut = |row: &[u32]| 1 + (row.len() - 1) * quarters / 4;
                let mut row = [&end[..1], &end[cut(end)..], &beginning[1..cut(beginning)]].concat();
                for token in &mut row[1..] {
                    if below(10) < REPLACED {
                        let other = &windows[self.train[below(self.train.len())]][1..];
                        *token = if other.is_empty() { *token } else { other[below(other.len())] };
                    }
                }
                varied.push(row);
            }
        }
        varied
    }

    /// Rows that are not learned from.
    pub(super) fn held_out(&self) -> &[usize] {
        &self.held_out
    }

    /// Steps that go once through all rows.
    fn steps_per_pass(&self, rows: usize) -> usize {
        self.train.len().div_ceil(rows)
    }

    /// The rows of a step, at most `rows` of them: every pass goes through all in another order.
    pub(super) fn batch(&self, step: usize, rows: usize) -> Vec<usize> {
        let per_pass = self.steps_per_pass(rows);
        let (pass, at) = (step / per_pass, step % per_pass);
        let mut order = self.train.clone();
        let mut random = SplitMix64::new(SEED.wrapping_add(pass as u64));
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i as u64 + 1) as usize);
        }
        order.chunks(rows).nth(at).unwrap_or_default().to_vec()
    }

    /// Rows in pieces that go through a layer together: of one length, and not too many tokens.
    pub(super) fn pieces(&self, rows: &[usize]) -> Vec<Vec<usize>> {
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        rows.iter().for_each(|row| by_length.entry(self.lengths[*row]).or_default().push(*row));
        let pieces = by_length.into_iter().flat_map(|(length, rows)| {
            let at_once = (PIECE_TOKENS / length.max(1)).max(1);
            rows.chunks(at_once).map(<[usize]>::to_vec).collect::<Vec<_>>()
        });
        pieces.collect()
    }

    /// Tokens of some rows.
    pub(super) fn tokens(&self, rows: &[usize]) -> usize {
        rows.iter().map(|row| self.lengths[*row]).sum()
    }

    /// What layers need to compute a piece.
    pub(super) fn context(&self, piece: &[usize]) -> &Context {
        &self.contexts[&self.lengths[piece[0]]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(lengths: &[usize]) -> Examples {
        let (held_out, train): (_, Vec<usize>) =
            (0..lengths.len()).partition(|row| (row + 1).is_multiple_of(HELD_OUT));
        let own = train.len();
        Examples { train, held_out, own, lengths: lengths.to_vec(), contexts: BTreeMap::new() }
    }

    #[test]
    fn every_pass_goes_through_all_rows_in_another_order() {
        let examples = examples(&[10; 27]);
        assert_eq!(examples.held_out(), [7, 15, 23]);
        assert_eq!(examples.own_tokens(), 240);
        let pass =
            |first: usize| (first..first + 5).flat_map(|step| examples.batch(step, 5)).collect::<Vec<_>>();
        let (one, two) = (pass(0), pass(5));
        assert_ne!(one, two);
        for mut rows in [one, two] {
            rows.sort_unstable();
            assert_eq!(rows, (0..27).filter(|row| row % 8 != 7).collect::<Vec<_>>());
        }
        assert_eq!(examples.batch(4, 5).len(), 4, "what is left of the rows");
    }

    #[test]
    fn rows_are_cut_again_with_some_of_their_tokens_replaced() {
        let lengths = [41, 49, 41, 41, 41, 41, 41, 41, 61];
        let windows: Vec<Vec<u32>> =
            (0..9).map(|row| (0..lengths[row as usize]).map(|i| 100 * row + i).collect()).collect();
        let rows = examples(&lengths.map(|length| length as usize)).varied(&windows);
        assert_eq!(rows.len(), 4 * 8, "the eighth is held out");
        assert!(rows.iter().flatten().all(|token| token / 100 != 7), "nothing of it is learned from");
        let firsts = |row: &Vec<u32>| row.iter().filter(|token| **token % 100 == 0).count();
        assert!(rows.iter().all(|row| row[0] % 100 == 0 && firsts(row) == 1), "a beginning stays one");
        let cut = |a: usize, from: usize, b: usize, to: usize| {
            [&windows[a][..1], &windows[a][from..], &windows[b][1..to]].concat()
        };
        let expected = [
            (0, cut(0, 21, 1, 25)),
            (7, cut(8, 31, 0, 21)),
            (8, windows[0].clone()),
            (17, cut(1, 13, 2, 11)),
            (30, cut(6, 31, 8, 46)),
        ];
        let mut kept = 0;
        for (row, expected) in &expected {
            assert_eq!(rows[*row].len(), expected.len(), "row {row}");
            kept += rows[*row].iter().zip(expected).filter(|(token, expected)| token == expected).count();
        }
        let all: usize = expected.iter().map(|(_, row)| row.len()).sum();
        // Three of ten are replaced, now and then by themselves; the standard deviation of 223 tokens is 7.
        assert!(kept.abs_diff(all * 7 / 10) < 28, "{kept} of {all}");
    }

    #[test]
    fn a_piece_is_of_one_length_and_not_too_long() {
        let examples = examples(&[2000, 5, 2000, 5, 2000, 5000]);
        let pieces = examples.pieces(&[0, 1, 2, 3, 4, 5]);
        assert_eq!(pieces, [vec![1, 3], vec![0, 2], vec![4], vec![5]]);
        assert_eq!(examples.tokens(&[0, 1, 5]), 7005);
    }
}
