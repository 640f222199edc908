//! How much memory the computation of a model takes. Upper bounds from shapes, in bytes; tests run jobs in no more than that.

use crate::arch::Model;
use crate::arch::decoder::{BATCH_TOKENS, Compute};
use crate::eval::score::PIECE_BYTES;
use crate::eval::windows::Windows;

/// What the program takes for itself: buffers of files, the main thread.
const PROGRAM: u64 = 24 << 20;

/// What a token of the vocabulary takes: its text, its merges and the tables that find it, in the tokenizer and while its file is
/// read. 600 bytes were measured with a vocabulary of 49152.
const VOCABULARY: u64 = 1000;

/// What each thread takes for itself: its stack, the allocator's reserve, panels of matrix products.
const THREAD: u64 = 6 << 20;

/// What a scored token takes: what is summed up over the vocabulary, and what it cost.
const SCORED: u64 = 256;

/// The program with so many threads and a model's tokenizer.
pub fn program(model: &Model, threads: usize) -> u64 {
    PROGRAM + VOCABULARY * model.hyper.vocab as u64 + THREAD * threads as u64
}

/// The hidden states of `windows`.
pub fn states(model: &Model, windows: &[Vec<u32>]) -> u64 {
    let tokens: usize = windows.iter().map(Vec::len).sum();
    4 * (tokens * model.hyper.hidden) as u64
}

/// The matrices of a layer, in float32.
pub fn layer(model: &Model) -> u64 {
    let h = &model.hyper;
    let attention = h.hidden * 2 * (h.heads + h.kv_heads) * h.head_dim;
    let feed_forward = h.experts.max(1) * 3 * h.hidden * inner(model) + h.experts * h.hidden;
    4 * (attention + feed_forward) as u64
}

/// One layer in memory, and a batch of tokens on its way through it, without the hidden states of the others.
pub fn computing(model: &Model, compute: Compute, windows: &[Vec<u32>]) -> u64 {
    let h = &model.hyper;
    let (query, kv, inner) = (h.heads * h.head_dim, h.kv_heads * h.head_dim, inner(model));
    // In bfloat16 a matrix is packed from float32, which is there meanwhile.
    let packed = if compute == Compute::F32 { 0 } else { h.hidden * query.max(inner) };
    let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
    let tokens = BATCH_TOKENS.max(longest).min(windows.iter().map(Vec::len).sum());
    // Beside the hidden states before and after, and normed: queries, keys and values with what is mixed of them, twice, or gate,
    // up and their product with a copy for statistics.
    let token = 5 * h.hidden + (4 * query + 4 * kv).max(4 * inner * h.experts_used.max(1));
    let scores = h.heads * longest * longest;
    layer(model) + 4 * (packed + tokens * token + scores) as u64
}

/// The inner size of a feed-forward part, or of one of its experts.
pub fn inner(model: &Model) -> usize {
    match model.hyper.expert_feed_forward {
        0 => model.hyper.feed_forward,
        size => size,
    }
}

/// Pieces of the head and of the logits of `models` that are compared, and what is kept of each scored token.
pub fn scoring(models: &[&Model], windows: &Windows) -> u64 {
    let scored = windows.scored().len();
    let pieces = models.iter().map(|model| {
        let h = &model.hyper;
        let head = PIECE_BYTES.min(4 * h.vocab * h.hidden);
        // Logits are there once as a tensor and once as values; the states of a piece are normed.
        let logits = PIECE_BYTES.min(4 * h.vocab * scored);
        (head + 2 * logits + 12 * scored * h.hidden) as u64
    });
    pieces.sum::<u64>() + SCORED * (windows.len() * scored) as u64
}
