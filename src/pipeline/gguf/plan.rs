//! From the tensors of a checkpoint to those of a GGUF file: names, shapes, order, and how each row is found.

use std::collections::BTreeSet;

use crate::arch::hyper::RopeScaling;
use crate::arch::spec::{Heads, Need, TensorRule, Use};
use crate::arch::{Hyper, Model, llama3_rope};
use crate::error::{Error, Kind, Result};
use crate::format::gguf::GgmlType;
use crate::source::dense::Dense;
use crate::source::safetensors::FloatType;

/// One tensor of the file to be written.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// Name in GGUF.
    pub(crate) name: String,
    /// Row length first, without trailing dimensions of 1 (ggml's `ggml_n_dims`).
    pub(crate) shape: Vec<u64>,
    /// The type it has before quantization.
    pub(crate) natural: GgmlType,
    /// Where its rows come from.
    pub(crate) rows: Rows,
}

/// Where the rows of a tensor come from.
#[derive(Clone, Debug)]
pub(crate) enum Rows {
    /// Source tensors, one after the other (the experts of a layer, or just one).
    Source {
        /// Names in the checkpoint.
        names: Vec<String>,
        /// How they lie there; none if they are not stored one by one and have to be decoded.
        dtype: Option<FloatType>,
        /// Weights in one row, and rows taken from each source tensor.
        row_len: usize,
        rows_each: usize,
        /// How the rows of each are reordered.
        order: RowOrder,
        /// Added to every weight.
        offset: f32,
    },
    /// Values that the configuration states.
    Constant(Vec<f32>),
}

/// The order of rows within one source tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    AsIs,
    /// Each head of `2 * half` rows: row `2i` comes from `i` and row `2i + 1` from `half + i`. transformers pairs the two
    /// halves of a head for rope, ggml's rope pairs neighbours (`LlamaModel.permute` in `convert_hf_to_gguf.py`).
    Interleave {
        half: usize,
    },
}

impl RowOrder {
    /// The source row of row `r`.
    pub(crate) fn source_row(self, r: usize) -> usize {
        match self {
            RowOrder::AsIs => r,
            RowOrder::Interleave { half } => {
                let (head, within) = (r / (2 * half), r % (2 * half));
                head * 2 * half + (within % 2) * half + within / 2
            }
        }
    }

    /// The row that the source row `r` becomes.
    pub(crate) fn target_row(self, r: usize) -> usize {
        match self {
            RowOrder::AsIs => r,
            RowOrder::Interleave { half } => {
                let (head, within) = (r / (2 * half), r % (2 * half));
                head * 2 * half + (within % half) * 2 + within / half
            }
        }
    }
}

