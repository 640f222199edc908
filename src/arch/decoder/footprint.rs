//! What a layer takes of a device's memory.

use super::{Input, Layer, Step};
use crate::error::Result;

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Of the layer's matrices.
    pub weights: u64,
    /// Of what is computed for a batch, at most at the same time.
    pub batch: u64,
    /// Of what a step leaves for the next for each token, at most.
    pub held_by_token: u64,
    /// Of the Gram matrices of the inputs at which a step stops, at most.
    pub grams: u64,
}

impl Layer {
    /// The inputs at which a step stops.
    fn inputs_of(&self, step: Step) -> Vec<Input> {
        let experts = 0..self.experts().0;
        match step {
            Step::Attention => vec![Input::Attention],
            Step::AttentionOutput => vec![Input::AttentionOutput],
            Step::FeedForward if experts.is_empty() => vec![Input::FeedForward],
            Step::FeedForward => [Input::Router].into_iter().chain(experts.map(Input::Expert)).collect(),
            Step::Down if experts.is_empty() => vec![Input::Down],
            Step::Down => experts.map(Input::ExpertDown).collect(),
            Step::End => Vec::new(),
        }
    }

    /// What a device needs to compute a batch of `tokens` tokens in sequences of `length`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn footprint(&self, tokens: usize, length: usize) -> Result<Footprint> {
        let (_, used) = self.experts();
        let mut weights = 0;
        for input in Step::ALL.into_iter().flat_map(|step| self.inputs_of(step)) {
            for (_, linear) in self.linears(input) {
                weights += linear.outer()? * linear.inner()?;
            }
        }
        let outer = |input: Input, at: usize| match self.linears(input).get(at) {
            Some((_, linear)) => linear.outer(),
            None => Ok(0),
        };
        let hidden = outer(Input::AttentionOutput, 0)?;
        let (query, key) = (outer(Input::Attention, 0)?, outer(Input::Attention, 1)?);
        let wide = outer(Input::FeedForward, 0)?.max(outer(Input::Expert(0), 0)?);
        // States, their norm and the sum; queries and keys as they are, normed and rotated, values, and what comes of them
        // with the scores of the queries that share a key.
        let sharing = self.queries_of_a_key();
        let attention = tokens * (3 * hidden + 4 * query + 4 * key) + sharing * length * length;
        // Gate, up and their product; of experts also what all have made.
        let feed_forward = tokens * (4 * hidden + 3 * wide + used * (wide + hidden));
        let bytes = |values: usize| (values * size_of::<f32>()) as u64;
        let held = query.max(if used == 0 { wide } else { used * wide });
        let grams = Step::ALL.map(|step| {
            let inputs =
                self.inputs_of(step).into_iter().filter_map(|input| self.linears(input).first().copied());
            inputs.map(|(_, linear)| linear.inner().map(|n| n * n)).sum::<Result<usize>>()
        });
        let grams = grams.into_iter().collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
        Ok(Footprint {
            weights: bytes(weights),
            batch: bytes(attention.max(feed_forward)),
            held_by_token: bytes(held),
            grams: bytes(grams),
        })
    }
}
