//! Matrices that are quantized alike.

use regex::Regex;

use crate::format::packed::layers::joined;
use crate::pipeline::layerwise::Matrix;

/// Matrices that must have one precision, because the format or its loaders hold them as one.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// What loaders join them to, or the name of the one.
    pub(super) name: String,
    /// Their layer, from 0.
    pub(super) layer: usize,
    /// In the order in which they are computed.
    pub(super) matrices: Vec<Matrix>,
}

impl Unit {
    /// The units of linear layers in GPTQ and AWQ: vLLM joins query, key and value, gate and up, and all experts of a layer.
    /// Those that a pattern of `skip` matches are left out, with all that is joined to them.
    pub(super) fn packed(matrices: &[Vec<Matrix>], skip: &[Regex]) -> Vec<Unit> {
        let mut units = group(matrices, |_, matrix| joined(&matrix.name));
        units.retain(|unit| !unit.matrices.iter().any(|m| skip.iter().any(|skip| skip.is_match(&m.name))));
        units
    }

    /// The units of GGUF: its tensors, of which one holds all experts of a layer.
    pub(super) fn tensors(matrices: &[Vec<Matrix>]) -> Vec<Unit> {
        group(matrices, |layer, matrix| format!("blk.{layer}.{}.weight", matrix.stem))
    }

    /// Number of their weights.
    pub(super) fn weights(&self) -> u64 {
        self.matrices.iter().map(|matrix| matrix.weights() as u64).sum()
    }
}

fn group(matrices: &[Vec<Matrix>], name: impl Fn(usize, &Matrix) -> String) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for (layer, matrices) in matrices.iter().enumerate() {
        let first = units.len();
        for matrix in matrices {
            let name = name(layer, matrix);
            match units[first..].iter_mut().find(|unit| unit.name == name) {
                Some(unit) => unit.matrices.push(matrix.clone()),
                None => units.push(Unit { name, layer, matrices: vec![matrix.clone()] }),
            }
        }
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::decoder::Input;

    fn matrix(name: &str, stem: &'static str) -> Matrix {
        Matrix { name: name.into(), stem, expert: 0, shape: [2, 3], input: Input::Attention }
    }

    #[test]
    fn units_are_what_loaders_hold_as_one() {
        let layer = |i: usize| {
            ["q_proj", "k_proj", "o_proj"]
                .iter()
                .zip(["attn_q", "attn_k", "attn_output"])
                .map(|(leaf, stem)| matrix(&format!("model.layers.{i}.self_attn.{leaf}"), stem))
                .collect::<Vec<_>>()
        };
        let matrices = [layer(0), layer(1)];
        let names =
            |units: &[Unit]| units.iter().map(|u| (u.layer, u.name.clone(), u.weights())).collect::<Vec<_>>();
        let packed = names(&Unit::packed(&matrices, &[]));
        assert_eq!(packed.len(), 4);
        assert_eq!(packed[2], (1, "model.layers.1.self_attn.qkv_proj".into(), 12));
        let skip = [Regex::new(r"layers\.1.*k_proj").unwrap()];
        assert_eq!(names(&Unit::packed(&matrices, &skip)).len(), 3);
        let tensors = names(&Unit::tensors(&matrices));
        assert_eq!((tensors.len(), tensors[1].clone()), (6, (0, "blk.0.attn_k.weight".into(), 6)));
    }
}
