//! How much memory tuning takes beside the program. Upper bounds from shapes, in bytes, as in [`memory`].

use super::examples::{PIECE_TOKENS, VARIANTS};
use super::whole::LOGITS;
use super::{ROWS, Settings};
use crate::arch::Model;
use crate::arch::decoder::Compute;
use crate::pipeline::layerwise::Matrix;
use crate::pipeline::memory;

/// What is learned of a weight against a layer's outputs: its position, its value and its gradient.
const BLOCK_WEIGHT: usize = 12;

/// The same against predictions, with the two means of Adam, as far as it stays from step to step.
const WHOLE_WEIGHT: usize = 16;

/// Codes of the best state and of the one that takes its place.
const KEPT_WEIGHT: usize = 2;

/// Copies of a matrix while its gradient is taken over, and of its values while they are made anew.
const MOVING_WEIGHT: usize = 12;

/// Times that the logits of a piece are there, of both models: as tensors and as values, with their gradient.
const LOGITS_COPIES: usize = 6;

impl Settings {
    /// Hidden states that tuning layer after layer keeps besides those after the layer: those before it, and those that the
    /// original layers have made.
    pub(in crate::pipeline) fn states(&self, model: &Model, windows: &[Vec<u32>]) -> u64 {
        if self.block_steps == 0 { 0 } else { 2 * memory::states(model, windows) }
    }

    /// Tuning the layer that takes most: that layer as it was, and as it is learned.
    pub(in crate::pipeline) fn layer(
        &self,
        model: &Model,
        matrices: &[Vec<Matrix>],
        windows: &[Vec<u32>],
    ) -> u64 {
        if self.block_steps == 0 {
            return 0;
        }
        let learned = matrices.iter().map(|matrices| {
            let [weights, largest] = self.weights(matrices);
            (BLOCK_WEIGHT + KEPT_WEIGHT) * weights + MOVING_WEIGHT * largest
        });
        let learned = learned.max().unwrap_or(0) as u64;
        // The layer as it was, as its file will have it, and with gradients of its own.
        learned + 3 * memory::layer(model) + way_back(model, windows)
    }

    /// Tuning the whole model, all of whose layers were quantized.
    pub(in crate::pipeline) fn whole(
        &self,
        model: &Model,
        matrices: &[Vec<Matrix>],
        windows: &[Vec<u32>],
    ) -> u64 {
        if self.whole_steps == 0 {
            return 0;
        }
        let h = &model.hyper;
        let each = matrices.iter().map(|matrices| self.weights(matrices));
        let [weights, largest] = each.fold([0, 0], |[sum, most], [w, l]| [sum + w, most.max(l)]);
        // Values of all matrices, be they learned or not; the results that are to be replaced.
        let values = h.layers as u64 * memory::layer(model);
        let results = deferred(matrices) as u64;
        let learned = (WHOLE_WEIGHT - 4) * weights;
        let targets = (1 + VARIANTS) as u64 * memory::states(model, windows);
        let head = (4 * h.vocab * h.hidden) as u64;
        let stays = values + results + learned as u64 + targets;
        // What goes through the original model is as large as what comes of it.
        let before = targets + memory::computing(model, Compute::F32, windows);
        let tokens = piece(windows);
        let logits = LOGITS.max(h.vocab).min(tokens * h.vocab);
        let states = 4 * (h.layers + 5) * tokens * h.hidden;
        let step = 4 * weights
            + KEPT_WEIGHT * weights
            + MOVING_WEIGHT * largest
            + 4 * LOGITS_COPIES * logits
            + states;
        let step = step as u64 + head + 2 * memory::layer(model) + way_back(model, windows);
        stays + before.max(step)
    }

    /// Weights that are learned of a layer, and those of the largest matrix.
    fn weights(&self, matrices: &[Matrix]) -> [usize; 2] {
        let learned = || matrices.iter().filter(|matrix| self.includes(matrix)).map(Matrix::weights);
        [learned().sum(), learned().max().unwrap_or(0)]
    }
}

/// The results of all layers, which wait until the whole model was tuned: at most a byte for each weight, and scales.
pub(in crate::pipeline) fn deferred(matrices: &[Vec<Matrix>]) -> usize {
    let weights: usize = matrices.iter().flatten().map(Matrix::weights).sum();
    weights + weights / 4
}

/// The most tokens that go through a layer at a time.
fn piece(windows: &[Vec<u32>]) -> usize {
    let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
    (ROWS * longest).min(PIECE_TOKENS.max(longest))
}

/// A layer's activations on the way back: all that its operations have made, and the gradients that are there at a time.
fn way_back(model: &Model, windows: &[Vec<u32>]) -> u64 {
    let h = &model.hyper;
    let (query, kv) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
    let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
    let tokens = piece(windows);
    // Hidden states before, between and after, normed and not; queries and keys as they come, normed, rotated and by heads; gate,
    // up and what they make.
    let made = 8 * h.hidden + 6 * query + 7 * kv + 3 * h.feed_forward;
    let gradients = 3 * h.hidden + 2 * query + 2 * kv + 3 * h.feed_forward;
    // Scores and weights, and the gradients of both.
    let scores = 4 * h.heads * longest;
    (4 * tokens * (made + gradients + scores)) as u64
}
