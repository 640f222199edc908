//! The tensors of a GGUF file as a Hugging Face checkpoint has them: names, shapes, order of rows, float32.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use rayon::prelude::*;

use super::files::Files;
use super::params::ROPE_TENSORS;
use crate::arch::Model;
use crate::arch::spec::{Heads, Need, TensorRule, Use};
use crate::error::{Error, Kind, Result};
use crate::format::gguf::{GgmlType, blocks};
use crate::pipeline::gguf::RowOrder;
use crate::source::dense::Dense;
use crate::source::safetensors::FloatType;

/// Weights that one thread decodes at a time, at most.
const PIECE: usize = 1 << 16;

/// The weights of a model in GGUF.
#[derive(Debug)]
pub(super) struct Weights {
    files: Files,
    /// By the names of the checkpoint.
    entries: BTreeMap<String, Entry>,
}

/// Where a tensor of the checkpoint is.
#[derive(Debug)]
struct Entry {
    /// Name in GGUF.
    name: String,
    /// Outermost dimension first, as in the checkpoint.
    shape: Vec<usize>,
    ty: GgmlType,
    /// The row of the GGUF tensor with which it begins; experts are stacked.
    first_row: usize,
    order: RowOrder,
    /// What was added to every weight.
    offset: f32,
}

impl Weights {
    /// Finds all tensors of `model`.
    ///
    /// # Errors
    /// `Invalid` if one is missing or has another shape than the metadata implies; `Unsupported` if its type cannot be
    /// read, or if one is left that nobody knows.
    pub(super) fn new(model: &Model, files: Files) -> Result<Weights> {
        let mut entries = BTreeMap::new();
        let mut used: HashSet<String> = ROPE_TENSORS.map(String::from).into();
        let hyper = &model.hyper;
        for rule in model.spec.tensors.iter().copied().flatten() {
            for layer in 0..if rule.per_layer() { hyper.layers } else { 1 } {
                let name = rule.gguf.replace("{}", &layer.to_string());
                let Some(entry) = find(model, &files, rule, &name)? else { continue };
                used.insert(name);
                let hf = rule.hf.replace("{}", &layer.to_string());
                if rule.usage != Use::Expert {
                    entries.insert(hf, entry);
                    continue;
                }
                for expert in 0..hyper.experts {
                    let (name, shape) = (entry.name.clone(), entry.shape.clone());
                    let first_row = expert * shape[0];
                    let own = Entry { name, shape, first_row, ..entry };
                    entries.insert(hf.replace("{e}", &expert.to_string()), own);
                }
            }
        }
        let left: Vec<&str> = files.names().filter(|name| !used.contains(*name)).collect();
        if !left.is_empty() {
            let shown = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
            let more = if left.len() > 5 { format!(" and {} more", left.len() - 5) } else { String::new() };
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "{} has tensors that architecture {} does not: {shown}{more}",
                    files.path().display(),
                    model.spec.gguf
                ),
            ));
        }
        Ok(Weights { files, entries })
    }

    fn entry(&self, name: &str) -> &Entry {
        self.entries.get(name).unwrap_or_else(|| panic!("there is no tensor {name}"))
    }
}

