//! How much memory tuning takes beside the program. Upper bounds from shapes, in bytes, as in [`memory`].

use super::examples::{HELD_OUT, PIECE_TOKENS, VARIANTS};
use super::whole::LOGITS;
use super::{ROWS, Settings};
use crate::arch::Model;
use crate::arch::decoder::Compute;
use crate::pipeline::layerwise::Matrix;
use crate::pipeline::memory;

/// What is learned of a weight against a layer's outputs: its position, its value and its gradient.
const BLOCK_WEIGHT: usize = 12;

/// What is learned of a weight against predictions, besides its value and its gradient: its position, with the two means of Adam.
const WHOLE_WEIGHT: usize = 12;

/// Codes of the best state and of the one that takes its place.
const KEPT_WEIGHT: usize = 2;

/// Copies of a matrix while its gradient is taken over, and of its values while they are made anew.
const MOVING_WEIGHT: usize = 12;

/// Times that the logits of a piece are there, of both models: as tensors and as values, with their gradient.
const LOGITS_COPIES: usize = 6;

/// What decides how much memory tuning takes.
pub(in crate::pipeline) struct Need<'a> {
    pub(in crate::pipeline) settings: &'a Settings,
    pub(in crate::pipeline) model: &'a Model,
    pub(in crate::pipeline) matrices: &'a [Vec<Matrix>],
    pub(in crate::pipeline) windows: &'a [Vec<u32>],
}

impl Need<'_> {
    /// Hidden states that tuning layer after layer keeps besides those after the layer: those before it, and those that the
    /// original layers have made.
    pub(in crate::pipeline) fn states(&self) -> u64 {
        if self.settings.block_steps == 0 { 0 } else { 2 * memory::states(self.model, self.windows) }
    }

    /// Tuning the layer that takes most: that layer as it was, and as it is learned.
    pub(in crate::pipeline) fn layer(&self) -> u64 {
        if self.settings.block_steps == 0 {
            return 0;
        }
        let learned = self.matrices.iter().map(|matrices| {
            let [weights, largest] = self.weights(matrices);
            (BLOCK_WEIGHT + KEPT_WEIGHT) * weights + MOVING_WEIGHT * largest
        });
        let learned = learned.max().unwrap_or(0) as u64;
        // The layer as it was, as its file will have it, and with gradients of its own.
        learned + 3 * memory::layer(self.model) + self.way_back()
    }

    /// Tuning the whole model, all of whose layers were quantized.
    pub(in crate::pipeline) fn whole(&self) -> u64 {
        if self.settings.whole_steps == 0 {
            return 0;
        }
        let Need { model, windows, .. } = *self;
        let h = &model.hyper;
        let each = self.matrices.iter().map(|matrices| self.weights(matrices));
        let [weights, largest] = each.fold([0, 0], |[sum, most], [w, l]| [sum + w, most.max(l)]);
        // Values of all matrices, be they learned or not; the results that are to be replaced.
        let values = h.layers as u64 * memory::layer(model);
        let learned = (WHOLE_WEIGHT * weights) as u64;
        let targets = (1 + VARIANTS) as u64 * memory::states(model, windows);
        let head = (4 * h.vocab * h.hidden) as u64;
        let stays = values + self.deferred() + learned + targets;
        // What goes through the original model is as large as what comes of it.
        let before = targets + memory::computing(model, Compute::F32, windows);
        let tokens = self.piece();
        let logits = LOGITS.max(h.vocab).min(tokens * h.vocab);
        let states = 4 * (h.layers + 5) * tokens * h.hidden;
        let step = 4 * weights
            + KEPT_WEIGHT * weights
            + MOVING_WEIGHT * largest
            + 4 * LOGITS_COPIES * logits
            + states;
        let step = step as u64 + head + 2 * memory::layer(model) + self.way_back();
        stays + before.max(step)
    }

    /// Weights that are learned of a layer, and those of the largest matrix.
    fn weights(&self, matrices: &[Matrix]) -> [usize; 2] {
        let learned = || matrices.iter().filter(|matrix| self.settings.includes(matrix)).map(Matrix::weights);
        [learned().sum(), learned().max().unwrap_or(0)]
    }

    /// The results of all layers, which wait until the whole model was tuned: at most a byte for each weight, and scales.
    pub(in crate::pipeline) fn deferred(&self) -> u64 {
        if self.settings.whole_steps == 0 {
            return 0;
        }
        let weights: usize = self.matrices.iter().flatten().map(Matrix::weights).sum();
        (weights + weights / 4) as u64
    }

    /// The most tokens that go through a layer at a time: of a step, or of the rows that are held out.
    fn piece(&self) -> usize {
        let longest = self.longest();
        let held_out = self.windows.iter().skip(HELD_OUT - 1).step_by(HELD_OUT).map(Vec::len).sum();
        (ROWS * longest).max(held_out).min(PIECE_TOKENS.max(longest))
    }

    /// A layer's activations on the way back: all that its operations have made, and the gradients that are there at a time.
    fn way_back(&self) -> u64 {
        let h = &self.model.hyper;
        let (query, kv) = (h.heads * h.head_dim, h.kv_heads * h.head_dim);
        let tokens = self.piece();
        // Hidden states before, between and after, normed and not; queries and keys as they come, normed, rotated and by heads; gate,
        // up and what they make.
        let made = 8 * h.hidden + 6 * query + 7 * kv + 3 * h.feed_forward;
        let gradients = 3 * h.hidden + 2 * query + 2 * kv + 3 * h.feed_forward;
        // Scores and weights, and the gradients of both.
        let scores = 4 * h.heads * self.longest();
        (4 * tokens * (made + gradients + scores)) as u64
    }

    /// Tokens of the longest row.
    fn longest(&self) -> usize {
        self.windows.iter().map(Vec::len).max().unwrap_or(0)
    }
}
