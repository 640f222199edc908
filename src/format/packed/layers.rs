//! Which linear layers of a checkpoint are quantized and which are left as they are, in the words of each loader.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Kind, Result};
use crate::quant::Grid;

/// Layers that loaders may join into one, which must therefore be quantized alike.
const FUSED: [(&[&str], &str); 2] =
    [(&["q_proj", "k_proj", "v_proj"], "qkv_proj"), (&["gate_proj", "up_proj"], "gate_up_proj")];

/// The linear layers of a checkpoint by name, for example `model.layers.0.self_attn.q_proj`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers {
    quantized: BTreeMap<String, Grid>,
    left_out: BTreeSet<String>,
}

impl Layers {
    /// Takes the layers that are quantized, with their grids, and those that are not.
    ///
    /// # Errors
    /// `Invalid` if layers that loaders join are not treated alike; see [`fused`].
    pub fn new(
        quantized: impl IntoIterator<Item = (String, Grid)>,
        left_out: impl IntoIterator<Item = String>,
    ) -> Result<Layers> {
        let layers =
            Layers { quantized: quantized.into_iter().collect(), left_out: left_out.into_iter().collect() };
        let of = |name: &str| layers.quantized.get(name);
        let known: BTreeSet<&str> = layers.all().collect();
        for name in layers.all() {
            for other in fused(name).into_iter().filter(|other| known.contains(other.as_str())) {
                if of(name) != of(&other) {
                    return Err(Error::new(
                        Kind::Invalid,
                        format!("{name} and {other} are not quantized alike, but loaders join them"),
                    ));
                }
            }
        }
        Ok(layers)
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        self.quantized.keys().chain(&self.left_out).map(String::as_str)
    }

    /// Whether the layer is quantized.
    pub fn quantizes(&self, name: &str) -> bool {
        self.quantized.contains_key(name)
    }

    /// Whether there are layers that are not quantized.
    pub fn has_left_out(&self) -> bool {
        !self.left_out.is_empty()
    }

    /// The names of those that are not quantized, and of what loaders join them to.
    pub fn left_out(&self) -> Vec<String> {
        let mut names = self.left_out.clone();
        names.extend(self.joined(&self.left_out));
        names.into_iter().collect()
    }

    /// The same as patterns for Python's `re.match`.
    pub fn left_out_patterns(&self) -> Vec<String> {
        self.patterns(self.left_out())
    }

    /// Layers with another grid than `base`: patterns for each grid.
    pub fn exceptions(&self, base: Grid) -> Vec<(Grid, Vec<String>)> {
        let mut by_grid: BTreeMap<(u32, usize, bool), BTreeSet<String>> = BTreeMap::new();
        for (name, grid) in self.quantized.iter().filter(|(_, grid)| **grid != base) {
            let key = (grid.bits, grid.group_size, grid.symmetric);
            by_grid.entry(key).or_default().insert(name.clone());
        }
        by_grid
            .into_iter()
            .map(|((bits, group_size, symmetric), mut names)| {
                names.extend(self.joined(&names));
                (Grid { bits, group_size, symmetric }, self.patterns(names.into_iter().collect()))
            })
            .collect()
    }

    /// The quantized layers as optimum and vLLM know them: by what follows the number of the block if all blocks are alike,
    /// else by name.
    pub fn quantized_modules(&self) -> Vec<String> {
        let suffix = |name: &str| split(name).map(|(_, _, suffix)| suffix.to_owned());
        let quantized: BTreeSet<Option<String>> = self.quantized.keys().map(|name| suffix(name)).collect();
        let alike = self.left_out.iter().all(|name| {
            let suffix = suffix(name);
            suffix.is_none() || !quantized.contains(&suffix)
        });
        if alike && !quantized.contains(&None) {
            return quantized.into_iter().flatten().collect();
        }
        self.quantized.keys().cloned().collect()
    }