/// The tensor of a rule, if the model has it; of stacked experts the first.
fn find(model: &Model, files: &Files, rule: &TensorRule, name: &str) -> Result<Option<Entry>> {
    let hyper = &model.hyper;
    let at = files.path().display();
    let Some(info) = files.tensor(name) else {
        if rule.need == Need::Optional || rule.need == Need::UnlessTied && hyper.tied {
            return Ok(None);
        }
        return Err(Error::new(Kind::Invalid, format!("{at}: tensor {name} is missing")));
    };
    let shape: Vec<usize> = rule.shape.iter().map(|dim| dim.size(hyper)).collect();
    let mut expected: Vec<u64> = shape.iter().rev().map(|n| *n as u64).collect();
    if rule.usage == Use::Expert {
        expected.push(hyper.experts as u64);
    }
    if without_ones(&info.shape) != without_ones(&expected) {
        return Err(Error::new(
            Kind::Invalid,
            format!("{at}: tensor {name} has shape {:?}; the metadata implies {expected:?}", info.shape),
        ));
    }
    if !info.ty.is_readable() || shape.len() == 1 && info.ty.is_quantized() {
        return Err(Error::new(
            Kind::Unsupported,
            format!("{at}: tensor {name} has type {}, which cannot be read here", info.ty),
        ));
    }
    let order = match rule.usage {
        Use::Rope(heads) if model.spec.interleave_rope => {
            let heads = match heads {
                Heads::Query => hyper.heads,
                Heads::KeyValue => hyper.kv_heads,
            };
            RowOrder::Interleave { half: shape[0] / heads / 2 }
        }
        _ => RowOrder::AsIs,
    };
    let offset = if rule.usage == Use::Norm { model.spec.norm_offset } else { 0.0 };
    Ok(Some(Entry { name: name.into(), shape, ty: info.ty, first_row: 0, order, offset }))
}

/// ggml does not tell trailing dimensions of 1.
fn without_ones(shape: &[u64]) -> &[u64] {
    let n = shape.iter().rposition(|n| *n != 1).map_or(1, |last| last + 1);
    &shape[..n.min(shape.len())]
}

impl Dense for Weights {
    fn names(&self) -> Vec<&str> {
        self.entries.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    fn float_type(&self, name: &str) -> Option<FloatType> {
        match self.entries.get(name)?.ty {
            GgmlType::F32 => Some(FloatType::F32),
            GgmlType::F16 => Some(FloatType::F16),
            GgmlType::BF16 => Some(FloatType::BF16),
            _ => None,
        }
    }

    fn bits(&self, name: &str) -> Option<f64> {
        let ty = self.entries.get(name)?.ty;
        Some(ty.block_bytes() as f64 * 8.0 / ty.block_len() as f64)
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name);
        assert!(rows.end <= entry.shape[0], "rows {rows:?} of {name}, which has {}", entry.shape[0]);
        let width: usize = entry.shape[1..].iter().product();
        let row_bytes = width / entry.ty.block_len() * entry.ty.block_bytes();
        let data = &self.files.data(&entry.name)[entry.first_row * row_bytes..];
        let per_piece = (PIECE / width).max(1);
        let finite = out
            .par_chunks_mut(per_piece * width)
            .enumerate()
            .map(|(piece, out)| {
                let start = rows.start + piece * per_piece;
                match entry.order {
                    RowOrder::AsIs => {
                        let count = out.len() / width;
                        blocks::decode(entry.ty, &data[start * row_bytes..][..count * row_bytes], out);
                    }
                    RowOrder::Interleave { .. } => {
                        for (row, out) in (start..).zip(out.chunks_exact_mut(width)) {
                            let at = entry.order.target_row(row) * row_bytes;
                            blocks::decode(entry.ty, &data[at..at + row_bytes], out);
                        }
                    }
                }
                if entry.offset != 0.0 {
                    out.iter_mut().for_each(|w| *w -= entry.offset);
                }
                out.iter().fold(true, |finite, w| finite & w.is_finite())
            })
            .reduce(|| true, |a, b| a & b);
        if finite {
            return Ok(());
        }
        let path = self.files.path().display();
        Err(Error::new(Kind::Invalid, format!("{path}: tensor {} holds NaN or infinity", entry.name))
            .hint("The file is damaged, or was made from a damaged model."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_dimensions_of_one_do_not_count() {
        assert_eq!(without_ones(&[4, 3, 1, 1]), [4, 3]);
        assert_eq!(without_ones(&[1, 1]), [1]);
        assert_eq!(without_ones(&[1, 5]), [1, 5]);
    }
}
