//! What a checkpoint will hold: which matrices are quantized, and why others are not.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::{Grids, Matrix};
use crate::arch::Model;
use crate::arch::spec::Use;
use crate::format::packed::layers::fused;
use crate::format::packed::{Container, Entry};
use crate::source::dense::Dense;
use crate::source::safetensors::FloatType;

/// A matrix that stays in 16 bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Name of the linear layer in the checkpoint.
    pub name: String,
    /// Why it is not quantized.
    pub reason: String,
}

/// Divides the matrices of all layers into those that are quantized, which stay, and those that are not, which are returned.
///
/// Matrices that loaders join into one are treated alike, so that one which cannot be quantized keeps its companions from it.
pub(super) fn leave_out(
    matrices: &mut [Vec<Matrix>],
    container: &Container,
    grids: &Grids,
    skip: &[Regex],
) -> Vec<LeftOut> {
    let layout = container.layout();
    let mut reasons: BTreeMap<String, String> = BTreeMap::new();
    for matrix in matrices.iter().flatten() {
        let skipped = skip.iter().find(|pattern| pattern.is_match(&matrix.name));
        let reason = match skipped {
            Some(pattern) => Some(format!("--skip {pattern}")),
            None => layout.refuses(matrix.shape, grids.of(&matrix.name)),
        };
        reasons.extend(reason.map(|reason| (matrix.name.clone(), reason)));
    }
    let all: BTreeSet<&str> = matrices.iter().flatten().map(|m| m.name.as_str()).collect();
    let mut joined = BTreeMap::new();
    for name in reasons.keys() {
        for other in fused(name).into_iter().filter(|o| all.contains(o.as_str()) && !reasons.contains_key(o))
        {
            joined.insert(other, format!("loaders join it with {name}"));
        }
    }
    reasons.extend(joined);
    for layer in matrices {
        layer.retain(|matrix| !reasons.contains_key(&matrix.name));
    }
    reasons.into_iter().map(|(name, reason)| LeftOut { name, reason }).collect()
}

/// Every tensor of the checkpoint, in the order of the original's names; those of one layer stay together.
pub(super) fn entries(
    model: &Model,
    weights: &dyn Dense,
    matrices: &[Vec<Matrix>],
    left_out: &[LeftOut],
    grids: &Grids,
) -> Vec<Entry> {
    let quantized: BTreeMap<String, &Matrix> = matrices.iter().flatten().map(|m| (m.tensor(), m)).collect();
    let left_out: BTreeSet<&str> = left_out.iter().map(|l| l.name.as_str()).collect();
    let names: BTreeSet<&str> = weights.names().into_iter().collect();
    let mut entries = Vec::with_capacity(names.len());
    for name in &names {
        let linear = name.rsplit_once('.').map_or(*name, |(linear, _)| linear);
        if let Some(matrix) = quantized.get(*name) {
            let bias = names.contains(format!("{linear}.bias").as_str());
            let grid = grids.of(&matrix.name);
            entries.push(Entry::Linear { name: matrix.name.clone(), shape: matrix.shape, grid, bias });
            continue;
        }
        // A bias goes with its matrix; a tied head is the embedding, which is there already.
        let with_matrix = name.ends_with(".bias") && quantized.contains_key(&format!("{linear}.weight"));
        let canonical = model.spec.canonical(name);
        let tied = model.hyper.tied && canonical.as_deref() == Some("lm_head.weight");
        if with_matrix || tied {
            continue;
        }
        let shape = weights.shape(name).unwrap_or_default().to_vec();
        let left_out = name.ends_with(".weight") && (left_out.contains(linear) || is_router(model, name));
        entries.push(Entry::Dense { name: (*name).to_owned(), dtype: FloatType::F16, shape, left_out });
    }
    entries
}

/// Whether this is the router of a mixture of experts, which every loader keeps as it is but might look for packed.
fn is_router(model: &Model, name: &str) -> bool {
    let Some(canonical) = model.spec.canonical(name) else { return false };
    let routers = model.spec.tensors.iter().copied().flatten().filter(|rule| rule.usage == Use::Router);
    routers.into_iter().any(|rule| {
        let ends = rule.hf.split_once("{}").unwrap_or((rule.hf, ""));
        canonical.starts_with(ends.0) && canonical.ends_with(ends.1)
    })
}
