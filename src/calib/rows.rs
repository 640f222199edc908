//! Text to rows of tokens, all of one length.
//!
//! Samples are tokenised one by one and put one after the other; the stream is cut into back-to-back windows of `seq_len`
//! tokens, and what is left at the end is dropped. So no token is padding, no short sample is lost, and a plain text file
//! gives its windows in order, as GPTQ's and llama.cpp's tools cut them.
//!
//! Where the model wants BOS before a text, each sample begins with it and each row begins with it too: a row stands at
//! position 0, where the model has never seen anything else. llama.cpp's `imatrix` overwrites the first token of a window
//! instead; here the token moves to position 1 and none is lost. Where the model wants no BOS, texts are separated by an
//! empty line. A conversation is as the chat template writes it, and nothing is put before it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cutter::{Cutter, Taken};
use super::dataset::Dataset;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::source::tokenizer::encoder::Encoder;

/// How many rows are taken where none are asked for.
pub const DEFAULT_ROWS: usize = 256;
/// How long rows are where no length is asked for, unless the model's context is shorter.
pub const DEFAULT_SEQ_LEN: usize = 2048;

/// Rows of tokens to calibrate with, and where they are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The token ids; every row has exactly `record.seq_len`.
    pub rows: Vec<Vec<u32>>,
    /// What the output says of them.
    pub record: DataRecord,
}

/// What the output of a quantization says of the data that it was calibrated with: enough to prove that two runs had the
/// same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataRecord {
    /// The file's or directory's own name, the data set's name on the Hub, or `built-in`.
    pub source: String,
    /// The data set's commit on the Hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The data set's configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// The data set's split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Of the token ids, row by row, each as 4 bytes, the lowest first; in hexadecimal digits.
    pub sha256: String,
    /// Number of rows.
    pub rows: usize,
    /// Tokens in each row.
    pub seq_len: usize,
    /// Tokens in all rows.
    pub tokens: usize,
    /// The seed of the draw; none if the first rows were taken.
    pub seed: Option<u64>,
}

/// Which rows are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Want {
    /// How many; none is [`DEFAULT_ROWS`] or as many as there are.
    pub rows: Option<usize>,
    /// Tokens in each; none is [`DEFAULT_SEQ_LEN`] or the model's context.
    pub seq_len: Option<usize>,
    /// None takes the first rows, of the built-in text some from all over it. A seed draws rows from the whole data,
    /// without replacement, and keeps their order. Of a data set of several files on the Hub it shuffles the files, and
    /// no more are read than have rows enough.
    pub seed: Option<u64>,
}

/// What the model can take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest row, in tokens.
    pub context: usize,
    /// Rows of the embedding: every token id is below.
    pub vocab: usize,
}

impl Rows {
    /// Cuts rows out of a data set.
    ///
    /// # Errors
    /// `Usage` for a length that the model cannot take, or no rows wanted; `Invalid` for data that cannot be read as
    /// promised, gives no row, or has tokens that the model does not have.
    pub fn cut(
        data: &Dataset,
        encoder: &Encoder,
        limits: Limits,
        want: Want,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<Rows> {
        let seq_len = want.seq_len(limits)?;
        let size = want.size()?;
        // The parts of the built-in text differ in kind, so that its first rows would be one-sided.
        let spreads = data.is_built_in() && want.seed.is_none();
        let taken = Taken::new(if spreads { usize::MAX } else { size }, want.seed);
        let mut cutter = Cutter::new(encoder, limits, seq_len, taken)?;
        for index in data.order(want.seed) {
            let flow = data.read(index, cancel, progress, &mut |sample| {
                cancel.check()?;
                cutter.push(&sample)
            })?;
            // A seed draws from all files, except on the Hub, where there is no end of some data sets.
            if flow.is_break() || (data.is_remote() && cutter.rows() >= size) {
                break;
            }
        }
        cutter.report(data, want, progress);
        let mut rows = cutter.finish(data.source())?;
        if spreads {
            rows = spread(rows, size);
        }
        let record = DataRecord {
            source: data.source().to_owned(),
            revision: data.revision().map(String::from),
            config: data.config().map(String::from),
            split: data.split().map(String::from),
            sha256: digest(&rows),
            rows: rows.len(),
            seq_len,
            tokens: rows.len() * seq_len,
            seed: want.seed,
        };
        progress
            .info(&format!("Calibration data: {}, {} rows of {seq_len} tokens", record.source, record.rows));
        if want.rows.is_some_and(|n| n > rows.len()) || (rows.len() < size && !data.is_built_in()) {
            progress.warn(&format!(
                "{} has no more than {} rows of {seq_len} tokens; {size} were wanted",
                record.source, record.rows
            ));
        }
        Ok(Rows { rows, record })
    }

    /// Takes the last `n` rows away, to measure on what nothing was calibrated with.
    ///
    /// # Errors
    /// `Invalid` if none would be left.
    pub fn hold_out(mut self, n: usize) -> Result<(Rows, Rows)> {
        let total = self.rows.len();
        let left = total.checked_sub(n).filter(|left| *left > 0 && n > 0).ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                format!("{n} of {total} calibration rows cannot be held out to measure on"),
            )
            .hint("Pass more text to --calibration-data, a shorter --seq-len, or a text to measure on.")
        })?;
        let record = self.record.clone();
        let part = |rows: Vec<Vec<u32>>| Rows {
            record: DataRecord {
                sha256: digest(&rows),
                rows: rows.len(),
                tokens: rows.len() * record.seq_len,
                ..record.clone()
            },
            rows,
        };
        let held_out = self.rows.split_off(left);
        Ok((part(self.rows), part(held_out)))
    }
}