    /// The names of what loaders join, if all of its parts are among `names`.
    fn joined(&self, names: &BTreeSet<String>) -> BTreeSet<String> {
        // The experts of a block are one layer to vLLM.
        let experts = |name: &str| Some(format!("{}.experts", name.split_once(".experts.")?.0));
        let partial: BTreeSet<String> =
            self.all().filter(|name| !names.contains(*name)).filter_map(experts).collect();
        let mut joined: BTreeSet<String> = names.iter().filter_map(|name| experts(name)).collect();
        joined.retain(|name| !partial.contains(name));
        for name in names {
            let Some((parent, leaf)) = name.rsplit_once('.') else { continue };
            for (parts, whole) in FUSED {
                let complete = || parts.iter().all(|part| names.contains(&format!("{parent}.{part}")));
                if parts.contains(&leaf) && !parent.contains(".experts.") && complete() {
                    joined.insert(format!("{parent}.{whole}"));
                }
            }
        }
        joined
    }

    /// One pattern for each name, with the numbers of blocks put together.
    fn patterns(&self, names: Vec<String>) -> Vec<String> {
        let mut blocks: BTreeMap<(&str, &str), BTreeSet<usize>> = BTreeMap::new();
        let mut patterns = BTreeSet::new();
        for name in &names {
            match split(name) {
                Some((prefix, block, suffix)) => {
                    blocks.entry((prefix, suffix)).or_default().insert(block);
                }
                None => {
                    patterns.insert(format!("^{}$", regex::escape(name)));
                }
            }
        }
        let all: BTreeSet<usize> = self.all().filter_map(|name| Some(split(name)?.1)).collect();
        for ((prefix, suffix), numbers) in blocks {
            let numbers = match numbers {
                numbers if numbers == all => r"\d+".to_owned(),
                numbers => {
                    let list: Vec<String> = numbers.iter().map(usize::to_string).collect();
                    format!("(?:{})", list.join("|"))
                }
            };
            let (prefix, suffix) = (regex::escape(prefix), regex::escape(suffix));
            patterns.insert(format!(r"^{prefix}\.{numbers}\.{suffix}$"));
        }
        patterns.into_iter().collect()
    }
}

/// The other layers that loaders may join with this one.
pub fn fused(name: &str) -> Vec<String> {
    let Some((parent, leaf)) = name.rsplit_once('.') else { return Vec::new() };
    let Some((parts, _)) = FUSED.iter().find(|(parts, _)| parts.contains(&leaf)) else { return Vec::new() };
    parts.iter().filter(|part| **part != leaf).map(|part| format!("{parent}.{part}")).collect()
}

/// What loaders join this layer to: `self_attn.qkv_proj` of query, key and value, `mlp.gate_up_proj` of gate and up, and
/// `mlp.experts` of everything that belongs to an expert. The layer's own name if they leave it alone.
pub fn joined(name: &str) -> String {
    if let Some((parent, _)) = name.split_once(".experts.") {
        return format!("{parent}.experts");
    }
    let Some((parent, leaf)) = name.rsplit_once('.') else { return name.to_owned() };
    let whole = FUSED.iter().find(|(parts, _)| parts.contains(&leaf)).map(|(_, whole)| *whole);
    whole.map_or_else(|| name.to_owned(), |whole| format!("{parent}.{whole}"))
}

