//! A text's tokens cut into windows, and which predictions within them count.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// How a text is cut and what is scored. Perplexities of different protocols cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// Windows back to back; at every position the next token is scored, at a window's last one that with which the next
    /// window begins. BOS stands before the whole text if the model wants it, as transformers' tokenizers put it. The
    /// tables of papers (GPTQ, AWQ and those that compare with them) are made so, except that most leave out the one
    /// prediction at each window's end: of 2048 it moves the result by some hundredths of a percent.
    #[serde(rename = "full")]
    Full,
    /// What `llama-perplexity` does: each window begins with BOS, in place of its first token, if the model wants it, and
    /// only the second half of the window is scored.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
}

impl Protocol {
    /// Its name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Full => "full",
            Protocol::LlamaCpp => "llama.cpp",
        }
    }

    /// The usual window, if the model's context is not shorter: 2048 tokens in papers, 512 in llama.cpp.
    pub fn usual_ctx(self) -> usize {
        match self {
            Protocol::Full => 2048,
            Protocol::LlamaCpp => 512,
        }
    }

    /// The shortest window in which something is scored.
    pub fn least_ctx(self) -> usize {
        match self {
            Protocol::Full => 2,
            Protocol::LlamaCpp => 3,
        }
    }

    /// The positions in a window of `ctx` tokens whose next token is scored.
    pub fn scored(self, ctx: usize) -> Range<usize> {
        match self {
            Protocol::Full => 0..ctx,
            Protocol::LlamaCpp => ctx / 2..ctx - 1,
        }
    }
}

/// Windows of equal length, and the tokens that they are scored on. What is left of the text after the last whole one is not
/// used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    protocol: Protocol,
    ctx: usize,
    windows: Vec<Vec<u32>>,
    targets: Vec<Vec<u32>>,
}

impl Windows {
    /// Cuts `tokens`, the text's own, into windows of `ctx`, at most `limit` of them. `bos` is that of a model which
    /// wants it.
    ///
    /// # Errors
    /// `Usage` if nothing is scored in windows of `ctx`, `Invalid` if the text does not fill one.
    pub fn cut(
        protocol: Protocol,
        tokens: &[u32],
        bos: Option<u32>,
        ctx: usize,
        limit: Option<usize>,
    ) -> Result<Windows> {
        let least = protocol.least_ctx();
        if ctx < least {
            return Err(Error::new(
                Kind::Usage,
                format!("windows of {ctx} tokens: protocol {} needs at least {least}", protocol.name()),
            ));
        }
        let all: Vec<u32> = bos.iter().chain(tokens).copied().collect();
        let scored = protocol.scored(ctx);
        // With the tokens up to the one after the last scored position.
        let whole = ctx.max(scored.end + 1);
        let starts = (0..all.len()).step_by(ctx).take_while(|start| start + whole <= all.len());
        let starts: Vec<usize> = starts.take(limit.unwrap_or(usize::MAX)).collect();
        if starts.is_empty() {
            return Err(Error::new(
                Kind::Invalid,
                format!("the text has {} tokens; a window of {ctx} takes {whole}", all.len()),
            )
            .hint("Pass a longer text with --data, or shorter windows with --ctx."));
        }
        let take = |range: Range<usize>| {
            starts.iter().map(|i| all[i + range.start..i + range.end].to_vec()).collect()
        };
        let mut windows: Vec<Vec<u32>> = take(0..ctx);
        let targets = take(scored.start + 1..scored.end + 1);
        if let (Protocol::LlamaCpp, Some(bos)) = (protocol, bos) {
            windows.iter_mut().for_each(|window| window[0] = bos);
        }
        Ok(Windows { protocol, ctx, windows, targets })
    }