impl Planned {
    /// Number of weights.
    pub(crate) fn len(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Plans all tensors, in llama.cpp's order. `embedding_rows` cuts rows off the token embedding that have no token.
///
/// # Errors
/// `Invalid` if a tensor is missing or has the wrong shape, `Unsupported` if one is left that nobody knows.
pub(crate) fn plan(
    model: &Model,
    weights: &dyn Dense,
    embedding_rows: Option<usize>,
) -> Result<Vec<Planned>> {
    let mut names = Names::new(model, weights);
    let mut planned = Vec::new();
    let hyper = &model.hyper;
    if let Some(p) = llama3_factors(hyper) {
        planned.push(p);
    }
    planned.extend(longrope_factors(hyper).into_iter().flatten());
    for rule in model.spec.tensors.iter().copied().flatten() {
        let layers = if rule.per_layer() { hyper.layers } else { 1 };
        for layer in 0..layers {
            planned.extend(names.find(model, rule, layer, embedding_rows)?);
        }
    }
    names.check_all_used()?;
    planned.sort_by(|a, b| (layer_of(&a.name), &a.name).cmp(&(layer_of(&b.name), &b.name)));
    Ok(planned)
}

/// llama.cpp sorts by layer, then by name; what belongs to no layer comes first (`weight_name_comparer`).
fn layer_of(name: &str) -> i64 {
    let digits = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
    digits.and_then(|d| d.parse().ok()).unwrap_or(-1)
}

/// The source tensors under the names that the rules use.
struct Names<'a> {
    weights: &'a dyn Dense,
    /// (name in the rules, name in the file), sorted.
    canonical: std::collections::BTreeMap<String, &'a str>,
    used: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    fn new(model: &Model, weights: &'a dyn Dense) -> Self {
        let names = weights.names().into_iter();
        let canonical = names.filter_map(|name| Some((model.spec.canonical(name)?, name))).collect();
        Names { weights, canonical, used: BTreeSet::new() }
    }

    fn take(&mut self, name: &str) -> Option<(&'a str, &'a [usize])> {
        let original = *self.canonical.get(name)?;
        self.used.insert(original);
        Some((original, self.weights.shape(original)?))
    }

    fn find(
        &mut self,
        model: &Model,
        rule: &TensorRule,
        layer: usize,
        embedding_rows: Option<usize>,
    ) -> Result<Option<Planned>> {
        let hyper = &model.hyper;
        let hf = rule.hf.replace("{}", &layer.to_string());
        let expected: Vec<usize> = rule.shape.iter().map(|dim| dim.size(hyper)).collect();
        let wanted: Vec<String> = match rule.usage {
            Use::Expert => (0..hyper.experts).map(|e| hf.replace("{e}", &e.to_string())).collect(),
            _ => vec![hf],
        };
        let mut found = Vec::with_capacity(wanted.len());
        let mut dtype = None;
        for name in &wanted {
            let Some((original, shape)) = self.take(name) else {
                let optional = rule.need == Need::Optional || rule.need == Need::UnlessTied && hyper.tied;
                if optional {
                    return Ok(None);
                }
                return Err(Error::new(Kind::Invalid, format!("tensor {name} is missing from the model"))
                    .hint("The download may be incomplete, or config.json belongs to another model."));
            };
            if shape != expected {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("tensor {original} has shape {shape:?}; config.json implies {expected:?}"),
                ));
            }
            let own = self.weights.float_type(original);
            if *dtype.get_or_insert(own) != own && self.weights.mapped().is_some() {
                let own = own.map_or("quantized", FloatType::name);
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("tensor {original} is {own}, other experts of its layer are not"),
                ));
            }
            found.push(original.to_owned());
        }
        let dtype = dtype.expect("a rule names at least one tensor");

        let natural = match (rule.usage, expected.len()) {
            (Use::Norm | Use::Router, _) | (_, 1) => GgmlType::F32,
            _ => dtype.map_or(GgmlType::F32, FloatType::ggml),
        };
        let dtype = dtype.filter(|_| self.weights.mapped().is_some());
        let order = match rule.usage {
            Use::Rope(heads) if model.spec.interleave_rope => {
                let heads = match heads {
                    Heads::Query => hyper.heads,
                    Heads::KeyValue => hyper.kv_heads,
                };
                RowOrder::Interleave { half: expected[0] / heads / 2 }
            }
            _ => RowOrder::AsIs,
        };
        let mut shape: Vec<u64> = expected.iter().rev().map(|d| *d as u64).collect();
        if let (Use::Embedding, Some(limit)) = (rule.usage, embedding_rows) {
            shape[1] = shape[1].min(limit as u64);
        }
        // The elements of a bias follow the rows of its matrix, so they count as rows of one weight.
        let row_len = if expected.len() == 1 { 1 } else { shape[0] as usize };
        let rows_each = shape.iter().product::<u64>() as usize / row_len;
        if rule.usage == Use::Expert {
            shape.push(found.len() as u64);
        }
        while shape.len() > 1 && shape.last() == Some(&1) {
            shape.pop();
        }
        let offset = if rule.usage == Use::Norm { model.spec.norm_offset } else { 0.0 };
        let name = rule.gguf.replace("{}", &layer.to_string());
        Ok(Some(Planned {
            name,
            shape,
            natural,
            rows: Rows::Source { names: found, dtype, row_len, rows_each, order, offset },
        }))
    }

    /// Nothing in the checkpoint may be left behind unnoticed.
    fn check_all_used(&self) -> Result<()> {
        let left: Vec<&str> =
            self.canonical.values().copied().filter(|name| !self.used.contains(name)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let shown = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let more = if left.len() > 5 { format!(" and {} more", left.len() - 5) } else { String::new() };
        Err(Error::new(
            Kind::Unsupported,
            format!("the model has tensors that its architecture does not: {shown}{more}"),
        )
        .hint(
            "config.json may name the wrong architecture, or the model is a variant that is not supported.",
        ))
    }
}

/// Llama 3.1's factors per frequency.
fn llama3_factors(h: &Hyper) -> Option<Planned> {
    Some(constant("rope_freqs.weight", llama3_rope::factors(&h.rope, h.head_dim)?))
}

/// Phi-3's factors for long and short contexts.
fn longrope_factors(h: &Hyper) -> Option<[Planned; 2]> {
    let RopeScaling::LongRope { short, long, .. } = &h.rope.scaling else { return None };
    let single = |list: &[f64]| list.iter().map(|f| *f as f32).collect();
    Some([
        constant("rope_factors_long.weight", single(long)),
        constant("rope_factors_short.weight", single(short)),
    ])
}

fn constant(name: &str, values: Vec<f32>) -> Planned {
    let shape = vec![values.len() as u64];
    Planned { name: name.into(), shape, natural: GgmlType::F32, rows: Rows::Constant(values) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaving_pairs_the_halves_of_each_head() {
        let order = RowOrder::Interleave { half: 3 };
        let rows: Vec<usize> = (0..12).map(|r| order.source_row(r)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert!((0..12).all(|r| order.target_row(order.source_row(r)) == r));
    }

    #[test]
    fn tensors_are_sorted_by_layer_then_name() {
        let mut names = ["blk.10.a", "blk.2.b", "output.weight", "blk.2.a", "token_embd.weight"];
        names.sort_by(|a, b| (layer_of(a), a).cmp(&(layer_of(b), b)));
        assert_eq!(names, ["output.weight", "token_embd.weight", "blk.2.a", "blk.2.b", "blk.10.a"]);
    }
}