/// A name as what comes before its block's number, the number and what comes after it.
fn split(name: &str) -> Option<(&str, usize, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if let (Ok(block), true) = (part.parse(), start > 0 && end < name.len()) {
            return Some((&name[..start - 1], block, &name[end + 1..]));
        }
        start = end + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { bits: 4, group_size: 128, symmetric: true };

    fn layers(quantized: &[&str], left_out: &[&str]) -> Result<Layers> {
        let quantized = quantized.iter().map(|name| (name.to_string(), GRID));
        Layers::new(quantized, left_out.iter().map(|name| name.to_string()))
    }

    #[test]
    fn what_loaders_join_is_treated_alike() {
        let e = layers(&["model.layers.0.self_attn.q_proj"], &["model.layers.0.self_attn.k_proj"]);
        let e = e.unwrap_err().to_string();
        assert!(e.contains("q_proj") && e.contains("k_proj"), "{e}");
        assert!(layers(&["model.layers.0.self_attn.q_proj"], &["model.layers.1.self_attn.k_proj"]).is_ok());
    }

    #[test]
    fn left_out_layers_are_listed_with_what_they_are_joined_to() {
        let found = layers(
            &["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"],
            &[
                "model.layers.1.self_attn.q_proj",
                "model.layers.1.self_attn.k_proj",
                "model.layers.1.self_attn.v_proj",
            ],
        )
        .unwrap();
        assert_eq!(
            found.left_out_patterns(),
            ["k_proj", "q_proj", "qkv_proj", "v_proj"]
                .map(|leaf| format!(r"^model\.layers\.(?:1)\.self_attn\.{leaf}$"))
        );
        assert_eq!(found.quantized_modules(), ["mlp.down_proj"]);
    }

    #[test]
    fn layers_that_differ_between_blocks_are_listed_by_name() {
        let found = layers(&["model.layers.0.mlp.down_proj"], &["model.layers.1.mlp.down_proj"]).unwrap();
        assert_eq!(found.quantized_modules(), ["model.layers.0.mlp.down_proj"]);
        let every =
            layers(&["model.layers.0.mlp.up_proj"], &["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]);
        assert_eq!(every.unwrap().left_out_patterns(), [r"^model\.layers\.\d+\.mlp\.gate$"]);
    }

    #[test]
    fn experts_are_one_layer_to_vllm() {
        let expert = |i: usize, leaf: &str| format!("model.layers.0.mlp.experts.{i}.{leaf}");
        let names: Vec<String> =
            (0..2).flat_map(|i| ["gate_proj", "up_proj"].map(|leaf| expert(i, leaf))).collect();
        let found = Layers::new([], names.clone()).unwrap();
        assert!(found.left_out().contains(&"model.layers.0.mlp.experts".to_owned()));
        let quantized = [(expert(2, "up_proj"), GRID)];
        let found = Layers::new(quantized, names).unwrap();
        assert!(!found.left_out().contains(&"model.layers.0.mlp.experts".to_owned()));
    }

    #[test]
    fn layers_that_loaders_join_have_one_name() {
        for (name, whole) in [
            ("model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.qkv_proj"),
            ("model.layers.3.mlp.up_proj", "model.layers.3.mlp.gate_up_proj"),
            ("model.layers.3.mlp.down_proj", "model.layers.3.mlp.down_proj"),
            ("model.layers.0.mlp.experts.7.down_proj", "model.layers.0.mlp.experts"),
            ("lm_head", "lm_head"),
        ] {
            assert_eq!(joined(name), whole);
        }
    }

    #[test]
    fn exceptions_name_what_loaders_join_too() {
        let eight = Grid { bits: 8, ..GRID };
        let name = |leaf: &str| format!("model.layers.0.self_attn.{leaf}");
        let quantized = ["q_proj", "k_proj", "v_proj"].map(|leaf| (name(leaf), eight));
        let rest = ("model.layers.1.mlp.down_proj".to_owned(), GRID);
        let found = Layers::new(quantized.into_iter().chain([rest]), []).unwrap();
        let patterns: Vec<String> = ["k_proj", "q_proj", "qkv_proj", "v_proj"]
            .map(|leaf| format!(r"^model\.layers\.(?:0)\.self_attn\.{leaf}$"))
            .into();
        assert_eq!(found.exceptions(GRID), [(eight, patterns)]);
    }

    #[test]
    fn another_grid_is_an_exception() {
        let eight = Grid { bits: 8, ..GRID };
        let quantized = [
            ("model.layers.0.mlp.down_proj".to_owned(), eight),
            ("model.layers.1.mlp.down_proj".into(), GRID),
        ];
        let found = Layers::new(quantized, []).unwrap();
        assert_eq!(
            found.exceptions(GRID),
            [(eight, vec![r"^model\.layers\.(?:0)\.mlp\.down_proj$".to_owned()])]
        );
    }
}