    /// Rows of tokens as they are: the last token of each is only predicted.
    ///
    /// # Errors
    /// `Invalid` if there is no row, or one has less than three tokens or another length than the others.
    pub fn of_rows(rows: &[Vec<u32>]) -> Result<Windows> {
        let protocol = Protocol::Full;
        let length = rows.first().map_or(0, Vec::len);
        if length <= protocol.least_ctx() || rows.iter().any(|row| row.len() != length) {
            return Err(Error::new(
                Kind::Invalid,
                "rows to measure on must be of one length, three tokens or more",
            )
            .hint("Pass a longer --seq-len."));
        }
        Ok(Windows {
            protocol,
            ctx: length - 1,
            windows: rows.iter().map(|row| row[..length - 1].to_vec()).collect(),
            targets: rows.iter().map(|row| row[1..].to_vec()).collect(),
        })
    }

    /// How they were cut.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Tokens in each.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// The tokens that go into the model, window by window.
    pub fn inputs(&self) -> &[Vec<u32>] {
        &self.windows
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Never: there is at least one window.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// The positions whose next token is scored, the same in each window.
    pub fn scored(&self) -> Range<usize> {
        self.protocol.scored(self.ctx)
    }

    /// The tokens that follow the scored positions, window by window.
    pub fn targets(&self) -> &[Vec<u32>] {
        &self.targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [u32; 11] = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20];

    #[test]
    fn full_windows_follow_each_other_with_bos_before_the_text() {
        let windows = Windows::cut(Protocol::Full, &TOKENS, Some(1), 4, None).unwrap();
        // The third window has no token after it to be scored.
        assert_eq!(windows.inputs(), [[1, 10, 11, 12], [13, 14, 15, 16]]);
        assert_eq!((windows.scored(), windows.targets()[1].clone()), (0..4, vec![14, 15, 16, 17]));
        let windows = Windows::cut(Protocol::Full, &TOKENS, None, 5, None).unwrap();
        assert_eq!(windows.inputs(), [[10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]);
        assert_eq!(windows.targets()[1], [16, 17, 18, 19, 20]);
        let windows = Windows::cut(Protocol::Full, &TOKENS, None, 4, Some(1)).unwrap();
        assert_eq!(windows.inputs(), [[10, 11, 12, 13]]);
    }

    #[test]
    fn windows_of_llama_cpp_begin_with_bos_and_count_their_second_half() {
        let windows = Windows::cut(Protocol::LlamaCpp, &TOKENS, Some(1), 6, None).unwrap();
        assert_eq!(windows.inputs(), [[1, 10, 11, 12, 13, 14], [1, 16, 17, 18, 19, 20]]);
        // llama-perplexity scores n_ctx - 1 - n_ctx / 2 tokens.
        assert_eq!((windows.scored(), windows.targets()[1].clone()), (3..5, vec![19, 20]));
        let windows = Windows::cut(Protocol::LlamaCpp, &TOKENS, None, 5, None).unwrap();
        assert_eq!(windows.inputs(), [[10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]);
        assert_eq!(windows.targets()[0], [13, 14]);
    }

    #[test]
    fn rows_are_windows_that_predict_their_last_token() {
        let windows = Windows::of_rows(&[vec![1, 2, 3], vec![4, 5, 6]]).unwrap();
        assert_eq!(windows.inputs(), [[1, 2], [4, 5]]);
        assert_eq!((windows.targets()[1].clone(), windows.scored(), windows.ctx()), (vec![5, 6], 0..2, 2));
        for rows in [vec![], vec![vec![1, 2]], vec![vec![1, 2, 3], vec![1, 2, 3, 4]]] {
            assert_eq!(Windows::of_rows(&rows).unwrap_err().kind(), Kind::Invalid, "{rows:?}");
        }
    }

    #[test]
    fn what_leaves_nothing_to_score_is_refused() {
        let kind = |protocol, ctx| Windows::cut(protocol, &TOKENS, None, ctx, None).unwrap_err().kind();
        assert_eq!(kind(Protocol::Full, 1), Kind::Usage);
        assert_eq!(kind(Protocol::LlamaCpp, 2), Kind::Usage);
        assert_eq!(kind(Protocol::Full, 11), Kind::Invalid);
        assert_eq!(kind(Protocol::LlamaCpp, 12), Kind::Invalid);
        assert!(Windows::cut(Protocol::Full, &TOKENS, None, 10, None).is_ok());
        assert!(Windows::cut(Protocol::LlamaCpp, &TOKENS, None, 3, None).is_ok());
    }
}