impl Want {
    fn seq_len(&self, limits: Limits) -> Result<usize> {
        let context = limits.context;
        let seq_len = self.seq_len.unwrap_or(DEFAULT_SEQ_LEN.min(context));
        if seq_len < 2 {
            return Err(Error::new(Kind::Usage, format!("rows of {seq_len} tokens are too short"))
                .hint("Pass --seq-len 2 or more; 512 to 2048 is usual."));
        }
        if seq_len > context {
            return Err(Error::new(
                Kind::Usage,
                format!("rows of {seq_len} tokens are longer than the model's context of {context}"),
            )
            .hint(format!("Pass --seq-len {context} or less.")));
        }
        Ok(seq_len)
    }

    fn size(&self) -> Result<usize> {
        match self.rows.unwrap_or(DEFAULT_ROWS) {
            0 => Err(Error::new(Kind::Usage, "no calibration rows are wanted")
                .hint("Pass --calibration-samples 1 or more.")),
            n => Ok(n),
        }
    }
}

/// `size` of the rows, at equal distances; all, if there are no more.
pub(super) fn spread(rows: Vec<Vec<u32>>, size: usize) -> Vec<Vec<u32>> {
    let total = rows.len();
    let taken = |i: usize| total <= size || (i * size) / total != ((i + 1) * size) / total;
    rows.into_iter().enumerate().filter(|(i, _)| taken(*i)).map(|(_, row)| row).collect()
}

fn digest(rows: &[Vec<u32>]) -> String {
    let mut hash = Sha256::new();
    for row in rows {
        let bytes: Vec<u8> = row.iter().flat_map(|id| id.to_le_bytes()).collect();
        hash.update(&bytes);
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_spread_evenly() {
        let rows: Vec<Vec<u32>> = (0..10).map(|i| vec![i]).collect();
        let of = |size| spread(rows.clone(), size).concat();
        assert_eq!(of(10), (0..10).collect::<Vec<_>>());
        assert_eq!(of(11), of(10));
        assert_eq!(of(5), [1, 3, 5, 7, 9]);
        assert_eq!(of(3), [3, 6, 9]);
        assert_eq!(of(1), [9]);
    }

    #[test]
    fn the_digest_is_of_little_endian_ids() {
        // sha256 of 01 00 00 00 ff 01 00 00.
        let expected = Sha256::digest([1, 0, 0, 0, 0xff, 1, 0, 0]);
        let expected: String = expected.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest(&[vec![1], vec![0x1ff]]), expected);
        assert_eq!(digest(&[vec![1, 0x1ff]]), expected, "rows have one length, which the record has too");
    }

    #[test]
    fn rows_can_be_held_out() {
        let rows: Vec<Vec<u32>> = (0..5).map(|i| vec![i, i + 1]).collect();
        let record = DataRecord {
            source: "text".into(),
            revision: None,
            config: None,
            split: None,
            sha256: digest(&rows),
            rows: 5,
            seq_len: 2,
            tokens: 10,
            seed: None,
        };
        let all = Rows { rows: rows.clone(), record };
        let (kept, held_out) = all.clone().hold_out(2).unwrap();
        assert_eq!((&kept.rows[..], &held_out.rows[..]), (&rows[..3], &rows[3..]));
        assert_eq!((kept.record.rows, kept.record.tokens, held_out.record.tokens), (3, 6, 4));
        assert_eq!(held_out.record.sha256, digest(&rows[3..]));
        for n in [0, 5, 6] {
            assert_eq!(all.clone().hold_out(n).unwrap_err().kind(), Kind::Invalid, "{n}");
        }
    }

    #[test]
    fn lengths_are_held_against_the_context() {
        let limits = Limits { context: 512, vocab: 10 };
        let length = |n: Option<usize>| Want { seq_len: n, ..Want::default() }.seq_len(limits);
        assert_eq!(length(None).unwrap(), 512);
        assert_eq!(length(Some(512)).unwrap(), 512);
        assert_eq!(length(Some(2)).unwrap(), 2);
        for (n, word) in [(1, "short"), (0, "short"), (513, "512")] {
            let e = length(Some(n)).unwrap_err();
            assert_eq!(e.kind(), Kind::Usage);
            assert!(e.to_string().contains(word), "{e}");
        }
        assert_eq!(Want { rows: Some(0), ..Want::default() }.size().unwrap_err().kind(), Kind::Usage);
    }
}
