//! Where factors of channels can be moved from one operation of a layer into the next without changing what it computes.
//!
//! If what makes an input of matrices has one factor per channel (a norm), or one row per channel with nothing but products and
//! sums behind it (value before the projection after attention, up before down), it can be divided by a vector and all matrices
//! that the input goes into multiplied by the same (AWQ: Lin et al., arXiv 2306.00978, section 3.2). Every consumer counts: a
//! router and each expert of a mixture as much as gate and up.
//!
//! Which places there are follows from what the decoder computes and which tensors a family has; no family has a table.

use std::ops::Range;

use super::Model;
use super::decoder::Input;

/// A place where factors can be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// What makes the input and is divided.
    pub source: Source,
    /// The inputs, the same states all of them, whose matrices are multiplied.
    pub inputs: Vec<Input>,
    heads: Option<Heads>,
}

/// What makes an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The norm of this name in GGUF, with `{}` for the layer.
    Norm(&'static str),
    /// Rows of a matrix, and of its bias if it has one.
    Rows {
        /// The matrix is `blk.{}.STEM.weight` in GGUF.
        stem: &'static str,
        /// Of which expert, where the matrix is one of several.
        expert: usize,
        /// Its rows, one for each channel.
        rows: Range<usize>,
    },
}

/// Queries of several heads see the values of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heads {
    head_dim: usize,
    queries_per_value: usize,
}

impl Fold {
    /// Those of every layer of a model.
    pub fn all(model: &Model) -> Vec<Fold> {
        let (spec, hyper) = (model.spec, &model.hyper);
        let has = |stem: &str| spec.rule(&format!("blk.{{}}.{stem}.weight")).is_some();
        let norm = |name, inputs| Fold { source: Source::Norm(name), inputs, heads: None };
        let rows = |stem, expert, rows, input| Fold {
            source: Source::Rows { stem, expert, rows },
            inputs: vec![input],
            heads: None,
        };
        let (query, value) = (hyper.heads * hyper.head_dim, hyper.kv_heads * hyper.head_dim);
        let (stem, first) = if has("attn_v") { ("attn_v", 0) } else { ("attn_qkv", query + value) };
        let mut folds = vec![norm("blk.{}.attn_norm.weight", vec![Input::Attention])];
        folds.push(Fold {
            heads: Some(Heads { head_dim: hyper.head_dim, queries_per_value: hyper.heads / hyper.kv_heads }),
            ..rows(stem, 0, first..first + value, Input::AttentionOutput)
        });
        if has("ffn_gate_inp") {
            let experts = (0..hyper.experts).map(Input::Expert);
            folds.push(norm("blk.{}.ffn_norm.weight", [Input::Router].into_iter().chain(experts).collect()));
            let width = spec.rule("blk.{}.ffn_up_exps.weight").map_or(0, |rule| rule.shape[0].size(hyper));
            folds.extend((0..hyper.experts).map(|e| rows("ffn_up_exps", e, 0..width, Input::ExpertDown(e))));
        } else {
            let width = hyper.feed_forward;
            // Without a matrix for the gate, that for up holds both, the gate first.
            let first = if has("ffn_gate") { 0 } else { width };
            folds.push(norm("blk.{}.ffn_norm.weight", vec![Input::FeedForward]));
            folds.push(rows("ffn_up", 0, first..first + width, Input::Down));
        }
        folds
    }

    /// The channel of the source that channel `input` of the input comes from.
    pub fn channel(&self, input: usize) -> usize {
        match self.heads {
            None => input,
            Some(Heads { head_dim, queries_per_value }) => {
                input / head_dim / queries_per_value * head_dim + input % head_dim
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::source::config::Config;

    fn folds(class: &str, more: Value) -> Vec<Fold> {
        let mut config = json!({"architectures": [class], "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 100,
            "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Fold::all(&Model::read(Config::from_json(config).unwrap(), &[]).unwrap())
    }

    fn rows(fold: &Fold) -> (&str, Range<usize>) {
        match &fold.source {
            Source::Rows { stem, rows, .. } => (stem, rows.clone()),
            Source::Norm(name) => (name, 0..0),
        }
    }

    #[test]
    fn heads_that_share_values_share_factors() {
        let all = folds("LlamaForCausalLM", json!({}));
        assert_eq!(rows(&all[1]), ("attn_v", 0..32));
        let channels: Vec<usize> = (0..64).step_by(8).map(|i| all[1].channel(i)).collect();
        assert_eq!(channels, [0, 8, 0, 8, 16, 24, 16, 24]);
        assert_eq!(all[0].channel(63), 63);
        assert_eq!(rows(&all[3]), ("ffn_up", 0..96));
    }

    #[test]
    fn parts_of_joined_matrices_are_found() {
        let all = folds("Phi3ForCausalLM", json!({"pad_token_id": 0}));
        assert_eq!(rows(&all[1]), ("attn_qkv", 96..128), "values come last");
        assert_eq!(rows(&all[3]), ("ffn_up", 96..192), "up comes last");
    }

    #[test]
    fn a_norm_goes_into_the_router_and_every_expert() {
        let all = folds("MixtralForCausalLM", json!({"num_local_experts": 3}));
        assert_eq!(all[2].inputs, [Input::Router, Input::Expert(0), Input::Expert(1), Input::Expert(2)]);
        assert_eq!(all.len(), 6);
        assert_eq!(all[5].inputs, [Input::ExpertDown(2)]);
        assert_eq!(rows(&all[5]), ("ffn_up_exps", 0..96));
    }
}
