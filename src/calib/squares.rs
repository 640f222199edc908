//! How strongly each column of a matrix is used: the sum of its inputs' squares.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::guard::Statistic;
use super::imatrix::Entry;
use crate::arch::ArchSpec;
use crate::arch::decoder::{Activations, Input, LinearId};
use crate::error::{Error, Kind, Result};

/// Columns that one thread adds up. The sum of a column is always taken by one thread, in the order of the rows: it does
/// not depend on the number of threads, nor on the pieces in which the rows come.
const COLUMNS: usize = 64;

/// Sums over the tokens of one layer's inputs.
#[derive(Debug, Default)]
pub struct Squares {
    inputs: BTreeMap<LinearId, Sum>,
}

#[derive(Clone, Debug, Default)]
struct Sum {
    /// In double precision: float32 loses digits over some ten thousand tokens.
    columns: Vec<f64>,
    rows: u64,
}

impl Statistic for Squares {
    fn add(&mut self, linear: LinearId, rows: &Activations) -> Result<()> {
        let [count, width] = rows.shape()?;
        let sum = self.inputs.entry(linear).or_default();
        sum.columns.resize(width, 0.0);
        sum.rows += count as u64;
        rows.with_values(|values| {
            sum.columns.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, sums)| {
                for row in values.chunks_exact(width) {
                    for (sum, value) in sums.iter_mut().zip(&row[i * COLUMNS..]) {
                        let value = f64::from(*value);
                        *sum += value * value;
                    }
                }
            });
        })
    }
}

impl Squares {
    /// The sums by the tensors' names in GGUF, for a model with `experts` of them in each layer. Matrices that share an
    /// input get a copy each; an expert that no token came to has zeros.
    ///
    /// # Errors
    /// `Invalid` if a sum is beyond float32, in which both formats hold it.
    pub fn finish(self, spec: &ArchSpec, experts: usize) -> Result<BTreeMap<String, Entry>> {
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for (linear, sum) in self.inputs {
            let squares: Vec<f32> = sum.columns.iter().map(|sum| *sum as f32).collect();
            if squares.iter().any(|sum| !sum.is_finite()) {
                return Err(Error::new(
                    Kind::Invalid,
                    format!(
                        "layer {}: the inputs of {} are so large that the sum of their squares is infinite",
                        linear.layer,
                        linear.modules(spec).join(", ")
                    ),
                )
                .hint("The weights are damaged, or the model does not compute this text in float32."));
            }
            // Both formats hold counts as float32, which rounds beyond 16 million. Rounded here once and for all, sums are
            // the same whether they have been in a file or not.
            let count = sum.rows as f32 as u64;
            let (expert, matrices) = match linear.input {
                Input::Expert(expert) | Input::ExpertDown(expert) => (expert, experts),
                _ => (0, 1),
            };
            let width = squares.len();
            for tensor in linear.tensors(spec) {
                let entry = entries.entry(tensor).or_insert_with(|| Entry {
                    squares: vec![0.0; matrices * width],
                    counts: vec![0; matrices],
                });
                entry.squares[expert * width..][..width].copy_from_slice(&squares);
                entry.counts[expert] = count;
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    fn add(squares: &mut Squares, input: Input, rows: &[[f32; 2]]) -> Result<()> {
        let rows = Tensor::from_vec(rows.concat(), (rows.len(), 2), &Device::Cpu)?;
        squares.add(LinearId { layer: 1, input }, &Activations::Memory(rows))
    }

    #[test]
    fn squares_are_added_for_each_matrix_that_shares_the_input() {
        let spec = crate::arch::find("LlamaForCausalLM").unwrap();
        let mut squares = Squares::default();
        add(&mut squares, Input::Attention, &[[1.0, -2.0], [3.0, 0.5]]).unwrap();
        add(&mut squares, Input::Attention, &[[0.0, 1.0]]).unwrap();
        add(&mut squares, Input::Down, &[[2.0, 2.0]]).unwrap();
        let entries = squares.finish(spec, 0).unwrap();
        let names: Vec<&str> = entries.keys().map(String::as_str).collect();
        assert_eq!(names, ["attn_k", "attn_q", "attn_v", "ffn_down"].map(|n| format!("blk.1.{n}.weight")));
        let q = &entries["blk.1.attn_q.weight"];
        assert_eq!((q.squares.as_slice(), q.counts.as_slice()), (&[10.0, 5.25][..], &[3][..]));
        assert_eq!(q, &entries["blk.1.attn_v.weight"]);
    }

    #[test]
    fn each_expert_has_its_own_sums_and_count() {
        let spec = crate::arch::find("MixtralForCausalLM").unwrap();
        let mut squares = Squares::default();
        add(&mut squares, Input::Expert(2), &[[1.0, 2.0], [1.0, 2.0]]).unwrap();
        add(&mut squares, Input::Expert(0), &[[3.0, 0.0]]).unwrap();
        let entries = squares.finish(spec, 4).unwrap();
        for name in ["blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"] {
            assert_eq!(entries[name].squares, [9.0, 0.0, 0.0, 0.0, 2.0, 8.0, 0.0, 0.0]);
            assert_eq!(entries[name].counts, [1, 0, 2, 0]);
        }
    }

    #[test]
    fn sums_beyond_float32_are_refused() {
        let spec = crate::arch::find("LlamaForCausalLM").unwrap();
        let mut squares = Squares::default();
        add(&mut squares, Input::Down, &[[1.0, 1e30]]).unwrap();
        let e = squares.finish(spec, 0).unwrap_err();
        assert!(e.to_string().contains("layer 1") && e.to_string().contains("mlp.down_proj"), "{e}");
    }

    #[test]
    fn sums_do_not_depend_on_pieces_or_threads() {
        let spec = crate::arch::find("LlamaForCausalLM").unwrap();
        let width = 3 * COLUMNS + 5;
        let values: Vec<f32> = (0..50 * width).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 77.0).collect();
        let sums = |pieces: &[usize], threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let all = Tensor::from_vec(values.clone(), (50, width), &Device::Cpu).unwrap();
            let (mut squares, mut start) = (Squares::default(), 0);
            for piece in pieces {
                let rows = Activations::Memory(all.narrow(0, start, *piece).unwrap());
                let id = LinearId { layer: 0, input: Input::Down };
                pool.install(|| squares.add(id, &rows)).unwrap();
                start += piece;
            }
            squares.finish(spec, 0).unwrap()
        };
        let first = sums(&[50], 1);
        assert_eq!(first, sums(&[50], 3));
        assert_eq!(first, sums(&[7, 42, 1], 2));
    }
}
