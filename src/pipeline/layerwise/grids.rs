//! The grid of each matrix: one for most, others where more or fewer bits are worth it.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde_json::{Value, json};

use super::Matrix;
use crate::error::{Error, Kind, Result};
use crate::format::packed::layers::joined;
use crate::quant::Grid;

/// The grid of each matrix.
#[derive(Clone, Debug)]
pub struct Grids {
    /// That of matrices which nothing else is said of.
    pub base: Grid,
    /// Those of matrices by name, for example `model.layers.0.mlp.down_proj`.
    pub named: BTreeMap<String, Grid>,
    /// Those of matrices whose name matches a pattern; the first that matches counts, after the names.
    pub rules: Vec<(Regex, Grid)>,
}

impl Grids {
    /// One grid for all.
    pub fn uniform(base: Grid) -> Grids {
        Grids { base, named: BTreeMap::new(), rules: Vec::new() }
    }

    /// The grid of a matrix.
    pub fn of(&self, name: &str) -> Grid {
        let matched = || self.rules.iter().find(|(pattern, _)| pattern.is_match(name)).map(|(_, grid)| *grid);
        self.named.get(name).copied().or_else(matched).unwrap_or(self.base)
    }

    /// Whether all matrices have one grid.
    pub fn is_uniform(&self) -> bool {
        self.named.values().chain(self.rules.iter().map(|(_, grid)| grid)).all(|grid| *grid == self.base)
    }

    /// What they say of matrices that have another grid than most, for the identity of a job.
    pub(super) fn identity(&self) -> Value {
        let grid =
            |grid: &Grid| json!([grid.bits, i64::try_from(grid.group_size).unwrap_or(-1), grid.symmetric]);
        let named: Vec<Value> = self.named.iter().map(|(name, g)| json!([name, grid(g)])).collect();
        let rules: Vec<Value> = self.rules.iter().map(|(rule, g)| json!([rule.as_str(), grid(g)])).collect();
        json!([named, rules])
    }

    /// Checks that matrices which loaders join have one grid, and that every pattern and name is of some use.
    ///
    /// # Errors
    /// `Usage`, naming the matrices or the pattern.
    pub(super) fn check(&self, matrices: &[Vec<Matrix>]) -> Result<()> {
        let all: BTreeSet<&str> = matrices.iter().flatten().map(|m| m.name.as_str()).collect();
        if let Some(unknown) = self.named.keys().find(|name| !all.contains(name.as_str())) {
            return Err(Error::new(Kind::Usage, format!("the model has no linear layer {unknown}"))
                .hint("The bits were chosen for another model."));
        }
        if let Some((rule, _)) =
            self.rules.iter().find(|(rule, _)| !all.iter().any(|name| rule.is_match(name)))
        {
            return Err(Error::new(Kind::Usage, format!("no linear layer of the model matches '{rule}'"))
                .hint("Names are like model.layers.0.mlp.down_proj; a pattern may match any part of them."));
        }
        let mut firsts: BTreeMap<String, &str> = BTreeMap::new();
        for name in matrices.iter().flatten().map(|m| m.name.as_str()) {
            let first = firsts.entry(joined(name)).or_insert(name);
            if self.of(name) != self.of(first) {
                return Err(Error::new(
                    Kind::Usage,
                    format!("{first} and {name} are to have different grids, but loaders join them"),
                )
                .hint("Give query, key and value the same bits and group size, so gate and up, so all experts of a layer."));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::decoder::Input;

    const BASE: Grid = Grid { bits: 3, group_size: 128, symmetric: true };
    const MORE: Grid = Grid { bits: 4, group_size: 64, symmetric: true };

    fn matrices(names: &[&str]) -> Vec<Vec<Matrix>> {
        let matrix = |name: &&str| Matrix {
            name: (*name).to_owned(),
            stem: "attn_q",
            expert: 0,
            shape: [32, 32],
            input: Input::Attention,
        };
        vec![names.iter().map(matrix).collect()]
    }

    #[test]
    fn names_come_before_patterns_and_patterns_before_the_rest() {
        let mut grids = Grids::uniform(BASE);
        assert!(grids.is_uniform());
        grids.rules.push((Regex::new("down").unwrap(), MORE));
        grids.named.insert("l.1.down_proj".into(), BASE);
        assert_eq!((grids.of("l.0.down_proj"), grids.of("l.1.down_proj")), (MORE, BASE));
        assert_eq!(grids.of("l.0.o_proj"), BASE);
        assert!(!grids.is_uniform());
    }

    #[test]
    fn what_loaders_join_must_be_alike() {
        let all = matrices(&["l.0.q_proj", "l.0.k_proj", "l.0.o_proj"]);
        let with = |pattern: &str| Grids {
            rules: vec![(Regex::new(pattern).unwrap(), MORE)],
            ..Grids::uniform(BASE)
        };
        assert!(with("[qk]_proj").check(&all).is_ok());
        let e = with("q_proj").check(&all).unwrap_err();
        assert_eq!(e.kind(), Kind::Usage);
        assert!(e.to_string().contains("l.0.k_proj"), "{e}");
        let experts = matrices(&["l.0.mlp.experts.0.w1", "l.0.mlp.experts.0.w3", "l.0.mlp.experts.1.w1"]);
        assert!(with("experts").check(&experts).is_ok());
        assert!(with("w1").check(&experts).unwrap_err().to_string().contains("w3"));
        assert!(with(r"experts\.0").check(&experts).unwrap_err().to_string().contains("experts.1"));
        assert!(with("up_proj").check(&all).unwrap_err().to_string().contains("up_proj"));
        let mut grids = Grids::uniform(BASE);
        grids.named.insert("l.9.o_proj".into(), MORE);
        assert!(grids.check(&all).unwrap_err().to_string().contains("l.9.o_proj"));
    }
}
